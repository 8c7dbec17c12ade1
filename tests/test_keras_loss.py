"""The Keras losses and metric, each backend in a process of its own; what is checked stands in keras_checks.py."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("keras_checks.py")
CHECKS = re.findall(r"^def (check_\w+)", SCRIPT.read_text(), re.MULTILINE)
# XLA compiles every operation for every shape: on JAX only training runs in every suite, and the contract suite's cases.
SLOW_IN_JAX = [check for check in CHECKS if "fit" not in check]
CASES = [("tensorflow", check) for check in CHECKS] + [("torch", check) for check in CHECKS]
CASES += [("jax", check) for check in CHECKS if check not in SLOW_IN_JAX]


def python(*arguments, **environment):
    # XLA compiles for the tests' few numbers, so it need not optimise.
    quick = {"TF_CPP_MIN_LOG_LEVEL": "3", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment = {**os.environ, **quick, **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def outcomes_of(folder, *checks, **environment):
    results = folder / "results.json"
    done = python(str(SCRIPT), str(results), *checks, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(results.read_text())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of a backend: the traceback of each check that failed, None for the others."""

    @cache
    def of(backend):
        checks = [check for b, check in CASES if b == backend]
        return outcomes_of(tmp_path_factory.mktemp(backend), *checks, KERAS_BACKEND=backend)

    return of


@pytest.mark.parametrize(("backend", "check"), CASES)
def test_keras(outcomes, backend, check):
    assert outcomes(backend)[check] is None, outcomes(backend)[check]


@pytest.mark.slow
@pytest.mark.parametrize(("x64", "checks"), [("0", SLOW_IN_JAX), ("1", CHECKS)], ids=["float32", "float64"])
def test_all_of_jax(x64, checks, tmp_path):
    outcomes = outcomes_of(tmp_path, *checks, KERAS_BACKEND="jax", JAX_ENABLE_X64=x64)
    failed = [text for text in outcomes.values() if text]
    assert not failed, "\n".join(failed)


HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
import labelsmooth.keras
"""


@pytest.mark.parametrize(
    ("missing", "backend", "message"),
    [
        ("keras", "torch", "labelsmooth.keras needs Keras 3: pip install 'labelsmooth[keras]'"),
        ("jax", "jax", "KERAS_BACKEND is jax, and jax is not installed: pip install jax; or set KERAS_BACKEND=tensorflow or "
         "KERAS_BACKEND=torch before Keras is imported"),
        ("torch", "torch", "KERAS_BACKEND is torch, and torch is not installed: pip install torch;"),
        ("tensorflow", "", "without KERAS_BACKEND, Keras' backend is tensorflow, and tensorflow is not "
         "installed: pip install tensorflow; or set KERAS_BACKEND=jax or KERAS_BACKEND=torch before Keras is imported"),
    ],
)  # fmt: skip
def test_what_is_not_installed_and_the_line_that_installs_it(missing, backend, message, tmp_path):
    done = python("-c", HIDE, missing, KERAS_BACKEND=backend, KERAS_HOME=str(tmp_path))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: " + message)
