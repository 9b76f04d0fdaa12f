"""Laws of every adapter: shapes, gradients through the loss it serves, purity, compilation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import fkd.adapters as adapters
import fkd.losses as losses
from tests.trees import tree_leaves, tree_map


@dataclass(frozen=True)
class Case:
    """An adapter, what it reads, the shapes it gives, and a scalar loss of its outputs."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    shapes: list[tuple[int, ...]]
    loss: Callable[..., Tensor]
    name: str = ""

    @property
    def id(self) -> str:
        return self.name or type(self.make()).__name__


def like(*shape: int) -> Tensor:
    """What the teacher has."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def mse(*shape: int) -> Callable[[Tensor], Tensor]:
    return lambda y: F.mse_loss(y, like(*shape))


def maps(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape) for shape in shapes]


def gaussian(out: tuple[Tensor, Tensor]) -> Tensor:
    mean, log_scale = out
    return losses.vid(mean, like(*mean.shape), log_scale=log_scale).mean()


def prime_aware(log_variance: Tensor) -> Tensor:
    return losses.pad(like(4, 6), like(4, 6).flip(0), log_variance=log_variance).mean()


def generated(y: Tensor) -> Tensor:
    return losses.mgd(y, like(*y.shape)).mean()


def calibrated(weights: Tensor) -> Tensor:
    """SemCKD over all pairs, of projected maps of one shape."""
    return sum(
        losses.semckd(like(4, 3) * (s + 1), like(4, 3) * t, attention=weights[:, s, t]).mean()
        for s in range(weights.shape[1])
        for t in range(weights.shape[2])
    )


def matched(weights: Tensor) -> Tensor:
    """AFD over all pairs, of maps of one space."""
    return sum(
        losses.afd(like(4, 3, s + 3)[..., :3], like(4, t + 3, 3), attention=weights[:, t, s]).mean()
        for t in range(weights.shape[1])
        for s in range(weights.shape[2])
    )


def all_pairs(rows: tuple[tuple[Tensor, ...], ...]) -> Tensor:
    one = torch.ones(4)
    pairs = [losses.semckd(y, like(*y.shape), attention=one) for row in rows for y in row]
    return torch.stack(pairs).mean()


def reviewed(out: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([losses.hcl(y, like(*y.shape)).mean() for y in out]).sum()


def softened(temperature: Tensor) -> Tensor:
    return losses.kl(like(4, 5), 3 * like(4, 5).flip(0), temperature=temperature).mean()


def views(y: Tensor) -> Tensor:
    return losses.dino(y, like(4, 2, 7), state=losses.dino_init(7))[0].mean()


KEEP = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 0]], dtype=torch.bool)
STUDENT = [(4, 3, 4, 4), (4, 5, 2, 2)]
TEACHER = [(4, 6, 4, 4), (4, 2, 4, 4), (4, 8, 2, 2)]
STAGES = [(2, 3, 8, 8), (2, 5, 4, 4), (2, 7, 2, 2)]

CASES = [
    *[
        Case(
            lambda norm=norm: adapters.LinearProjection(4, 6, norm=norm),
            lambda: (torch.randn(2, 3, 4),),
            [(2, 3, 6)],
            mse(2, 3, 6),
            f"LinearProjection {norm}",
        )
        for norm in ("none", "layer", "batch")
    ],
    Case(
        lambda: adapters.MLPProjection(4, 5, 6),
        lambda: (torch.randn(2, 3, 4),),
        [(2, 3, 6)],
        mse(2, 3, 6),
    ),
    *[
        Case(
            lambda s=s, t=t: adapters.OrthogonalProjector(s, t),
            lambda s=s: (torch.randn(2, 3, s),),
            [(2, 3, t)],
            mse(2, 3, t),
            f"OrthogonalProjector {s} to {t}",
        )
        for s, t in [(4, 6), (6, 4), (5, 5)]
    ],
    Case(
        lambda: adapters.CrossModelAttention(4, 6),
        lambda: (
            torch.randn(2, 3, 4),
            torch.randn(2, 5, 6),
            (torch.randn(2, 3, 4), torch.randn(2, 3, 4)),
            (torch.randn(2, 5, 6), torch.randn(2, 5, 6)),
        ),
        [(2, 3, 4), (2, 5, 6)],
        lambda out: mse(2, 3, 4)(out[0]) + mse(2, 5, 6)(out[1]),
    ),
    Case(
        lambda: adapters.LayerAttention(3),
        lambda: (torch.randn(2, 4, 3, 5),),
        [(2, 4, 5)],
        mse(2, 4, 5),
    ),
    *[
        Case(
            lambda s=s, t=t, **k: adapters.ConvRegressor((3, *s), (5, *t)),
            lambda s=s: (torch.randn(2, 3, *s),),
            [(2, 5, *t)],
            mse(2, 5, *t),
            f"ConvRegressor {s} to {t}",
        )
        for s, t in [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((7, 6), (5, 6)), ((4, 4), (4, 4))]
    ],
    Case(
        lambda: adapters.ConvRegressor((3, 4, 4), (5, 4, 4), norm=False, relu=False),
        lambda: (torch.randn(2, 3, 4, 4),),
        [(2, 5, 4, 4)],
        mse(2, 5, 4, 4),
        "ConvRegressor linear",
    ),
    Case(
        lambda: adapters.SimKDProjector(3, 6),
        lambda: (torch.randn(2, 3, 4, 4),),
        [(2, 6, 4, 4)],
        mse(2, 6, 4, 4),
    ),
    Case(
        lambda: adapters.SRRLConnector(3, 6),
        lambda: (torch.randn(2, 3, 4, 4),),
        [(2, 6, 4, 4)],
        lambda y: mse(2, 6)(y.mean((2, 3))),
    ),
    *[
        Case(make, lambda: (torch.randn(2, 4, 6, 6),), [(2, 4, 6, 6)], mse(2, 4, 6, 6), name)
        for name, make in {
            "GlobalContext": lambda: adapters.GlobalContext(4),
            "GlobalContext middle": lambda: adapters.GlobalContext(4, 3),
            "NonLocal": lambda: adapters.NonLocal(4),
            "NonLocal pool": lambda: adapters.NonLocal(4, 3, pool=2),
        }.items()
    ],
    *[
        Case(
            lambda s=s: adapters.MaskedGenerator(s, 6),
            lambda s=s, keep=keep: (torch.randn(2, s, 4, 4), torch.rand(keep) > 0.4),
            [(2, 6, 4, 4)],
            generated,
            f"MaskedGenerator {s} {keep}",
        )
        for s, keep in [(3, (2, 1, 4, 4)), (6, (2, 6, 1, 1))]
    ],
    Case(
        lambda: adapters.TokenGenerator(4, 5, grid=(2, 3)),
        lambda: (torch.randn(2, 6, 4), KEEP),
        [(2, 6, 5)],
        generated,
    ),
    Case(
        lambda: adapters.ReviewFusion((3, 5, 7), (4, 6, 8), middle=5),
        lambda: (maps(*STAGES),),
        [(2, 4, 8, 8), (2, 6, 4, 4), (2, 8, 2, 2)],
        reviewed,
    ),
    Case(
        lambda: adapters.Paraphraser(6),
        lambda: (torch.randn(2, 6, 4, 4),),
        [(2, 3, 4, 4), (2, 6, 4, 4)],
        lambda out: mse(2, 6, 4, 4)(out[1]),
    ),
    Case(
        lambda: adapters.Translator(5, 6),
        lambda: (torch.randn(2, 5, 4, 4),),
        [(2, 3, 4, 4)],
        lambda f: losses.factor_transfer(f, like(*f.shape)).mean(),
    ),
    Case(
        lambda: adapters.VarianceHead(3, 5),
        lambda: (torch.randn(2, 3, 4, 4),),
        [(2, 5, 4, 4), (5,)],
        gaussian,
    ),
    Case(lambda: adapters.PADVariance(3, 6), lambda: (torch.randn(4, 3),), [(4, 6)], prime_aware),
    Case(
        lambda: adapters.SemCKDAttention(2, 3, batch_size=4, width=8),
        lambda: (maps(*STUDENT), maps(*TEACHER)),
        [(4, 2, 3)],
        calibrated,
    ),
    Case(
        lambda: adapters.PairProjections([3, 5], [6, 2, 8]),
        lambda: (maps(*STUDENT), maps(*TEACHER)),
        [(4, 6, 4, 4), (4, 2, 4, 4), (4, 8, 2, 2), (4, 6, 2, 2), (4, 2, 2, 2), (4, 8, 2, 2)],
        all_pairs,
    ),
    Case(
        lambda: adapters.AFDAttention([3, 5], [6, 2, 8], width=8),
        lambda: (maps(*STUDENT), maps(*TEACHER)),
        [(4, 3, 2)],
        matched,
    ),
    Case(
        lambda: adapters.ChannelAttention(8),
        lambda: (torch.randn(2, 8, 4, 4),),
        [(2, 8)],
        lambda w: losses.afds(like(2, 8, 4), like(2, 8, 4).flip(0), attention=w).mean(),
    ),
    Case(lambda: adapters.LearnableTemperature(), lambda: (0.5,), [()], softened),
    Case(
        lambda: adapters.InstanceTemperature(5, width=8),
        lambda: (torch.randn(4, 5), torch.randn(4, 5), torch.tensor(0.5)),
        [(4, 1)],
        softened,
    ),
    Case(
        lambda: adapters.StudentTemperature(2.0),
        lambda: (torch.randn(4, 5),),
        [(4, 5)],
        lambda y: losses.kl(y, like(4, 5)).mean(),
    ),
    Case(
        lambda: adapters.DINOHead(4, 7, hidden=8, bottleneck=6),
        lambda: (torch.randn(4, 3, 4),),
        [(4, 3, 7)],
        views,
    ),
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)


def build(case: Case) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    return case.make(), case.inputs()


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}


def state(module: nn.Module, params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**params, **{n: b.clone() for n, b in module.named_buffers()}}


def pure(
    case: Case, module: nn.Module
) -> Callable[..., tuple[Tensor, dict[str, Tensor], list[Any]]]:
    """Loss, gradients and outputs as a function of parameters and inputs."""

    def run(params: dict[str, Tensor], *inputs: Any):
        out = functional_call(module, state(module, params), inputs)
        loss = case.loss(out)
        return loss, torch.autograd.grad(loss, list(params.values())), tree_leaves(out)

    return run


def test_every_adapter_has_a_row() -> None:
    public = {c for n, c in vars(adapters).items() if n[0] != "_" and inspect.isclass(c)}
    assert public == {type(c.make()) for c in CASES}


@every_case
def test_shapes(case: Case) -> None:
    module, inputs = build(case)
    assert [tuple(y.shape) for y in tree_leaves(module(*inputs))] == case.shapes


@every_case
def test_every_parameter_gets_a_gradient(case: Case) -> None:
    module, inputs = build(case)
    case.loss(module(*inputs)).backward()
    without = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    assert all(p.grad.isfinite().all() for p in module.parameters())


@every_case
def test_the_gradient_reaches_the_student(case: Case) -> None:
    module, inputs = build(case)
    inputs = tree_map(lambda x: x.requires_grad_() if is_float(x) else x, inputs)
    leaves = [x for x in tree_leaves(inputs) if is_float(x) and x.ndim]
    if leaves:
        grads = torch.autograd.grad(case.loss(module(*inputs)), leaves, allow_unused=True)
        assert grads[0] is not None and grads[0].isfinite().all() and grads[0].any()


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


@every_case
def test_functional_call(case: Case) -> None:
    module, inputs = build(case)
    params = parameters(module)
    before = {n: x.clone() for n, x in module.state_dict().items()}
    loss, grads, out = pure(case, module)(params, *inputs)
    again, same_grads, _ = pure(case, module)(params, *inputs)
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, same_grads, strict=True))
    assert all(torch.equal(x, before[n]) for n, x in module.state_dict().items())
    want = tree_leaves(module(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(out, want, strict=True))
    other = {n: p.detach() + torch.randn_like(p) for n, p in params.items()}
    changed = tree_leaves(functional_call(module, state(module, other), inputs))
    assert any(not torch.equal(a, b) for a, b in zip(out, changed, strict=True))


@every_case
def test_training_does_not_grow_the_state(case: Case) -> None:
    module, _ = build(case)
    assert all(p.requires_grad for p in module.parameters())
    copy = case.make()
    copy.load_state_dict(module.state_dict())


@pytest.mark.compile
@every_case
def test_compiled(case: Case) -> None:
    torch._dynamo.reset()
    module, inputs = build(case)
    params = parameters(module)
    run = pure(case, module)

    def forward(tensors: dict[str, Tensor], *inputs: Any) -> Any:
        return functional_call(module, tensors, inputs)

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    loss, grads, _ = run(params, *inputs)
    got = case.loss(compiled(state(module, params), *inputs))
    got_grads = torch.autograd.grad(got, list(params.values()))
    torch.testing.assert_close(got, loss)
    for a, b in zip(got_grads, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
