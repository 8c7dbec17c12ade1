"""The Triton kernels: tests/triton_cases.py on the CPU through Triton's interpreter and on a GPU, and what compiles.

The interpreter is chosen when triton is imported, for the whole process; so the cases run in their own.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from labelsmooth.torch import _triton

CASES = Path(__file__).with_name("triton_cases.py")

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run_cases(marks, **environment):
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-m", marks, str(CASES)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        env={name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"} | environment,
        cwd=CASES.parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert re.search(r"\d+ passed", run.stdout)


@needs_triton
def test_cases_in_the_interpreter():
    run_cases("not slow", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow
def test_many_cases_in_the_interpreter():
    run_cases("slow", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cases_on_the_device():
    run_cases("slow or not slow")


def test_without_triton_there_is_a_reason_and_no_error():
    code = """if True:
        import sys
        sys.modules["triton"] = None  # as if it were not installed
        import torch
        from labelsmooth.torch import _triton
        print(_triton.unavailable())
        print(_triton.unsupported(torch.zeros(2, 3), torch.tensor([0, 1])))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reasons = run.stdout.splitlines()
    assert len(reasons) == 2
    assert all(reason.startswith("triton cannot be imported") for reason in reasons)


def test_importing_labelsmooth_does_not_import_triton():
    code = "import sys, labelsmooth.torch, labelsmooth.torch._triton; print([m for m in sys.modules if 'triton' in m])"
    plain = "import sys, torch; print([m for m in sys.modules if 'triton' in m])"
    ours, theirs = (
        eval(subprocess.run([sys.executable, "-c", x], capture_output=True, text=True, check=True).stdout)
        for x in (code, plain)
    )
    assert set(ours) - set(theirs) == {"labelsmooth.torch._triton"}


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_reasons_without_a_gpu():
    assert _triton.unavailable() in ("this build of PyTorch has no CUDA", "there is no CUDA device")
    assert _triton.unavailable("mps") == "the Triton kernels are not for mps devices"
    if os.environ.get("TRITON_INTERPRET") != "1":
        assert _triton.unavailable("cpu") == "the Triton kernels are for GPUs"


# Compiled for an H200, without one: the interpreter accepts what the compiler does not.


TYPES = re.compile(r"\*|i32$|i64$|fp32$")
LABELS_ALONE = {
    "logits": "*bf16", "labels": "*i64", "q": None, "weight": None, "prior": None, "class_mask": None,
    "divisor": "*fp32", "upstream": None, "losses": "*fp32", "gradient": "*bf16", "K": "i32", "inner": "i32",
    "z_outer": 0, "z_inner": "i32", "z_class": 1, "ignore_index": "i32", "smoothing": "fp32", "CLASS_LAST": True,
    "PRIOR": "uniform", "CLASS_MASK": "none", "INSIDE": False, "PARTIALS": 64, "ROWS": 1, "BLOCK": 1024, "ALIGN": 8,
    "IN_PLACE": False,
}  # fmt: skip
ALL = LABELS_ALONE | {  # of the other kernels too
    "tiles": "i32", "u_outer": "i32", "u_inner": "i32", "partials": "*fp32", "rows": "i64",
}  # fmt: skip


def for_hopper(kernel, warps=4, divisible=(), **changes):
    """PTX of a kernel, and what its assembler says of registers.

    `changes` are types or constants, `divisible` the numbers that 16 divides.
    """
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from labelsmooth.torch._triton import _backward, _divisor, _forward

    kernel = next(getattr(x, kernel) for x in (_forward, _backward, _divisor) if hasattr(x, kernel))
    given = {name: x for name, x in (ALL | changes).items() if name in kernel.arg_names}
    types = {name: x for name, x in given.items() if isinstance(x, str) and TYPES.match(x)}
    places = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        signature={name: types.get(name, "constexpr") for name in places},
        constexprs={places[name]: x for name, x in given.items() if name not in types},
        attrs={places[x]: [["tt.divisibility", 16]] for x in types if types[x].startswith("*") or x in divisible},
    )
    ptx = compile(source, GPUTarget("cuda", 90, 32), {"num_warps": warps}).asm["ptx"]
    assembler = [knobs.nvidia.ptxas.path, "-v", "-arch=sm_90a", "-o", os.devnull, "-"]
    return ptx, subprocess.run(assembler, input=ptx, capture_output=True, text=True, check=True).stderr


def compile_where_triton_does(test):
    test = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")(
        test
    )
    return needs_triton(pytest.mark.parametrize("kernel", ["rows_on_chip", "rows_in_blocks"])(test))


@compile_where_triton_does
@pytest.mark.parametrize("dtype", ["*bf16", "*fp32"])
def test_the_longest_rows_do_not_spill_and_move_16_bytes_at_a_time(kernel, dtype):
    from labelsmooth.torch._triton import _forward

    ptx, report = for_hopper(kernel, 32, logits=dtype, gradient=dtype, BLOCK=_forward.ON_CHIP)
    assert "0 bytes spill stores, 0 bytes spill loads" in report
    assert re.search(r"ld\.global\S*\.v4\.b32", ptx)
    assert re.search(r"st\.global\S*\.v4\.b32", ptx)


@compile_where_triton_does
@pytest.mark.parametrize(
    "changes",
    [
        dict(prior="*fp32", PRIOR="labels", class_mask="*u8", CLASS_MASK="classes"),
        dict(
            q="*fp16", labels="*u8", prior="*fp64", PRIOR="rows", weight="*fp32", INSIDE=True, class_mask="*u8",
            CLASS_MASK="rows",
        ),
        dict(
            logits="*fp16", weight="*fp32", upstream="*fp32", losses=None, PRIOR="none", divisor=None, PARTIALS=0,
            CLASS_LAST=False, z_outer="i64", z_class="i64", inner="i64", ROWS=32, BLOCK=64,
        ),
        dict(K=1, z_inner="i64", gradient=None),
        dict(IN_PLACE=True),
    ],
)  # fmt: skip
def test_every_operand_compiles(kernel, changes):
    ptx, _ = for_hopper(kernel, **changes)
    assert ".target sm_90a" in ptx


@compile_where_triton_does
@pytest.mark.parametrize(("dtype", "block"), [("*bf16", 32), ("*fp32", 256)])
def test_adjacent_rows_do_not_spill_and_move_16_bytes_at_a_time(kernel, dtype, block):
    """Images, whose classes stand before height and width; ignored pixels may lie between others."""
    ptx, report = for_hopper(
        kernel, max(block // 16, 4), logits=dtype, gradient=dtype, CLASS_LAST=False, ROWS=32, BLOCK=block, ALIGN=1,
        z_outer="i64", z_inner=1, z_class="i32", divisible=("inner", "z_outer", "z_class"),
    )  # fmt: skip
    assert "0 bytes spill stores, 0 bytes spill loads" in report
    assert re.search(r"ld\.global\S*\.v4\.b32", ptx)


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
def test_the_kernels_beside_the_forward_ones_compile():
    for changes in ({}, {"CLASS_LAST": False, "ROWS": 32, "BLOCK": 64, "inner": "i64", "ALIGN": 1}):
        for_hopper("scale_rows", upstream="*fp32", **changes)
    for changes in ({"ROWS": 1024, "BLOCK": 1}, {"labels": None, "q": "*fp16", "weight": "*bf16", "BLOCK": 4096}):
        for_hopper("kept_weight", **changes)
