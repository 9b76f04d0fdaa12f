"""What a step over several processes costs: collectives in its graph, bytes that a rank holds.

    torchrun --nproc-per-node 2 benchmarks/parallel.py --axis replicate
    torchrun --nproc-per-node 2 benchmarks/parallel.py --axis shard
    torchrun --nproc-per-node 4 benchmarks/parallel.py --axis shard --memory --width 256
    torchrun --nproc-per-node 1 benchmarks/parallel.py --overhead

With `--memory`, the memory of a process as the system counts it, eager: before there is a state,
with it, and the most during three steps. The modules are made without values, which each process
reads from files. With `--overhead`, the time of a step with a mesh of one process over that
without, in turn in one process.

On GPUs the same lines use NCCL. The model is a 12-layer student of a 12-layer teacher, small.
"""

from __future__ import annotations

import argparse
import collections
import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from functorch.compile import make_boxed_func
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import cross_entropy, kl


class Encoder(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(256, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(),
                          nn.Linear(4 * width, width))
            for _ in range(layers)
        )  # fmt: skip
        self.head = nn.Linear(width, 256)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.words(ids)
        for layer in self.layers:
            x = x + layer(x)
        return {"logits": self.head(x)}


def held(state: fkd.loops.State) -> int:
    """Bytes of parameters, teachers and moments in this process."""
    trees = (state.parts.trainable, state.parts.frozen)
    tensors = [x for tree in trees for params in tree.values() for x in params.values()]
    tensors += [x for values in state.optimizer.values() for x in values.values()]
    return sum(x.untyped_storage().nbytes() for x in tensors if isinstance(x, Tensor))


def objective(small: nn.Module, large: nn.Module, **weights: Any) -> fkd.Objective:
    """Both models on labels and teacher; the folders of their values, if they have none."""
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits),
            "labels": term(cross_entropy, student.logits, batch["labels"]),
        },
        student=fkd.trainable(small, weights=weights.get("student")),
        teacher=fkd.frozen(large, weights=weights.get("teacher")),
    )


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3)


def megabytes(field: str) -> float:
    """What Linux says of this process: "VmRSS" (now) or "VmHWM" (the most since the reset)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) / 1024


def memory(args: argparse.Namespace) -> None:
    """Print what a process holds and needs."""
    mesh = fkd.parallel.torchrun_mesh(**{args.axis: -1})
    folder = Path(tempfile.gettempdir()) / f"fkd-parallel-{args.width}-{args.layers}"

    def written() -> None:
        for name, width in (("student", args.width), ("teacher", 2 * args.width)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            if not (folder / name / "model.safetensors").exists():
                tensors = Encoder(width, args.layers).state_dict()
                save_file(tensors, folder / name / "model.safetensors")

    written() if mesh is None else fkd.parallel.in_turn(mesh, written)
    with fkd.parallel.on_meta():
        small, large = Encoder(args.width, args.layers), Encoder(2 * args.width, args.layers)
    where = {name: folder / name for name in ("student", "teacher")}
    step = fkd.loops.train_step(
        objective(small, large, **where), adamw, compile=False, clip=1.0, mesh=mesh
    )
    ids = torch.randint(256, (8, 16))
    before = megabytes("VmRSS")
    state = step.init(0)
    state, _ = step(state, {"ids": ids, "labels": ids})
    gc.collect()
    with_state = megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        state, _ = step(state, {"ids": ids, "labels": ids})
    most = megabytes("VmHWM")
    size = 1 if mesh is None else mesh.size()
    if mesh is None or mesh.get_rank() == 0:
        print(
            f"| {args.axis} | {size} | {held(state) / 2**20:.1f} | {with_state - before:.0f} "
            f"| {most - before:.0f} |"
        )


def overhead(args: argparse.Namespace) -> None:
    """Print the time of a step with a mesh of this process over that without."""
    mesh = fkd.parallel.torchrun_mesh(**{args.axis: -1})
    ids = torch.randint(256, (8, 16))
    steps, states, times = [], [], ([], [])
    for one in (None, mesh):
        torch.manual_seed(0)
        goal = objective(Encoder(args.width, args.layers), Encoder(2 * args.width, args.layers))
        steps.append(fkd.loops.train_step(goal, adamw, compile=False, clip=1.0, mesh=one))
        states.append(steps[-1].init(0))
    for round in range(120):
        for i in (0, 1) if round % 2 else (1, 0):
            began = time.perf_counter()
            states[i], _ = steps[i](states[i], {"ids": ids, "labels": ids})
            times[i].append(time.perf_counter() - began)
    without, with_mesh = (statistics.median(t[20:]) for t in times)
    ratio = with_mesh / without
    print(f"without {without * 1e3:.2f} ms, with {with_mesh * 1e3:.2f} ms: {ratio:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--axis", default="replicate", choices=("replicate", "shard"))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--overhead", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory or args.overhead:
        memory(args) if args.memory else overhead(args)
        return
    mesh = fkd.parallel.torchrun_mesh(**{args.axis: -1})
    counted: collections.Counter[str] = collections.Counter()
    graphs = 0

    def counting(module: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal graphs
        names = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
        counted.update(n.split(".")[1] for n in names if n.startswith("_c10d_functional."))
        graphs += 1
        return make_boxed_func(module.forward)

    backend = aot_autograd(fw_compiler=counting, inference_compiler=counting)
    torch.manual_seed(0)
    small, large = Encoder(args.width, args.layers), Encoder(2 * args.width, args.layers)
    step = fkd.loops.train_step(
        objective(small, large),
        adamw,
        compile={"backend": backend},
        clip=1.0,
        mesh=mesh,
    )
    state = step.init(0)
    ids = torch.randint(256, (8, 16))
    for _ in range(3):
        state, _ = step(state, {"ids": ids, "labels": ids})
    size = 1 if mesh is None else mesh.size()
    if mesh is None or mesh.get_rank() == 0:
        collectives = {n: c for n, c in sorted(counted.items()) if n != "wait_tensor"}
        print(f"| {args.axis} | {size} | {held(state):,} | {collectives} | {graphs} |")


if __name__ == "__main__":
    main()
