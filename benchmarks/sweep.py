"""What K students on one forward pass of their teacher cost, over K runs one after the other.

Members run in turn, and stacked (torch.func.vmap).

python benchmarks/sweep.py --members 4 --teacher 12 --hidden 384 --student 64
python benchmarks/sweep.py --members 8 --teacher 4 --hidden 64 --student 16 --batch 4 --length 16
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import transformers

import fkd
from fkd import student, teacher, term
from fkd.losses import kl


def bert(layers: int, hidden: int) -> torch.nn.Module:
    config = transformers.BertConfig(
        vocab_size=1000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 32, 1),
        intermediate_size=4 * hidden,
    )
    return transformers.BertForSequenceClassification(config)


def adamw(params: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-4)  # type: ignore[arg-type]


def seconds(step: Callable[[], None], rounds: int) -> float:
    step()
    times: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--teacher", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--student", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--eager", action="store_true")
    flags = parser.parse_args()
    torch.manual_seed(0)
    large, small = bert(flags.teacher, flags.hidden), bert(flags.layers, flags.student)
    batch = {
        "input_ids": torch.randint(1000, (flags.batch, flags.length)),
        "attention_mask": torch.ones(flags.batch, flags.length, dtype=torch.long),
    }

    def objective(temperature: object) -> fkd.Objective:
        return fkd.Objective(
            {"kd": term(kl, student.logits, teacher.logits, temperature=temperature)},
            student=fkd.trainable(copy.deepcopy(small)),
            teacher=fkd.frozen(large),
        )

    options = {"compile": not flags.eager}
    single = fkd.loops.train_step(objective(torch.tensor(2.0)), adamw, **options)
    state = single.init()

    def alone() -> None:
        nonlocal state
        state, _ = single(state, batch)

    members = {
        f"T{i}": fkd.sweeps.member({"kd/temperature": 1.0 + i}) for i in range(flags.members)
    }
    one = seconds(alone, flags.rounds)
    print(f"one run: {one * 1e3:.1f} ms a step")
    for stacked in (False, True):
        every = fkd.sweeps.sweep(objective(2.0), adamw, members, stacked=stacked, **options)
        joint = every.init()

        def together(every: fkd.sweeps.Sweep = every) -> None:
            nonlocal joint
            joint, _ = every(joint, batch)

        all_of_them = seconds(together, flags.rounds)
        gain = flags.members * one / all_of_them
        how = "stacked" if stacked else "in turn"
        print(
            f"{flags.members} members {how}: {all_of_them * 1e3:.1f} ms, {gain:.2f} times cheaper "
            f"than {flags.members} runs ({gain / flags.members:.2f} K)"
        )


if __name__ == "__main__":
    main()
