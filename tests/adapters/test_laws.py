"""What single adapters promise, and their messages."""

from __future__ import annotations

import pytest
import torch

import fkd.adapters as adapters


@pytest.mark.parametrize("student, teacher", [(4, 6), (6, 4), (5, 5)])
def test_orthogonal_projection_keeps_inner_products(student, teacher):
    torch.manual_seed(0)
    project = adapters.OrthogonalProjector(student, teacher).double()
    w = project.weight()
    narrow = min(student, teacher)
    gram = w.T @ w if student == narrow else w @ w.T
    torch.testing.assert_close(gram, torch.eye(narrow, dtype=w.dtype))
    if student == narrow:
        x = torch.randn(7, student, dtype=w.dtype)
        torch.testing.assert_close(project(x) @ project(x).T, x @ x.T)


def test_layer_attention_starts_as_the_mean():
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(adapters.LayerAttention(3)(x), x.mean(1))


def test_masked_places_are_not_seen_by_the_generator():
    torch.manual_seed(0)
    generate = adapters.MaskedGenerator(4, 4)
    keep = torch.rand(2, 1, 5, 5) > 0.5
    x = torch.randn(2, 4, 5, 5)
    other = torch.where(keep, x, 7.0)
    torch.testing.assert_close(generate(x, keep), generate(other, keep))


def test_hidden_tokens_are_replaced():
    torch.manual_seed(0)
    generate = adapters.TokenGenerator(4, 5, grid=(2, 2))
    keep = torch.tensor([[True, False, True, False]])
    x = torch.randn(1, 4, 4)
    other = torch.where(keep[..., None], x, torch.nan)
    torch.testing.assert_close(generate(x, keep), generate(other, keep))


def test_a_shallow_stage_sees_the_deep_ones_and_not_the_reverse():
    torch.manual_seed(0)
    fuse = adapters.ReviewFusion((3, 3), (4, 4), middle=5).eval()
    shallow, deep = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    a = fuse([shallow, deep])
    b = fuse([shallow + 1, deep])
    c = fuse([shallow, deep + 1])
    assert torch.equal(a[1], b[1]) and not torch.equal(a[0], c[0])


def test_variance_starts_at_initial_and_stays_above_the_minimum():
    head = adapters.VarianceHead(2, 3, initial=2.0, minimum=0.1)
    variance = (2 * head(torch.rand(1, 2, 2, 2))[1]).exp()
    torch.testing.assert_close(variance, torch.full((3,), 2.0))
    with torch.no_grad():
        head.raw_variance.fill_(-100.0)
    variance = (2 * head(torch.rand(1, 2, 2, 2))[1]).exp()
    torch.testing.assert_close(variance, torch.full((3,), 0.1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: (adapters.SemCKDAttention(2, 3, batch_size=4), -1),
        lambda: (adapters.AFDAttention([3, 3], [3, 3, 3]), -1),
    ],
)
def test_weights_of_layers_sum_to_one(make):
    torch.manual_seed(0)
    attend, axis = make()
    s, t = [torch.randn(4, 3, 2, 2)] * 2, [torch.randn(4, 3, 4, 4)] * 3
    weights = attend(s, t)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(axis), torch.ones(weights.shape[:-1]))


def test_channel_weights_sum_to_one():
    weights = adapters.ChannelAttention(8)(torch.randn(3, 8, 2, 2))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))


def test_gradient_scale_turns_the_gradient_and_not_the_value():
    temperature = adapters.LearnableTemperature(start=1.0, span=20.0)
    values, grads = [], []
    for scale in (1.0, 0.0, -0.5, torch.tensor(-1.0)):
        out = temperature(scale)
        values.append(out.detach())
        grads.append(torch.autograd.grad(out, temperature.logit)[0])
    torch.testing.assert_close(torch.stack(values), torch.full((4,), 11.0))
    torch.testing.assert_close(torch.stack(grads), 5.0 * torch.tensor([1.0, 0.0, -0.5, -1.0]))


def test_temperatures_stay_in_their_range():
    torch.manual_seed(0)
    instance = adapters.InstanceTemperature(3, start=2.0, span=5.0)
    t = instance(100 * torch.randn(64, 3), 100 * torch.randn(64, 3))
    assert (t >= 2).all() and (t <= 7).all() and t.std() > 0


def test_dino_head_gives_cosines():
    head = adapters.DINOHead(4, 9, hidden=8, bottleneck=6)
    y = head(10 * torch.randn(5, 4))
    assert (y.abs() <= 1 + 1e-6).all()
    with torch.no_grad():
        head.prototypes.mul_(3.0)
    torch.testing.assert_close(head(torch.ones(1, 4)), head(torch.ones(1, 4)))


def test_factors_of_both_models_have_one_shape():
    factor, _ = adapters.Paraphraser(10, rate=0.3)(torch.randn(2, 10, 4, 4))
    assert adapters.Translator(6, 10, rate=0.3)(torch.randn(2, 6, 4, 4)).shape == factor.shape


@pytest.mark.plain
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: adapters.LinearProjection(2, 3, norm="instance"), "norm 'instance'"),
        (lambda: adapters.LayerAttention(3)(torch.rand(2, 4, 5)), "3 layers are expected"),
        (lambda: adapters.ConvRegressor((3, 4, 4), (5, 9, 9)), "teacher_shape .*Pool"),
        (
            lambda: adapters.ConvRegressor((3, 4, 4), (5, 4, 4))(torch.rand(2, 3, 5, 5)),
            r"x \(2, 3, 5, 5\)",
        ),
        (lambda: adapters.SimKDProjector(3, 4, factor=8), "factor 8"),
        (
            lambda: adapters.MaskedGenerator(3, 4)(torch.rand(2, 3, 4, 4), torch.ones(2, 1, 5, 5)),
            r"keep \(2, 1, 5, 5\)",
        ),
        (
            lambda: adapters.TokenGenerator(3, 4, grid=(2, 2))(
                torch.rand(2, 5, 3), torch.ones(2, 5).bool()
            ),
            "class token",
        ),
        (lambda: adapters.ReviewFusion((3,), (4, 5), middle=2), "as many stages"),
        (lambda: adapters.ReviewFusion((3,), (4,), middle=2)([]), "0 maps; 1 are expected"),
        (lambda: adapters.Paraphraser(4, rate=0.1), "Paraphraser: rate 0.1"),
        (lambda: adapters.VarianceHead(3, 4, initial=0.0), "initial 0.0"),
        (
            lambda: adapters.SemCKDAttention(1, 1, batch_size=4)(
                [torch.rand(3, 2, 2, 2)], [torch.rand(3, 2, 2, 2)]
            ),
            "batch of 3; the batch_size 4",
        ),
        (lambda: adapters.AFDAttention([3], [3])([], []), "0 layers; 1 are expected"),
        (lambda: adapters.ChannelAttention(2, factor=4), "factor 4"),
        (lambda: adapters.LearnableTemperature(start=0.0), "start 0.0"),
        (lambda: adapters.StudentTemperature(-1.0), "initial -1.0"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
