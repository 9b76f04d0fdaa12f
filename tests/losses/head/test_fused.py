"""The Triton kernel: through the interpreter against the definition, and compiled for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]


@pytest.mark.triton
def test_interpreted_kernel_is_the_definition():
    """In a process of its own: the interpreter is chosen when the kernel is imported."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.losses.head.interpreted"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.split()[-1] == "agree"


@pytest.mark.triton
@pytest.mark.plain  # Triton reads the annotations of a kernel, which the type check replaces
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("kinds", [(1, 3, 9, 10), (2, 4, 5, 6), (7, 8)], ids=str)
def test_kernel_compiles_for_hopper(kinds):
    """Type errors that the interpreter does not see; needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from fkd.losses.head._kernel import head_rows_kernel as kernel

    pointers = {"student": "*bf16", "teacher": "*bf16", "labels": "*i64", "keep": "*i8"}
    signature = {**pointers, "scalars": "*fp32", "values": "*fp32"}
    signature |= dict.fromkeys(("vocab", "stride_student", "stride_teacher", "columns"), "i32")
    constants = dict(zip(("K0", "K1", "K2", "K3"), (*kinds, 0, 0, 0), strict=False))
    constants |= {name: True for name in kernel.arg_names if name.isupper() and name[0] != "K"}
    constants |= {"COUNT": len(kinds), "BLOCK": 1024, "SECOND": any(3 <= k <= 7 for k in kinds)}
    signature |= dict.fromkeys(constants, "constexpr")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs=places)
    assert "head_rows_kernel" in compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.gpu
@pytest.mark.triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernel_on_a_gpu_is_the_definition():
    from . import interpreted

    interpreted.main("cuda")
