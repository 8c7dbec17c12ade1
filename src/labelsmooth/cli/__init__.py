"""The command. Errors become one message and an exit code:

0 done, 1 unexpected, 2 usage, 3 data, 4 training failed, 5 partial comparison, 6 a missing extra, 130 interrupted.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

from labelsmooth._errors import LAUNCHED, DataError, Interrupted, TrainingError, is_silent
from labelsmooth._text import printable_lines
from labelsmooth.cli.stopping import terminated

_EXTRA = "pip install 'labelsmooth[train]'"
_EXTRAS = {"accelerate": "track", "tensorboard": "track", "distributed": "dask", "keras": "keras"}
_PACKAGES = ("tensorflow", "jax")  # that Keras computes with; one of them, as its user likes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: what follows the command's name; ``sys.argv`` if None.
    """
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    try:
        with terminated():
            return _run([token for token in tokens if token != "--debug"], debug)
    except KeyboardInterrupt as stop:
        # A second Ctrl-C changes nothing any more.
        with suppress(ValueError):  # which a thread other than the main one gets
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if not isinstance(stop, Interrupted):
            if LAUNCHED in os.environ:  # whoever started this process says so
                return 130
            return _fail("interrupted", 130, debug)
        go_on = f"labelsmooth {stop.command} {shlex.quote(stop.folder)}"
        return _fail(f"interrupted; saved: {stop.saved or 'nothing yet'}. Go on with:\n  {go_on}", 130, debug)


def _run(tokens: list[str], debug: bool) -> int:
    try:
        from cyclopts import CycloptsError

        from labelsmooth.cli.app import build
    except ModuleNotFoundError as error:
        return _fail(f"the labelsmooth command needs {error.name}: {_EXTRA}", 6, debug)
    try:
        result = build()(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except CycloptsError as error:
        return _fail(f"{str(error).strip()}\nlabelsmooth --help lists commands and options", 2, debug)
    except DataError as error:
        return _fail(str(error), 3, debug)
    except TrainingError as error:
        return _fail(str(error), 4, debug)
    except ValueError as error:
        return _fail(str(error), 2, debug)
    except ModuleNotFoundError as error:
        name = (error.name or str(error)).partition(".")[0]
        extra = f"pip install 'labelsmooth[{_EXTRAS[name]}]'" if name in _EXTRAS else _EXTRA
        extra = f"pip install {name}" if name in _PACKAGES else extra
        return _fail(f"this command needs {name}: {extra}", 6, debug)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error), 2, debug)
    except Exception as error:
        return _fail(f"unexpected {type(error).__name__}: {error}\n--debug shows where; please report it", 1, debug)


def _fail(message: str, code: int, debug: bool) -> int:
    if is_silent(sys.exc_info()[1]):
        return code
    if debug:
        traceback.print_exc()
    print(printable_lines(f"labelsmooth: {message}"), file=sys.stderr)
    return code
