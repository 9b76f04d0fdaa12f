"""How alike the layers of two models are: linear centred kernel alignment (CKA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Moments(NamedTuple):
    """What linear CKA needs to know of the positions seen so far, in float64.

    Moments of several batches merge, so the similarity is the same however the positions are
    cut into batches. They hold a matrix for each pair of layers; for wide models prefer
    `linear_cka` on one batch, which holds one matrix at a time.

    Attributes:
      positions: `[]`, how many positions count.
      student: for each layer the mean `[d]` and the squared deviations `[d, d]`.
      teacher: the same.
      cross: `cross[s][t]`, `[d_s, d_t]`, the products of deviations.
    """

    positions: Tensor
    student: tuple[tuple[Tensor, Tensor], ...]
    teacher: tuple[tuple[Tensor, Tensor], ...]
    cross: tuple[tuple[Tensor, ...], ...]

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of positions (the pairwise update of Chan et al., 1983)."""
        count = self.positions + other.positions
        # n_a n_b / n, and 0 where both are empty.
        scale = self.positions * other.positions / count.clamp(min=1)
        share = other.positions / count.clamp(min=1)
        d_student = [b[0] - a[0] for a, b in zip(self.student, other.student, strict=True)]
        d_teacher = [b[0] - a[0] for a, b in zip(self.teacher, other.teacher, strict=True)]

        def own(
            a: tuple[tuple[Tensor, Tensor], ...],
            b: tuple[tuple[Tensor, Tensor], ...],
            deltas: list[Tensor],
        ) -> tuple[tuple[Tensor, Tensor], ...]:
            return tuple(
                (x[0] + share * d, x[1] + y[1] + scale * torch.outer(d, d))
                for x, y, d in zip(a, b, deltas, strict=True)
            )

        cross = tuple(
            tuple(
                self.cross[s][t] + other.cross[s][t] + scale * torch.outer(d_s, d_t)
                for t, d_t in enumerate(d_teacher)
            )
            for s, d_s in enumerate(d_student)
        )
        student = own(self.student, other.student, d_student)
        return Moments(count, student, own(self.teacher, other.teacher, d_teacher), cross)

    @property
    def value(self) -> Tensor:
        """`[student layers, teacher layers]`, in 0..1; 0 where a layer is constant."""
        cross = torch.stack([torch.stack([_squared(m) for m in row]) for row in self.cross])
        student = torch.stack([_squared(m).sqrt() for _, m in self.student])
        teacher = torch.stack([_squared(m).sqrt() for _, m in self.teacher])
        return _ratio(cross, student, teacher)


def moments(
    student_states: Sequence[Float[Tensor, "*batch _"]],
    teacher_states: Sequence[Float[Tensor, "*batch _"]],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Moments:
    """The moments of one batch; see `linear_cka` for the arguments."""
    student = [_centred("moments", "student", x, where) for x in student_states]
    teacher = [_centred("moments", "teacher", x, where) for x in teacher_states]
    return Moments(
        _count(student_states[0], where),
        tuple((mean, x.T @ x) for mean, x in student),
        tuple((mean, y.T @ y) for mean, y in teacher),
        tuple(tuple(x.T @ y for _, y in teacher) for _, x in student),
    )


def linear_cka(
    student_states: Sequence[Float[Tensor, "*batch _"]],
    teacher_states: Sequence[Float[Tensor, "*batch _"]],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "student_layers teacher_layers"]:
    """Linear CKA of every student layer with every teacher layer.

        cka(X, Y) = ||X^T Y||^2 / (||X^T X|| ||Y^T Y||),   X, Y centred over the positions

    It does not change when a layer is rotated or scaled, and the widths may differ. With few
    positions against the width it is biased towards 1; give it some thousand.

    Args:
      student_states: `[*batch, d]` each, the hidden states of the layers, or any other
        features of the same positions.
      teacher_states: `[*batch, e]` each.
      where: `[*batch]`, True where a position counts, such as an attention mask.

    Returns:
      `[student layers, teacher layers]`, float64, in 0..1; 0 where a layer is constant.

    Example:
      >>> x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [5.0, 4.0]])
      >>> linear_cka([x], [x.flip(-1), 3 * x]).round(decimals=6).tolist()
      [[1.0, 1.0]]

    Reference:
      Kornblith et al., Similarity of Neural Network Representations Revisited,
      arXiv:1905.00414.
    """
    student = [_centred("linear_cka", "student", x, where)[1] for x in student_states]
    teacher = [_centred("linear_cka", "teacher", x, where)[1] for x in teacher_states]
    cross = torch.stack([torch.stack([_squared(x.T @ y) for y in teacher]) for x in student])
    student_norm = torch.stack([_squared(x.T @ x).sqrt() for x in student])
    teacher_norm = torch.stack([_squared(y.T @ y).sqrt() for y in teacher])
    return _ratio(cross, student_norm, teacher_norm)


def _centred(name: str, model: str, x: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean `[d]`, and the deviations `[positions, d]` with 0 where a position is left out."""
    if where is not None and where.shape != x.shape[:-1]:
        raise ValueError(
            f"{name}: where {tuple(where.shape)} must be the leading shape of the {model}'s "
            f"hidden states {tuple(x.shape)}: one True or False for every position."
        )
    x = x.detach().reshape(-1, x.shape[-1]).double()
    if where is None:
        mean = x.mean(0)
        return mean, x - mean
    counts = where.bool().reshape(-1, 1)
    mean = torch.where(counts, x, 0.0).sum(0) / counts.sum().clamp(min=1)
    return mean, torch.where(counts, x - mean, 0.0)


def _count(x: Tensor, where: Tensor | None) -> Tensor:
    if where is None:
        return torch.tensor(float(x[..., 0].numel()), dtype=torch.float64, device=x.device)
    return where.bool().sum().double()


def _squared(x: Tensor) -> Tensor:
    return x.square().sum()


def _ratio(cross: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    norms = student[:, None] * teacher
    return torch.where(norms > 0, cross / norms.clamp(min=1e-300), 0.0).clamp(max=1.0)
