"""Fixtures that several test files share."""

import sys

import pytest


@pytest.fixture(autouse=True)
def fresh_compiler():
    """torch.compile counts recompilations per function over the whole process; every test starts at zero."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
