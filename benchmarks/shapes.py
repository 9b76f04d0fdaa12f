"""What a new shape of the batch costs: compiled for each, or once for all of them.

    python benchmarks/shapes.py
    python benchmarks/shapes.py --variant fixed marked --lengths 24 40 56 72

A BERT of one layer learns from one of two (`kl` of logits, `mse` of hidden states at the tokens),
with batches of 8 texts padded to several lengths. Every variant is a process of its own with an
empty cache of torch's; seconds are those of the processor, with the C++ compilers that it started.

    fixed       the default: a graph for each shape
    automatic   compile={"dynamic": None}: sizes that changed once may change again
    dynamic     compile={"dynamic": True}: every size may change
    marked      compile={"dynamic": None}, and torch._dynamo.mark_dynamic(x, 1) on each tensor
    unbacked    the same with mark_unbacked, which also forbids a graph of its own for sizes 0 and 1

A variant that is in the results is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from typing import Any

import torch
import transformers
from _cold import cold_and_warm, processor
from _measure import RESULTS, machine
from torch import Tensor

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import CompileError
from fkd.losses import kl, mse

FILE = RESULTS / "shapes_cpu.json"
VARIANTS = {
    "fixed": {},
    "automatic": {"dynamic": None},
    "dynamic": {"dynamic": True},
    "marked": {"dynamic": None},
    "unbacked": {"dynamic": None},
}
TEXTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=list(VARIANTS), nargs="+", default=list(VARIANTS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[24, 40, 56, 72])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(case(**json.loads(options.case))))
        return
    options.clock = "cpu"
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"rows": []}
    for variant in options.variant:
        what = {n: getattr(options, n) for n in ("lengths", "hidden", "steps")}
        what["variant"] = variant
        if any(all(row[k] == v for k, v in what.items()) for row in found["rows"]):
            continue
        try:
            (result,) = cold_and_warm(__file__, what, warm=False)
        except subprocess.CalledProcessError:
            raise SystemExit(f"{variant}: failed, see above") from None
        row = {**what, **result}
        print(row, flush=True)
        found = {"machine": machine(options), "rows": [*found["rows"], row]}
        FILE.write_text(json.dumps(found, indent=1) + "\n")
        FILE.with_suffix(".md").write_text(page(found))


def page(found: dict[str, Any]) -> str:
    lines = [
        "# A new shape: `python benchmarks/shapes.py`",
        "",
        f"{found['machine']['device']}, torch {found['machine']['versions']['torch']}; processor "
        "seconds on one thread, with those of the C++ compilers; a step in ms, the median.",
    ]
    order = list(VARIANTS)
    settings = dict.fromkeys((row["hidden"], *row["lengths"]) for row in found["rows"])
    for hidden, *lengths in settings:
        rows = [r for r in found["rows"] if [r["hidden"], *r["lengths"]] == [hidden, *lengths]]
        rows.sort(key=lambda row: order.index(row["variant"]))
        head = [f"{n} tokens" for n in lengths]
        lines += [
            "",
            f"`--hidden {hidden} --lengths {' '.join(map(str, lengths))}`",
            "",
            "| variant | " + " | ".join(f"first at {n}, s" for n in head)
            + " | " + " | ".join(f"step at {n}, ms" for n in head) + " |",
            "| --- |" + " ---: |" * (2 * len(head)),
        ]  # fmt: skip
        for row in rows:
            numbers = [f"{x:.2f}" for x in (*row["first_s"], *row["step_ms"])]
            cells = numbers or ["not compiled", *[""] * (2 * len(head) - 1)]
            lines.append(f"| {row['variant']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def bert(layers: int, hidden: int) -> Any:
    config = transformers.BertConfig(
        vocab_size=1000, hidden_size=hidden, intermediate_size=2 * hidden, num_attention_heads=4,
        num_hidden_layers=layers, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def objective(hidden: int) -> fkd.Objective:
    last = (student.hidden_states[-1], teacher.hidden_states[-1])
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits),
            "hidden": term(mse, *last, where=batch.attention_mask),
        },
        student=fkd.trainable(bert(1, hidden)),
        teacher=fkd.frozen(bert(2, hidden)),
    )


def texts(length: int, variant: str) -> dict[str, Tensor]:
    ids = torch.randint(1000, (TEXTS, length))
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    mark = {
        "marked": torch._dynamo.mark_dynamic,
        "unbacked": torch._dynamo.decorators.mark_unbacked,
    }
    for x in made.values():
        if variant in mark:
            mark[variant](x, 1)
    return made


def case(variant: str, lengths: list[int], hidden: int, steps: int) -> dict[str, Any]:
    """The seconds of the first step of each length, and of the steps after it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    step = fkd.loops.train_step(
        objective(hidden), lambda p: torch.optim.AdamW(p, lr=1e-4), compile=VARIANTS[variant]
    )
    state = step.init(0)
    first: list[float] = []
    after: list[float] = []
    for length in lengths:
        data = texts(length, variant)
        began = processor()
        try:
            state, _ = step(state, data)
        except CompileError as error:
            return {"first_s": [], "step_ms": [], "refused": str(error).strip().split("\n")[0]}
        first.append(round(processor() - began, 2))
        times: list[float] = []
        for _ in range(steps):
            now = time.process_time()
            state, _ = step(state, data)
            times.append(1e3 * (time.process_time() - now))
        after.append(round(statistics.median(times), 3))
    return {"first_s": first, "step_ms": after, "refused": ""}


if __name__ == "__main__":
    main()
