"""A weight for every token: the definition, by every strategy, with its own gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import head, head_divergence, head_metrics

from .inputs import MIXED, NAMED, heads
from .test_objective import LanguageModel

GIVEN = heads()
WEIGHTS = torch.randn(11, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
WHERE = torch.arange(11) % 3 != 0


def evaluated(strategy: str, divergence: Any, weights: Tensor, **options: Any) -> list[Tensor]:
    """The total, the count, and the gradients by everything that may have one."""
    scale = torch.tensor(0.7, dtype=torch.float64)
    x, w, b, weights, scale = (
        t.detach().clone().requires_grad_()
        for t in (GIVEN.student, GIVEN.weight, GIVEN.bias, weights, scale)
    )
    mean = head_divergence(
        x, w, GIVEN.teacher, GIVEN.teacher_weight, divergence=divergence, student_bias=b,
        labels=GIVEN.labels, student_logit_scale=scale, student_softcap=4.0, strategy=strategy,
        token_weights=weights, where=WHERE, **options,
    )  # fmt: skip
    return [mean.total, mean.count, *torch.autograd.grad(mean.value, [x, w, b, weights, scale])]


@pytest.mark.parametrize(
    "divergence", [*NAMED, head.elementwise(lambda p, q: (p - q) ** 2)], ids=str
)
def test_chunks_are_the_definition(divergence):
    wanted = evaluated("materialized", divergence, WEIGHTS)
    for got, want in zip(
        evaluated("chunked", divergence, WEIGHTS, chunk_size=4), wanted, strict=True
    ):
        torch.testing.assert_close(got, want)


def test_the_definition_is_a_weighted_sum_of_the_values_over_the_count():
    options = dict(divergence=head.kl(), where=WHERE)
    values = head_metrics(
        GIVEN.student, GIVEN.weight, GIVEN.teacher, GIVEN.teacher_weight, **options
    )["kl()"]
    mean = head_divergence(
        GIVEN.student, GIVEN.weight, GIVEN.teacher, GIVEN.teacher_weight,
        token_weights=WEIGHTS, **options,
    )  # fmt: skip
    torch.testing.assert_close(mean.total, (values * WEIGHTS)[WHERE].sum())
    assert mean.count == WHERE.sum()


def test_policy_gradient_is_that_of_torch():
    """REINFORCE: - advantage log q(token), through the head."""
    x, w = GIVEN.student.clone().requires_grad_(), GIVEN.weight.clone().requires_grad_()
    mean = head_divergence(
        x, w, None, None, divergence=head.cross_entropy(), labels=GIVEN.labels,
        token_weights=WEIGHTS, strategy="chunked", chunk_size=3,
    )  # fmt: skip
    log_q = torch.log_softmax(x @ w.T, -1).gather(-1, GIVEN.labels[:, None])[:, 0]
    want = torch.autograd.grad(-(WEIGHTS * log_q).mean(), [x, w])
    for got, expected in zip(torch.autograd.grad(mean.value, [x, w]), want, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("strategy", ["materialized", "chunked"])
def test_what_does_not_count_has_no_weight(strategy):
    wanted = evaluated(strategy, MIXED, WEIGHTS)
    nan = WEIGHTS.masked_fill(~WHERE, torch.nan)
    for got, want in zip(evaluated(strategy, MIXED, nan), wanted, strict=True):
        torch.testing.assert_close(got, want)
        assert torch.isfinite(got).all()


def test_weights_of_examples_and_bf16():
    x, t = GIVEN.student[:10].view(2, 5, 5).float(), GIVEN.teacher[:10].view(2, 5, 7).float()
    w, wt, each = GIVEN.weight.float(), GIVEN.teacher_weight.float(), torch.tensor([2.0, -1.0])
    options: Any = dict(divergence=head.kl())
    got = head_divergence(x, w, t, wt, token_weights=each, **options)
    want = head_divergence(x, w, t, wt, token_weights=each[:, None].expand(2, 5), **options)
    torch.testing.assert_close(got.total, want.total)
    half = head_divergence(
        x, w, t, wt, token_weights=each.bfloat16(), operand_dtype=torch.bfloat16, **options
    )
    torch.testing.assert_close(half.total, got.total, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(10), r"token_weights \(10,\).*must have the positions.*\(11,\)"),
        pytest.param(torch.ones(11, dtype=torch.long), "token_weights", marks=pytest.mark.plain),
    ],
)
def test_what_is_no_weight_is_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        head_divergence(
            GIVEN.student, GIVEN.weight, None, None, divergence=head.cross_entropy(),
            labels=GIVEN.labels, token_weights=weights,
        )  # fmt: skip


@pytest.mark.parametrize(
    "compile", [False, pytest.param({"backend": "aot_eager"}, marks=pytest.mark.compile)]
)
def test_a_term_takes_its_weight_by_position(compile):
    """The same training by the logits and by the head; the weight of the data, with nan in it."""
    sides = (student.hidden, student.param("lm_head.weight"))
    where = batch.target != -100
    by_head = term(
        head_divergence, *sides, None, None, labels=batch.target, divergence=head.cross_entropy(),
        weight=batch.advantage, where=where, strategy="chunked", chunk_size=5,
    )  # fmt: skip
    by_logits = term(
        fkd.losses.cross_entropy, student.logits, batch.target, weight=batch.advantage, where=where
    )
    found = [trained(one, compile) for one in (by_head, by_logits)]
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-5, atol=1e-6)


def trained(one: fkd.Term, compile: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    objective = fkd.Objective({"pg": one}, student=fkd.trainable(LanguageModel(8)))
    target = torch.randint(0, 50, (2, 6))
    target[0, :2] = -100
    data = {"input_ids": torch.randint(0, 50, (2, 6)), "target": target}
    data["advantage"] = torch.randn(2, 6).masked_fill(target == -100, torch.nan)
    assert "10 of 12" in str(fkd.check(objective, data))
    step = fkd.loops.train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=compile)
    state, measured = step.init(seed=0), {}
    for _ in range(2):
        state, measured = step(state, data)
    return {k: v for k, v in measured.items() if k.startswith(("loss", "grad"))}


def test_a_learned_weight_of_positions_has_a_gradient():
    """A weight that a model computes: d total / d weight_t is the value of token t."""
    torch.manual_seed(0)
    objective = fkd.Objective(
        {
            "kd": term(
                head_divergence,
                student.hidden,
                student.param("lm_head.weight"),
                teacher.hidden,
                teacher.param("lm_head.weight"),
                divergence=head.kl(),
                weight=student.hidden[..., 0],
            )
        },
        student=fkd.trainable(LanguageModel(8)),
        teacher=fkd.frozen(LanguageModel(12)),
    )
    parts, data = objective.init(), {"input_ids": torch.randint(0, 50, (2, 6))}
    leaves = {n: p.requires_grad_() for n, p in parts.trainable["student"].items()}
    value, _ = objective(parts, data)
    got = torch.autograd.grad(value, list(leaves.values()))
    small, big = (objective.models[n].module for n in ("student", "teacher"))

    def definition(params: dict[str, Tensor]) -> Tensor:
        out = torch.func.functional_call(small, params, (data["input_ids"],))
        log_q = out["logits"].log_softmax(-1)
        log_p = big(data["input_ids"])["logits"].detach().log_softmax(-1)
        values = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        return (values * out["hidden"][..., 0]).mean()

    want = torch.autograd.grad(definition(leaves), list(leaves.values()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
