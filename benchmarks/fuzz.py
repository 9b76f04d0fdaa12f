"""Damage and kill runs at random, for as long as one likes, and see that each ends as it should.

    python benchmarks/fuzz.py --minutes 60
    python benchmarks/fuzz.py --trial 123      # one trial again, by the number in the result

A trial draws a configuration (loader, precision, parts of a batch, checkpoints written beside the
steps or not, how often, how many are kept), and then one of two things. `kills`: the run is
killed by SIGKILL several times at random moments and let go to its end, which must have the bytes
of a run that nobody killed. `damage`: the run is killed once, random byte ranges of random files
of its folder are flipped, zeroed, cut, swapped, repeated, or the files deleted, emptied, replaced
by folders or links; made again it must end with the same bytes, or say in an error of fkd what is
wrong; a report of the folder must be made, or refused with a ValueError. Anything else is a
failure, listed with its trial.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from fkd.loops import CheckpointError, LoopError, report
from tests.loops.training import LOADERS, same_end, spawn, train

PATIENCE = 120
"""Seconds after which a run that has not ended is a failure."""


def configuration(rng: random.Random) -> dict[str, Any]:
    """The arguments of a run, without its folder."""
    step: dict[str, Any] = {"accumulate": rng.choice([1, 1, 2])}
    step["precision"] = rng.choice(["fp32", "fp32", "bf16", "fp16"])
    step["clip"] = rng.choice([None, 0.5])
    return {
        "loader": rng.choice(sorted(LOADERS)),
        "options": step,
        "epochs": rng.choice([2, 3]),
        "save_every": rng.choice([1, 2, 3, 7]),
        "save_async": rng.random() < 0.5,
        "keep_last": rng.choice([1, 2, 3]),
        "log_every": rng.choice([1, 2, 4]),
    }


def job(folder: Path, said: Path, chosen: dict[str, Any], pause: float) -> None:
    """A run in a process of its own; how it ended is written to a file."""
    more = {n: v for n, v in chosen.items() if n != "loader"}
    stack = said.with_suffix(".stack").open("w")
    faulthandler.dump_traceback_later(0.9 * PATIENCE, file=stack)

    def callback(event: Any) -> None:
        time.sleep(pause)

    try:
        loader = LOADERS[chosen["loader"]]()
        train(folder, loader, log_dir=folder, callbacks=[callback], **more)
        ended = "done"
    except (CheckpointError, LoopError) as error:
        ended = f"said: {type(error).__name__}: {error}"
    except BaseException as error:
        ended = f"raw {type(error).__name__}: {error}"
    said.write_text(ended[:500])


def ended(folder: Path, said: Path, chosen: dict[str, Any]) -> str:
    """How a run ends that nobody kills."""
    said.unlink(missing_ok=True)
    process = spawn(job, folder, said, chosen, 0.0)
    for _ in range(PATIENCE):  # in pieces: while all of it is stopped, no time passes
        process.join(1.0)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        where = said.with_suffix(".stack").read_text()[-2000:]
        return f"raw: it has not ended after {PATIENCE} s: {where}"
    return said.read_text() if said.exists() else f"raw: exit code {process.exitcode}"


def killed(folder: Path, said: Path, chosen: dict[str, Any], rng: random.Random) -> None:
    """A run that is killed after a random time, if it has not ended before."""
    process = spawn(job, folder, said, chosen, 0.01)
    process.join(rng.uniform(0.02, 0.8))
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def flipped(data: bytearray, at: int, end: int, rng: random.Random) -> None:
    for i in range(at, end):
        data[i] ^= rng.randrange(1, 256)


def zeroed(data: bytearray, at: int, end: int, rng: random.Random) -> None:
    data[at:end] = bytes(end - at)


def cut(data: bytearray, at: int, end: int, rng: random.Random) -> None:
    del data[at:]


def left_out(data: bytearray, at: int, end: int, rng: random.Random) -> None:
    del data[at:end]


def repeated(data: bytearray, at: int, end: int, rng: random.Random) -> None:
    data[end:end] = data[at:end]


def shuffled(data: bytearray, at: int, end: int, rng: random.Random) -> None:
    part = list(data[at:end])
    rng.shuffle(part)
    data[at:end] = bytes(part)


BYTES: list[Callable[[bytearray, int, int, random.Random], None]] = [
    *(flipped, zeroed, cut, left_out, repeated, shuffled)
]
WHOLE = ["deleted", "emptied", "a folder", "a link to nothing", "a link to another", "swapped"]


def damage(folder: Path, rng: random.Random) -> str:
    """Damage one file of a run; says what was done."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()]
    if not files:
        return "nothing"
    path = rng.choice(files)
    name = str(path.relative_to(folder))
    if rng.random() < 0.7:
        data = bytearray(path.read_bytes())
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([1, 2, 8, 64, 1024]))
        how = rng.choice(BYTES)
        how(data, at, end, rng)
        path.write_bytes(data)
        return f"{name}: bytes {at} to {end} {how.__name__}"
    how_whole, other = rng.choice(WHOLE), rng.choice(files)
    content = path.read_bytes()
    if how_whole == "swapped":
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return f"{name}: swapped with {other.relative_to(folder)}"
    path.unlink()
    if how_whole == "emptied":
        path.write_bytes(b"")
    elif how_whole == "a folder":
        path.mkdir()
    elif how_whole == "a link to nothing":
        path.symlink_to("nowhere")
    elif how_whole == "a link to another":
        path.symlink_to(other if other != path else "nowhere")
    return f"{name}: {how_whole}"


def reported(folder: Path) -> str:
    """What becomes of a report of the folder, in this process."""
    try:
        report(folder)
    except ValueError as error:
        return f"said: {error}"
    except Exception as error:
        return f"raw {type(error).__name__}: {error}"
    return "done"


def trial(number: int, keep: Path | None = None) -> dict[str, Any]:
    """One trial; `"failure"` is in it if it did not end as it should, and `keep` has its folder."""
    rng = random.Random(number)
    chosen, kind = configuration(rng), rng.choice(["kills", "damage"])
    about: dict[str, Any] = {"trial": number, "kind": kind, "configuration": chosen}
    with tempfile.TemporaryDirectory() as name:
        whole, broken, said = Path(name, "whole"), Path(name, "broken"), Path(name, "said")
        about["whole"] = ended(whole, said, chosen)
        for _ in range(rng.randint(1, 4) if kind == "kills" else 1):
            killed(broken, said, chosen, rng)
        if kind == "damage" and broken.exists():
            about["damage"] = [damage(broken, rng) for _ in range(rng.randint(1, 3))]
            about["report"] = reported(shutil.copytree(broken, Path(name, "copy"), symlinks=True))
        if broken.exists():
            shutil.copytree(broken, Path(name, "before"), symlinks=True)
        about["end"] = ended(broken, said, chosen)
        failure = failure_of(about, same=lambda: same_end(whole, broken))
        if failure is not None:
            about["failure"] = failure
            if keep is not None:
                shutil.copytree(name, keep / f"trial-{number}", symlinks=True, dirs_exist_ok=True)
    return about


def failure_of(about: dict[str, Any], same: Callable[[], bool]) -> str | None:
    """What is wrong with how a trial ended, if something is."""
    endings = [about["whole"], about["end"], about.get("report", "done")]
    raw = [one for one in endings if one.startswith("raw")]
    unasked = about["kind"] == "kills" and about["end"] != "done"
    if raw or about["whole"] != "done" or unasked:
        return (raw or [one for one in endings if one != "done"])[0]
    return None if about["end"] != "done" or same() else "it ends with other bytes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first trial")
    parser.add_argument("--trial", type=int, help="do this one alone, and show it")
    parser.add_argument("--keep", type=Path, help="a folder for the runs of trials that failed")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fuzz.json"))
    args = parser.parse_args()
    train(None, epochs=1)  # imports what the processes share
    if args.trial is not None:
        print(json.dumps(trial(args.trial, args.keep), indent=2))
        return
    end = time.monotonic() + 60 * args.minutes
    counts: collections.Counter[str] = collections.Counter()
    failures: list[dict[str, Any]] = []
    number = args.seed
    while time.monotonic() < end:
        about = trial(number, args.keep)
        number += 1
        ending = "the same bytes" if about["end"] == "done" else "an error in words"
        counts[f"{about['kind']}: {'a failure' if 'failure' in about else ending}"] += 1
        failures += [about] if "failure" in about else []
        print(number - args.seed, dict(counts), about.get("failure", ""), flush=True)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "trials": number - args.seed,
        "first trial": args.seed,
        "counts": dict(sorted(counts.items())),
        "failures": failures,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["counts"], indent=2))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
