"""Compile time over depth: equal blocks compiled once, beside every block compiled as it stands.

    python benchmarks/depth.py --model llama --layers 8 32
    python benchmarks/depth.py --model bert --layers 4 8 16 32 --blocks on

A teacher of so many layers and a student of half of them, by logits. Every case is a process of its
own with an empty cache of Inductor, then a second one that finds it filled. Seconds are those of
the processor, with the C++ compilers that it started: what other programs do beside is not in them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from _cold import cold_and_warm, processor

RESULTS = Path(__file__).parent / "results" / "depth_cpu.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["llama", "bert"], default="llama")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--blocks", choices=["on", "off"], nargs="+", default=["on", "off"])
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm", action="store_true", help="a second process with a filled cache")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(case(**json.loads(options.case))))
        return
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for layers in options.layers:
        for blocks in options.blocks:
            what = {"model": options.model, "layers": layers, "blocks": blocks,
                    "hidden": options.hidden, "steps": options.steps}  # fmt: skip
            row = {**what, **measured(what, warm=options.warm)}
            print(row, flush=True)
            same = ("model", "layers", "blocks", "hidden")
            rows = [r for r in rows if any(r[k] != row[k] for k in same)] + [row]
            rows.sort(key=lambda r: [str(r["model"]), r["blocks"], r["layers"]])
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def measured(what: dict[str, object], *, warm: bool) -> dict[str, object]:
    """A case in a process of its own, cold, and warm if wanted."""
    runs = cold_and_warm(__file__, what, warm=warm)
    return {**runs[0], **({"warm_s": runs[1]["cold_s"]} if warm else {})}


def case(model: str, layers: int, blocks: str, hidden: int, steps: int) -> dict[str, float]:
    """The seconds of the first call, and of a step after it."""
    import torch
    import transformers

    import fkd
    from fkd import student, teacher, term
    from fkd.losses import kl

    sizes = {"vocab_size": 1000, "hidden_size": hidden, "intermediate_size": 2 * hidden,
             "num_attention_heads": 4}  # fmt: skip

    def make(depth: int) -> torch.nn.Module:
        if model == "llama":
            config = transformers.LlamaConfig(**sizes, num_hidden_layers=depth)
            return transformers.LlamaForCausalLM(config)
        config = transformers.BertConfig(**sizes, num_hidden_layers=depth)
        return transformers.BertForSequenceClassification(config)

    torch.manual_seed(0)
    torch.set_num_threads(1)
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=fkd.trainable(make(layers // 2), training=False),
        teacher=fkd.frozen(make(layers)),
    )
    step = fkd.loops.train_step(
        objective,
        lambda params: torch.optim.AdamW(params, lr=1e-4),
        compile={"blocks": 2 if blocks == "on" else False},
    )
    batch = {
        "input_ids": torch.randint(1000, (8, 128)),
        "attention_mask": torch.ones(8, 128, dtype=torch.long),
    }
    state = step.init(0)
    before, began = processor(), time.perf_counter()
    state, metrics = step(state, batch)
    first, wall = processor() - before, time.perf_counter() - began
    times: list[float] = []
    for _ in range(steps):
        now = time.process_time()
        state, _ = step(state, batch)
        times.append(time.process_time() - now)
    return {
        "cold_s": round(first, 2),
        "cold_wall_s": round(wall, 2),
        "step_ms": round(1e3 * statistics.median(times), 2),
        "loss": float(metrics["loss/total"]),
        "grad_norm": float(metrics["grad_norm/total"]),
    }


if __name__ == "__main__":
    main()
