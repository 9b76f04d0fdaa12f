"""A teacher whose layers are cut over processes by a plan of its own, beside a whole one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import train_step
from fkd.losses import head, head_divergence, kl, mse, rkd_distance
from fkd.parallel import _shards
from tests.parallel.cases import GRAPH, digest, sgd
from tests.parallel.objectives import differences

VOCAB = 11


class Speaker(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.lm_head = nn.Linear(width, VOCAB, bias=False)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        hidden = self.words(ids)
        hidden = hidden + self.down(torch.tanh(self.up(hidden)))
        return {"hidden": hidden, "logits": self.lm_head(hidden)}


def objective(mesh: DeviceMesh | None) -> fkd.Objective:
    torch.manual_seed(0)
    large, small = Speaker(8), Speaker(6)
    if mesh is not None:
        plan = {
            "up": ColwiseParallel(),
            "down": RowwiseParallel(),
            "lm_head": ColwiseParallel(output_layouts=Replicate()),
        }
        parallelize_module(large, mesh, plan)
    weight, other = student.param("lm_head.weight"), teacher.param("lm_head.weight")
    ids = batch["ids"]
    return fkd.Objective(
        {
            "head": term(
                head_divergence, student.hidden, weight, teacher.hidden, other,
                divergence=head.kl() + 0.5 * head.cross_entropy(), labels=ids, shift=True,
                temperature=2.0, where=ids > 0,
            ),
            "kd": term(kl, student.logits, teacher.logits, where=ids > 0),
            "rkd": term(rkd_distance, student.hidden[:, 0], teacher.hidden[:, 0]),
            "slow": term(mse, student.logits, fkd.ref("slow").logits),
        },
        student=fkd.trainable(small),
        teacher=fkd.frozen(large),
        slow=fkd.ema("student", decay=0.9),
    )  # fmt: skip


def rows(count: int = 4, size: int = 5) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"ids": torch.randint(VOCAB, (size, 6), generator=generator)} for _ in range(count)]


def meshes(mesh: DeviceMesh, axes: dict[str, int]) -> DeviceMesh:
    return init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes))


def compared(mesh: DeviceMesh, axes: dict[str, int], compile: bool) -> dict[str, Any]:
    """Steps of one process, and of several that share the layers of a teacher."""
    _shards.SMALLEST = 8
    many_mesh = meshes(mesh, axes)
    name = next(name for name in axes if name in ("tensor", "tp"))
    one = train_step(objective(None), sgd, compile=False, clip=1.0)
    goal = objective(many_mesh[name])
    held = sum(isinstance(x, DTensor) for x in goal.init().frozen["teacher"].values())
    many = train_step(goal, sgd, compile=GRAPH if compile else False, clip=1.0, mesh=many_mesh)
    state, other = one.init(0), many.init(0)
    gaps = []
    for made in rows():
        state, metrics = one(state, made)
        other, measured = many(other, made)
        gaps.append(differences(dict(metrics), dict(measured)))
    values = fkd.loops.evaluate(one.objective, state, rows())
    same = fkd.loops.evaluate(goal, other, rows(), mesh=many_mesh)
    return {
        "held": held,
        "metrics": max(gaps),
        "parameters": differences(state.trainable, {
            m: {n: _shards.everywhere(x) for n, x in named.items()}
            for m, named in other.trainable.items()
        }),
        "values": max(abs(values[n] - same[n]) for n in values),
        "related": many.related[""],
        "compilations": many.compilations,
    }  # fmt: skip


def run(mesh: DeviceMesh, folder: str, tensor: bool, steps: int) -> dict[str, Any]:
    """A run with checkpoints; a teacher in parts is the same teacher as the whole one."""
    both = meshes(mesh, {"tensor": 2}) if tensor else mesh
    goal = objective(both["tensor"] if tensor else None)
    step = train_step(goal, sgd, compile=False, mesh=both)
    result = fkd.loops.run(
        step, step.init(0), rows(), dev=rows(), steps=steps, checkpoint_dir=folder, save_every=2,
        progress=False, best="loss/total", evaluate_every=2, higher_is_better=False,
    )  # fmt: skip
    weights = [x.flatten().tolist() for x in result.state.trainable["student"].values()]
    return {"digest": digest(result.state), "step": result.state.step, "weights": weights}


def planned(mesh: DeviceMesh) -> dict[str, Any]:
    """The logits of a Llama that transformers has cut by its own plan, from other parameters than
    it was built with, as a teacher whose parameters are given to a function uses them."""
    import transformers
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    def llama() -> Any:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        return transformers.LlamaForCausalLM(config)

    whole, cut = llama(), llama()
    plan = {f"model.{name}": style for name, style in cut.config.base_model_tp_plan.items()}
    plan = {name.replace("*", "0"): style for name, style in plan.items()}
    plan["lm_head"] = "colwise_gather_output"
    weights = {f"{name}.weight": style for name, style in plan.items()}
    cut = apply_tensor_parallelism(cut, mesh, {**plan, **weights})
    both = {
        name: fkd.Objective(
            {"kd": term(kl, student.logits, teacher.logits)},
            student=fkd.trainable(llama()),
            teacher=fkd.frozen(model),
        )
        for name, model in (("whole", whole), ("cut", cut))
    }
    logits, held = {}, 0
    for name, goal in both.items():
        parts = goal.init()
        doubled = {n: 2 * x for n, x in parts.frozen["teacher"].items()}
        held = sum(isinstance(x, DTensor) for x in doubled.values())
        parts = parts._replace(frozen={"teacher": doubled})
        program = goal.program.reading([teacher.logits])
        with torch.no_grad():
            forward = program.context(parts, {"input_ids": torch.arange(8)[None]})
            logits[name] = program.values(forward.context)[-1]
    return {"held": held, "gap": (logits["whole"] - logits["cut"]).abs().max().item()}
