"""Time series: a fully convolutional network taught to one of 1/27 of its parameters.

    pip install fkd && pip install --no-deps aeon
    python examples/tutorials/series.py --data ItalyPowerDemand

The package aeon carries some data sets of the UCR archive in their original splits; only its files
are read. The teacher is the network of Wang et al. (arXiv:1611.06455), trained here; the students
learn from the labels, from these and the teacher's logits, and from its last feature map as well.
The table shows their means over the seeds; `benchmarks/real_ucr.py` does this on eight data sets.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fkd
from fkd import batch, module, student, teacher, term
from fkd.losses import cross_entropy, kl, mse
from fkd.metrics import accuracy

WIDE, NARROW = (128, 256, 128), (24, 48, 24)
METRICS = {"accuracy": fkd.metric(accuracy, student.logits, batch.labels)}
TERMS: dict[str, Any] = {
    "labels": term(cross_entropy, student.logits, batch.labels),
    "logits": term(kl, student.logits, teacher.logits, temperature=4.0),
    "features": term(mse, module("project")(student.map), teacher.map),
}
WAYS = {
    "labels": ("labels",),
    "labels + logits": ("labels", "logits"),
    "labels + logits + features": ("labels", "logits", "features"),
}


class Network(nn.Module):
    """Three convolutions with batch normalization, the mean over time, one linear layer."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        inputs = (1, *widths[:-1])
        self.layers = nn.Sequential(*(
            nn.Sequential(nn.Conv1d(a, b, k, padding=k // 2), nn.BatchNorm1d(b), nn.ReLU())
            for a, b, k in zip(inputs, widths, (8, 5, 3), strict=True)
        ))  # fmt: skip
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, series: Tensor) -> dict[str, Tensor]:
        found = self.layers(series)
        return {"logits": self.head(found.mean(-1)), "map": found}


def read(name: str) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], int]:
    """Training and test series, standardized by the training split, and how many classes."""
    spec = importlib.util.find_spec("aeon")
    if spec is None or spec.origin is None:
        raise SystemExit("aeon is missing: pip install --no-deps aeon")
    folder = Path(spec.origin).parent / "datasets" / "data" / name
    splits: list[list[tuple[Tensor, str]]] = []
    for part in ("TRAIN", "TEST"):
        text = (folder / f"{name}_{part}.ts").read_text(encoding="utf-8")
        lines = [line.rsplit(":", 1) for line in text.split("@data")[1].split()]
        splits.append([(torch.tensor([float(v) for v in x.split(",")]), y) for x, y in lines])
    seen = torch.cat([x for x, _ in splits[0]])
    classes = sorted({y for split in splits for _, y in split})
    train, test = (
        [
            {
                "series": ((x - seen.mean()) / seen.std())[None],
                "labels": torch.tensor(classes.index(y)),
            }
            for x, y in split
        ]
        for split in splits
    )
    return train, test, len(classes)


def trained(objective: fkd.Objective, rows: Any, steps: int, lr: float, seed: int) -> nn.Module:
    """The student of an objective after so many steps."""
    step = fkd.loops.train_step(
        objective,
        lambda params: torch.optim.AdamW(params, lr=lr, weight_decay=1e-4),
        lr=fkd.schedules.cosine(1.0, 0.01, steps=steps),
        compile=False,
    )
    loader = DataLoader(rows, 16, shuffle=True, drop_last=True)
    state = fkd.loops.run(step, step.init(seed), loader, steps=steps, progress=False).state
    return fkd.loops.export(objective, state, "student")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="ItalyPowerDemand", help="a folder of aeon's data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, help="a file for the report card (.json)")
    args = parser.parse_args()
    train, test, classes = read(args.data)

    torch.manual_seed(0)
    alone = {"labels": TERMS["labels"]}
    first = fkd.Objective(alone, student=fkd.trainable(Network(WIDE, classes)))
    large = trained(first, train, args.steps, 1e-3, 0)
    students: dict[str, list[nn.Module]] = {way: [] for way in WAYS}
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        small, project = Network(NARROW, classes), nn.Conv1d(NARROW[-1], WIDE[-1], 1)
        for way, names in WAYS.items():
            models = {"student": fkd.trainable(small)}  # each way begins with the same numbers
            models |= {"teacher": fkd.frozen(large)} if "logits" in names else {}
            models |= {"project": fkd.trainable(project)} if "features" in names else {}
            objective = fkd.Objective({name: TERMS[name] for name in names}, **models)
            if not seed:
                print(fkd.check(objective, next(iter(DataLoader(train, 16)))), flush=True)
            students[way].append(trained(objective, train, args.steps, 2e-3, seed))
    card = fkd.loops.report_card(large, students, DataLoader(test, 64), METRICS)
    print(f"{args.data}: {len(train)} series to train on, {len(test)} to test\n{card}")
    if args.out:
        args.out.write_text(json.dumps(card.json(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
