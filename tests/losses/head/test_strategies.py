"""Every strategy is the materialised definition: values and gradients, in float64."""

from __future__ import annotations

import pytest
import torch

from fkd.losses import head
from fkd.losses.head import head_divergence, head_metrics

from .inputs import ALL, call, close, func_grads, grads, heads

OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 2.5},
    "temperature as a tensor": {"temperature": torch.tensor(2.5, dtype=torch.float64)},
    "where": {"where": torch.arange(11) % 3 > 0},
    "where of integers": {"where": (torch.arange(11) % 3 > 0).long()},
    "scale and softcap": {
        "student_logit_scale": 0.7,
        "teacher_logit_scale": torch.tensor(1.3, dtype=torch.float64),
        "student_softcap": 3.0,
        "teacher_softcap": 4.0,
        "temperature": 1.5,
    },
    "shared vocabulary": {
        "student_vocabulary": torch.tensor([3, 0, 7, 22, 9]),
        "teacher_vocabulary": torch.tensor([1, 4, 5, 2, 20]),
    },
    "prefix": {"student_vocabulary": slice(0, 19), "teacher_vocabulary": slice(0, 19)},
}


@pytest.mark.parametrize("divergence", ALL, ids=repr)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_chunked_is_materialized(divergence, options):
    given = heads()
    given.labels[2] = -100
    wanted = grads(call(given, divergence, strategy="materialized", **options), *given[:3])
    assert wanted[0] != 0 and all(x.abs().sum() > 0 for x in wanted[1:3])
    got = grads(call(given, divergence, strategy="chunked", chunk_size=4, **options), *given[:3])
    close(got, wanted)


@pytest.mark.parametrize("chunk", [1, 3, 8, 11, 64, None])
@pytest.mark.parametrize("tokens", [1, 11])
def test_any_chunk_size_gives_the_same(tokens, chunk):
    given = heads(tokens)
    wanted = grads(call(given, ALL[-2], strategy="materialized"), *given[:3])
    close(grads(call(given, ALL[-2], chunk_size=chunk, strategy="chunked"), *given[:3]), wanted)


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_torch_func_agrees_with_autograd(divergence):
    given = heads()
    total = call(given, divergence, strategy="chunked", chunk_size=4, temperature=2.0)
    close(func_grads(total, *given[:3]), grads(total, *given[:3]))


@pytest.mark.parametrize("divergence", ALL, ids=repr)
@pytest.mark.parametrize("strategy", ["materialized", "chunked"])
def test_gradcheck(divergence, strategy):
    given = heads(tokens=3, vocab=5, features=2)
    total = call(given, divergence, strategy=strategy, chunk_size=2, temperature=1.5)
    leaves = [x.clone().requires_grad_() for x in given[:3]]
    assert torch.autograd.gradcheck(total, leaves)


def test_rows_beyond_one_block_agree(monkeypatch):
    monkeypatch.setattr("fkd.losses.head._sizes._BLOCK", {"cpu": 3 * 23, "cuda": 1})
    given = heads()
    wanted = grads(call(given, ALL[-2], strategy="materialized"), *given[:3])
    close(grads(call(given, ALL[-2], strategy="chunked", chunk_size=8), *given[:3]), wanted)


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_excluded_vocabulary_entries_add_nothing(divergence):
    """A bias of -inf on both sides is the restriction to the other entries."""
    given = heads()
    shut = torch.arange(23) >= 19
    given.labels.clamp_(max=18)
    bias = given.bias.masked_fill(shut, -torch.inf)
    teacher_bias = torch.zeros(23, dtype=torch.float64).masked_fill(shut, -torch.inf)
    kept = slice(0, 19)
    options = {"student_vocabulary": kept, "teacher_vocabulary": kept}
    wanted = grads(call(given, divergence, strategy="materialized", **options), *given[:3])
    for strategy in ("materialized", "chunked"):
        total = call(given, divergence, strategy=strategy, teacher_bias=teacher_bias)
        close(grads(total, given.student, given.weight, bias), wanted)


@pytest.mark.parametrize("strategy", ["materialized", "chunked"])
def test_labels_follow_the_vocabulary_map(strategy):
    given, shared = heads(), torch.tensor([3, 0, 7, 22, 9])
    labels = torch.tensor([0, 3, 9, 1, -100, 22, 7, 7, 2, 0, 5])
    found = torch.tensor([1, 0, 4, -1, -1, 3, 2, 2, -1, 1, -1])
    mean = head_divergence(
        given.student,
        given.weight,
        None,
        None,
        divergence=head.cross_entropy(),
        labels=labels,
        student_vocabulary=shared,
        strategy=strategy,
    )
    logits = given.student @ given.weight[shared].T
    expected = torch.nn.functional.cross_entropy(logits, found, ignore_index=-1)
    assert mean.count == 7
    torch.testing.assert_close(mean.value, expected)


@pytest.mark.parametrize("strategy", ["materialized", "chunked"])
def test_shift_predicts_the_next_label(strategy):
    given = heads(tokens=12)
    x, labels = given.student.reshape(3, 4, 5), given.labels.reshape(3, 4)
    labels[1, 2] = -100
    options = {"divergence": head.cross_entropy(), "strategy": strategy}
    mean = head_divergence(x, given.weight, None, None, labels=labels, shift=True, **options)
    logits = (x @ given.weight.T)[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    assert mean.count == 8
    torch.testing.assert_close(mean.value, expected)
    values = head_metrics(x, given.weight, None, None, labels=labels, shift=True, **options)
    assert values["cross_entropy()"].shape == (3, 4)
    assert not values["cross_entropy()"][:, -1].any()


@pytest.mark.parametrize("strategy", ["materialized", "chunked"])
def test_a_batch_that_does_not_count_gives_zero(strategy):
    given = heads()
    for blank in ({"where": torch.zeros(11, dtype=torch.bool)},
                  {"labels": torch.full((11,), -100)}):  # fmt: skip
        total = call(given, ALL[-2], strategy=strategy, chunk_size=4, **blank)
        assert all(not x.any() for x in grads(total, *given[:3]))


@pytest.mark.parametrize("divergence", ALL, ids=repr)
@pytest.mark.parametrize("strategy", ["materialized", "chunked"])
def test_masked_positions_may_hold_anything(divergence, strategy):
    given, where = heads(), torch.arange(11) % 3 > 0
    wanted = grads(call(given, divergence, strategy=strategy, where=where), *given[:3])
    spoilt = given._replace(
        student=given.student.masked_fill(~where[:, None], torch.nan),
        teacher=given.teacher.masked_fill(~where[:, None], torch.inf),
        labels=given.labels.masked_fill(~where, 10**6),
    )
    got = grads(call(spoilt, divergence, strategy=strategy, where=where), *spoilt[:3])
    close(got, wanted)
    assert not got[1][~where].any()


def test_an_empty_batch_gives_zero():
    given = heads(tokens=0)
    assert all(not x.any() for x in grads(call(given, head.kl(), strategy="chunked"), *given[:3]))
