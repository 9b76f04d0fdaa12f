"""Small objectives with everything that a step over ranks has to get right, and their batches."""

from __future__ import annotations

from typing import Any

import optree
import torch
from torch import Tensor, nn

import fkd
from fkd import batch, ref, student, teacher, term
from fkd.losses import (
    crd,
    crd_init,
    cross_entropy,
    dist,
    infonce,
    kl,
    mse,
    rkd_distance,
    similarity_preserving,
)

FEATURES, CLASSES = 6, 4


class Net(nn.Module):
    """Two layers, with or without batch statistics in between."""

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, width, bias=not norm)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.norm(self.first(x)))
        return {"hidden": hidden, "logits": self.head(hidden)}


class Centred(nn.Module):
    """A module with a running mean of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("limits", torch.tensor([float("-inf"), float("inf")]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x - self.mean)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return y


def centred(x: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
    """A loss with a state: the distance from a running mean."""
    return (x - state).square().mean(-1), 0.9 * state + 0.1 * x.detach().mean(0)


def in_batch(student_x: Tensor, teacher_x: Tensor) -> Tensor:
    """A loss of a user: one value for each example, which depends on the others."""
    return (student_x @ student_x.mT - teacher_x @ teacher_x.mT).square().mean(-1)


def plain(norm: bool = False, moving: bool = True) -> fkd.Objective:
    """Masks, labels that do not count, an EMA, moving knobs, a metric."""
    torch.manual_seed(0)
    ok = batch["ok"]
    warm = fkd.schedules.linear(0.2, 1.0, steps=5) if moving else 0.5
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, where=ok, temperature=2.0, weight=warm),
            "labels": term(cross_entropy, student.logits, batch["y"]),
            "slow": term(mse, student.logits, ref("slow").logits),
            "hidden": term(mse, fkd.module("project")(student.hidden), teacher.hidden, where=ok),
            "right": fkd.metric(fkd.metrics.accuracy, student.logits, batch["y"]),
        },
        student=fkd.trainable(Net(8, norm)),
        teacher=fkd.frozen(Net(12, norm)),
        slow=fkd.ema("student", decay=0.9),
        project=fkd.trainable(nn.Linear(8, 12)),
    )


def normed() -> fkd.Objective:
    return plain(norm=True)


def recomputed() -> fkd.Objective:
    """Blocks of which only the inputs are kept."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)))
    blocks.append(nn.Sequential(nn.Linear(6, CLASSES)))
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, where=batch["ok"]),
            "labels": term(cross_entropy, student.logits, batch["y"]),
        },
        student=fkd.trainable(blocks, inputs=lambda b: b["x"], checkpoint_blocks=True),
        teacher=fkd.frozen(Net(12, False)),
    )


def related() -> fkd.Objective:
    """Losses that relate the examples of a batch, in each way in which they can."""
    torch.manual_seed(0)
    hidden, other, ok = student.hidden, teacher.hidden, batch["ok"]
    centre = student.logits.mean(0)
    return fkd.Objective(
        {
            "labels": term(cross_entropy, student.logits, batch["y"]),
            "rkd": term(rkd_distance, hidden, other, where=ok),
            "sp": term(similarity_preserving, hidden, other, where=ok),
            "infonce": term(infonce, hidden, other, where=ok),
            "dist": term(dist, student.logits, teacher.logits, where=ok),
            "crd": term(crd, hidden, other, state=crd_init(16, 8), dataset_size=100, weight=0.1),
            "centred": term(centred, hidden, state=torch.zeros(8), weight=0.1),
            "own": term(in_batch, hidden, other),
            "mean": term(mse, student.logits - centre, teacher.logits),
            "weight": term(mse, student.logits, teacher.logits, weight=student.hidden.std()),
            "function": term(in_batch, lambda ctx: ctx["student"]["hidden"], other),
        },
        student=fkd.trainable(Net(8, False)),
        teacher=fkd.frozen(Net(8, False)),
    )


def several() -> fkd.Objective:
    """Batch statistics, an EMA and moving knobs, beside losses that relate examples."""
    torch.manual_seed(0)
    hidden, other, ok = student.hidden, teacher.hidden, batch["ok"]
    warm = fkd.schedules.linear(0.2, 1.0, steps=5)
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, where=ok, temperature=2.0, weight=warm),
            "labels": term(cross_entropy, student.logits, batch["y"]),
            "slow": term(mse, student.logits, ref("slow").logits),
            "rkd": term(rkd_distance, hidden, other, where=ok),
            "centred": term(centred, hidden, state=torch.zeros(8), weight=0.1),
            "mean": term(mse, student.logits - student.logits.mean(0), teacher.logits),
            "right": fkd.metric(fkd.metrics.accuracy, student.logits, batch["y"]),
        },
        student=fkd.trainable(Net(8, True)),
        teacher=fkd.frozen(Net(8, True)),
        slow=fkd.ema("student", decay=0.9),
    )


class Tied(nn.Module):
    """An embedding that is the head, too, and a block that runs twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = nn.Linear(FEATURES, width)
        self.block = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.words = nn.Embedding(CLASSES, width)
        self.head = nn.Linear(width, CLASSES, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        hidden = self.inside(x) + self.words(y.clamp(min=0))
        hidden = self.block(self.block(hidden))
        return {"hidden": hidden, "logits": self.head(hidden)}


def tied() -> fkd.Objective:
    """Tied weights, taps, refs to parameters, an EMA and an adapter."""
    torch.manual_seed(0)
    head, other = student.param("head.weight"), teacher.param("words.weight")
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, where=batch["ok"]),
            "own": term(kl, student.hidden @ head.T, teacher.hidden @ other.T),
            "tap": term(mse, fkd.module("project")(student.tap("block.1")), teacher.tap("block.1")),
            "slow": term(mse, student.logits, ref("slow").logits),
        },
        student=fkd.trainable(Tied(9)),
        teacher=fkd.frozen(Tied(12)),
        slow=fkd.ema("student", decay=0.9),
        project=fkd.trainable(nn.Linear(9, 12)),
    )


def buffered() -> fkd.Objective:
    torch.manual_seed(0)
    return fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits, where=batch["ok"])},
        student=fkd.trainable(Centred()),
        teacher=fkd.frozen(Net(8, False)),
    )


def batches(size: int, count: int = 5, *, bad: int | None = None) -> list[dict[str, Tensor]]:
    """Ragged masks: the first third of each batch has no label, and few of it count.

    Args:
      size: examples of a batch.
      count: how many batches.
      bad: the number of a batch whose first example holds nan.
    """
    generator = torch.Generator().manual_seed(1)
    drawn: list[dict[str, Tensor]] = []
    for i in range(count):
        x = torch.randn(size, FEATURES, generator=generator)
        ok = torch.rand(size, generator=generator) > 0.4
        y = torch.randint(CLASSES, (size,), generator=generator)
        y[: size // 3] = -100
        ok[: size // 3] = False
        ok[-1] = True
        if i == bad:
            x[0] = float("nan")
        drawn.append({"x": x, "ok": ok, "y": y})
    return drawn


def differences(one: Any, other: Any) -> float:
    """The largest absolute difference of two trees of tensors; nan where one alone is not
    finite."""
    worst = 0.0
    first, structure = optree.tree_flatten(one)
    second, same = optree.tree_flatten(other)
    assert structure == same
    for a, b in zip(first, second, strict=True):
        if isinstance(a, Tensor) and a.numel():
            a, b = a.double(), b.double()
            gap = torch.where(a == b, torch.zeros_like(a), (a - b).abs())
            worst = max(worst, gap.max().item()) if torch.isfinite(gap).all() else float("nan")
    return worst
