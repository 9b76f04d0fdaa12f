"""Kill one process of a run at random moments: does `torchrun` bring it to the same final bytes?

    python benchmarks/parallel_faults.py --times 30

Starts the same run under `torchrun --max-restarts`, once undisturbed, then `times` times with
kill -9 of a random process at a random moment, while it steps or while it saves. Prints how many
runs ended with the bytes of the undisturbed one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _faulty_run
import torch
from torch import Tensor, nn

import fkd

STEPS = 60


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(8, width), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(torch.tanh(self.norm(self.first(x))))}


def worker(folder: Path, axis: str) -> None:
    """One process of the run."""
    torch.set_num_threads(1)
    mesh = fkd.parallel.torchrun_mesh(**{axis: -1})
    (folder / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    torch.manual_seed(0)
    goal = _faulty_run.objective(Net(64), Net(256))
    data = [{"x": torch.randn(13, 8), "y": torch.randint(5, (13,))} for _ in range(10)]
    places, how = (folder / "run", folder / "out"), {"save_every": 3, "log_every": 5}
    _faulty_run.train(goal, data, *places, pause=0.005, mesh=mesh, steps=STEPS, **how)


def started(folder: Path, axis: str, processes: int) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "--max-restarts", "3", __file__]
    command += ["--worker", str(folder), "--axis", axis]
    log = (folder / "log").open("wb")
    single = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=log, stderr=log, env=single)


def bytes_of(folder: Path) -> str:
    path = folder / "out" / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--axis", default="replicate", choices=("replicate", "shard"))
    parser.add_argument("--worker", type=Path)
    args = parser.parse_args()
    if args.worker is not None:
        worker(args.worker, args.axis)
        return
    with tempfile.TemporaryDirectory() as place:
        root, draw = Path(place), random.Random(0)
        started(root / "undisturbed", args.axis, args.processes).wait()
        expected = bytes_of(root / "undisturbed")
        same = 0
        for i in range(args.times):
            folder = root / str(i)
            run = started(folder, args.axis, args.processes)
            while not any((folder / "run").glob("step-*")) and run.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 1.0))
            saving = bool(list((folder / "run").glob(".writing-*")))
            rank = draw.randrange(args.processes)
            try:
                os.kill(int((folder / f"pid-{rank}").read_text()), signal.SIGKILL)
            except (ProcessLookupError, FileNotFoundError):
                pass  # it was done
            code = run.wait()
            same += bytes_of(folder) == expected
            when = "saving" if saving else "stepping"
            print(f"{i}: rank {rank}, {when}: exit {code}, {bytes_of(folder)}", flush=True)
        print(f"{same} of {args.times} runs end with {expected}, the bytes of the undisturbed one")


if __name__ == "__main__":
    main()
