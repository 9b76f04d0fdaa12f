"""Kill one process of a run at random moments: does `torchrun` bring it to the same final bytes?

    python benchmarks/parallel_faults.py --times 30 --folder faults

Starts the same run under `torchrun --max-restarts`, once undisturbed, then `times` times with
kill -9 of a random process: by turns at a random moment and while a checkpoint is being written, by
turns with whole parameters and with parameters in parts, and by turns with steps that wait for the
writing and steps that do not. Prints how many runs ended with the bytes of the undisturbed one.
What is done is kept in the folder: the same command goes on there.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _faulty_run
import torch
from torch import Tensor, nn

import fkd

STEPS = 60
AXES = ("replicate", "shard")


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(8, width), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(torch.tanh(self.norm(self.first(x))))}


def worker(folder: Path, axis: str, beside: bool) -> None:
    """One process of the run."""
    torch.set_num_threads(1)
    mesh = fkd.parallel.torchrun_mesh(**{axis: -1})
    (folder / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    with (folder / "starts").open("a") as file:
        file.write(".")
    torch.manual_seed(0)
    goal = _faulty_run.objective(Net(64), Net(256))
    data = [{"x": torch.randn(13, 8), "y": torch.randint(5, (13,))} for _ in range(10)]
    places, how = (folder / "run", folder / "out"), {"save_every": 3, "log_every": 5}
    how["save_async"] = beside
    _faulty_run.train(goal, data, *places, pause=0.005, mesh=mesh, steps=STEPS, **how)


def started(
    folder: Path, axis: str, processes: int, beside: bool = False
) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "--max-restarts", "3", __file__]
    command += ["--worker", str(folder), "--axis", axis, *(["--beside"] if beside else [])]
    log = (folder / "log").open("wb")
    single = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=log, stderr=log, env=single)


def bytes_of(folder: Path) -> str:
    path = folder / "out" / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else "nothing"


def killed(folder: Path, axis: str, processes: int, number: int) -> dict[str, Any]:
    """A run of which one process is killed, once; what became of it."""
    draw, saving, beside = random.Random(number), number % 2 == 1, number // 4 % 2 == 1
    shutil.rmtree(folder, ignore_errors=True)
    run = started(folder, axis, processes, beside)
    while not any((folder / "run").glob("step-*")) and run.poll() is None:
        time.sleep(0.01)
    time.sleep(draw.uniform(0.0, 1.0))
    while saving and run.poll() is None and not any((folder / "run").glob(".writing-*")):
        time.sleep(0.0005)
    rank = draw.randrange(processes)
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it was done
        os.kill(int((folder / f"pid-{rank}").read_text()), signal.SIGKILL)
    under_way = bool(list((folder / "run").glob(".writing-*")))
    code = run.wait()
    return {
        "run": number,
        "axis": axis,
        "beside": beside,
        "rank": rank,
        "saving": under_way,
        "exit": code,
        "restarted": (folder / "starts").stat().st_size > processes,
        "bytes": bytes_of(folder),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("faults"))
    parser.add_argument("--axis", default="replicate", choices=AXES)
    parser.add_argument("--beside", action="store_true", help="write beside the steps")
    parser.add_argument("--worker", type=Path)
    args = parser.parse_args()
    if args.worker is not None:
        worker(args.worker, args.axis, args.beside)
        return
    expected = {}
    for axis in AXES:
        undisturbed = args.folder / axis
        if bytes_of(undisturbed) == "nothing":
            shutil.rmtree(undisturbed, ignore_errors=True)
            started(undisturbed, axis, args.processes).wait()
        expected[axis] = bytes_of(undisturbed)
    done = args.folder / "runs.jsonl"
    rows = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
    for number in range(len(rows), args.times):
        axis = AXES[number // 2 % 2]
        rows.append(killed(args.folder / str(number), axis, args.processes, number))
        with done.open("a") as file:
            print(json.dumps(rows[-1]), file=file)
        print(rows[-1], flush=True)
    for saving in (False, True):
        some = [row for row in rows if row["saving"] == saving and row["restarted"]]
        same = sum(row["bytes"] == expected[row["axis"]] for row in some)
        when = "while a checkpoint was written" if saving else "between checkpoints"
        print(f"killed {when}: {same} of {len(some)} end with the bytes of the undisturbed run")
    print(f"ended before they were killed: {sum(not row['restarted'] for row in rows)}")


if __name__ == "__main__":
    main()
