"""A teacher that is known on some classes: the losses that take it, and those that refuse it."""

from __future__ import annotations

import inspect
import pickle

import optree
import pytest
import torch

import fkd
from fkd import losses, student, term, trainable
from fkd._base.sparse import id_dtype
from fkd.loops import pack, take
from fkd.loops._data.batch import normalised, split
from fkd.losses import kl, soft_cross_entropy, top_k_kl
from fkd.sources import (
    SampledDistribution,
    SparseDistribution,
    TopKDistribution,
    sampled,
    top_k,
)
from tests import catalogue

VOCAB = 11


def logits(*shape, seed=0, scale=2.0):
    draw = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, VOCAB, generator=draw, dtype=torch.float64)


def gradient(loss, s, *args, **options):
    s = s.clone().requires_grad_()
    values = loss(s, *args, **options)
    return values.detach(), torch.autograd.grad(values.sum(), s)[0]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("loss", [kl, soft_cross_entropy])
def test_all_classes_are_the_whole_teacher(loss, temperature):
    s, t = logits(2, 3, seed=1), logits(2, 3)
    known = top_k(VOCAB, temperature=temperature, dtype=torch.float64)(t)
    a = gradient(loss, s, t, temperature=temperature)
    b = gradient(loss, s, known, temperature=temperature)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("loss", [kl, soft_cross_entropy])
def test_without_a_tail_it_is_a_teacher_that_excludes_all_others(loss, temperature):
    s, t = logits(2, 3, seed=1), logits(2, 3)
    known = top_k(4, tail=False, temperature=temperature, dtype=torch.float64)(t)
    dense = torch.full_like(t, -torch.inf).scatter(-1, known.index(), t.gather(-1, known.index()))
    a = gradient(loss, s, dense, temperature=temperature)
    b = gradient(loss, s, known, temperature=temperature)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_bias_of_a_tail_is_the_divergence_among_the_others(temperature):
    s, t = logits(2, 3, seed=1), logits(2, 3)
    known = top_k(4, temperature=temperature, dtype=torch.float64)(t)
    others = torch.full_like(t, 0.0).scatter(-1, known.index(), -torch.inf)
    within = kl(s + others, t + others, temperature=temperature)
    lost = known.log_rest.exp() * within
    whole, tail = (kl(s, x, temperature=temperature) for x in (t, known))
    torch.testing.assert_close(whole - tail, lost, rtol=1e-10, atol=1e-12)
    where = torch.ones(2, 3, dtype=torch.bool)
    same = top_k_kl(s, known.log_probs, known.ids, temperature=temperature, where=where)
    torch.testing.assert_close(tail, same)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("proposal", [1.0, 0.6])
@pytest.mark.parametrize("loss", [kl, soft_cross_entropy])
def test_draws_are_unbiased_in_value_and_gradient(loss, temperature, proposal):
    s, t = logits(3, seed=1), logits(3)
    runs, n = 2000, 4
    draw = sampled(n, temperature, proposal)
    seed = torch.randint(1 << 62, (runs,), generator=torch.Generator().manual_seed(0))
    known = draw(t.expand(runs, *t.shape), {"seed": seed, "start": {}})
    values, grads = gradient(loss, s.expand(runs, *s.shape), known, temperature=temperature)
    exact, slope = gradient(loss, s, t, temperature=temperature)
    for some, whole in ((values, exact), (grads, slope)):
        error = some.std(0) / runs**0.5
        assert bool(((some.mean(0) - whole).abs() <= 4 * error + 1e-12).all())
        assert bool((error > 0).any())


def test_draws_depend_on_the_sample_and_the_place_behind_its_first_token_alone():
    t, draw = logits(2, 5), sampled(6)
    seed, start = torch.tensor([7, -9]), torch.tensor([0, 0])
    whole = draw(t, {"seed": seed, "start": {"5": start}})
    padded = torch.cat([logits(2, 3, seed=4), t], 1)
    left = draw(padded, {"seed": seed, "start": {"8": start + 3}})
    assert torch.equal(whole.index(), left.index()[:, 3:])
    alone = draw(t[:1], {"seed": seed[:1], "start": {"5": start[:1]}})
    assert torch.equal(whole.index()[:1], alone.index())
    other = draw(t, {"seed": seed + 1, "start": {"5": start}})
    assert not torch.equal(whole.index(), other.index())


@pytest.mark.parametrize("make", [top_k(4), top_k(4, tail=False), sampled(4), sampled(4, 1.0, 0.5)])
@pytest.mark.parametrize("loss", [kl, soft_cross_entropy])
def test_masks(loss, make):
    s, t = logits(2, 3, seed=1).float(), logits(2, 3).float()
    where = torch.tensor([[True, False, True], [False, True, True]])
    known = make(t)
    torn = known.map(
        lambda x: (
            x
            if not x.is_floating_point()
            else x.masked_fill(~where.reshape(2, 3, *[1] * (x.ndim - 2)), torch.nan)
        )
    )
    broken = s.masked_fill(~where[..., None], torch.nan)
    a, b = gradient(loss, s, known, where=where), gradient(loss, broken, torn, where=where)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not a[0][~where].any() and not a[1][~where].any()
    torch.testing.assert_close(a[0][where], loss(s, known)[where])


def test_unused_places_and_excluded_classes():
    s = logits(2, seed=1)
    known = TopKDistribution(
        ids=torch.tensor([[3, 0, 0], [2, 5, 0]]),
        vocab=VOCAB,
        temperature=1.0,
        log_probs=torch.tensor([[0.5, 0.0, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64).log(),
        log_rest=torch.tensor([0.5, 0.0], dtype=torch.float64).log(),
    )
    q = s.softmax(-1)
    one = 0.5 * (0.5 / q[0, 3]).log() + 0.5 * (0.5 / (1 - q[0, 3])).log()
    torch.testing.assert_close(kl(s, known)[0], one)
    values, grads = gradient(kl, s, known)
    assert bool(values.isfinite().all()) and bool(grads.isfinite().all())
    excluded = s.clone()
    excluded[1, 5] = -torch.inf
    assert kl(excluded, known)[1] == torch.inf
    only = torch.full((1, VOCAB), -torch.inf).scatter(-1, torch.tensor([[1, 2]]), 0.0)
    assert kl(only, top_k(2)(only)) == pytest.approx(0.0)


def test_what_does_not_fit_is_refused():
    s, t = logits(3, seed=1), logits(3)
    with pytest.raises(ValueError, match=r"kl: temperature is 2, .* at temperature 1"):
        kl(s, top_k(2)(t), temperature=2.0)
    with pytest.raises(ValueError, match="temperature is a tensor"):
        soft_cross_entropy(s, sampled(2)(t), temperature=torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"logits are \(3, 10\).*same vocabulary"):
        kl(s[:, :10], top_k(2)(t))
    with pytest.raises(ValueError, match="entropy of the teacher is not known"):
        kl(s, SampledDistribution(torch.tensor([[1], [2], [3]]), VOCAB, 1.0))
    with pytest.raises(ValueError, match="there are 11 classes"):
        top_k(12)(t)
    with pytest.raises(ValueError, match=r"top_k\(3\) is applied .* known on 2"):
        top_k(3)(top_k(2)(t))
    with pytest.raises(ValueError, match=r"log_probs has shape \(2,\)"):
        TopKDistribution(torch.tensor([1]), VOCAB, 1.0, torch.zeros(2))
    for wrong in (lambda: top_k(0), lambda: sampled(0), lambda: sampled(1, 0.0)):
        with pytest.raises(ValueError, match="is expected"):
            wrong()


@pytest.mark.plain
def test_every_other_loss_refuses_it_and_says_which_do_not():
    known = top_k(2)(logits(3).float())
    takes = {"kl", "soft_cross_entropy"}
    for name, loss in catalogue.public(losses).items():
        first = list(inspect.signature(loss).parameters) if inspect.isfunction(loss) else []
        if first[:2] == ["student_logits", "teacher_logits"] and name not in takes:
            others = [torch.zeros(3, dtype=torch.long) for n in first[2:3] if n == "labels"]
            try:
                with pytest.raises(ValueError, match="known on 2 of 11 classes"):
                    loss(logits(3, seed=1).float(), known, *others)
            except TypeError:  # an argument without which nothing is looked at
                continue


def test_it_is_a_tree_that_a_batch_may_hold():
    known = top_k(3)(logits(4, 5).float())
    assert known.ids.dtype == torch.uint16 and id_dtype(1 << 17) == torch.uint32
    assert known.shape == (4, 5, VOCAB) and known.known == 3
    made = {"x": torch.zeros(4, 5), "teacher": known}
    assert normalised(made)["teacher"].vocab == VOCAB
    halves = split(normalised(made), 2)
    assert halves[1]["teacher"].shape == (2, 5, VOCAB)
    assert torch.equal(halves[1]["teacher"].log_probs, known.log_probs[2:])
    assert len(optree.tree_leaves(made)) == 4
    assert known[:, :-1].shape == (4, 4, VOCAB) and known[0].shape == (5, VOCAB)
    for index in ((slice(None), 0, 0), ...):
        with pytest.raises(ValueError, match="axes of positions"):
            known[index]
    again = pickle.loads(pickle.dumps(known))
    assert torch.equal(again.index(), known.index()) and again.temperature == 1.0


def test_packed_positions_of_it():
    s, t = logits(2, 5, seed=1).float(), logits(2, 5).float()
    packed = pack(torch.rand(2, 5, generator=torch.Generator().manual_seed(1)) > 0.4, multiple=4)
    known = top_k(3)(t)
    a = kl(take(s, packed), take(known, packed), where=packed.kept)
    b = kl(take(s, packed), top_k(3)(take(t, packed)), where=packed.kept)
    torch.testing.assert_close(a, b)


def test_in_an_objective_its_draws_are_those_of_the_step():
    torch.manual_seed(0)
    teacher = fkd.ref("teacher")
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, fkd.call(sampled(3), teacher.logits))},
        student=trainable(torch.nn.Linear(4, VOCAB)),
        teacher=fkd.frozen(torch.nn.Linear(4, VOCAB)),
    )
    assert "call(sampled(3), teacher.logits)" in repr(objective)
    step = fkd.loops.train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    x = torch.randn(8, 4)
    a, b = (step(step.init(), x)[1]["loss/total"] for _ in range(2))
    assert torch.equal(a, b)
    assert "3 of the classes of (8, 11)" in str(fkd.check(objective, x))


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own imports
def test_compiled_it_is_the_same():
    s, t = logits(2, 3, seed=1).float(), logits(2, 3).float()

    def every(s, t, known):
        online = top_k(4)(t)
        return kl(s, known) + soft_cross_entropy(s, online), online

    known = sampled(4, proposal=0.5)(t)
    values, online = torch.compile(every, fullgraph=True)(s, t, known)
    expected, kept = every(s, t, known)
    torch.testing.assert_close(values, expected)
    assert isinstance(online, SparseDistribution) and torch.equal(online.index(), kept.index())
