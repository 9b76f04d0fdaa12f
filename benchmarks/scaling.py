"""How time, compile seconds and memory of a step grow with tokens, layers, vocabulary, terms.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --axes terms
    python benchmarks/scaling.py --device cuda --hidden 1024 --tokens 4096 --vocab 32000

One axis at a time, from a base size. The models are plain residual MLPs (`layers` blocks of
`hidden`) with an embedding and a head over `vocab`; terms are mean squared errors of hidden
states with schedules as weights, and one divergence of the logits. `per_unit` is the time over
the size, relative to the first size of the axis: it stays at or below 1 if cost grows linearly.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _measure import COLUMNS, Run, arguments, compare, table, write
from _steps import fkd_step
from torch import Tensor, nn

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import kl, mse
from fkd.schedules import linear

AXES = {
    "tokens": (1, 2, 4, 8),
    "layers": (1, 2, 4),
    "vocab": (1, 2, 4, 8),
    "terms": (5, 20, 80),
}
"""Factors of the base size; for terms, their number."""


class Net(nn.Module):
    def __init__(self, vocab: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, hidden)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU())
            for _ in range(layers)
        )
        self.head = nn.Linear(hidden, vocab, bias=False)

    def forward(self, ids: Tensor) -> dict[str, Any]:
        states = [self.embed(ids)]
        for layer in self.layers:
            states.append(states[-1] + layer(states[-1]))
        return {"logits": self.head(states[-1]), "hidden": states}


def build(options: argparse.Namespace, sizes: dict[str, int], compile: bool) -> Run:
    torch.manual_seed(0)
    small = Net(sizes["vocab"], options.hidden, sizes["layers"]).to(options.device)
    big = Net(sizes["vocab"], options.hidden, 2 * sizes["layers"]).to(options.device)
    hidden: dict[str, Any] = {}
    for i in range(sizes["terms"] - 1):
        s, t = i % (sizes["layers"] + 1), i % (2 * sizes["layers"] + 1)
        hidden[f"{i}"] = term(
            mse,
            student.hidden[s],
            teacher.hidden[t],
            where=batch.mask,
            weight=linear(1.0, 0.1, 100),
        )
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits, where=batch.mask), "hidden": hidden},
        student=fkd.trainable(small),
        teacher=fkd.frozen(big),
    )
    ids = torch.randint(0, sizes["vocab"], (4, sizes["tokens"] // 4), device=options.device)
    data = {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}
    return fkd_step(objective, data, compile=compile, bf16=options.bf16)


def sizes_of(options: argparse.Namespace, axis: str) -> list[dict[str, int]]:
    base = {"tokens": options.tokens, "layers": options.layers, "vocab": options.vocab, "terms": 5}
    return [{**base, axis: f if axis == "terms" else f * base[axis]} for f in AXES[axis]]


def main() -> None:
    parser = arguments(__doc__ or "", tokens=256, layers=4, vocab=1000, hidden=128)
    parser.add_argument("--axes", default=",".join(AXES))
    parser.add_argument("--eager", action="store_true", help="compare with the eager step too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {}
    for axis in options.axes.split(","):
        make: dict[str, Callable[[], Run]] = {}
        sizes = {f"{axis} {s[axis]}": s for s in sizes_of(options, axis)}
        for name, size in sizes.items():
            make[name] = lambda size=size: build(options, size, True)
            if options.eager:
                make[f"{name}, eager"] = lambda size=size: build(options, size, False)
        torch._dynamo.reset()
        first = next(iter(sizes))
        rows = compare(make, options, baseline=first)
        for name, size in sizes.items():
            if "ratio" in rows[name]:
                rows[name]["per_unit"] = rows[name]["ratio"] * sizes[first][axis] / size[axis]
        print(table(rows, {**COLUMNS, "per_unit": ".2f"}) + "\n")
        results[axis] = rows
    write(f"scaling_{options.device}", options, results, [])


if __name__ == "__main__":
    main()
