"""Several processes that make one cache."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from fkd.loops import CheckpointError
from fkd.parallel import _world
from fkd.sources import SourceError, _parts, bind, cache
from fkd.sources import open as open_cache

from .test_bind import assert_same
from .test_cache import collated, goal, loader, rows


def make(folder, rank, world, pause=0.0, options=None):
    def batches(seed):
        del seed
        for part in loader(rows(22), 3):
            time.sleep(pause)
            yield part

    return cache(goal(), batches, folder, key="index", shard_bytes=1000, progress=False,
                 rank=rank, world=world, **(options or {}))  # fmt: skip


def launched(folder, rank, world, pause=0.0):
    """As `torchrun` starts it: each waits for the others, and has the whole then."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    kept = make(folder, None, None, pause)
    assert len(kept) == 22 and kept.header.complete


def start(target, *args):
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def ended(processes):
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def content(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_whole(folder, alone):
    kept, everything = open_cache(folder), collated(rows(22), range(22))
    assert kept.header.complete and len(kept) == 22
    one, other = kept.values(everything), alone.values(everything)
    assert all(torch.equal(one[k], other[k]) for k in other)
    kept.verify()
    return kept


@pytest.fixture
def alone(tmp_path):
    return make(tmp_path / "alone", 0, 1)


def test_processes_that_torchrun_starts_make_the_cache_of_one(tmp_path, alone):
    folder = tmp_path / "cache"
    assert ended([start(launched, folder, r, 3, 0.01 * r) for r in range(3)]) == [0, 0, 0]
    kept = assert_whole(folder, alone)
    parts = {shard.file.split("/")[0] for shard in kept.header.shards}
    assert parts == {"part-0", "part-1", "part-2"} and not _parts.part_files(folder)
    made = collated(rows(22), [3, 4, 5])  # a batch of the loader
    [attached] = kept.attach([made])
    assert_same(goal(), bind(goal(), kept, compare=made), made, attached)


def test_processes_of_an_array_may_come_one_after_the_other(tmp_path, alone):
    folder = tmp_path / "cache"
    first = make(folder, 1, 2)
    assert 0 < len(first) < 22 and not first.header.complete
    with pytest.raises(LookupError, match="is not complete"):
        first.values(collated(rows(22), [0]))
    assert make(folder, 0, 2).header.complete
    kept = assert_whole(folder, alone)
    before = content(folder)
    assert make(folder, 1, 2).header.complete and make(folder, 0, 1).header.complete
    assert content(folder) == before
    assert len(kept.header.shards) > 3


def test_killed_and_started_again_they_have_the_same_bytes(tmp_path, alone):
    whole = tmp_path / "whole"
    for rank in range(2):
        make(whole, rank, 2)
    draw, partly = random.Random(0), 0
    for i in range(3):
        folder = tmp_path / f"killed{i}"
        processes = [start(launched, folder, r, 2, 0.02) for r in range(2)]
        while not (folder / f"part-{i % 2}" / "part.json").exists():
            assert processes[i % 2].is_alive()
            time.sleep(0.001)
        time.sleep(draw.random() * 0.08)
        for process in processes:  # a launcher ends all of them when one has died
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        ended(processes)
        partly += not open_cache(folder).header.complete
        assert ended([start(launched, folder, r, 2) for r in range(2)]) == [0, 0]
        assert_whole(folder, alone)
        assert content(folder) == content(whole)
    assert partly


@pytest.mark.parametrize("worlds", [(3, 2), (2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(tmp_path, alone, worlds):
    folder = tmp_path / "cache"
    before, after = worlds
    if before == 1:
        with pytest.raises(RuntimeError, match="enough"):
            cut_short(folder)
    else:
        make(folder, before - 1, before)
    there = content(folder)
    for rank in range(after):
        make(folder, rank, after)
    assert_whole(folder, alone)
    now = content(folder)
    shards = [name for name in there if name.endswith("safetensors")]
    assert shards and all(now[name] == there[name] for name in shards)


def cut_short(folder):
    def batches(seed):
        del seed
        yield from list(loader(rows(22), 3))[:4]
        raise RuntimeError("enough")

    cache(goal(), batches, folder, key="index", shard_bytes=1000, progress=False)


def test_a_sample_that_comes_to_several_processes_is_written_once(tmp_path):
    made = [*rows(6), *rows(6)]
    for rank in (1, 0):
        kept = cache(goal(), loader(made, 2), tmp_path, progress=False, rank=rank, world=2)
    keys = {key.tobytes() for shard in kept.shards for key in shard.keys}
    assert len(kept) == 6 == len(keys)


def test_a_damaged_shard_of_a_part_is_made_again(tmp_path, alone):
    folder = tmp_path / "cache"
    for rank in range(2):
        make(folder, rank, 2)
    path = folder / "part-1" / "00000.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(SourceError, match=r"part-1/00000\.safetensors is damaged"):
        open_cache(folder).values(collated(rows(22), range(22)))
    with pytest.warns(UserWarning, match=r"part-1/00000\.safetensors is damaged"):
        make(folder, 0, 2)
        make(folder, 1, 2)
    assert_whole(folder, alone)


def test_who_is_left_alone_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(_parts, "_PATIENCE", 0.2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SourceError, match=r"10 of 22 samples are missing.*none of \[1\] of 2"):
        make(tmp_path, None, None)
    assert len(make(tmp_path, 1, 2)) == 22


@pytest.mark.plain
def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    for rank, world in ((2, 2), (0, None), (None, 2), (-1, 2)):
        with pytest.raises(SourceError, match="0 <= rank < world"):
            make(tmp_path, rank, world)
    made = rows(6)
    divided = DataLoader(made, sampler=DistributedSampler(made, 2, 0))  # pyright: ignore
    with pytest.raises(SourceError, match="whole loader"):
        cache(goal(), divided, tmp_path, rank=0, world=2)
    monkeypatch.setattr(_parts, "_MOMENT", 0.1)
    with _parts.occupied(tmp_path, _parts.share_of(1, 2)):
        with pytest.raises(CheckpointError, match="part-1 is in use"):
            make(tmp_path, 1, 2)
    make(tmp_path / "two", 1, 2)
    with pytest.raises(SourceError, match="another teacher"):
        make(tmp_path / "two", 0, 2, options={"about": {"other": 1}})


def test_who_works_while_the_others_wait_makes_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _parts.share_of(None, None) == (1, 2, True)
    with _world._turn():
        assert _parts.share_of(None, None) == (0, 1, False)
    assert _parts.share_of(None, None) == (1, 2, True)
