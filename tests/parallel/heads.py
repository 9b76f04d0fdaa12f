"""Heads cut along the vocabulary over processes, beside whole ones in one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from fkd.losses import head, head_divergence, head_divergence_and_metrics

TOKENS, FEATURES, OTHER = 12, 5, 7

DIVERGENCES = {
    "kl": head.kl(),
    "reverse_kl": head.reverse_kl(),
    "jsd": head.jsd(0.3),
    "skew": head.skew_kl() + head.skew_reverse_kl(),
    "alpha": head.alpha_divergence(0.5) + head.total_variation(),
    "cross_entropy": head.cross_entropy(),
    "all": 0.5 * head.kl() + 0.2 * head.cross_entropy() + 1e-3 * head.z_loss() + head.jsd(),
    "own": head.elementwise(lambda log_p, log_q: (log_p.exp() - log_q.exp()) ** 2),
}


def inputs(vocab: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    bias = draw(vocab)
    labels = torch.randint(1, vocab, (TOKENS,), generator=generator)
    labels[2] = -100
    return {
        "student_hidden": 3 * draw(TOKENS, FEATURES),
        "student_weight": draw(vocab, FEATURES),
        "teacher_hidden": 3 * draw(TOKENS, OTHER),
        "teacher_weight": draw(vocab, OTHER),
        "student_bias": bias,
        "teacher_bias": bias.clone(),
        "labels": labels,
        "where": torch.rand(TOKENS, generator=generator) > 0.3,
        "token_weights": draw(TOKENS).float(),
        "student_logit_scale": torch.tensor(0.7),
    }


LEAVES = ("student_hidden", "student_weight", "student_bias", "token_weights")
LEAVES += ("student_logit_scale",)


def solved(arguments: dict[str, Any], compile: bool = False, **options: Any) -> dict[str, Tensor]:
    """Total, values of every token, and gradients, whole."""
    given = dict(arguments)
    leaves = [n for n in LEAVES if given.get(n) is not None]
    for name in leaves:
        given[name] = given[name].detach().requires_grad_()

    def run(given: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
        total = head_divergence(**given, **options).total
        return total.detach(), list(torch.autograd.grad(total, [given[n] for n in leaves]))

    if compile:
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            compiled: Any = torch.compile(run, backend="aot_eager", fullgraph=True)
            total, grads = compiled(given)
    else:
        total, grads = run(given)
    result = {"total": total, **dict(zip(leaves, grads, strict=True))}
    if not compile:
        result |= head_divergence_and_metrics(**given, **options)[1]
    return {n: x.full_tensor() if isinstance(x, DTensor) else x for n, x in result.items()}


def cut(mesh: DeviceMesh, arguments: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {
        n: distribute_tensor(x, mesh, [Shard(0)]) if n in names else x for n, x in arguments.items()
    }


BOTH = ("student_weight", "teacher_weight", "student_bias", "teacher_bias")


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    worst = 0.0
    for name, a in one.items():
        a, b = a.double(), other[name].double()
        assert torch.isfinite(a).all(), name
        scale = a.abs().max().clamp(min=1.0)
        worst = max(worst, ((a - b).abs().max() / scale).item())
    return worst


def all_of(mesh: DeviceMesh) -> dict[str, Any]:
    """The largest relative differences, by case."""
    told: dict[str, Any] = {}
    whole = inputs(11)
    for name, divergence in DIVERGENCES.items():
        options = {"divergence": divergence, "temperature": 2.0, "chunk_size": 5}
        if name == "own":
            whole_here = {**whole, "student_bias": None, "teacher_bias": None}
        else:
            whole_here = whole
        names = tuple(n for n in BOTH if whole_here[n] is not None)
        want = solved(whole_here, **options)
        told[name] = gap(want, solved(cut(mesh, whole_here, names), **options))
    options = {"divergence": DIVERGENCES["all"]}
    want = solved(whole, **options)
    told["temperature 1"] = gap(want, solved(cut(mesh, whole, BOTH), **options))
    told["student whole"] = gap(want, solved(cut(mesh, whole, ("teacher_weight",)), **options))
    student = ("student_weight", "student_bias")
    told["teacher whole"] = gap(want, solved(cut(mesh, whole, student), **options))
    dead = {**whole, "student_logit_scale": None}
    for name in ("student_bias", "teacher_bias"):  # all classes of the first rank
        dead[name] = torch.where(torch.arange(11) < 6, -torch.inf, whole[name])
    dead["labels"] = dead["labels"].clamp(min=6)
    told["impossible classes"] = gap(
        solved(dead, **options), solved(cut(mesh, dead, BOTH), **options)
    )
    few = inputs(4)  # the last of three ranks has none
    told["fewer entries"] = gap(solved(few, **options), solved(cut(mesh, few, BOTH), **options))
    part = {**options, "student_vocabulary": slice(1, 9), "teacher_vocabulary": slice(1, 9)}
    told["a part"] = gap(solved(whole, **part), solved(cut(mesh, whole, BOTH), **part))
    capped = {**options, "student_softcap": 5.0, "teacher_softcap": 4.0}
    told["softcap"] = gap(solved(whole, **capped), solved(cut(mesh, whole, BOTH), **capped))
    half = inputs(11, torch.bfloat16)
    told["bfloat16"] = gap(solved(half, **options), solved(cut(mesh, half, BOTH), **options))
    everywhere = {**whole, "teacher_weight": distribute_tensor(
        whole["teacher_weight"], mesh, [Replicate()])}  # fmt: skip
    told["everywhere"] = gap(want, solved(everywhere, **options))
    dist.barrier()
    return told


def compiled(mesh: DeviceMesh) -> dict[str, float]:
    options = {"divergence": DIVERGENCES["all"], "temperature": 2.0, "chunk_size": 5}
    whole = inputs(11)
    want = solved(whole, **options)
    want = {n: x for n, x in want.items() if n == "total" or n in LEAVES}
    return {"all": gap(want, solved(cut(mesh, whole, BOTH), compile=True, **options)),
            "student whole": gap(
                want, solved(cut(mesh, whole, ("teacher_weight",)), compile=True, **options)
            )}  # fmt: skip


def refused(mesh: DeviceMesh) -> dict[str, str]:
    whole = inputs(11)
    two = cut(mesh, whole, BOTH)
    columns = {**whole, "student_weight": distribute_tensor(
        whole["student_weight"], mesh, [Shard(1)])}  # fmt: skip
    trials = {
        "columns": (columns, {}),
        "places": (two, {"student_vocabulary": slice(0, 8), "teacher_vocabulary": slice(3, 11)}),
        "entries": (two, {"student_vocabulary": slice(0, 8)}),
        "ids": (two, {"student_vocabulary": torch.arange(11)}),
        "strategy": (two, {"strategy": "materialized"}),
    }
    told = {}
    for name, (arguments, options) in trials.items():
        try:
            head_divergence(**arguments, divergence=head.kl(), **options)
        except ValueError as error:
            told[name] = str(error)
    return told
