"""`import labelsmooth` loads NumPy alone, and its public names are these."""

import inspect
import json
import os
import subprocess
import sys

import labelsmooth as ls
import labelsmooth.jax
import labelsmooth.torch


def test_import_loads_numpy_alone():
    code = """
import sys
import numpy
before = set(sys.modules)
import labelsmooth
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - {"labelsmooth"} - set(sys.stdlib_module_names)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_module_of_jax_loads_no_other_framework():
    code = "import sys, labelsmooth.jax; print(sorted({'torch', 'tensorflow', 'keras', 'optax', 'jax'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['jax']"


def test_public_names():
    assert ls.__all__ == [
        "convert_smoothing", "explain", "losses", "one_hot", "priors", "sample_labels", "schedules", "smooth_labels",
    ]  # fmt: skip
    assert labelsmooth.torch.__all__ == [
        "CrossEntropyLoss", "cross_entropy", "linear_cross_entropy", "vocab_parallel_cross_entropy",
    ]  # fmt: skip
    assert labelsmooth.jax.__all__ == ["cross_entropy"]
    signatures = {
        ls.smooth_labels: "(labels, smoothing=0.1, *, num_classes=None, prior=None, class_prior=None, class_mask=None, "
        "dtype=None, out=None)",
        labelsmooth.torch.cross_entropy: "(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, "
        "reduction='mean', label_smoothing=0.0, *, prior=None, class_prior=None, mask=None, class_mask=None, "
        "weight_mode='class', normalizer=None, validate=None, inplace=False)",
        labelsmooth.torch.linear_cross_entropy: "(input, linear_weight, target, *, linear_bias=None, weight=None, "
        "reduction='mean', ignore_index=None, label_smoothing=0.0, options=None, prior=None, class_prior=None, mask=None, "
        "class_mask=None, weight_mode='class', normalizer=None, validate=None, group=None)",
        labelsmooth.torch.vocab_parallel_cross_entropy: "(input, target, *, group=None, weight=None, ignore_index=-100, "
        "reduction='mean', label_smoothing=0.0, prior=None, class_prior=None, mask=None, class_mask=None, "
        "weight_mode='class', normalizer=None, validate=None)",
        labelsmooth.jax.cross_entropy: "(logits, labels, *, label_smoothing=0.0, axis=-1, prior=None, class_prior=None, "
        "mask=None, class_mask=None, where=None, weight=None, weight_mode='class', ignore_index=-100, reduction='none', "
        "normalizer=None, validate=None)",
    }
    for function, expected in signatures.items():
        signature = inspect.signature(function)
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        assert str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)) == expected


def test_public_names_of_keras():
    code = """
import inspect, json
import labelsmooth.keras as k
print(json.dumps([k.__all__, {name: list(inspect.signature(getattr(k, name)).parameters) for name in k.__all__}]))
"""
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    names, parameters = json.loads(done.stdout)
    assert names == [
        "NLL", "MiniGoogLeNet", "SmallNet", "SmoothedBinaryCrossentropy", "SmoothedCrossentropy", "load_run",
        "set_torch_weights",
    ]  # fmt: skip
    common = ["from_logits", "label_smoothing", "axis", "reduction", "name", "dtype"]
    arrays = ["weight", "weight_mode", "ignore_index", "prior", "class_prior", "class_mask"]
    assert parameters["NLL"] == ["from_logits", "axis", "ignore_index", "class_mask", "name", "dtype"]
    assert parameters["SmoothedBinaryCrossentropy"] == [*common, "prior"]
    assert parameters["SmoothedCrossentropy"] == [*common, *arrays]
