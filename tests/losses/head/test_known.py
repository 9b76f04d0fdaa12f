"""A head against a teacher that is known on some classes."""

from __future__ import annotations

import pytest
import torch

import fkd
from fkd import call, student, teacher, term, trainable
from fkd.losses import head, head_divergence, head_metrics, kl, soft_cross_entropy
from fkd.sources import SampledDistribution, sampled, top_k

from .inputs import heads

MAKE = [top_k(4), top_k(4, tail=False), top_k(23), sampled(6), sampled(6, 1.0, 0.5)]
GIVEN = heads()
WHERE = torch.arange(11) % 4 != 1


def teacher_logits():
    return GIVEN.teacher @ GIVEN.teacher_weight.T


def known_at(make, temperature):
    from dataclasses import replace

    return replace(make, temperature=temperature)(teacher_logits())


def value_and_gradient(total, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = total(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def by_head(known, divergence, **options):
    def total(x, w, b):
        return head_divergence(
            x, w, known, None, student_bias=b, divergence=divergence, **options
        ).total

    return value_and_gradient(total, GIVEN.student, GIVEN.weight, GIVEN.bias)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("make", MAKE, ids=repr)
@pytest.mark.parametrize("strategy", ["materialized", "chunked"])
def test_it_is_the_loss_on_logits(make, temperature, strategy):
    known = known_at(make, temperature)
    ours = by_head(
        known,
        0.7 * head.kl() + 0.2 * head.soft_cross_entropy(),
        temperature=temperature,
        where=WHERE,
        strategy=strategy,
        chunk_size=4,
    )

    def total(x, w, b):
        options = {"temperature": temperature, "where": WHERE}
        z = x @ w.T + b
        return (0.7 * kl(z, known, **options) + 0.2 * soft_cross_entropy(z, known, **options)).sum()

    theirs = value_and_gradient(total, GIVEN.student, GIVEN.weight, GIVEN.bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("make", [top_k(4), sampled(6)], ids=repr)
def test_with_labels_scale_and_softcap_it_is_its_definition(make, temperature):
    known = known_at(make, temperature)
    divergence = 0.7 * head.kl() + 0.3 * head.cross_entropy() + 0.01 * head.z_loss()
    options = {
        "temperature": temperature,
        "labels": GIVEN.labels.masked_fill(~WHERE, -100),
        "student_logit_scale": 0.7,
        "student_softcap": 3.0,
        "shift": True,
    }
    a, b = (by_head(known, divergence, strategy=s, **options) for s in ("chunked", "materialized"))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_all_classes_are_the_hidden_states():
    a = by_head(known_at(top_k(23), 2.0), head.kl(), temperature=2.0)

    def total(x, w, b):
        return head_divergence(
            x, w, GIVEN.teacher, GIVEN.teacher_weight, student_bias=b, divergence=head.kl(),
            temperature=2.0,
        ).total  # fmt: skip

    b = value_and_gradient(total, GIVEN.student, GIVEN.weight, GIVEN.bias)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_one_token_with_a_weight_of_either_sign():
    advantage = torch.linspace(-1, 1, 11, dtype=torch.float64)
    known = SampledDistribution(GIVEN.labels[:, None], 23, 1.0, weights=advantage[:, None])
    a = by_head(known, head.soft_cross_entropy())

    def total(x, w, b):
        log_q = (x @ w.T + b).log_softmax(-1).gather(-1, GIVEN.labels[:, None])[:, 0]
        return -(advantage * log_q).sum()

    b = value_and_gradient(total, GIVEN.student, GIVEN.weight, GIVEN.bias)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_what_does_not_count_may_hold_nan():
    known = known_at(top_k(4), 1.0)
    torn = known.map(
        lambda x: (
            x.masked_fill(~WHERE.reshape(11, *[1] * (x.ndim - 1)), torch.nan)
            if x.is_floating_point()
            else x
        )
    )
    a, b = (by_head(x, head.kl(), where=WHERE) for x in (known, torn))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_metrics_and_shapes():
    known = known_at(top_k(4), 1.0)
    x = GIVEN.student[:10].reshape(2, 5, 5)
    both = known[:10].map(lambda x: x.reshape(2, 5, *x.shape[1:]))
    values = head_metrics(x, GIVEN.weight, both, None, divergence=head.kl())
    assert set(values) == {"kl()", "student_entropy", "agreement"}
    z = x @ GIVEN.weight.T
    assert torch.equal(values["agreement"], (z.argmax(-1) == both.first()).double())
    torch.testing.assert_close(values["kl()"], kl(z, both))


def test_what_does_not_fit_is_refused():
    known, x, w = known_at(top_k(4), 1.0), GIVEN.student, GIVEN.weight
    with pytest.raises(ValueError, match=r"jsd\(0.5\) needs all classes .* known on 4 of 23"):
        head_divergence(x, w, known, None, divergence=head.jsd(0.5))
    with pytest.raises(ValueError, match=r"temperature is 2, .* at temperature 1"):
        head_divergence(x, w, known, None, divergence=head.kl(), temperature=2.0)
    with pytest.raises(ValueError, match=r"4 of 23 classes, the student has 20"):
        head_divergence(x, w[:20], known, None, divergence=head.kl())
    with pytest.raises(ValueError, match="the same positions"):
        head_divergence(x[:5], w, known, None, divergence=head.kl())
    drawn = SampledDistribution(GIVEN.labels[:, None], 23, 1.0)
    with pytest.raises(ValueError, match="entropy of the teacher is not known"):
        head_divergence(x, w, drawn, None, divergence=head.kl())
    wide = torch.cat([w, w[:3]])
    options = {"divergence": head.kl(), "student_vocabulary": slice(0, 23)}
    padded = head_divergence(x, wide, known, None, **options)
    assert torch.equal(padded.total, head_divergence(x, w, known, None, divergence=head.kl()).total)


class Body(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.lm_head = torch.nn.Linear(4, 6), torch.nn.Linear(6, 23, bias=False)

    def forward(self, x):
        h = self.body(x)
        return {"hidden": h, "logits": self.lm_head(h)}


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own imports
def test_in_a_compiled_step():
    torch.manual_seed(0)

    def objective():
        torch.manual_seed(0)
        known = call(top_k(4), teacher.logits)
        drawn = call(sampled(5, 2.0), teacher.logits[:, :-1])
        heads = student.hidden, student.param("lm_head.weight")
        cut = student.hidden[:, :-1], heads[1]
        return fkd.Objective(
            {
                "top": term(head_divergence, *heads, known, divergence=head.kl(),
                            teacher_weight=None),
                "draws": term(head_divergence, *cut, drawn, divergence=head.soft_cross_entropy(),
                              teacher_weight=None, temperature=2.0, weight=0.0),
            },
            student=trainable(Body()), teacher=fkd.frozen(Body()),
        )  # fmt: skip

    x = torch.randn(4, 5, 4)
    losses = []
    for compile in (False, True):
        step = fkd.loops.train_step(objective(), lambda p: torch.optim.SGD(p, lr=0.1),
                                    compile=compile)  # fmt: skip
        state = step.init()
        for _ in range(3):
            state, metrics = step(state, x)
        losses.append(float(metrics["loss/top"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and step.compilations == 1
