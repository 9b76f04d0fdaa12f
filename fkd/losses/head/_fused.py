"""The rows of a chunk by one Triton kernel, which leaves the gradient over the logits."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from ._chunked import RowFunction, RowResult, Teaching
from ._problem import Number, Problem

KINDS = {
    name: number
    for number, name in enumerate(
        (
            "kl",
            "reverse_kl",
            "jsd",
            "skew_kl",
            "skew_reverse_kl",
            "total_variation",
            "alpha_divergence",
            "soft_cross_entropy",
            "cross_entropy",
            "z_loss",
        ),
        start=1,
    )
}
_SECOND_SWEEP = range(KINDS["jsd"], KINDS["alpha_divergence"] + 1)
_SLOTS = 4
_MAX_BLOCK = 8192


def unfusible(problem: Problem) -> str | None:
    """Why the kernel cannot run this problem; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "needs Triton, which is not installed"
    if not problem.keep.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"needs a CUDA device; the inputs are on {problem.keep.device}"
    if problem.dtype != torch.float32:
        return f"computes in float32; the logits are {problem.dtype}"
    if problem.known is not None:
        return "has no kernel for a teacher that is known on some classes"
    atoms = problem.divergence.atoms
    if len(atoms) > _SLOTS:
        return f"takes at most {_SLOTS} divergences; got {len(atoms)}"
    foreign = [atom.name for atom in atoms if atom.kind not in KINDS]
    return f"has no kernel for {foreign[0]}" if foreign else None


def fused_rows(problem: Problem) -> RowFunction:
    """The kernel with the constants of a problem, for all its chunks."""
    divergence, student, teacher = problem.divergence, problem.student, problem.teacher
    kinds = [KINDS[atom.kind or ""] for atom in divergence.atoms]
    scale_t, cap_t = (None, None) if teacher is None else (teacher.scale, teacher.softcap)
    optional = [student.scale, student.softcap, scale_t, cap_t]
    weights = [weight for weight, _ in divergence.terms]
    params = [atom.params[0] if atom.params else 0.0 for atom in divergence.atoms]
    empty = [0.0] * (_SLOTS - len(kinds))
    numbers = [problem.temperature, *(1.0 if x is None else x for x in optional)]
    scalars = _stack([*numbers, *weights, *empty, *params, *empty], problem.keep.device)
    columns, present = len(problem.columns), [x is not None for x in optional]

    def rows(
        problem: Problem,
        z: Tensor,
        z_t: Teaching,
        labels: Tensor | None,
        keep: Tensor,
        with_gradient: bool,
    ) -> RowResult:
        values = torch.ops.fkd.head_rows(
            z, z_t, labels, keep, scalars, kinds, present, columns, problem.metrics, with_gradient
        )
        return values, z

    return rows


def _stack(numbers: list[Number], device: torch.device) -> Tensor:
    """Numbers and 0-d tensors as one float32 vector, without waiting for the device."""
    full = [
        x.to(device, torch.float32) if isinstance(x, Tensor) else torch.full((), x, device=device)
        for x in numbers
    ]
    return torch.stack([x.float() for x in full])


@torch.library.custom_op(
    "fkd::head_rows",
    mutates_args=("student",),
    # Written out, since the run-time type check hides the annotations.
    schema=(
        "(Tensor(a0!) student, Tensor? teacher, Tensor? labels, Tensor keep, Tensor scalars, "
        "SymInt[] kinds, bool[] present, SymInt columns, bool metrics, bool gradient) -> Tensor"
    ),
)
def _head_rows(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor | None,
    keep: Tensor,
    scalars: Tensor,
    kinds: list[int],
    present: list[bool],
    columns: int,
    metrics: bool,
    gradient: bool,
) -> Tensor:
    from ._kernel import head_rows_kernel  # Triton is an optional dependency

    rows, vocab = student.shape
    values = torch.empty(rows, columns, dtype=torch.float32, device=student.device)
    block = min(1 << (vocab - 1).bit_length(), _MAX_BLOCK)
    other, kept = student if teacher is None else teacher, keep.to(torch.int8)
    relative = (KINDS["kl"], KINDS["reverse_kl"])
    launch: Any = head_rows_kernel[(rows,)]
    launch(
        student,
        other,
        kept if labels is None else labels,
        kept,
        scalars,
        values,
        vocab,
        student.stride(0),
        other.stride(0),
        columns,
        *(kinds + [0] * (_SLOTS - len(kinds))),
        COUNT=len(kinds),
        TEACHER=teacher is not None,
        LABELS=any(k >= KINDS["cross_entropy"] for k in kinds),
        SCALE_S=present[0],
        CAP_S=present[1],
        SCALE_T=present[2],
        CAP_T=present[3],
        REVERSE=KINDS["reverse_kl"] in kinds,
        SOFT=KINDS["soft_cross_entropy"] in kinds,
        SECOND=any(k in _SECOND_SWEEP or (k in relative and not gradient) for k in kinds),
        METRICS=metrics,
        GRADIENT=gradient,
        BLOCK=block,
        num_warps=max(4, min(16, block // 512)),
    )
    return values


@_head_rows.register_fake
def _(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor | None,
    keep: Tensor,
    scalars: Tensor,
    kinds: list[int],
    present: list[bool],
    columns: int,
    metrics: bool,
    gradient: bool,
) -> Tensor:
    return student.new_empty((student.shape[0], columns), dtype=torch.float32)
