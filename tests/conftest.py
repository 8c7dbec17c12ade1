"""Fixtures that several test files share."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

from tests import processes

# torch.compile imports Triton, whose LLVM crashes the process where TensorFlow's is there before it.
if importlib.util.find_spec("triton"):
    import triton  # noqa: F401

hypothesis.settings.register_profile("unhurried", deadline=None)  # 200 ms are few on a busy machine
hypothesis.settings.load_profile("unhurried")

# A shell's job in the background ignores Ctrl-C, and so would the processes that are to be interrupted here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Nothing is read from or written to the user's own cache, by the tests or by the processes that they start.
SHARED_CIFAR10 = Path(__file__).parents[2] / "shared" / "data" / "cifar10"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LABELSMOOTH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def interruptible():
    """The command, interrupted, ignores a second Ctrl-C until it ends: called in here it would for all that follow."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """torch.compile counts recompilations per function over the whole process; every test starts at zero."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture
def cifar10_copy():
    """The folder of the CIFAR-10 copy that lies beside the checkout; on CI it must be there."""
    if not (SHARED_CIFAR10 / "train.parquet").is_file():
        if os.environ.get("CI"):
            pytest.fail(f"CI lacks {SHARED_CIFAR10}")
        pytest.skip(f"the CIFAR-10 copy is not at {SHARED_CIFAR10}")
    return SHARED_CIFAR10


@pytest.fixture
def undrawn(monkeypatch):
    """No pictures, which take longer than a small training, and a report in name; tests/test_report.py has real ones."""
    from labelsmooth.report import page

    monkeypatch.setattr(page, "finish", processes.undrawn)
