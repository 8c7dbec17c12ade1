"""The processes of ``labelsmooth train --devices``: started, stopped together, and waited for."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from labelsmooth._errors import LAUNCHED, TrainingError
from labelsmooth.training import ranks

_LOOK = 0.05  # seconds between looks at the processes
_GRACE = 10.0  # seconds in which the others find out for themselves that one has failed


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run ``labelsmooth train`` in `count` processes of this machine, on its loopback.

    Args:
        count: how many.
        arguments: of the command, the same for all.

    Returns:
        The exit code of the process that told of a failure; else 0.

    Raises:
        TrainingError: a process ended without a word.
    """
    import torch.distributed as dist

    from labelsmooth.training.devices import processor_cores

    # Here, so that it outlives all of them.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # pyright: ignore
    environment = {
        **os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", LAUNCHED: "1",
    }  # fmt: skip
    environment.setdefault("OMP_NUM_THREADS", str(max(1, processor_cores() // count)))
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    command = [sys.executable, "-m", "labelsmooth", "train", *arguments]
    children: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        _send(children, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for rank in range(count):
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            # A session of its own: the terminal's Ctrl-C reaches it through `forward` alone, once.
            child = subprocess.Popen(command, env=own, stdin=subprocess.PIPE, start_new_session=True)
            children.append(child)
        died = _wait(children, store)
    finally:
        _send(children, signal.SIGKILL)
        for child in children:
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if store.check([ranks.FAILED]):
        teller = children[int(store.get(ranks.FAILED))]
        return teller.returncode if teller.returncode > 0 else 4
    if died is None:
        return 0
    if asked:
        raise KeyboardInterrupt
    raise TrainingError(_obituary(died, children[died].returncode, store))


def end_with_parent() -> None:
    """Stop, and save, when the process that started this one has gone: its end of our stdin closes with it."""
    if LAUNCHED not in os.environ:
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _wait(children: list[subprocess.Popen[bytes]], store: Any) -> int | None:
    """Until all have ended; returns the first that failed. One that fails takes the others with it."""
    died, since, harder = None, 0.0, [signal.SIGTERM, signal.SIGKILL]
    while any(child.poll() is None for child in children):
        time.sleep(_LOOK)
        if died is None:
            died, since = _first_dead(children), time.monotonic()
        # When the run is finished, rank 0 may draw its report in peace.
        elif harder and time.monotonic() - since > _GRACE and not store.check([ranks.DONE]):
            _send(children, harder.pop(0))
            since = time.monotonic()
    return _first_dead(children) if died is None else died


def _first_dead(children: list[subprocess.Popen[bytes]]) -> int | None:
    """Which failed; rather one that was killed, of which the others only heard."""
    failed = [(child.returncode > 0, rank) for rank, child in enumerate(children) if child.poll()]
    return min(failed)[1] if failed else None


def _send(children: list[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _obituary(rank: int, code: int, store: Any) -> str:
    how = f"exit code {code}"
    if code < 0:
        how = signal.Signals(-code).name + (", perhaps for want of memory" if -code == signal.SIGKILL else "")
    text = f"the process of rank {rank} ended by {how}, and the others with it"
    if not store.check([ranks.RUN]):
        return f"{text}; nothing was trained"
    run = shlex.quote(store.get(ranks.RUN).decode())
    return f"{text}; what was saved is kept. Go on with:\n  labelsmooth train --resume {run}"
