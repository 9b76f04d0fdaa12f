"""Kill a training run with SIGKILL, again and again, and compare its end with a whole run.

    python benchmarks/kill_test.py --kills 50
    python benchmarks/kill_test.py --on-policy          # a student that writes its own batches

Every run is a process of its own, killed after a random time that may fall into its start, a
step, a checkpoint or a load. Then it is let go to its end, and the bytes of the last checkpoint
are compared with those of a run that nobody killed. The student has dropout, batch statistics,
an EMA copy, a stateful loss and AdamW; the loader shuffles and adds noise from the generators
of torch, Python and NumPy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from fkd.loops._checkpoint.checkpoint import load_latest
from tests.loops.training import LOADERS, in_process, same_end, spawn, train


def run(folder: Path, epochs: int, pause: float) -> None:
    """A run that takes `pause` seconds longer at each step, so that kills meet all of it."""

    def callback(event: Any) -> None:
        time.sleep(pause)

    loader = LOADERS["shuffled"]()
    train(folder, loader, epochs=epochs, save_every=1, log_every=1, callbacks=[callback])


def run_on_policy(folder: Path, epochs: int, pause: float) -> None:
    """The same of a student that writes its own text, two updates on each batch of it."""
    from tests.loops.generate.test_generate import killed

    killed(folder, "updates", pause, steps=5 * epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--on-policy", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    job = run_on_policy if args.on_policy else run
    name = "kill_test_on_policy" if args.on_policy else "kill_test"
    args.out = args.out or Path(f"benchmarks/results/{name}.json")
    rng = random.Random(args.seed)
    train(None, epochs=1)  # imports what the processes share
    epochs = max(2, args.kills)
    with tempfile.TemporaryDirectory() as name:
        whole, broken = Path(name, "whole"), Path(name, "broken")
        assert in_process(job, whole, epochs, 0.0) == 0
        reached: list[int] = []
        while len(reached) < args.kills:
            process = spawn(job, broken, epochs, 0.01)
            process.join(rng.uniform(0.05, 1.2))
            if process.exitcode is not None:
                sys.exit(f"the run ended by itself after {len(reached)} kills; raise the epochs")
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            found = load_latest(broken) if broken.exists() else None
            reached.append(found.step if found else 0)
        assert in_process(job, broken, epochs, 0.0) == 0
        equal = same_end(whole, broken)
    about = {
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kills": len(reached),
        "steps": 5 * epochs,
        "newest good checkpoint after each kill": " ".join(map(str, reached)),
        "final bytes equal those of the uninterrupted run": equal,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(about, indent=2) + "\n")
    print(json.dumps(about, indent=2))
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
