"""Hidden states of a model in the space, and at the tokens, of another one."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class CrossModelAttention(nn.Module):
    """Attention between the tokens of two models, so that each can use the other's head (DSKD).

        a = Q [e_in; e_out] . [E_in; E_out] / (s sqrt(2 D)),   s: the deviation of [E_in; E_out]
        at the student's tokens:  softmax over the teacher's tokens of a, times
                                  V (H / dev(H) + E_out / dev(E_out))
        at the teacher's tokens:  softmax over the student's tokens of a, times  P h

    h, e are the student's hidden states and embeddings of the token read and of the next one, H, E
    the teacher's; Q, V and P are learned. Two tokenizers may have cut the text differently. The
    result of each is in the other's width: multiply it by the other's head.

    Args:
      student_width: of the student's hidden states and embeddings.
      teacher_width: of the teacher's, D.

    Shape:
      Student `[batch, length, student_width]`, teacher `[batch, teacher_length, teacher_width]`;
      returns `[batch, length, student_width]` and `[batch, teacher_length, teacher_width]`.

    Example:
      >>> attend = CrossModelAttention(4, 6)
      >>> ours, theirs = torch.rand(2, 3, 4), torch.rand(2, 5, 6)
      >>> at_student, at_teacher = attend(ours, theirs, (ours, ours), (theirs, theirs))
      >>> at_student.shape, at_teacher.shape
      (torch.Size([2, 3, 4]), torch.Size([2, 5, 6]))

    Reference:
      Zhang et al., Dual-Space Knowledge Distillation for Large Language Models, arXiv:2406.17328.
    """

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(2 * student_width, 2 * teacher_width)
        self.to_student = nn.Linear(teacher_width, student_width)
        self.to_teacher = nn.Linear(student_width, teacher_width)

    def forward(
        self,
        student: Float[Tensor, "batch length student_width"],
        teacher: Float[Tensor, "batch teacher_length teacher_width"],
        student_embeddings: tuple[Tensor, Tensor],
        teacher_embeddings: tuple[Tensor, Tensor],
        *,
        where: Bool[Tensor, "batch length"] | Int[Tensor, "batch length"] | None = None,
        teacher_where: Bool[Tensor, "batch teacher_length"]
        | Int[Tensor, "batch teacher_length"]
        | None = None,
    ) -> tuple[
        Float[Tensor, "batch length student_width"],
        Float[Tensor, "batch teacher_length teacher_width"],
    ]:
        """The teacher's states at the student's tokens, and the student's at the teacher's.

        Args:
          student, teacher: last hidden states.
          student_embeddings, teacher_embeddings: of each token that was read, and of the next.
          where, teacher_where: True where a position counts; others get and give nothing.
        """
        here, there = _counts(student, where), _counts(teacher, teacher_where)
        keys = torch.cat(teacher_embeddings, dim=-1)
        queries = self.query(_kept(torch.cat(student_embeddings, dim=-1), here))
        keys = _kept(keys, there) / _deviation(keys, there)
        values = _kept(teacher, there) / _deviation(teacher, there)
        values = values + _kept(teacher_embeddings[1], there) / _deviation(
            teacher_embeddings[1], there
        )
        scores = queries @ keys.mT / math.sqrt(2 * teacher.shape[-1])
        pairs = here.unsqueeze(-1) & there.unsqueeze(-2)
        scores = scores.masked_fill(~pairs, torch.finfo(scores.dtype).min)
        at_student = scores.softmax(-1) @ self.to_student(values)
        at_teacher = scores.mT.softmax(-1) @ self.to_teacher(_kept(student, here))
        return _kept(at_student, here), _kept(at_teacher, there)


def _counts(x: Tensor, where: Tensor | None) -> Tensor:
    if where is None:
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    return where.bool()


def _kept(x: Tensor, where: Tensor) -> Tensor:
    return x.masked_fill(~where.unsqueeze(-1), 0.0)


def _deviation(x: Tensor, where: Tensor) -> Tensor:
    """`[]`, the standard deviation of all entries at positions that count; 1 if there are none."""
    x = _kept(x, where)
    count = (where.sum() * x.shape[-1]).clamp(min=1).to(x.dtype)
    mean = x.sum() / count
    square = _kept((x - mean).square(), where).sum() / count
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 1.0)
