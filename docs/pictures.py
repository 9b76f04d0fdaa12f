"""The pictures of README and site: an objective, what distilling kept on SST-2, a report card.

    python docs/pictures.py

The chart is drawn from `benchmarks/results/real_bert.jsonl`, where every row has its command. The
card is that of `examples/digits.py`, as its page looks in a browser (chromium, if it is there).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
import transformers

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import attention_mse, cross_entropy, kl, mse

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results" / "real_bert.jsonl"
BARS = {
    "teacher": "teacher, 6 layers",
    "3-distilled": "3 layers, distilled",
    "3-labels": "3 layers, labels only",
    "2-distilled": "2 layers, distilled",
    "2-labels": "2 layers, labels only",
}
LEFT, WIDTH, ROW, LOW, HIGH = 190, 640, 34, 82.0, 90.0


def bert(layers: int) -> torch.nn.Module:
    """A BERT small enough to draw."""
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def objective() -> fkd.Objective:
    """A classifier that learns from logits, hidden states, attention and labels."""
    pairs = fkd.layer_map(student=2, teacher=4)
    hidden = {
        f"{s} <- {t}": term(
            mse, student.hidden_states[s], teacher.hidden_states[t], where=batch.attention_mask
        )
        for s, t in pairs
    }
    return fkd.Objective(
        {
            "kd": term(
                kl,
                student.logits,
                teacher.logits,
                temperature=fkd.schedules.linear(4.0, 1.0, 1000),
            ),
            "hidden": hidden,
            "attention": term(attention_mse, student.attention(1), teacher.attention(3)),
            "labels": term(cross_entropy, student.logits, batch.labels, weight=0.5),
        },
        student=fkd.trainable(bert(2)),
        teacher=fkd.frozen(bert(4)),
    )


def accuracies() -> dict[str, list[float]]:
    """Test accuracy in percent of every seed, by run."""
    by_name: dict[str, list[float]] = {}
    for line in RESULTS.read_text().splitlines():
        row = json.loads(line)
        if row["task"] == "sst2":
            by_name.setdefault(row["name"], []).append(100 * row["test"]["accuracy"])
    return by_name


def chart(values: dict[str, list[float]]) -> str:
    """Bars with one dot for each seed, on light and dark pages."""
    rows = [(title, values[name]) for name, title in BARS.items() if name in values]
    height = ROW * len(rows) + 40
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + LEFT} {height}" '
        'font-family="system-ui, sans-serif" font-size="14">',
        "<style>text{fill:#24292f}.bar{fill:#a9c7f0}.kd{fill:#3f7fd6}.dot{fill:#24292f}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.bar{fill:#3b5878}"
        ".kd{fill:#5b9bf0}.dot{fill:#e6edf3}}</style>",
        '<text x="0" y="18" font-weight="600">SST-2 test accuracy in percent '
        f"(mean of seeds; the axis begins at {LOW:g})</text>",
    ]
    for i, (title, seeds) in enumerate(rows):
        lines += _bar(title, seeds, y=36 + ROW * i)
    return "\n".join([*lines, "</svg>", ""])


def _bar(title: str, seeds: Sequence[float], *, y: int) -> list[str]:
    def x(value: float) -> float:
        return LEFT + (WIDTH - 90) * (value - LOW) / (HIGH - LOW)

    kind = "bar" if "labels" in title else "kd"
    spread = f" ± {stdev(seeds):.1f}" if len(seeds) > 1 else ""
    return [
        f'<text x="{LEFT - 10}" y="{y + 17}" text-anchor="end">{title}</text>',
        f'<rect x="{LEFT}" y="{y}" width="{x(mean(seeds)) - LEFT:.1f}" height="24" rx="3" '
        f'class="{kind}"/>',
        *(f'<circle cx="{x(v):.1f}" cy="{y + 12}" r="2.5" class="dot"/>' for v in seeds),
        f'<text x="{x(max(seeds)) + 10:.1f}" y="{y + 17}">{mean(seeds):.1f}{spread}</text>',
    ]


def photograph(page: str, path: Path, *, width: int, height: int) -> None:
    """A page as a browser shows it; nothing where there is no chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print(f"no chromium: {path.name} stays as it is")
        return
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder) / "page.html"
        html.write_text(page, encoding="utf-8")
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--hide-scrollbars", f"--screenshot={path}",
             f"--window-size={width},{height}", html.as_uri()],
            check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip


if __name__ == "__main__":
    fkd.draw(objective()).save(HERE / "objective.svg")
    (HERE / "sst2.svg").write_text(chart(accuracies()))
    card = fkd.loops.ReportCard.load(HERE.parent / "examples/tutorials/results/digits.json")
    photograph(card.html(), HERE / "report-card.png", width=1280, height=1900)
