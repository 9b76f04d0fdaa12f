"""The divergences of one pass in the log: each by its name, with a weight of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import cross_entropy, head, head_divergence, kl

from .test_objective import LanguageModel

SIDES = (
    student.hidden,
    student.param("lm_head.weight"),
    teacher.hidden,
    teacher.param("lm_head.weight"),
)


def by_head(divergence: Any, **options: Any) -> fkd.Term:
    return term(
        head_divergence, *SIDES, labels=batch.target, divergence=divergence, chunk_size=5, **options
    )


def objective(terms: Any) -> fkd.Objective:
    torch.manual_seed(0)
    models = LanguageModel(8), LanguageModel(12)
    return fkd.Objective(terms, student=fkd.trainable(models[0]), teacher=fkd.frozen(models[1]))


def batches(n: int = 3) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    made = [
        {k: torch.randint(0, 50, (4, 6), generator=g) for k in ("input_ids", "target")}
        for _ in range(n)
    ]
    for i, one in enumerate(made):
        one["target"][i % 4, 2:] = -100
    return made


def losses(terms: Any, compile: Any = False, **options: Any) -> dict[str, torch.Tensor]:
    step = fkd.loops.train_step(
        objective(terms), lambda p: torch.optim.SGD(p, lr=0.1), compile=compile, **options
    )
    state, measured = step.init(seed=0), {}
    for data in batches():
        state, measured = step(state, data)
    return {n: x for n, x in measured.items() if n.startswith(("loss", "grad"))}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "compile", [False, pytest.param({"backend": "aot_eager"}, marks=pytest.mark.compile)]
)
def test_parts_are_the_terms_of_their_own(compile, accumulate):
    """Weights that move, too: one pass is two terms, in values, gradients and what is logged."""
    falling = fkd.schedules.linear(1.0, 0.0, steps=6)
    both = 2.0 * head.kl() + 0.5 * (falling * head.cross_entropy().named("labels"))
    one = losses({"lm": by_head(both)}, compile, accumulate=accumulate)
    where = batch.target != -100
    two = losses(
        {
            "kl": term(kl, student.logits, teacher.logits, where=where, weight=2.0),
            "labels": term(
                cross_entropy,
                student.logits,
                batch.target,
                where=where,
                weight=lambda step: 0.5 * falling(step),
            ),
        },
        accumulate=accumulate,
    )
    assert set(one) >= {"loss/lm", "loss/lm/kl", "loss/lm/labels", "loss/total"}
    for got, want in (
        ("lm", "total"), ("lm/kl", "kl"), ("lm/labels", "labels"), ("total", "total")
    ):  # fmt: skip
        torch.testing.assert_close(one[f"loss/{got}"], two[f"loss/{want}"], rtol=1e-5, atol=1e-6)
    norm = "grad_norm/total"
    torch.testing.assert_close(one[norm], two[norm], rtol=1e-4, atol=1e-6)


@pytest.mark.compile
def test_moving_weights_are_one_graph():
    compiled: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    falling = (lambda step: 1 / (1 + step)) * head.kl() + head.cross_entropy()
    one = losses({"lm": by_head(falling)}, {"backend": counting})
    assert {"loss/lm/kl", "loss/lm/cross_entropy"} <= set(one)
    assert len(compiled) == 1


def test_evaluation_knows_parts_and_agreement():
    goal = objective({"lm": by_head(head.kl() + head.cross_entropy())})
    state = fkd.loops.train_step(goal, torch.optim.SGD, compile=False).init()
    values = fkd.loops.evaluate(goal, state, batches())
    logits = objective({"kl": term(kl, student.logits, teacher.logits, where=batch.target != -100)})
    plain = fkd.loops.evaluate(logits, state, batches())
    assert values["loss/lm/kl"] == pytest.approx(plain["loss/kl"], rel=1e-5)
    assert values["agreement"] == plain["agreement"]


def test_the_best_part_can_be_asked_for(tmp_path):
    goal = objective({"lm": by_head(head.kl() + head.cross_entropy())})
    step = fkd.loops.train_step(goal, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    options: Any = dict(steps=3, dev=batches(1), checkpoint_dir=tmp_path, progress=False)
    result = fkd.loops.run(step, step.init(0), batches(), best="loss/lm/kl", **options)
    assert result.best is not None
    with pytest.raises(ValueError, match=r"loss/lm/kx.*not measured"):
        fkd.loops.run(step, step.init(0), batches(), best="loss/lm/kx", **options)


def test_names():
    labels = (head.kl() + head.jsd(0.1) + head.jsd(0.9) + head.kl()).labels
    assert labels == ("kl()", "jsd(0.1)", "jsd(0.9)", "kl()-2")
    assert (head.kl() + head.elementwise(lambda p, q: p * q)).labels[0] == "kl"
    assert head.kl().named("far").labels == ("far",)
    with pytest.raises(ValueError, match="is a sum; name its parts"):
        (head.kl() + head.jsd()).named("both")
    with pytest.raises(ValueError, match="another term"):
        terms = {"lm": by_head(head.kl() + head.cross_entropy()), "lm/kl": by_head(head.kl())}
        losses(terms)


def test_a_schedule_needs_an_objective():
    falling = fkd.schedules.linear(1.0, 0.0, steps=6)
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    divergence = falling * head.kl() + head.z_loss()
    with pytest.raises(ValueError, match=r"the weight of kl is linear.*divergence.at"):
        head_divergence(x, w, x, w, divergence=divergence)
    at = divergence.at({"kl": 0.5})
    assert repr(at) == "0.5 * kl() + z_loss()"
    assert torch.isfinite(head_divergence(x, w, x, w, divergence=at).value)
    with pytest.raises(ValueError, match="one schedule is expected"):
        falling * (falling * head.kl())


def test_losses_of_ones_own_may_have_parts():
    def two(x: torch.Tensor, y: torch.Tensor) -> fkd.MeanWithParts:
        a, b = fkd.mean((x - y).square().mean(-1)), fkd.mean((x - y).abs().mean(-1))
        return fkd.MeanWithParts(fkd.Mean(a.total + b.total, a.count), {"square": a, "abs": b})

    measured = losses({"own": term(two, student.logits, teacher.logits)})
    total = measured["loss/own/square"] + measured["loss/own/abs"]
    torch.testing.assert_close(measured["loss/own"], total)
