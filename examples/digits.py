"""Distil a convolutional network into one that is thirty times smaller, on handwritten digits.

    python examples/digits.py
    torchrun --nproc-per-node 2 examples/digits.py

The teacher was trained on 1,297 labelled images. Whoever trains the student has the images and
the teacher, and the labels of only 100: few labels and much unlabelled data, a usual reason to
distil. The student learns in three ways, each from several random starts:

    labels             cross-entropy on the 100 labelled images
    logits             + KL to the teacher's softened logits on all images
    logits + features  + attention transfer between the feature maps

Prints the students' report card, and writes the drawn objective, a student, and two reports.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import attention_transfer, cross_entropy, kl
from fkd.metrics import accuracy

UNLABELLED, TEST = -100, 500
METRICS = {"accuracy": fkd.metric(accuracy, student.logits, batch.labels)}
MESH = fkd.parallel.torchrun_mesh()  # None without torchrun


class Network(nn.Module):
    """Two convolutions and a linear layer on 8 x 8 images."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.early = self.block(1, channels)
        self.late = self.block(channels, 2 * channels)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(2 * channels * 4, 10)

    @staticmethod
    def block(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        early = self.early(image)
        late = self.late(self.pool(early))
        return {"features": late, "logits": self.head(self.pool(late).flatten(1))}


def digits() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training images and test images, in an order that is always the same."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"image": images[i], "labels": int(found.target[i])} for i in order]
    return rows[:-TEST], rows[-TEST:]


def loader(rows: list[Any], size: int) -> DataLoader[Any]:
    return DataLoader(rows, size, shuffle=True, drop_last=True)  # type: ignore[arg-type]


def objectives(small: Network, large: nn.Module) -> dict[str, fkd.Objective]:
    """The three ways to learn."""
    labels = {"labels": term(cross_entropy, student.logits, batch.labels)}
    logits = {**labels, "kd": term(kl, student.logits, teacher.logits, temperature=4.0)}
    fading = fkd.schedules.linear(50.0, 0.0, steps=300)
    maps = term(attention_transfer, student.features, teacher.features, weight=fading)
    models = {"student": fkd.trainable(small), "teacher": fkd.frozen(large)}
    return {
        "labels": fkd.Objective(labels, student=fkd.trainable(small)),
        "logits": fkd.Objective(logits, **models),
        "logits + features": fkd.Objective({**logits, "features": maps}, **models),
    }


def make_step(objective: fkd.Objective, steps: int, compile: bool) -> fkd.loops.TrainStep:
    def optimizer(params: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(fkd.loops.param_groups(params, weight_decay=0.05), lr=1e-2)

    rate = fkd.schedules.warmup(20, fkd.schedules.cosine(1.0, 0.0, steps=steps - 20))
    return fkd.loops.train_step(objective, optimizer, lr=rate, clip=5.0, compile=compile, mesh=MESH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="where to write")
    parser.add_argument("--seeds", type=int, default=5, help="random starts of the student")
    parser.add_argument("--steps", type=int, default=300, help="training steps of each student")
    parser.add_argument("--labelled", type=int, default=100, help="how many images have a label")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    if MESH is not None and MESH.get_rank() > 0:
        sys.stdout = open(os.devnull, "w")  # one table is enough
    train, test = digits()
    dev = DataLoader(test, 50)  # type: ignore[arg-type]
    few = [{**row, "labels": UNLABELLED} for row in train[args.labelled :]]
    every = loader(train[: args.labelled] + few, 64)
    loaders = {"labels": loader(train[: args.labelled], 50), "logits": every}

    torch.manual_seed(0)
    alone = objectives(Network(64), nn.Identity())["labels"]
    step = make_step(alone, args.steps, compile=False)  # one short run: not worth the wait
    state = fkd.loops.run(step, step.init(seed=0), loader(train, 64), steps=args.steps).state
    large = fkd.loops.export(alone, state)

    students: dict[str, list[nn.Module]] = {}
    for name, objective in objectives(Network(8), large).items():
        step = make_step(objective, args.steps, args.compile)
        students[name], folder = [], args.out / name.replace(" + ", "-")
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            begun = step.init(seed, modules={"student": Network(8)})
            state = fkd.loops.run(
                step, begun, loaders.get(name, every), steps=args.steps, dev=dev, metrics=METRICS,
                best="accuracy", evaluate_every=100, save_every=args.steps, log_every=20,
                log_dir=folder / f"seed-{seed}", checkpoint_dir=folder / f"seed-{seed}",
                resume=False, progress=False,
            ).state  # fmt: skip
            students[name].append(fkd.loops.export(objective, state, "student"))
    print(f"\n{fkd.check(objective, next(iter(every)))}\n")
    fkd.draw(objective).save(args.out / "objective.svg")
    fkd.loops.export(objective, state, "student", args.out / "student")
    card = fkd.loops.report_card(large, students, dev, METRICS)
    print(f"{card}\n\nstudent      {args.out / 'student' / 'model.safetensors'}")
    print(f"objective    {args.out / 'objective.svg'}")
    print(f"report       {fkd.loops.report(folder / f'seed-{args.seeds - 1}')}")
    print(f"report card  {card.save(args.out / 'card.html')}, card.json")
    card.save(args.out / "card.json")


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s in all")
