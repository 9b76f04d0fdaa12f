"""Attention that decides which layers, or which channels, of two models are compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ._convolution import block

Map = Float[Tensor, "batch _ _ _"]


class SemCKDAttention(nn.Module):
    """For every sample, how much each student layer learns from each teacher layer (SemCKD).

        w_bst = softmax_t(q_bs . k_bt),   q_s = unit(mlp_s(G_s)), k_t = unit(mlp_t(G_t))
        G = F F^T

    F are the flattened features `[batch, features]` of a layer, so a row of G has one entry for
    every sample of the batch: the batch size is fixed at construction, and the last, smaller
    batch of an epoch has to be dropped. `fkd.losses.semckd` of the pair (s, t) takes
    `weights[:, s, t]`.

    Args:
      student_layers: number of student layers.
      teacher_layers: number of teacher layers.
      batch_size: number of samples in every batch.
      width: size of queries and keys.

    Shape:
      Sequences of student and of teacher maps `[batch, ...]`, of any shapes, to weights
      `[batch, student_layers, teacher_layers]` that sum to 1 over the teacher's layers.

    Example:
      >>> s, t = [torch.rand(4, 3, 2, 2)], [torch.rand(4, 5, 2, 2), torch.rand(4, 6, 1, 1)]
      >>> SemCKDAttention(1, 2, batch_size=4)(s, t).shape
      torch.Size([4, 1, 2])

    Reference:
      Chen et al., Cross-Layer Distillation with Semantic Calibration, arXiv:2012.03236.
    """

    def __init__(
        self, student_layers: int, teacher_layers: int, *, batch_size: int, width: int = 128
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.query = nn.ModuleList(_mlp(batch_size, width) for _ in range(student_layers))
        self.key = nn.ModuleList(_mlp(batch_size, width) for _ in range(teacher_layers))

    def forward(
        self, student_maps: Sequence[Float[Tensor, "batch ..."]], teacher_maps: Sequence[Tensor]
    ) -> Float[Tensor, "batch student teacher"]:
        """The weights."""
        queries = self._embed("student_maps", self.query, student_maps)
        keys = self._embed("teacher_maps", self.key, teacher_maps)
        return (queries @ keys.mT).softmax(-1)

    def _embed(self, name: str, layers: nn.ModuleList, maps: Sequence[Tensor]) -> Tensor:
        """`[batch, layer, width]`."""
        count(f"SemCKDAttention: {name}", maps, len(layers))
        if any(x.shape[0] != self.batch_size for x in maps):
            raise ValueError(
                f"SemCKDAttention: {name} with a batch of {maps[0].shape[0]}; the batch_size "
                f"{self.batch_size} given at construction is expected. Drop the last batch."
            )
        flat = (x.flatten(1) for x in maps)
        rows = [m(x @ x.T) for m, x in zip(layers, flat, strict=True)]
        return torch.stack([F.normalize(x, dim=-1) for x in rows], 1)


class PairProjections(nn.Module):
    """A projection of every student layer to the channels of every teacher layer (SemCKD).

        y_st = block_1x1(block_3x3(block_1x1(x_s))),   x_s pooled to the space of t where larger

    Where the teacher's map is the larger, pool the teacher's.

    Args:
      student_channels: channels of the student's layers.
      teacher_channels: channels of the teacher's layers.

    Shape:
      Student maps and teacher maps `[batch, channels, height, width]` to one tuple a student
      layer, with one map `[batch, teacher_channels[t], height, width]` a teacher layer.

    Example:
      >>> s, t = [torch.rand(4, 3, 4, 4)], [torch.rand(4, 5, 4, 4), torch.rand(4, 6, 2, 2)]
      >>> [y.shape[1:] for y in PairProjections([3], [5, 6])(s, t)[0]]
      [torch.Size([5, 4, 4]), torch.Size([6, 2, 2])]

    Reference:
      Chen et al., Cross-Layer Distillation with Semantic Calibration, arXiv:2012.03236.
    """

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        super().__init__()
        self.project = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(block(s, t, 1), block(t, t, 3), block(t, t, 1))
                for t in teacher_channels
            )
            for s in student_channels
        )

    def forward(
        self, student_maps: Sequence[Map], teacher_maps: Sequence[Map]
    ) -> tuple[tuple[Tensor, ...], ...]:
        """The projected student maps."""
        count("PairProjections: student_maps", student_maps, len(self.project))
        return tuple(
            tuple(
                project(_pooled(x, target))
                for project, target in zip(row, teacher_maps, strict=True)  # pyright: ignore
            )
            for row, x in zip(self.project, student_maps, strict=True)
        )


class AFDAttention(nn.Module):
    """For every teacher layer, how much it is compared with each student layer (AFD).

        w_bts = softmax_s((q_bt^T W_s k_bs + p_t . p_s) / sqrt(d))
        q = A_t pool(F_t), k = A_s pool(F_s),   pool over space; p_t, p_s learned positions

    `fkd.losses.afd` of the pair (s, t) takes `weights[:, t, s]`.

    Args:
      student_channels: channels of the student's layers.
      teacher_channels: channels of the teacher's layers.
      width: d, size of queries, keys and positions.

    Shape:
      Sequences of maps `[batch, channels, ...]` to weights
      `[batch, teacher_layers, student_layers]` that sum to 1 over the student's layers.

    Example:
      >>> s, t = [torch.rand(4, 3, 4, 4), torch.rand(4, 5, 2, 2)], [torch.rand(4, 6, 2, 2)]
      >>> AFDAttention([3, 5], [6])(s, t).shape
      torch.Size([4, 1, 2])

    Reference:
      Ji et al., Show, Attend and Distill: Knowledge Distillation via Attention-based Feature
      Matching, arXiv:2102.02973.
    """

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[int], *, width: int = 128
    ) -> None:
        super().__init__()
        self.query = nn.ModuleList(nn.Linear(c, width) for c in teacher_channels)
        self.key = nn.ModuleList(nn.Linear(c, width) for c in student_channels)
        self.mix = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in student_channels)
        self.student_position = nn.Parameter(torch.randn(len(student_channels), width) * 0.02)
        self.teacher_position = nn.Parameter(torch.randn(len(teacher_channels), width) * 0.02)

    def forward(
        self, student_maps: Sequence[Float[Tensor, "batch _ ..."]], teacher_maps: Sequence[Tensor]
    ) -> Float[Tensor, "batch teacher student"]:
        """The weights."""
        count("AFDAttention: student_maps", student_maps, len(self.key))
        count("AFDAttention: teacher_maps", teacher_maps, len(self.query))
        q = [f(spatial_mean(x)) for f, x in zip(self.query, teacher_maps, strict=True)]
        keys = zip(self.mix, self.key, student_maps, strict=True)
        k = [mix(f(spatial_mean(x))) for mix, f, x in keys]
        position = self.teacher_position @ self.student_position.T
        scores = torch.stack(q, 1) @ torch.stack(k, 1).mT + position
        return (scores / self.student_position.shape[1] ** 0.5).softmax(-1)


class ChannelAttention(nn.Module):
    """How much every channel of the teacher's map counts (AFDS).

        w = softmax_c(W2 relu(W1 pool(F_t)))

    The weights go to `fkd.losses.afds`.

    Args:
      channels: channels of the teacher's map.
      factor: the hidden layer has channels / factor units.

    Shape:
      `[batch, channels, ...]` to weights `[batch, channels]` that sum to 1.

    Example:
      >>> ChannelAttention(8)(torch.rand(3, 8, 2, 2)).shape
      torch.Size([3, 8])

    Reference:
      Wang et al., Pay Attention to Features, Transfer Learn Faster CNNs, ICLR 2020.
    """

    def __init__(self, channels: int, *, factor: int = 4) -> None:
        super().__init__()
        if channels // factor < 1:
            raise ValueError(
                f"ChannelAttention: factor {factor}; at most the {channels} channels are expected."
            )
        self.first = nn.Linear(channels, channels // factor)
        self.second = nn.Linear(channels // factor, channels)

    def forward(self, x: Float[Tensor, "batch channels ..."]) -> Float[Tensor, "batch channels"]:
        """The weights."""
        return self.second(self.first(spatial_mean(x)).relu()).softmax(-1)


def spatial_mean(x: Tensor) -> Tensor:
    """`[batch, channels]`."""
    return x.flatten(2).mean(-1) if x.ndim > 2 else x


def count(what: str, maps: Sequence[Tensor], expected: int) -> None:
    """Refuse another number of layers than the modules were made for."""
    if len(maps) != expected:
        raise ValueError(f"{what} has {len(maps)} layers; {expected} are expected.")


def _mlp(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def _pooled(x: Tensor, target: Tensor) -> Tensor:
    if x.shape[-1] <= target.shape[-1]:
        return x
    return F.adaptive_avg_pool2d(x, (target.shape[-2], target.shape[-1]))
