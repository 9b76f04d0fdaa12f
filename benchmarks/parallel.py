"""What a step over several processes costs: collectives in its graph, bytes that a rank holds.

    torchrun --nproc-per-node 2 benchmarks/parallel.py --axis replicate
    torchrun --nproc-per-node 2 benchmarks/parallel.py --axis shard

On GPUs the same lines use NCCL. The model is a 12-layer student of a 12-layer teacher, small.
"""

from __future__ import annotations

import argparse
import collections
from typing import Any

import torch
from functorch.compile import make_boxed_func
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--axis", default="replicate", choices=("replicate", "shard"))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
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
    objective = fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits),
            "labels": term(cross_entropy, student.logits, batch["labels"]),
        },
        student=fkd.trainable(small),
        teacher=fkd.frozen(large),
    )
    step = fkd.loops.train_step(
        objective,
        lambda params: torch.optim.AdamW(params, lr=1e-3),
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
