"""Distil a convolutional network into one that is thirty times smaller, on handwritten digits.

    python examples/digits.py
    torchrun --nproc-per-node 2 examples/digits.py

The teacher was trained on 1,297 labelled images. Whoever trains the student has the images and
the teacher, and the labels of only 100: few labels and much unlabelled data, a usual reason to
distil. The student learns in three ways, each from several random starts:

    labels             cross-entropy on the 100 labelled images
    logits             + KL to the teacher's softened logits on all images
    logits + features  + attention transfer between the feature maps

Prints a table and writes the drawn objective, the exported student and a report of the last
run. The data come with scikit-learn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import attention_transfer, cross_entropy, kl
from fkd.metrics import accuracy

UNLABELLED = -100


class Network(nn.Module):
    """Two convolutions and a linear layer on 8 x 8 images."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.early = self.block(1, channels)
        self.late = self.block(channels, 2 * channels)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(2 * channels * 4, 10)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        early = self.early(image)
        late = self.late(self.pool(early))
        return {"features": late, "logits": self.head(self.pool(late).flatten(1))}


def batches(data: dict[str, Tensor], size: int):
    """A loader: from a seed, the shuffled batches of an epoch."""

    def epoch(seed: int) -> Iterator[dict[str, Tensor]]:
        order = torch.randperm(len(data["label"]), generator=torch.Generator().manual_seed(seed))
        for chunk in order.split(size):
            if len(chunk) == size:
                yield {name: values[chunk] for name, values in data.items()}

    return epoch


def digits(labelled: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """All training images with their labels, the same with few labels, and the test images."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:-500], order[-500:]
    few = labels[train].clone()
    few[labelled:] = UNLABELLED
    everything = {"image": images[train], "label": labels[train]}
    return (
        everything,
        {"image": images[train], "label": few},
        {"image": images[test], "label": labels[test]},
    )


def objectives(small: Network, large: Network) -> dict[str, fkd.Objective]:
    labels = {"labels": term(cross_entropy, student.logits, batch.label, ignore_index=UNLABELLED)}
    logits = {**labels, "kd": term(kl, student.logits, teacher.logits, temperature=4.0)}
    features = {
        **logits,
        "features": term(
            attention_transfer,
            student.features,
            teacher.features,
            weight=fkd.schedules.linear(50.0, 0.0, steps=300),
        ),
    }
    models = {"student": fkd.trainable(small), "teacher": fkd.frozen(large)}
    return {
        "labels": fkd.Objective(labels, student=fkd.trainable(small)),
        "logits": fkd.Objective(logits, **models),
        "logits + features": fkd.Objective(features, **models),
    }


MESH = fkd.parallel.torchrun_mesh()  # None without torchrun


def make_step(objective: fkd.Objective, steps: int, compile: bool) -> fkd.loops.TrainStep:
    def optimizer(params):
        return torch.optim.AdamW(fkd.loops.param_groups(params, weight_decay=0.05), lr=1e-2)

    rate = fkd.schedules.warmup(20, fkd.schedules.cosine(1.0, 0.0, steps=steps - 20))
    options = {"lr": rate, "clip": 5.0, "compile": compile, "mesh": MESH}
    return fkd.loops.train_step(objective, optimizer, **options)


def train_teacher(data: dict[str, Tensor], steps: int) -> nn.Module:
    torch.manual_seed(0)
    loss = term(cross_entropy, student.logits, batch.label)
    objective = fkd.Objective({"labels": loss}, student=fkd.trainable(Network(64)))
    step = make_step(objective, steps, compile=False)  # one short run: not worth the wait
    result = fkd.loops.run(step, step.init(seed=0), batches(data, 64), steps=steps)
    return fkd.loops.export(objective, result.state)


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

    everything, few, test = digits(args.labelled)
    large = train_teacher(everything, args.steps)
    score = fkd.metric(accuracy, student.logits, batch.label)
    loader = {name: batches(few, 64) for name in ("logits", "logits + features")}
    only_labelled = {name: values[: args.labelled] for name, values in few.items()}
    loader["labels"] = batches(only_labelled, 50)

    rows, best = [], None
    for name, objective in objectives(Network(8), large).items():
        step = make_step(objective, args.steps, args.compile)
        if name == "logits + features":
            print("\n" + str(fkd.check(objective, {k: v[68:132] for k, v in few.items()})) + "\n")
            fkd.draw(objective).save(args.out / "objective.svg")
        scores, seconds = [], []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            folder = args.out / name.replace(" + ", "-") / f"seed-{seed}"
            events = fkd.loops.fit(
                step,
                step.init(seed, modules={"student": Network(8)}),
                loader[name],
                steps=args.steps,
                dev=[test],
                metrics={"accuracy": score},
                best="accuracy",
                evaluate_every=100,
                save_every=args.steps,
                log_every=20,
                log_dir=folder,
                checkpoint_dir=folder,
                resume=False,
                progress=False,
            )
            for event in events:
                if event.kind == "log":
                    seconds.append(event.values["examples_per_s"])
                if event.kind == "evaluate":
                    accuracy_now = event.values["accuracy"]
                last = event
            scores.append(accuracy_now)
        rows.append((name, scores, Network(8), statistics.median(seconds)))
        fkd.loops.export(objective, last.state, "student", args.out / "student")
        best = folder

    evaluated = fkd.Objective(
        {"labels": term(cross_entropy, student.logits, batch.label)}, student=fkd.trainable(large)
    )
    measured = fkd.loops.evaluate(
        evaluated, make_step(evaluated, 100, False).init(), [test], metrics={"accuracy": score}
    )
    table(rows, large, measured["accuracy"])
    print(f"\nstudent     {args.out / 'student' / 'model.safetensors'}")
    print(f"objective   {args.out / 'objective.svg'}")
    print(f"report      {fkd.loops.report(best)}")


def table(rows, large: nn.Module, teacher_accuracy: float) -> None:
    print(f"{'':20}{'test accuracy':>22}{'parameters':>12}{'examples/s':>12}")
    print(f"{'teacher':20}{teacher_accuracy:>13.1%}{'':9}{size(large):>12,}{'':>12}")
    for name, scores, network, rate in rows:
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        shown = f"{statistics.mean(scores):.1%} +- {spread:.1%}"
        print(f"{name:20}{shown:>22}{size(network):>12,}{rate:>12,.0f}")
    print(f"(mean and standard deviation over {len(rows[0][1])} random starts of the student)")


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s in all")
