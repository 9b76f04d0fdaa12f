"""Identities and messages of the losses against labels."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F

import fkd
from fkd.losses import (
    binary_cross_entropy,
    binary_kl,
    counted_where,
    cross_entropy,
    dkd,
    focal,
    hard_label,
    kl,
    soft_cross_entropy,
    virtual_teacher,
    wsld,
)

from ..laws import close


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 3, -100, 6, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [-100, 3])
def test_cross_entropy_agrees_with_torch(smoothing: float, ignored: int) -> None:
    x, labels = logits(5, 7), LABELS.clamp(min=0) if ignored == 3 else LABELS
    want = F.cross_entropy(
        x, labels, reduction="none", label_smoothing=smoothing, ignore_index=ignored
    )
    close(cross_entropy(x, labels, label_smoothing=smoothing, ignore_index=ignored), want)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    x = logits(5, 7)
    close(cross_entropy(x, LABELS.to(dtype)), cross_entropy(x, LABELS))


def test_ignored_positions_may_hold_anything() -> None:
    x = logits(5, 7)
    x[2] = torch.nan
    x.requires_grad_()
    for loss in (cross_entropy, focal):
        out = loss(x, LABELS)
        assert out[2] == 0
        grad = torch.autograd.grad(out.sum(), x)[0]
        assert (grad[2] == 0).all()
        assert grad.isfinite().all()


def test_positions_that_count() -> None:
    assert cross_entropy.counted_where(LABELS).tolist() == [True, True, False, True, True]
    assert cross_entropy.counted_where(labels=LABELS, ignore_index=3).sum() == 4


def test_every_loss_with_an_ignored_label_says_what_counts() -> None:
    for name, loss in vars(fkd.losses).items():
        if inspect.isfunction(loss) and "ignore_index" in inspect.signature(loss).parameters:
            assert hasattr(loss, "counted_where"), name


def test_counted_where_returns_the_very_function() -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return x

    def rule(x: torch.Tensor) -> torch.Tensor:
        return x > 0

    assert counted_where(rule)(loss) is loss
    assert loss.counted_where is rule


def test_cross_entropy_is_soft_cross_entropy_with_a_certain_teacher() -> None:
    x, labels = logits(5, 7), LABELS.clamp(min=0)
    teacher = F.one_hot(labels, 7).double().log()
    close(cross_entropy(x, labels), soft_cross_entropy(x, teacher))
    smoothed = virtual_teacher(labels, 7, correct=0.9 + 0.1 / 7, dtype=torch.float64)
    close(cross_entropy(x, labels, label_smoothing=0.1), soft_cross_entropy(x, smoothed))


def test_focal_neighbours() -> None:
    x, labels = logits(5, 7), LABELS
    close(focal(x, labels, gamma=0.0), cross_entropy(x, labels))
    assert (focal(x, labels, gamma=1.0) <= cross_entropy(x, labels)).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_of_a_certain_student_is_zero_with_a_finite_gradient(gamma: float) -> None:
    x = torch.tensor([[200.0, 0.0]], requires_grad=True)
    out = focal(x, torch.tensor([0]), gamma=gamma)
    assert out.item() == 0
    assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()


def test_hard_label_is_cross_entropy_with_the_decision() -> None:
    s, t = logits(5, 7), logits(5, 7, seed=1)
    close(hard_label(s, t), cross_entropy(s, t.argmax(-1)))
    assert torch.equal(hard_label(s, t), hard_label(s, 3 * t + 1))


def test_binary_losses() -> None:
    s, t = logits(5, 7), logits(5, 7, seed=1)
    want = F.binary_cross_entropy_with_logits(s, t.sigmoid(), reduction="none").mean(-1)
    close(binary_cross_entropy(s, t.sigmoid()), want)
    entropy = torch.distributions.Bernoulli(logits=t).entropy().mean(-1)
    close(binary_kl(s, t), binary_cross_entropy(s, t.sigmoid()) - entropy)


def test_binary_kl_is_kl_of_two_classes() -> None:
    s, t = logits(5, 1), logits(5, 1, seed=1)
    zero = torch.zeros_like(s)
    close(
        binary_kl(s, t, temperature=2.0),
        kl(torch.cat([s, zero], 1), torch.cat([t, zero], 1), temperature=2.0),
    )


def test_binary_kl_of_excluded_classes_is_zero_with_a_finite_gradient() -> None:
    s = torch.tensor([[-torch.inf, torch.inf, 1.0]], requires_grad=True)
    out = binary_kl(s, s.detach())
    close(out, torch.zeros(1))
    assert torch.autograd.grad(out.sum(), s)[0].isfinite().all()


@pytest.mark.plain
@pytest.mark.parametrize("loss", [cross_entropy, focal])
def test_messages(loss) -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"labels \(2, 1\) must be the leading shape"):
        loss(x, torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels \(2,\) have dtype torch.float32; integers"):
        loss(x, torch.zeros(2))
    with pytest.raises(ValueError, match="student_logits has dtype"):
        loss(x.long(), torch.zeros(2, dtype=torch.long))


@pytest.mark.plain
def test_labels_that_are_distributions_are_sent_to_cross_entropy() -> None:
    x = torch.zeros(2, 3)
    for loss in (focal, lambda x, y: dkd(x, x, y), lambda x, y: wsld(x, x, y)):
        with pytest.raises(ValueError, match=r"distributions .* go to fkd.losses.cross_entropy"):
            loss(x, torch.ones(2, 3) / 3)
    with pytest.raises(ValueError, match="probabilities of its whole shape"):
        cross_entropy(x, torch.ones(2, 1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_distributions_agrees_with_torch(smoothing: float) -> None:
    x, labels = logits(5, 7), logits(5, 7, seed=1).softmax(-1)
    want = F.cross_entropy(x, labels, reduction="none", label_smoothing=smoothing)
    close(cross_entropy(x, labels, label_smoothing=smoothing), want)
    assert cross_entropy.counted_where(labels=labels).tolist() == [True] * 5


def test_one_hot_labels_and_mixup() -> None:
    x, labels = logits(5, 7), LABELS.clamp(min=0)
    one_hot = F.one_hot(labels, 7)
    close(cross_entropy(x, one_hot.double()), cross_entropy(x, labels))
    mixed = 0.3 * one_hot.double() + 0.7 * one_hot.flip(0).double()
    want = 0.3 * cross_entropy(x, labels) + 0.7 * cross_entropy(x, labels.flip(0))
    close(cross_entropy(x, mixed), want)
    x[:, 1] = -torch.inf  # a class that no label has
    assert cross_entropy(x, one_hot.double()).isfinite().all()


def test_the_mean_of_distributions_is_over_all_positions() -> None:
    x, labels = logits(2, 5, 7), logits(2, 5, 7, seed=1).softmax(-1)
    model = torch.nn.Linear(7, 7).double()
    objective = fkd.Objective(
        {"ce": fkd.term(cross_entropy, fkd.student.logits, fkd.batch.labels)},
        student=fkd.trainable(model, inputs=lambda batch: {"input": batch["x"]}),
    )
    batch = {"x": x, "labels": labels}
    fkd.check(objective, batch)
    parts = objective.init()
    loss, _ = objective(parts, batch, step=0)
    close(loss.detach(), cross_entropy(model(x), labels).mean().detach())
