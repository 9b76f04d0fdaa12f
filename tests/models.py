"""Small models and random objectives over them, for the laws of the core."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fkd
from fkd import batch, ref, student, teacher, term
from fkd.losses import cosine, cross_entropy, kl, mse, reverse_kl, smooth_l1
from tests.trees import tree_leaves

CLASSES, FEATURES = 5, 6


class Outputs(NamedTuple):
    """What an `MLP` returns."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...]


@dataclass
class Maps:
    """What a `CNN` returns."""

    logits: Tensor
    maps: list[Tensor]


class MLP(nn.Module):
    """The same layers at every position: `[batch, length, FEATURES]` -> logits."""

    def __init__(self, hidden: int = 8, layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Outputs:
        states = [self.embed(x)]
        for layer in self.layers:
            states.append(self.drop(torch.tanh(layer(states[-1]))))
        return Outputs(self.head(self.norm(states[-1])), tuple(states))


class CNN(nn.Module):
    """Two convolutions with BatchNorm and in-place ReLU: `[batch, 3, 8, 8]` -> logits."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        )
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, image: Tensor) -> Maps:
        one = self.first(image)
        two = torch.relu(self.second(one))
        return Maps(self.head(two.mean((2, 3))), [one, two])


def tokens(examples: int = 6, length: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of ragged lengths, with a mask and labels (-100 where there is none)."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (examples,), generator=g)
    mask = torch.arange(length) < lengths[:, None]
    labels = torch.randint(0, CLASSES, (examples, length), generator=g)
    return {
        "x": torch.randn(examples, length, FEATURES, generator=g),
        "attention_mask": mask.long(),
        "labels": torch.where(mask, labels, -100),
    }


def images(examples: int = 4, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(examples, 3, 8, 8, generator=g),
        "labels": torch.randint(0, CLASSES, (examples,), generator=g),
    }


def random_objective(seed: int, *, dropout: float = 0.0) -> fkd.Objective:
    """A random choice of models, terms, masks, weights and knobs, all on `tokens`."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    project = fkd.module("project")
    depth, other = chance.randint(1, 3), chance.randint(2, 5)
    wide = chance.choice([8, 12])
    where = chance.choice([None, batch.attention_mask])

    def number(low: float, high: float) -> Any:
        value = chance.uniform(low, high)
        schedule = fkd.schedules.linear(low, high, steps=10)
        return chance.choice([value, torch.tensor(value), schedule, lambda step: value + step])

    def logits(first: fkd.Ref, second: fkd.Ref) -> fkd.Term:
        loss = chance.choice([kl, reverse_kl])
        knobs = {"temperature": number(1.0, 4.0), "weight": number(0.1, 2.0)}
        return term(loss, first, second, where=where, **knobs)

    def hidden(layer: int) -> fkd.Term:
        taken = teacher.hidden_states[chance.randint(0, other)]
        loss = chance.choice([mse, cosine, smooth_l1])
        if chance.random() < 0.5:
            mine = student.hidden_states[layer]
        else:
            mine = student.tap(f"layers.{max(layer - 1, 0)}")
        return term(loss, project(mine), taken, where=where, weight=number(0.1, 2.0))

    terms: dict[str, Any] = {
        "kd": logits(student.logits, teacher.logits),
        "labels": term(cross_entropy, student.logits, batch.labels, weight=number(0.1, 1.0)),
        "hidden": {str(i): hidden(i) for i in range(chance.randint(1, depth + 1))},
        "top1": fkd.metric(kl, student.logits, teacher.logits),
    }
    models: dict[str, Any] = {
        "student": fkd.trainable(MLP(8, depth, dropout)),
        "teacher": fkd.frozen(MLP(wide, other)),
        "project": fkd.trainable(nn.Linear(8, wide)),
    }
    if chance.random() < 0.5:
        terms["second"] = logits(student.logits, ref("other").logits)
        models["other"] = fkd.frozen(MLP(4, 1))
    if chance.random() < 0.5:
        terms["self"] = term(mse, student.logits, ref("slow").logits, where=where)
        models["slow"] = fkd.ema("student", decay=0.9)
    return fkd.Objective(terms, **models)


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a tree, cloned."""
    found = tree_leaves(tree)
    return [x.clone() for x in found if isinstance(x, Tensor)]


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees hold the same bits."""
    pairs = list(zip(leaves(a), leaves(b), strict=True))
    return all(torch.equal(x.nan_to_num(7e7), y.nan_to_num(7e7)) for x, y in pairs)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1)


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-2)
