"""Kill the making of a cache and the training from it, damage every byte of it, fill the disk.

    python benchmarks/cache_faults.py

40 processes that make a cache (every second one beside another process that has a part of it), and
40 that train from one, are killed with SIGKILL at random moments and started again: the cache ends
with the bytes of one that nobody killed, the student with those of a run that nobody killed. Then
one byte at a time of the header and of a shard is changed, all of them, and each time the values of
all samples are read: an error has to name the file. Then the file system is full, at each write.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _faulty_run
import torch
from torch import Tensor, nn

import fkd
from fkd.sources import DamagedSourceError, bind, cache
from fkd.sources import open as open_cache

SAMPLES, SIZE, EPOCHS = 48, 4, 12
SHARDS = 600  # bytes, so that there are several


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.drop, self.head = nn.Linear(6, width), nn.Dropout(0.1), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.drop(torch.tanh(self.first(x))))}


def objective() -> fkd.Objective:
    torch.manual_seed(0)
    return _faulty_run.objective(Net(8), Net(16))


def rows() -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(SAMPLES, 6, generator=draw), torch.arange(SAMPLES) % 4
    return [{"x": x[i : i + SIZE], "y": y[i : i + SIZE]} for i in range(0, SAMPLES, SIZE)]


def make(folder: Path, pause: float = 0.0, rank: int = 0, world: int = 1) -> None:
    def loader(seed: int) -> Iterator[dict[str, Tensor]]:
        del seed
        for one in rows():
            time.sleep(pause)
            yield one

    cache(objective(), loader, folder, shard_bytes=SHARDS, progress=False, rank=rank, world=world)


def train(folder: Path, out: Path, pause: float = 0.0) -> None:
    kept = open_cache(folder)
    data = kept.attach(torch.utils.data.DataLoader(rows(), batch_size=None, shuffle=True))
    places = out / "run", out / "student"
    goal = bind(objective(), kept)
    _faulty_run.train(goal, data, *places, pause=pause, epochs=EPOCHS, save_every=2)


def content(folder: Path) -> dict[str, bytes]:
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def started(target: Callable[..., None], *args: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def killed(draw: random.Random, most: float, starts: list[tuple[Any, ...]]) -> bool:
    """Start processes, kill all of them at a random moment; whether they were at work still."""
    processes = [started(*start) for start in starts]
    time.sleep(draw.uniform(0.0, most))
    alive = any(process.is_alive() for process in processes)
    for process in processes:
        process.kill()
        process.join()
    return alive


def seconds_of(*start: Any) -> float:
    begun = time.monotonic()
    started(*start).join()
    return time.monotonic() - begun


def while_making(root: Path, times: int, draw: random.Random) -> dict[str, Any]:
    wholes = {1: root / "whole-1", 2: root / "whole-2"}
    make(wholes[1])
    for rank in range(2):
        make(wholes[2], 0.0, rank, 2)
    most = seconds_of(make, root / "timed", 0.02)
    kills = same = runs = 0
    while kills < times:
        world, folder = 1 + runs % 2, root / f"made-{runs}"
        starts = [(make, folder, 0.02, rank, world) for rank in range(world)]
        while killed(draw, most, starts):
            kills += 1
            if draw.random() < 0.5:
                break
        for rank in range(world):
            make(folder, 0.0, rank, world)
        same += content(folder) == content(wholes[world])
        shutil.rmtree(folder)
        runs += 1
    return {"kills while at work": kills, "runs": runs, "with the same bytes in the end": same}


def while_training(root: Path, times: int, draw: random.Random) -> dict[str, Any]:
    source, whole, broken = root / "whole-1", root / "trained", root / "broken"
    train(source, whole)
    before = content(source)
    most = seconds_of(train, source, root / "timed-run", 0.01)
    kills = ended = same = 0
    while kills < times:
        if killed(draw, most, [(train, source, broken, 0.01)]):
            kills += 1
        elif (broken / "student").exists():  # it came to its end before
            ended += 1
            same += content(broken / "student") == content(whole / "student")
            shutil.rmtree(broken)
    train(source, broken)
    same += content(broken / "student") == content(whole / "student")
    return {
        "kills while at work": kills,
        "runs that came to their end": ended + 1,
        "with the same student": same,
        "the cache is unchanged": content(source) == before,
    }


def damaged(root: Path) -> dict[str, Any]:
    """Every byte of the header and of the first shard, changed one at a time."""
    folder = root / "whole-1"
    everything = {name: torch.cat([one[name] for one in rows()]) for name in rows()[0]}
    right = open_cache(folder).values(everything)
    found: dict[str, Any] = {}
    for name in ("header.json", "00000.safetensors"):
        path, raw = folder / name, (folder / name).read_bytes()
        named = wrong = 0
        for at in range(len(raw)):
            changed = bytearray(raw)
            changed[at] ^= 1 << (at % 8)
            path.write_bytes(changed)
            try:
                values = open_cache(folder).values(everything)
                wrong += not all(torch.equal(values[k], right[k]) for k in right)
            except DamagedSourceError as error:
                named += name in str(error)
        path.write_bytes(raw)
        found[name] = {"bytes": len(raw), "named": named, "wrong values": wrong}
    return found


def full(root: Path) -> dict[str, Any]:
    """No space left at the n-th write of a file."""
    from fkd.loops._base import files

    real, named, same, n = files._write_all, 0, 0, 0
    while True:
        folder, calls = root / f"full-{n}", 0

        def write(descriptor: int, part: memoryview, last: int = n) -> None:
            nonlocal calls
            calls += 1
            if calls == last + 1:
                os.write(descriptor, part[: len(part) // 2])
                raise OSError(28, "No space left on device")
            real(descriptor, part)

        files._write_all = write
        try:
            make(folder)
            break
        except OSError as error:
            named += error.errno == 28
        finally:
            files._write_all = real
        make(folder)
        same += content(folder) == content(root / "whole-1")
        n += 1
    return {"writes that failed": n, "named": named, "with the same bytes when made again": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cache_faults.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        found = {
            "command": " ".join(["python", *sys.argv]),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "killed while a cache is made": while_making(root, args.times, draw),
            "killed while a student is trained from it": while_training(root, args.times, draw),
            "one byte changed": damaged(root),
            "the disk is full": full(root),
        }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
