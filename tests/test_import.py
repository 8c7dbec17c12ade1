"""`import labelsmooth` loads NumPy alone, and its public names are these."""

import inspect
import subprocess
import sys

import labelsmooth as ls
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


def test_public_names():
    assert ls.__all__ == [
        "convert_smoothing", "explain", "losses", "one_hot", "priors", "sample_labels", "schedules", "smooth_labels",
    ]  # fmt: skip
    assert labelsmooth.torch.__all__ == [
        "CrossEntropyLoss", "cross_entropy", "linear_cross_entropy", "vocab_parallel_cross_entropy",
    ]  # fmt: skip
    signatures = {
        ls.smooth_labels: "(labels, smoothing=0.1, *, num_classes=None, prior=None, class_prior=None, class_mask=None, "
        "dtype=None, out=None)",
        labelsmooth.torch.cross_entropy: "(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, "
        "reduction='mean', label_smoothing=0.0, *, prior=None, class_prior=None, mask=None, class_mask=None, "
        "weight_mode='class', normalizer=None, validate=None)",
        labelsmooth.torch.linear_cross_entropy: "(input, linear_weight, target, *, linear_bias=None, weight=None, "
        "reduction='mean', ignore_index=None, label_smoothing=0.0, options=None, prior=None, class_prior=None, mask=None, "
        "class_mask=None, weight_mode='class', normalizer=None, validate=None, group=None)",
        labelsmooth.torch.vocab_parallel_cross_entropy: "(input, target, *, group=None, weight=None, ignore_index=-100, "
        "reduction='mean', label_smoothing=0.0, prior=None, class_prior=None, mask=None, class_mask=None, "
        "weight_mode='class', normalizer=None, validate=None)",
    }
    for function, expected in signatures.items():
        signature = inspect.signature(function)
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        assert str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)) == expected
