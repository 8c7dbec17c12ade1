"""Keras' MiniGoogLeNet and SmallNet: the layers, parameters and weights of PyTorch's. (On one backend; every other is in
keras_training_cases.py.)"""

import json
import os
import subprocess
import sys

import pytest

CODE = """
import json
import keras, numpy as np, torch
from labelsmooth._errors import DataError
from labelsmooth.keras import MiniGoogLeNet, SmallNet, load_run, set_torch_weights
from labelsmooth.keras.models import build, get_torch_weights
from labelsmooth.training import FAST, DIGITS, train
from labelsmooth.training.models import build as build_torch

def counts(model):
    return [sum(int(np.prod(w.shape)) for w in ws) for ws in (model.trainable_weights, model.non_trainable_weights)]

found = {"counts": [], "errors": {}}
for name, shape, k in (("minigooglenet", (32, 32, 3), 10), ("minigooglenet", (9, 11, 1), 3), ("small", (8, 8, 1), 10), ("small", (5, 7, 3), 4)):
    model = build(name, image_shape=shape, num_classes=k, dropout=0.5)
    other = build_torch(name, image_shape=shape, num_classes=k, dropout=0.5).eval()
    statistics = sum(b.numel() for n, b in other.named_buffers() if "running" in n)
    learning = sum(p.numel() for p in other.parameters() if p.requires_grad)
    assert counts(model) == [learning, statistics], (counts(model), learning, statistics)
    found["counts"].append(counts(model))
    rng = np.random.default_rng(0)
    state = {n: torch.from_numpy(rng.uniform(0.2, 0.4, tuple(v.shape)).astype(np.float32)) if "running" in n or ".1.weight" in n
             else torch.from_numpy(rng.normal(0, 0.1, tuple(v.shape)).astype(np.float32))
             for n, v in other.state_dict().items() if "num_batches" not in n}
    other.load_state_dict(state, strict=False)
    set_torch_weights(model, other.state_dict())
    back = get_torch_weights(model)
    assert back.keys() == state.keys() and all(np.array_equal(back[n], state[n]) for n in state)
    images = rng.normal(0, 50, (4, *shape)).astype(np.float32)
    with torch.no_grad():
        expected = other(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    logits = keras.ops.convert_to_numpy(model(images, training=False))
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()

any_size = MiniGoogLeNet(2, (None, None, 3))
assert any_size(np.zeros((1, 40, 20, 3), np.float32)).shape == (1, 2)
penalised = SmallNet(10, weight_decay=0.5)
kernels = sum(float((keras.ops.convert_to_numpy(w) ** 2).sum()) for w in penalised.trainable_weights if len(w.shape) > 1)
penalty = sum(float(keras.ops.convert_to_numpy(each)) for each in penalised.losses)
assert abs(penalty - 0.25 * kernels) < 1e-4 * kernels
assert not SmallNet(10).losses

def error(action):
    try:
        action()
    except (ValueError, DataError) as e:
        return f"{type(e).__name__}: {e}"

small = SmallNet(10)
for key, action in {
    "classes": lambda: MiniGoogLeNet(0),
    "too small": lambda: MiniGoogLeNet(10, (6, 32, 3)),
    "two axes": lambda: MiniGoogLeNet(10, (32, 32)),
    "channels": lambda: MiniGoogLeNet(10, (32, 32, None)),
    "dropout": lambda: SmallNet(10, dropout=1.0),
    "decay": lambda: SmallNet(10, weight_decay=-1),
    "shape": lambda: set_torch_weights(small, get_torch_weights(SmallNet(3))),
    "missing": lambda: set_torch_weights(small, {}),
    "no run": lambda: load_run("nowhere"),
    "fast": lambda: load_run(train("digits", FAST, epochs=0.1, out="runs").folder),
}.items():
    found["errors"][key] = error(action)

# A run of PyTorch's is a Keras model too.
from labelsmooth.evaluation import load_predictions
from labelsmooth.training import load
run = train("digits", DIGITS, epochs=2, out="runs").folder
expected = load_predictions(run / "predictions/test.npz").logits[:40]
logits = load_run(run).predict(load("digits").test.images[:40], verbose=0)
assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", CODE], env={**os.environ, "KERAS_BACKEND": "torch"},
        cwd=tmp_path_factory.mktemp("model"), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_the_parameters_are_as_many_as_pytorchs_and_as_published(found):
    assert found["counts"][0] == [1_652_826, 3_424]
    assert found["counts"][2] == [94_410, 448]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("classes", "ValueError: num_classes must be a whole number of at least 1; got 0"),
        ("too small", "ValueError: input_shape must be (height, width, channels), height and width of at least 7 or None; got (6, 32, 3)"),
        ("two axes", "ValueError: input_shape must be (height, width, channels), height and width of at least 7 or None; got (32, 32)"),
        ("channels", "ValueError: channels must be a whole number of at least 1; got None"),
        ("dropout", "ValueError: dropout must be a number in [0, 1); got 1.0"),
        ("decay", "ValueError: weight_decay must be a number of at least 0; got -1"),
        ("shape", "DataError: the weights belong to another model (head.weight has shape (3, 128), and not (10, 128))"),
        ("missing", "DataError: the weights belong to another model (there is no body.0.0.weight)"),
        ("no run", "DataError: there is no run folder nowhere"),
        ("fast", "DataError: runs/digits-001 is of the model fast; as Keras models there are minigooglenet, small"),
    ],
)  # fmt: skip
def test_mistakes(found, what, message):
    assert found["errors"][what] == message
