"""Builds the CPU kernel; pyproject.toml has everything else. Without a compiler the install goes on without it."""

import sys
from pathlib import Path

import nanobind
from setuptools import Extension, setup

sources = Path(nanobind.source_dir())
kernel = Extension(
    "labelsmooth._native",
    sources=[*sorted(str(path) for path in Path("native").glob("*.cpp")), str(sources / "nb_combined.cpp")],
    depends=[str(path) for pattern in ("*.h", "*.inl") for path in Path("native").glob(pattern)],
    include_dirs=["native", nanobind.include_dir(), str(sources.parent / "ext" / "robin_map" / "include")],
    define_macros=[("NDEBUG", None), ("NB_COMPACT_ASSERTIONS", None)],
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-fvisibility=hidden",
        "-fno-strict-aliasing",
        "-Wno-psabi",
        "-Wno-maybe-uninitialized",
        "-pthread",
    ],
    extra_link_args=["-pthread"] if sys.platform != "win32" else [],
    language="c++",
    optional=True,
)
setup(ext_modules=[kernel])
