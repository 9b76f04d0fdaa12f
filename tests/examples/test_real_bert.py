"""The benchmark of real distillations: its commands are ones that the scripts take."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from .text import scripts

__all__ = ["scripts"]  # a fixture


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "real_bert.py"
    spec = importlib.util.spec_from_file_location("real_bert", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_bert"] = module
    spec.loader.exec_module(module)
    return module


def test_every_command_is_understood_and_has_a_folder_of_its_own(scripts, benchmark):
    folders = []
    for job in benchmark.jobs(3, explore=True):
        asked = benchmark.command(job, Path("runs"), "")
        args = scripts.distill_bert.arguments().parse_args(asked[2:])
        assert args.seed == job.seed and args.finetune == (job.name == "teacher")
        assert args.labels_only == job.name.endswith("-labels")
        folders.append(args.out)
    assert len(set(folders)) == len(folders)


def test_the_teacher_comes_before_its_students(benchmark):
    for task in ("sst2", "conll2003"):
        first = next(job for job in benchmark.jobs(1, explore=False) if job.task == task)
        assert (first.name, first.seed) == ("teacher", 0)


def test_the_table_has_means_over_the_seeds(benchmark):
    def line(name, seed, dev, test):
        scores = {"dev": {"accuracy": dev}, "test": {"accuracy": test}}
        rest = dict(seconds=100, cpu_seconds=190, load=2.0, command=f"python {name}")
        return {"task": "sst2", "name": name, "seed": seed, **scores, **rest}

    lines = [line("teacher", 0, 0.8, 0.8), line("3", 0, 0.7, 0.7), line("3", 1, 0.8, 0.9)]
    rows = benchmark.table(lines).splitlines()
    assert rows[2] == "| sst2 | teacher | 1 | 80.0 | 80.0 | 100.0% | 100 | 190 | 2 |"
    assert rows[3] == "| sst2 | 3 | 2 | 75.0 ± 7.1 | 80.0 ± 14.1 | 100.0% | 100 | 190 | 2 |"
