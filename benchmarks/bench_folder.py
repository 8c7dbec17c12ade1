"""A folder of 100,000 small image files: listed, decoded and cached, beside a plain Pillow loop; and a second start."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from benchmarks._machine import header, spread
from labelsmooth.training import load

CLASSES, ROUNDS = 100, 3


def make(root: Path, count: int) -> list[str]:
    """JPEG files of 32x32 pixels, all different."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        folder = root / f"class{number % CLASSES:03d}"
        folder.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        buffer = io.BytesIO()
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=75)
        files.append(str(folder / f"{number:06d}.jpg"))
        Path(files[-1]).write_bytes(buffer.getvalue())
    return sorted(files)


def plain(file: str) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def main(count: int) -> None:
    header(f"{count:,} JPEG files of 32x32 in {CLASSES} folders", "pillow")
    rates: dict[str, list[float]] = {"loop": [], "loop on a pool of threads": [], "labelsmooth": []}
    again = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "images"
        root.mkdir()
        files = make(root, count)
        for number in range(ROUNDS):
            began = time.perf_counter()
            pixels = np.stack([plain(file) for file in files])
            rates["loop"].append(count / (time.perf_counter() - began))
            began = time.perf_counter()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(plain, files, chunksize=64))
            rates["loop on a pool of threads"].append(count / (time.perf_counter() - began))
            with patch.dict(os.environ, {"LABELSMOOTH_CACHE": str(Path(name) / f"cache-{number}")}):
                began = time.perf_counter()
                data = load(root)
                rates["labelsmooth"].append(count / (time.perf_counter() - began))
                began = time.perf_counter()
                load(root)
                again.append(time.perf_counter() - began)
            row = int(data.test.index[0])
            assert np.array_equal(data.test.pixels(slice(0, 1))[0], pixels[row]), "not the images that were written"
    for what, values in rates.items():
        print(f"{what}: {spread(values, 4)} files/s")
    ratios = [a / b for a, b in zip(rates["labelsmooth"], rates["loop"], strict=True)]
    print(f"labelsmooth / loop: {spread(ratios)}, budget 1 / 1.5 = 0.67")
    print(f"second start: {spread(again)} s, budget 2 s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
