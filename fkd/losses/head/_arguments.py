"""The arguments of the head's functions: listed once, with their types, and sorted."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..._base.sparse import SparseDistribution
from ._divergence import Divergence, Phi
from ._problem import Number, Vocabulary

Strategy = Literal["auto", "materialized", "chunked", "fused"]


class Side(NamedTuple):
    """The arguments that belong to one model."""

    hidden: Tensor | SparseDistribution | None
    weight: Tensor | None
    bias: Tensor | None
    scale: Number | None
    softcap: Number | None
    vocabulary: Vocabulary | None


class Targets(NamedTuple):
    """The arguments that say which positions count and what their labels are."""

    labels: Tensor | None
    where: Tensor | None
    ignore_index: int
    shift: bool


@dataclass(frozen=True, eq=False, repr=False)
class HeadArguments:
    """The arguments of `head_divergence`, which documents them."""

    student_hidden: Float[Tensor, "*batch student_features"]
    student_weight: Float[Tensor, "student_vocab student_features"]
    teacher_hidden: Float[Tensor, "*batch teacher_features"] | SparseDistribution | None
    teacher_weight: Float[Tensor, "teacher_vocab teacher_features"] | None
    _: KW_ONLY
    divergence: Divergence | Phi
    student_bias: Float[Tensor, " student_vocab"] | None = None
    teacher_bias: Float[Tensor, " teacher_vocab"] | None = None
    labels: Int[Tensor, "*batch"] | None = None
    temperature: Number = 1.0
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None
    token_weights: Float[Tensor, "*leading"] | None = None
    ignore_index: int = -100
    shift: bool = False
    student_logit_scale: Number | None = None
    teacher_logit_scale: Number | None = None
    student_softcap: Number | None = None
    teacher_softcap: Number | None = None
    student_vocabulary: Vocabulary | None = None
    teacher_vocabulary: Vocabulary | None = None
    logits_dtype: torch.dtype | None = None
    operand_dtype: torch.dtype | None = None
    strategy: Strategy = "auto"
    chunk_size: int | None = None

    @property
    def student(self) -> Side:
        """What belongs to the student."""
        return Side(
            self.student_hidden,
            self.student_weight,
            self.student_bias,
            self.student_logit_scale,
            self.student_softcap,
            self.student_vocabulary,
        )

    @property
    def teacher(self) -> Side:
        """What belongs to the teacher."""
        return Side(
            self.teacher_hidden,
            self.teacher_weight,
            self.teacher_bias,
            self.teacher_logit_scale,
            self.teacher_softcap,
            self.teacher_vocabulary,
        )

    @property
    def targets(self) -> Targets:
        """Which positions count, and their labels."""
        return Targets(self.labels, self.where, self.ignore_index, self.shift)
