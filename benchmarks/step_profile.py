"""Where the time of a step goes: three objectives, by torch's profiler, beside plain loops.

    python benchmarks/step_profile.py
    python benchmarks/step_profile.py --case resnet --threads 1

A BERT of 12 layers to 3 (hidden states and attention maps, so taps inside of blocks), a ResNet 56
to 20 whose student's batch normalisation trains (buffers that change), and a Llama of 4 layers to 2
by a head term. For each the plain loop, fkd's step eager, and fkd's step compiled. The profiler
says how long every operation takes by itself, without those that it calls; a group is a sum of
operations: products (matrix products, convolutions, attention), normalisation, copies (`clone`,
`copy_`, `cat`: what statelessness, taps and casts could cost), the optimizer, the compiler's
fused kernels, all other operations that compute, and views and memory, which compute nothing.
Groups are given in per cent of all operations, since profiling slows them down; the step, in
milliseconds, is timed without it.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable
from typing import Any

import bert as bert_case
import language_model as llama_case
import torch
import vision as vision_case
from _measure import Run, arguments, clock_of, finish, same, table, write
from _steps import Loss, fkd_gradients, fkd_step, peer_gradients, peer_step
from torch import nn

import fkd

Case = tuple[fkd.Objective, Any, Loss, tuple[nn.Module, nn.Module]]
"""Objective, batch, and loss and models of the plain loop."""

GROUPS = {
    "optimizer": r"_fused_adamw|_foreach|Optimizer",
    "fused kernels": r"cpp_fused|triton_",
    "products": r"mm_?$|addmv|bmm|matmul|convolution|attention|linear|mkl|onednn|_mm_",
    "normalisation": r"batch_norm|layer_norm|rms_norm",
    "copies": r"::(clone|copy_|_to_copy|cat|stack|contiguous)$",
    "views and memory": r"::(view|_unsafe_view|reshape|t|transpose|permute|expand|as_strided|slice|"
    r"select|detach|alias|empty|empty_like|empty_strided|new_empty|new_zeros|zeros|zeros_like|"
    r"unsqueeze|squeeze|split|unbind|narrow|resize_|set_|lift_fresh|_reshape_alias|chunk|resolve_\w+"
    r"|to|new_empty_strided|ones_like|fill_|zero_)$",
}
OTHER, MOST = "other operations", 8


def bert(device: str) -> Case:
    options = argparse.Namespace(
        hidden=384, shape="8x256", case="lower-attention", device=device, bf16=False
    )
    setting = bert_case.Setting(options)
    objective = bert_case.objective(setting)
    return objective, setting.batch, bert_case.plain_loss(setting), setting.peers


def resnet(device: str) -> Case:
    options = argparse.Namespace(
        pair="resnet", examples=32, size=32, device=device, bf16=False, features_only=False
    )
    pair, data = vision_case.models(options), vision_case.images(options)
    return vision_case.objective(options, pair), data, vision_case.plain(options, data), pair


def llama(device: str) -> Case:
    options = argparse.Namespace(tokens=512, vocab=8000, length=128, device=device, bf16=False)
    small, big = (llama_case.llama(options, size) for size in llama_case.SIZES["cpu"])
    data, pair = llama_case.text(options), (small, big.eval())
    objective = llama_case.objective(options, pair, "head")
    return objective, data, llama_case.plain_loss(options, data), pair


CASES: dict[str, Callable[[str], Case]] = {"bert": bert, "resnet": resnet, "llama": llama}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--case", choices=list(CASES), nargs="+", default=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch._inductor.config.cpp.enable_kernel_profile = True  # kernels have names in the profile
    results: dict[str, dict[str, Any]] = {}
    notes = ["groups are per cent of the time of all operations"]
    for name in options.case:
        objective, data, loss, pair = CASES[name](options.device)
        notes.append(same(name, fkd_gradients(objective, data), peer_gradients(loss, pair), 1e-3))
        print(notes[-1], flush=True)
        runs = {
            "plain loop": peer_step(loss, pair),
            "fkd, eager": fkd_step(objective, data, compile=False),
            "fkd, compiled": fkd_step(objective, data),
        }
        rows = {f"{name}: {way}": groups(run, options) for way, run in runs.items()}
        results |= rows
        columns = {**dict.fromkeys((*GROUPS, OTHER), ".1f"), "copies a step": ".0f", "ms": ".1f"}
        print(table(rows, columns), flush=True)
        for way, row in rows.items():
            print(f"{way}: " + ", ".join(f"{k} {v:.1f}" for k, v in row["most"].items()))
    write(f"step_profile_{options.device}", options, results, notes)


def groups(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """The share of every group and of the most costly operations; milliseconds of a step."""
    for _ in range(3):
        run()
    clock, seconds = clock_of(options), []
    for _ in range(options.rounds):
        start = clock()
        run()
        finish(options.device)
        seconds.append(clock() - start)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if options.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(options.rounds):
            run()
        finish(options.device)
    events = profile.key_averages()
    device = options.device == "cuda"
    took = {e.key: e.self_device_time_total if device else e.self_cpu_time_total for e in events}
    percent = {key: 100 * time / sum(took.values()) for key, time in took.items()}
    shares = {group: 0.0 for group in (*GROUPS, OTHER)}
    for key, share in percent.items():
        shares[group_of(key)] += share
    copies = sum(e.count for e in events if group_of(e.key) == "copies") / options.rounds
    most = dict(sorted(percent.items(), key=lambda pair: -pair[1])[:MOST])
    return {**shares, "copies a step": copies, "ms": 1e3 * statistics.median(seconds), "most": most}


def group_of(key: str) -> str:
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, key)), OTHER)


if __name__ == "__main__":
    main()
