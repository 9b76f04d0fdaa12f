"""What the recorded runs printed, from their data: `results/*.jsonl`, where each run is a line, and
report cards, `results/*.json`, as the library of today shows them.

python examples/tutorials/summary.py     writes results/*.txt
"""

from __future__ import annotations

import functools
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fkd.loops import ReportCard

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "results"


def rows_of(name: str) -> list[dict[str, Any]]:
    text = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def table(lines: Sequence[Sequence[str]]) -> str:
    """Columns aligned by spaces."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    made = ["  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in made) + "\n"


def audio() -> str:
    """One line for each run, and the two models of the wheel."""
    rows = rows_of("audio")
    lines = [["student begins as", "learns", "frames", "epochs", "seed", "agreement", "accuracy",
              "above the published one"]]  # fmt: skip
    learns = {"teacher": "teacher", "note": "the note alone", "both": "teacher and note"}
    starts = {"tiny": "published tiny", "random": "random numbers"}
    for row in rows:
        lines.append([starts[row["start"]], learns[row["learn"]], f"{row['frames']:,}",
                      str(row["epochs"]), str(row["seed"]),
                      f"{row['distilled']['agreement']:.2f}", f"{row['distilled']['accuracy']:.2f}",
                      f"{row['better']:+.2f} +- {row['standard error']:.2f}"])  # fmt: skip
    for name in ("published tiny", "teacher"):
        row = rows[0][name]
        lines.append([f"({name}, as shipped)", "", "", "", "", f"{row['agreement']:.2f}",
                      f"{row['accuracy']:.2f}", ""])  # fmt: skip
    return table(lines)


def embeddings() -> str:
    """One column for each kind of held-out text."""
    rows = rows_of("embeddings")
    sets = {
        name: values for row in rows for name, values in row.items() if isinstance(values, dict)
    }
    lines = [["student", "seed", "sentences", "epochs", "parameters", *sets]]
    for row in rows:
        lines.append([f"distilled: {row['student']}", str(row["seed"]),
                      str(row["sentences"]), str(row["epochs"]), f"{row['parameters'] / 1e6:.1f} M",
                      *(f"{row[name]['distilled']:.3f}" if name in row else ""
                        for name in sets)])  # fmt: skip
    for key in (k for k in sets["docstrings"] if k != "distilled"):
        what = f"mean of the teacher's {key}"
        lines.append([what, "", "", "", "", *(f"{values[key]:.3f}" for values in sets.values())])
    return table(lines)


def text() -> str:
    """SST-2, of `benchmarks/real_bert.py`: mean and standard deviation over the seeds."""
    path = BENCHMARKS / "real_bert.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["task"] == "sst2":
            found.setdefault(row["name"], []).append(100 * row["test"]["accuracy"])
    lines = [["model", "learns from", "seeds", "accuracy on 1,821 test sentences"]]
    for name in ("teacher", "3-labels", "3-distilled", "2-labels", "2-distilled"):
        values = found[name]
        layers, _, way = name.partition("-")
        spread = f"{statistics.mean(values):.1f} +- {statistics.stdev(values):.1f}"
        what = f"{layers} layers" if way else "teacher, 6 layers"
        lines.append(
            [what, "teacher" if way == "distilled" else "labels", str(len(values)), spread]
        )
    return table(lines)


def language_model() -> str:
    """The table of `benchmarks/results/smollm2_cpu.md`."""
    lines = (BENCHMARKS / "smollm2_cpu.md").read_text(encoding="utf-8").splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return table([cells[0], *cells[2:]])


CARD = re.compile(r"^ +\S[^\n]*\n-[- ]+\nteacher .*?^torch: [^\n]*", re.MULTILINE | re.DOTALL)
"""In what a script printed, from the head of the table of its card to the last line below it."""


def with_card(name: str) -> str:
    """What a script printed, `results/NAME.txt`, with its report card, `results/NAME.json`."""
    card = str(ReportCard.load(RESULTS / f"{name}.json"))
    printed, count = CARD.subn(lambda _: card, (RESULTS / f"{name}.txt").read_text("utf-8"))
    if count != 1:
        raise ValueError(f"{name}.txt has {count} report cards; one is expected.")
    return printed


TABLES = {
    "audio": audio, "embeddings": embeddings, "text": text, "language_model": language_model,
    **{name: functools.partial(with_card, name) for name in ("digits", "images", "series")},
}  # fmt: skip

if __name__ == "__main__":
    for name, make in TABLES.items():
        (RESULTS / f"{name}.txt").write_text(make(), encoding="utf-8")
        print(make())
