"""The first call: seconds of compilation, with an empty cache of torch's and with a filled one.

    python benchmarks/first_call.py
    python benchmarks/first_call.py --model bert --variant step models

Narrow models of full depth: a two-layer MLP, BERT 12 -> 3, ViT 12 -> 4, Llama 4 -> 2 and 32 -> 16,
trained by `kl` of logits with AdamW. Every case is a process of its own with an empty cache, then a
second one that finds it filled. Seconds are those of the processor, with the C++ compilers that it
started:
what other programs do beside is not in them. A case that is in the results is not run again.

The variants: fkd's step; the same with equal blocks compiled once; with what follows the gradient
(norms, finite or not, metrics) outside of its graph; and the loop that people write, with student,
teacher and loss compiled each by itself, without and with the optimizer's step compiled.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from _cold import cold_and_warm, processor
from _measure import RESULTS, machine
from torch import Tensor, nn
from vision import ViT

import fkd
from fkd import student, teacher, term
from fkd.loops._base.compile import compiled
from fkd.loops._step.graphs import Graphs
from fkd.losses import kl

FILE = RESULTS / "first_call_cpu.json"
Run = Callable[[], Any]
VARIANTS = {
    "step": "fkd",
    "blocks": "fkd, equal blocks once",
    "follow-up": "fkd, what follows the gradient eager",
    "models": "models and loss, each compiled",
    "optimizer": "models, loss and optimizer, each compiled",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(PAIRS), nargs="+", default=list(PAIRS))
    parser.add_argument("--variant", choices=list(VARIANTS), nargs="+", default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(case(**json.loads(options.case))))
        return
    options.clock = "cpu"
    found = json.loads(FILE.read_text()) if FILE.exists() else {"rows": []}
    for model in options.model:
        for variant in options.variant:
            what = {"model": model, "variant": variant, "steps": options.steps}
            if any(all(row[k] == v for k, v in what.items()) for row in found["rows"]):
                continue
            cold, warm = cold_and_warm(__file__, what, warm=True)
            row = {**what, **cold, "warm_s": warm["first_s"]}
            print(row, flush=True)
            found = {"machine": machine(options), "rows": [*found["rows"], row]}
            FILE.write_text(json.dumps(found, indent=1) + "\n")
            FILE.with_suffix(".md").write_text(page(found))


def page(found: dict[str, Any]) -> str:
    lines = [
        "# The first call: `python benchmarks/first_call.py`",
        "",
        f"{found['machine']['device']}, torch {found['machine']['versions']['torch']}; processor "
        "seconds on one thread, with those of the C++ compilers.",
        "",
        "| models | variant | cold, s | warm, s | a step after it, ms |",
        "| --- | --- | --- | --- | --- |",
    ]
    order = [(m, v) for m in PAIRS for v in VARIANTS]
    rows = sorted(found["rows"], key=lambda row: order.index((row["model"], row["variant"])))
    for row in rows:
        lines.append(
            f"| {TITLES[row['model']]} | {VARIANTS[row['variant']]} | {row['first_s']:.1f} | "
            f"{row['warm_s']:.1f} | {row['step_ms']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def mlp() -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    return make(64), make(256), {"input": torch.randn(32, 64)}


def vit() -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    return ViT(4, 32, 64), ViT(12, 32, 64), {"image": torch.randn(4, 3, 32, 32)}


def text(kind: str, deep: int, shallow: int) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    sizes = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128,
             "num_attention_heads": 4}  # fmt: skip

    def make(layers: int) -> nn.Module:
        if kind == "llama":
            config = transformers.LlamaConfig(**sizes, num_hidden_layers=layers, use_cache=False)
            return transformers.LlamaForCausalLM(config)
        config = transformers.BertConfig(
            **sizes,
            num_hidden_layers=layers,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return transformers.BertForSequenceClassification(config)

    ids = torch.randint(1000, (8, 64))
    return make(shallow), make(deep), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


PAIRS: dict[str, Callable[[], tuple[nn.Module, nn.Module, dict[str, Tensor]]]] = {
    "mlp": mlp,
    "bert": functools.partial(text, "bert", 12, 3),
    "vit": vit,
    "llama-4": functools.partial(text, "llama", 4, 2),
    "llama": functools.partial(text, "llama", 32, 16),
}
TITLES = {"mlp": "MLP, 2 layers", "bert": "BERT 12 -> 3", "vit": "ViT 12 -> 4",
          "llama-4": "Llama 4 -> 2", "llama": "Llama 32 -> 16"}  # fmt: skip


def case(model: str, variant: str, steps: int) -> dict[str, float]:
    """The seconds of the first call, and of a step after it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    small, big, batch = PAIRS[model]()
    ours = variant in ("step", "blocks", "follow-up")
    make = of_fkd(small, big, batch, variant) if ours else of_a_loop(small, big, batch, variant)
    before, began = processor(), time.perf_counter()
    make()
    first, wall = processor() - before, time.perf_counter() - began
    times: list[float] = []
    for _ in range(steps):
        now = time.process_time()
        make()
        times.append(time.process_time() - now)
    return {
        "first_s": round(first, 2),
        "first_wall_s": round(wall, 2),
        "step_ms": round(1e3 * statistics.median(times), 3),
    }


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-4)


def of_fkd(small: nn.Module, big: nn.Module, batch: dict[str, Tensor], variant: str) -> Run:
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=fkd.trainable(small),
        teacher=fkd.frozen(big),
    )
    blocks = variant == "blocks"
    step = fkd.loops.train_step(objective, adamw, compile={"blocks": blocks})
    state = step.init(0)
    if variant == "follow-up":
        outside(step.graphs(("student",)))

    def run() -> Tensor:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss/total"]

    return run


def outside(graphs: Graphs) -> None:
    """Compile the gradient alone, and run what follows it as it is."""
    gradient = compiled(graphs._differentiated, {})

    def whole(parts: Any, scalars: Any, batch: Any, remembered: Any, scale: Any = None) -> Any:
        return graphs.finished(gradient(parts, scalars, batch, None, scale), parts, remembered)

    graphs.whole = whole


def of_a_loop(small: nn.Module, big: nn.Module, batch: dict[str, Tensor], variant: str) -> Run:
    big = big.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(small.train().parameters(), lr=1e-4, fused=True)
    student_of, teacher_of = (torch.compile(m, dynamic=False) for m in (small, big))
    loss = torch.compile(lambda s, t: kl(s, t).mean(), dynamic=False)
    update = torch.compile(optimizer.step) if variant == "optimizer" else optimizer.step

    def logits(output: Any) -> Tensor:
        if isinstance(output, Tensor):
            return output
        return output["logits"] if isinstance(output, dict) else output.logits

    def run() -> Tensor:
        with torch.no_grad():
            theirs = logits(teacher_of(**batch))
        value = loss(logits(student_of(**batch)), theirs)
        value.backward()
        update()
        optimizer.zero_grad()
        return value.detach()

    return run


if __name__ == "__main__":
    main()
