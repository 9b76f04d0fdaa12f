"""What a step costs with the teacher in it, ahead of it, behind HTTP, and without a teacher.

    python benchmarks/served.py [--case logits|hidden] [--threads 1] [--rounds 7]

Ways to train the same student on the same batches, in one process and in turn, `--steps` at a time:

    labels      no teacher: the floor
    given       the same terms, and the teacher's values are there already: what sources can reach
    in step     the teacher in the step's own graph
    live        beside the step, one after the other
    ahead       in a thread, one batch ahead
    served      `python -m fkd serve` in another process of this machine, one batch ahead
    served 0    the same, none ahead: what the way over HTTP costs
    asleep      answers come after `--sleep` ms without work here, as another machine's do

Two processes or threads share this machine's cores, so `ahead` and `served` can be no faster than
the work divided by the cores that are free; `asleep` shows what is left where the teacher has a
machine of its own. Losses of the first batches are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import fkd
from fkd import batch, frozen, student, teacher, term, trainable
from fkd.losses import cross_entropy, kl, mse

RESULT = Path(__file__).parent / "results" / "served.md"
VOCAB, LENGTH, EXAMPLES, WIDTH = 2000, 64, 8, 192


class Encoder(nn.Module):
    """A transformer that says something of every token."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(width, VOCAB)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.head(x), "last": x}


def objective(case: str) -> fkd.Objective:
    """The objective of a case; the teacher has 8 layers, the student 2."""
    torch.manual_seed(0)
    small, big = Encoder(WIDTH, 2), Encoder(WIDTH, 8)
    terms = {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "logits": term(kl, student.logits, teacher.logits, temperature=2.0),
        "hidden": term(mse, student.last, teacher.last),
    }
    wanted = {"labels", case}
    return fkd.Objective(
        {name: t for name, t in terms.items() if name in wanted},
        student=trainable(small),
        **({} if case == "labels" else {"teacher": frozen(big)}),
    )


def logits() -> fkd.Objective:
    """For `python -m fkd serve`."""
    return objective("logits")


def hidden() -> fkd.Objective:
    """For `python -m fkd serve`."""
    return objective("hidden")


def batches(count: int) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    shape = (EXAMPLES, LENGTH)
    return [
        {
            "input_ids": torch.randint(VOCAB, shape, generator=draw),
            "labels": torch.randint(VOCAB, shape, generator=draw),
        }
        for _ in range(count)
    ]


@contextlib.contextmanager
def process(case: str, threads: int) -> Iterator[str]:
    """`python -m fkd serve` in a process of its own; gives its address."""
    command = [sys.executable, "-m", "fkd", "serve", f"{__file__}:{case}", "--port", "0"]
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": root}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
    finally:
        server.terminate()
        server.wait()


class Asleep:
    """A teacher whose values come after a while, without work here."""

    def __init__(self, source: Any, seconds: float, values: dict[str, Tensor]) -> None:
        self.name, self.key = source.name, source.key
        self.seconds, self.kept = seconds, values

    def values(self, batch: Any) -> dict[str, Tensor]:
        time.sleep(self.seconds)
        return self.kept

    def attach(self, made: list[dict[str, Tensor]]) -> list[dict[str, Any]]:
        return [{**one, f"fkd.sources/{self.name}": self.kept} for one in made]


def variants(case: str, made: list[dict[str, Tensor]], url: str, sleep: float) -> dict[str, Any]:
    """Name -> (objective, batches)."""
    whole = objective(case)
    live = fkd.sources.live(whole)
    asleep = Asleep(live, sleep, live.values(made[0]))
    sources = {
        "given": Asleep(live, 0.0, live.values(made[0])),
        "live": live,
        "ahead": fkd.sources.ahead(whole),
        "served": fkd.sources.served(url),
        "served 0": fkd.sources.served(url, batches=0),
        "asleep": fkd.sources.ahead(asleep),
    }
    found: dict[str, Any] = {"labels": (objective("labels"), made), "in step": (whole, made)}
    for name, source in sources.items():
        found[name] = fkd.sources.bind(whole, source), source.attach(made)
    return found


def runner(goal: fkd.Objective, train: Iterable[Any], compile: bool) -> Callable[[], list[float]]:
    """A function that goes once over the batches, and gives the losses."""
    step = fkd.loops.train_step(
        goal, lambda params: torch.optim.SGD(params, lr=0.0), compile=compile
    )
    state = step.init()

    def run() -> list[float]:
        nonlocal state
        losses = []
        for one in train:
            state, metrics = step(state, one)
            losses.append(float(metrics["loss/total"]))
        return losses

    return run


def teacher_ms(case: str, made: list[dict[str, Tensor]]) -> float:
    """The time of the teacher alone."""
    live = fkd.sources.live(objective(case))
    live.values(made[0])
    began = time.perf_counter()
    for one in made:
        live.values(one)
    return 1e3 * (time.perf_counter() - began) / len(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=["logits", "hidden"], action="append")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sleep", type=float, default=40.0, help="ms")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = batches(options.steps)
    lines = [
        "| case | variant | ms a step | over given | over in step | range |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    notes = []
    for case in options.case or ["logits", "hidden"]:
        with process(case, options.threads) as url:
            runs = {
                name: runner(goal, train, options.compile)
                for name, (goal, train) in variants(case, made, url, options.sleep / 1e3).items()
            }
            losses = {name: run() for name, run in runs.items()}
            for name in ("live", "ahead", "served", "served 0"):
                off = max(map(lambda a, b: abs(a - b), losses[name], losses["in step"]))
                if off > 1e-4 * losses["in step"][0]:
                    raise SystemExit(f"{case}: the losses of {name} are not those in the step.")
            seconds: dict[str, list[float]] = {name: [] for name in runs}
            for i in range(options.rounds):
                for name in list(runs) if i % 2 == 0 else reversed(list(runs)):
                    began = time.perf_counter()
                    runs[name]()
                    seconds[name].append((time.perf_counter() - began) / options.steps)
            alone = teacher_ms(case, made)
        size = EXAMPLES * LENGTH * (VOCAB if case == "logits" else WIDTH) * 4 / 2**20
        notes.append(
            f"{case}: {size:.1f} MiB of values for a batch of {EXAMPLES} x {LENGTH} tokens; the "
            f"teacher's forward pass alone takes {alone:.0f} ms."
        )
        for name, times in seconds.items():
            over = [
                statistics.median(a / b for a, b in zip(times, seconds[base], strict=True))
                for base in ("given", "in step")
            ]
            low, high = 1e3 * min(times), 1e3 * max(times)
            lines.append(
                f"| {case} | {name} | {1e3 * statistics.median(times):.1f} | {over[0]:.2f} | "
                f"{over[1]:.2f} | {low:.1f} to {high:.1f} |"
            )
            print(lines[-1], flush=True)
    write(lines, notes, options)


def write(lines: list[str], notes: list[str], options: argparse.Namespace) -> None:
    load = os.getloadavg()[0]
    how = "compiled" if options.compile else "eager"
    text = (
        "# A teacher in the step, ahead of it, and behind HTTP\n\n"
        f"`python benchmarks/served.py{' --compile' if options.compile else ''}`: {how}, torch "
        f"{torch.__version__}, {options.threads} thread(s) for each process, "
        f"{os.cpu_count()} cores, load {load:.1f}, medians of {options.rounds} rounds of "
        f"{options.steps} steps, which take turns; ratios within a round.\n\n"
        + "\n".join(lines)
        + "\n\n"
        + "\n".join(f"- {note}" for note in notes)
        + f"\n- `asleep` waits {options.sleep:.0f} ms for values and computes none of them: a "
        "teacher with a machine of its own.\n"
        "- What two cores mean: the student's step has one of them and the teacher, in a thread or "
        "in another process, has the other, so that at best a step takes the longer of the two "
        "times, not their sum. Whatever else runs on the machine takes from both. On one core "
        "nothing is won, and two that take turns on it lose. A round begins with nothing ahead, so "
        "that its first batch is waited for; on a machine with a device for each, the teacher is "
        "free as long as it is "
        "not the slower one (`asleep`).\n"
    )
    RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
