"""How long a user waits: `import labelsmooth` beside `import numpy`, and `labelsmooth --help`."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np

from benchmarks._machine import header, spread

RUNS = 11
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import numpy": ["-c", "import numpy"],
    "import labelsmooth": ["-c", "import labelsmooth"],
    "import labelsmooth, every public name": ["-c", "from labelsmooth import *"],
    "labelsmooth --help": ["-m", "labelsmooth", "--help"],
    "labelsmooth train --help": ["-m", "labelsmooth", "train", "--help"],
}


def main() -> None:
    header("Start-up, whole processes", "cyclopts", "rich")
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for run in range(RUNS + 1):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            if run:
                seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        print(f"{name:<40}{spread(values)} s")
    extra = np.median(seconds["import labelsmooth, every public name"]) - np.median(seconds["import numpy"])
    print(f"\nevery public name over NumPy: {extra:+.3f} s, budget +0.03; --help: budget 0.45 s")


if __name__ == "__main__":
    main()
