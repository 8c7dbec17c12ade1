"""Processes to be interrupted or killed, forked from a server that has imported once what takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labelsmooth import _files

_PRELOADED = ["labelsmooth.training.session", "sklearn.datasets", "sklearn.model_selection", "torch._dynamo"]


def undrawn(folder: Path) -> Path:
    """In place of `labelsmooth.report.page.finish`: a report in name."""
    _files.write_text(folder / "report.html", "undrawn")
    return folder / "report.html"


def start(target: Callable[..., None], *arguments: Any) -> Any:
    """A process in which `target`, of a module, is called; no report is drawn in it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_run, args=(target, *arguments))
    process.start()
    return process


def command(folder: Path, *arguments: str) -> Any:
    """A process that is `labelsmooth` with these arguments in `folder`; it prints into its files ``out`` and ``err``."""
    return start(_command, folder, arguments)


def wait_for(folder: Path, pattern: str, process: Any) -> None:
    """Until there is a file like that."""
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.is_alive(), "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _run(target: Callable[..., None], *arguments: Any) -> None:
    import torch

    from labelsmooth.report import page

    torch.set_num_threads(1)
    page.finish = undrawn
    target(*arguments)


def _command(folder: Path, arguments: tuple[str, ...]) -> None:
    from labelsmooth.cli import main

    os.chdir(folder)
    with Path("out").open("w", buffering=1) as sys.stdout, Path("err").open("w", buffering=1) as sys.stderr:
        sys.exit(main(arguments))
