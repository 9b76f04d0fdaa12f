"""What the host spends on a step in which there is nearly nothing to compute.

    python benchmarks/host_time.py --against ../other-checkout

A compiled step of two layers of 8 features on one thread. With `--against` the step of another
checkout is timed in turns with this one, each round in a process of its own, and the ratio is
that of the medians over rounds: other work on the machine slows both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent.parent


def measure(calls: int, repeats: int) -> float:
    """Microseconds a step: the least of several repeats."""
    import torch

    import fkd
    from fkd.losses import kl

    def network() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))

    torch.set_num_threads(1)
    objective = fkd.Objective(
        {"kd": fkd.term(kl, fkd.student, fkd.teacher)},
        student=fkd.trainable(network()),
        teacher=fkd.frozen(network()),
    )
    step = fkd.loops.train_step(objective, lambda params: torch.optim.AdamW(params, lr=1e-3))
    state, batch = step.init(0), torch.randn(4, 8)
    for _ in range(50):
        state, _ = step(state, batch)
    times: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(calls):
            state, _ = step(state, batch)
        times.append((time.perf_counter() - began) / calls * 1e6)
    return min(times)


def in_process(checkout: Path, calls: int, repeats: int) -> float:
    """The same for a checkout, in a process of its own."""
    command = [sys.executable, __file__, "--one", f"--calls={calls}", f"--repeats={repeats}"]
    path = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(command, env=path, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(measure(args.calls, args.repeats))
        return
    checkouts = {"here": HERE} | ({"there": args.against} if args.against else {})
    times: dict[str, list[float]] = {name: [] for name in checkouts}
    for _ in range(args.rounds):
        for name, checkout in checkouts.items():
            times[name].append(in_process(checkout, args.calls, args.repeats))
    for name, values in times.items():
        print(f"{name}: {statistics.median(values):.0f} us a step (least {min(values):.0f})")
    if args.against:
        pairs = zip(times["here"], times["there"], strict=True)
        print(f"here / there: {statistics.median(a / b for a, b in pairs):.3f}")


if __name__ == "__main__":
    main()
