"""Every example runs as a user starts it, and the numbers that it prints are right."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labelsmooth.targets import explanation

EXAMPLES = Path(__file__).parents[1] / "examples"
NUMBER = r"([0-9][0-9.]*(?:e[+-]?[0-9]+)?)"


def run(*names, timeout=300, **environment):
    """What the examples print, one after the other in one process of their own."""
    code = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path, run_name='__main__')"
    result = subprocess.run(
        [sys.executable, "-c", code, *(str(EXAMPLES / f"{name}.py") for name in names)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONIOENCODING": "utf-8"}
        | environment,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def numbers(text, *patterns):
    """The numbers of the one line that each pattern finds; `#` in it stands for a number."""
    found = []
    for pattern in patterns:
        match = re.search(pattern.replace("#", NUMBER), text)
        assert match, f"{pattern!r} is not in\n{text}"
        found += [float(value) for value in match.groups()]
    return found


def test_a_hand_written_lsr_is_replaced_in_one_line():
    text = run("torch_lsr")
    assert re.search(r"all 87 steps", text)
    assert max(numbers(text, "largest difference of the loss #")) <= 1e-9
    for reduction in ("none", "sum", "mean"):
        loss, gradient = numbers(text, rf"reduction {reduction} *: loss differs by # of itself, gradient by #")
        assert loss <= 1e-12
        assert gradient <= 1e-12
    losses = re.findall(r"labelsmooth ([0-9.]+)", text)
    assert float(losses[-1]) < 0.5 * float(losses[0])  # it has trained


def test_a_class_prior_leaves_the_mean_prediction_at_the_frequency():
    text = run("torch_prior")
    distances = numbers(text, "uniform u: #", "u = frequency: #")
    assert max(distances) <= 1e-6
    rows = [line.split() for line in text.splitlines() if re.match(r" +\d ", line)]
    assert [int(row[0]) for row in rows] == list(range(10))
    for _, count, frequency, uniform, prior in rows:
        share = int(count) / 331
        assert [float(frequency), float(uniform), float(prior)] == pytest.approx(
            [share, 0.8 * share + 0.02, share], abs=6e-5
        )


def test_hugging_face_accumulated_gradients_are_those_of_the_large_batch():
    text = run("huggingface_trainer", HF_HUB_OFFLINE="1")
    right, wrong = numbers(text, "against 4 times 2: largest difference #", "mean of means: largest difference #")
    assert right <= 1e-12
    assert wrong >= 1e-3
    evaluation, nll = numbers(text, "evaluation loss #, the model's own NLL #")
    assert evaluation == pytest.approx(nll, abs=2e-6)  # shifted once, padding ignored, not smoothed


def test_a_lightning_module_validates_on_hard_labels():
    text = run("lightning_module")
    loss, nll, accuracy = numbers(text, "smoothed training loss #", "validation NLL on hard labels #, accuracy #")
    assert loss > explanation(0.1, 10).entropy_floor
    assert nll < 0.5
    assert accuracy > 0.9


def test_keras_with_both_methods():
    text = run("keras_method1", "keras_method2", KERAS_BACKEND="tensorflow")  # together: TensorFlow's import takes long
    assert "[0.01 0.01 0.91 0.01 0.01 0.01 0.01 0.01 0.01 0.01]" in text
    first, second = numbers(text, "method 1 #, method 2 #")
    assert first == pytest.approx(second, abs=2e-6)
    for line in ("smoothed test loss", "test NLL"):
        ours, reference = numbers(text, f"{line}: Keras #, the float64 reference #")
        assert ours == pytest.approx(reference, abs=2e-6)
    losses = re.findall(r"smoothed training loss ([0-9.]+)", text)
    figures = re.findall(r"test NLL on hard labels ([0-9.]+), test accuracy ([0-9.]+)", text)
    assert len(losses) == len(figures) == 2
    assert min(float(loss) for loss in losses) > explanation(0.1, 10).entropy_floor
    assert all(float(nll) < 0.5 and float(accuracy) > 0.9 for nll, accuracy in figures)
    assert "loaded: smoothed_crossentropy, ε=0.1" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compare_sklearn", "compare_text", "compare_keras"])
def test_comparisons(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = run(name, KERAS_BACKEND="torch")
    assert "ε = 0" in text
    assert re.search(r"helps|hurts|equivalent|inconclusive", text)


def test_every_example_is_tested():
    source = Path(__file__).read_text(encoding="utf-8")
    assert [path.stem for path in EXAMPLES.glob("*.py") if f'"{path.stem}"' not in source] == []
