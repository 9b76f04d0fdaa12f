"""What the loop costs: `fit` against a bare loop over the step, and logging on against off.

    python benchmarks/loop_cost.py [--device cuda] [--compile]

Three ways to train on the same batches, run in turn in one process, many short rounds of each:

    bare     for batch in loader: state, metrics = step(state, batch)
    loop     fit(step, state, loader, steps=..)
    logging  fit(.., log_dir=.., log_every=50), JSON lines, TensorBoard and the progress lines

A round times steps 11 to 60 of a run, so that starting and ending do not count; with logging,
one log point is in it. Reported are the medians over rounds and the median of the ratio of
neighbouring rounds. On a machine that others use as well these differ by more than the loop
costs; so the time between the end of a step and the beginning of the next is measured too,
which is what a loop adds to the steps themselves (on a CPU, where nothing is left in flight).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import cross_entropy, kl, mse

SKIPPED, TIMED = 10, 50


class Encoder(nn.Module):
    """A transformer encoder that classifies a sequence."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, input_ids: Tensor) -> dict[str, Any]:
        states = [self.embed(input_ids)]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return {"logits": self.head(states[-1].mean(1)), "hidden_states": tuple(states)}


# width, layers of student and teacher, batch, length
SIZES = {"small": (64, 2, 4, 16, 32), "medium": (256, 4, 8, 4, 64)}


def make(size: str, device: str, compile: bool) -> tuple[fkd.loops.TrainStep, list[Any]]:
    width, shallow, deep, examples, length = SIZES[size]
    torch.manual_seed(0)
    objective = fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, temperature=4.0),
            "labels": term(cross_entropy, student.logits, batch.labels),
            "hidden": {
                f"{s}<-{t}": term(
                    mse,
                    student.hidden_states[s],
                    teacher.hidden_states[t],
                    weight=fkd.schedules.linear(1.0, 0.1, steps=1000),
                )
                for s, t in fkd.layer_map(student=shallow, teacher=deep)
            },
        },
        student=fkd.trainable(Encoder(width, shallow).to(device)),
        teacher=fkd.frozen(Encoder(width, deep).to(device)),
    )
    step = fkd.loops.train_step(
        objective, lambda p: torch.optim.AdamW(p, lr=1e-4), compile=compile, clip=1.0
    )
    g = torch.Generator().manual_seed(0)
    loader = [
        {
            "input_ids": torch.randint(0, 1000, (examples, length), generator=g),
            "labels": torch.randint(0, 10, (examples,), generator=g),
        }
        for _ in range(8)
    ]
    return step, loader


def forever(loader: list[Any]) -> Iterator[Any]:
    while True:
        yield from loader


class Clock:
    """A loader that notes the time when the steps begin and end that count."""

    def __init__(self, loader: list[Any], device: str) -> None:
        self.loader, self.device, self.times = loader, device, []

    def __iter__(self) -> Iterator[Any]:
        for index, made in enumerate(forever(self.loader)):
            if index in (SKIPPED, SKIPPED + TIMED):
                if self.device == "cuda":
                    torch.cuda.synchronize()
                self.times.append(time.perf_counter())
            yield made

    @property
    def seconds(self) -> float:
        return (self.times[1] - self.times[0]) / TIMED


class Timed(fkd.loops.TrainStep):
    """A step that notes when it begins and ends."""

    calls: ClassVar[list[tuple[float, float]]] = []

    def __call__(self, state: Any, made: Any) -> Any:
        began = time.perf_counter()
        found = super().__call__(state, made)
        self.calls.append((began, time.perf_counter()))
        return found

    @classmethod
    def between(cls) -> float:
        """The mean time between two steps of the run, over their median time."""
        calls = cls.calls[SKIPPED : SKIPPED + TIMED + 1]
        cls.calls.clear()
        gaps = [later - ended for (_, ended), (later, _) in itertools.pairwise(calls)]
        return statistics.mean(gaps) / statistics.median(e - b for b, e in calls)


def bare(step: Any, state: Any, clock: Clock) -> None:
    for index, made in enumerate(clock):
        if index > SKIPPED + TIMED:
            return
        state, _ = step(state, made)


def loop(step: Any, state: Any, clock: Clock) -> None:
    for _ in fkd.loops.fit(step, state, clock, steps=SKIPPED + TIMED + 1):
        pass


def logging(step: Any, state: Any, clock: Clock) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        events = fkd.loops.fit(
            step,
            state,
            clock,
            steps=SKIPPED + TIMED + 1,
            log_dir=folder,
            log_every=TIMED,
            tensorboard=True,
        )
        for _ in events:
            pass


WAYS = {"bare": bare, "loop": loop, "logging": logging}


def measure(size: str, device: str, compile: bool, rounds: int) -> dict[str, Any]:
    step, loader = make(size, device, compile)
    step.__class__ = Timed
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    between: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds + 1):
        # Turned around every time, so that no way is always first.
        for name in list(WAYS)[:: 1 if turn % 2 else -1]:
            clock = Clock(loader, device)
            WAYS[name](step, step.init(0, device=device), clock)
            gap = Timed.between()
            if turn:  # the first turn compiles
                taken[name].append(clock.seconds)
                between[name].append(gap)

    def ratio(one: str, other: str) -> dict[str, Any]:
        found = sorted(a / b for a, b in zip(taken[one], taken[other], strict=True))
        quarter = len(found) // 4
        return {
            "median": round(statistics.median(found), 4),
            "quartiles": [round(found[quarter], 4), round(found[-1 - quarter], 4)],
        }

    width, shallow, deep, examples, length = SIZES[size]
    return {
        "shapes": f"width {width}, layers {deep} -> {shallow}, batch {examples} x {length}",
        "milliseconds per step": {
            n: round(1e3 * statistics.median(v), 3) for n, v in taken.items()
        },
        "loop / bare": ratio("loop", "bare"),
        "logging / loop": ratio("logging", "loop"),
        "time between steps / time of a step": {
            n: round(statistics.median(v), 5) for n, v in between.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loop_cost.json"))
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    found = {
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": f"{args.device} ({name}), {torch.get_num_threads()} threads",
        "rounds": args.rounds,
        "steps per round": TIMED,
        **{s: measure(s, args.device, args.compile, args.rounds) for s in args.sizes},
    }
    text = json.dumps(found, indent=2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
