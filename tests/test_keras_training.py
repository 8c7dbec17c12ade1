"""Training with Keras: each backend in a process of its own, what is refused, and the real images."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import yaml

from labelsmooth._errors import DataError
from labelsmooth.cli import main
from labelsmooth.training import CLASSIC, DIGITS, FAST, train
from labelsmooth.training.frameworks import KERAS_BACKENDS, use_keras
from labelsmooth.training.run import Settings

CASES = "tests/keras_training_cases.py"


def processed(backend, *arguments):
    """What a Python process says in which Keras runs on `backend`."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])  # XLA takes half a minute: JAX is in test_everything_on
def test_on(backend):
    assert " passed" in processed(backend, "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", CASES)


@pytest.mark.slow
@pytest.mark.parametrize("backend", KERAS_BACKENDS)
def test_everything_on(backend):
    assert " passed" in processed(backend, "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow", CASES)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["labels", "loss"])
@pytest.mark.parametrize("backend", KERAS_BACKENDS)
def test_the_real_images_are_trained_on(backend, method, cifar10_copy, tmp_path):
    for split, count in (("train", 700), ("test", 100)):
        table = pq.read_table(cifar10_copy / f"{split}.parquet").slice(0, count)
        pq.write_table(table, tmp_path / f"{split}.parquet")
    output = processed(
        backend, "labelsmooth", "train", str(tmp_path), "--framework", "keras", "--keras-backend", backend, "--method",
        method, "--epochs", "2", "--lr", ".05", "--plot", str(tmp_path / "curves.svg"), "--out", str(tmp_path / "runs"),
        "--json",
    )  # fmt: skip
    summary = json.loads(output)
    assert (summary["model"], summary["parameters"], summary["epochs"]) == ("minigooglenet", 1_652_826, 2)
    rows = (tmp_path / "runs").glob("*/metrics.csv")
    losses = [float(line.split(",")[3]) for line in next(iter(rows)).read_text().splitlines()[1:]]
    assert losses[1] < losses[0] < 2.6
    assert (tmp_path / "curves.svg").is_file()


@pytest.mark.slow
def test_pytorch_compiles_after_tensorflow_was_loaded():
    code = "from labelsmooth.training.frameworks import use_keras; use_keras('tensorflow'); import keras, torch._dynamo"
    environment = {**os.environ, "KERAS_BACKEND": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0


# What is refused, before any data are read.


def settings(recipe=CLASSIC, device="auto", deterministic=False, **options):
    return Settings("digits", recipe, 0.1, 0, None, None, None, device, deterministic, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"framework": "kears"}, "framework must be one of 'torch', 'keras'; got 'kears'; did you mean keras?"),
        ({"framework": "pytorch"}, "framework must be one of 'torch', 'keras'; got 'pytorch'; did you mean torch?"),
        ({"framework": "jax"}, "got 'jax'; did you mean keras with keras_backend jax?"),
        ({"framework": 3}, "framework must be one of 'torch', 'keras'; got 3"),
        ({"keras_backend": "jax"}, "keras_backend must come with framework 'keras'; got 'jax'"),
        ({"framework": "keras", "keras_backend": "numpy"}, "keras_backend must be one of 'tensorflow', 'jax', 'torch'"),
        ({"framework": "keras", "device": "cuda"}, "device must be auto (Keras' backend chooses it) with framework keras; got 'cuda'"),
        ({"framework": "keras", "deterministic": True}, "deterministic must be false with framework keras; got True"),
        ({"framework": "keras", "compile": True}, "compile must be false (Keras compiles as its backend can) with"),
        ({"framework": "keras", "recipe": FAST}, "model must be minigooglenet or small with framework keras; got 'fast'"),
        ({"framework": "keras", "recipe": DIGITS.changed(precision="bfloat16")}, "precision must be float32 or auto with framework keras; got 'bfloat16'"),
        ({"framework": "keras", "recipe": DIGITS.changed(precision="float64")}, "precision must be float32 or auto"),
        ({"framework": "keras", "recipe": DIGITS.changed(optimizer="muon", weight_decay=0.0, model="small")}, "optimizer must be sgd with"),
        ({"framework": "keras", "recipe": DIGITS.changed(small_share=0.1)}, "small_share must be 0 with framework keras; got 0.1"),
    ],
)  # fmt: skip
def test_what_a_framework_cannot_do_is_an_error(options, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        settings(**options)
    assert message in str(error.value)


def test_keras_does_what_is_false_anyway():
    assert settings(framework="keras", compile=False, keras_backend="jax").framework == "keras"


def test_the_command_refuses_before_it_reads_data(capsys, tmp_path):
    for words, code, message in (
        (["--framework", "kears"], 2, "did you mean keras?"),
        (["--framework", "keras", "--recipe", "fast"], 2, "got 'fast'"),
        (["--framework", "keras", "--keras-backend", "theano"], 2, "theano"),
        (["--keras-backend", "jax"], 2, "keras_backend must come with framework 'keras'"),
    ):
        assert main(["train", str(tmp_path / "nowhere"), "--out", str(tmp_path), *words]) == code
        assert message in capsys.readouterr().err


@pytest.fixture
def no_keras(monkeypatch):
    """As in a process that has not imported Keras, with nothing in its environment."""
    monkeypatch.setenv("KERAS_BACKEND", "")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("keras", "jax", "tensorflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return monkeypatch


def missing(monkeypatch, *names):
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in names else original(name, *a))


def test_the_backend_is_chosen_before_keras_is_imported(no_keras):
    assert use_keras("jax") == os.environ["KERAS_BACKEND"] == "jax"
    assert use_keras(None) == "jax"  # as the environment says
    with pytest.raises(ValueError, match=r"keras_backend must be 'jax', as KERAS_BACKEND in the environment says \(unset that, or set it to torch\); got 'torch'"):  # fmt: skip
        use_keras("torch")
    os.environ["KERAS_BACKEND"] = "openvino"
    with pytest.raises(ValueError, match=r"KERAS_BACKEND must be one of 'tensorflow', 'jax', 'torch'; got 'openvino'"):
        use_keras(None)
    os.environ["KERAS_BACKEND"] = ""
    assert use_keras(None) == "tensorflow"
    assert "keras" not in sys.modules


def test_what_is_installed_is_the_default(no_keras):
    missing(no_keras, "tensorflow")
    assert use_keras(None) == "jax"
    os.environ["KERAS_BACKEND"] = ""
    missing(no_keras, "tensorflow", "jax")
    assert use_keras(None) == "torch"


def test_a_loaded_keras_cannot_change_its_backend(no_keras):
    no_keras.setitem(sys.modules, "keras", SimpleNamespace(backend=SimpleNamespace(backend=lambda: "jax")))
    assert use_keras(None) == use_keras("jax") == "jax"
    with pytest.raises(ValueError, match=r"keras_backend must be 'jax', with which Keras is loaded in this process already \(take another process\); got 'torch'"):  # fmt: skip
        use_keras("torch")


def test_what_is_not_installed_is_named_with_its_pip_line(no_keras, capsys, tmp_path):
    missing(no_keras, "jax")
    command = ["train", "digits", "--out", str(tmp_path), "--framework", "keras"]
    assert main([*command, "--keras-backend", "jax"]) == 6
    assert capsys.readouterr().err == "labelsmooth: this command needs jax: pip install jax\n"
    with pytest.raises(ModuleNotFoundError, match="keras_backend jax needs jax: pip install jax"):
        train("digits", framework="keras", keras_backend="jax", out=tmp_path)
    missing(no_keras, "keras")
    assert main([*command, "--keras-backend", "torch"]) == 6
    assert "this command needs keras: pip install 'labelsmooth[keras]'" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError, match=r"framework keras needs Keras 3: pip install 'labelsmooth\[keras\]'"):
        train("digits", framework="keras", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_config_names_the_framework(no_keras, tmp_path, capsys):
    missing(no_keras, "jax")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"data": "digits", "framework": "keras", "keras_backend": "jax"}))
    assert main(["train", "--config", str(config), "--out", str(tmp_path)]) == 6
    assert "pip install jax" in capsys.readouterr().err
    assert main(["train", "--config", str(config), "--framework", "torch", "--out", str(tmp_path)]) == 2
    assert "keras_backend must come with framework 'keras'; got 'jax'" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_pytorch_says_so(tmp_path):
    result = train("digits", epochs=0.1, batch_size=64, out=tmp_path)
    assert (result.summary["framework"], result.summary["keras_backend"]) == ("torch", None)
    config = result.folder / "config.yaml"
    old = "".join(
        line for line in config.read_text().splitlines(True) if "framework" not in line and "keras" not in line
    )
    config.write_text(old)  # of an older version
    from labelsmooth.training.run import RunFolder

    assert RunFolder.open(result.folder).read_settings().framework == "torch"
    config.write_text(old + "framework: torch\nkeras_backend: jax\n")
    with pytest.raises(DataError, match=r"config.yaml is damaged \(keras_backend must come with framework 'keras'"):
        RunFolder.open(result.folder).read_settings()
