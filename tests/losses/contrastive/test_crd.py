"""Laws of the losses with a state: order of a queue, purity of a state, first step, limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from fkd.losses import (
    crd,
    crd_init,
    dino,
    dino_init,
    enqueue,
    kl,
    queue_init,
    queue_kl,
    soft_cross_entropy,
)
from tests.trees import tree_leaves

from ..case import normal
from ..laws import close


def vectors(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [normal(*shape)(g) for shape in shapes]


def steps():
    """The stateful losses, each as (call, state before, batch)."""
    s, t = vectors((4, 3), (4, 3))
    return [
        (lambda s, t, **k: crd(s, t, dataset_size=100, **k), crd_init(6, 3), s, t),
        (queue_kl, queue_init(6, 3), s, t),
        (lambda s, t, **k: dino(s[:, None], t[:, None], same_view=True, **k), dino_init(3), s, t),
    ]


def leaves(state):
    return tree_leaves(state)


@pytest.mark.parametrize("call, state, s, t", steps(), ids=["crd", "queue_kl", "dino"])
def test_the_state_that_goes_in_is_not_changed(call, state, s, t):
    before = [x.clone() for x in leaves(state)]
    _, new = call(s, t, state=state)
    assert all(torch.equal(a, b) for a, b in zip(before, leaves(state), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, leaves(new), strict=True))
    assert all(a.dtype == b.dtype for a, b in zip(before, leaves(new), strict=True))


@pytest.mark.parametrize("call, state, s, t", steps(), ids=["crd", "queue_kl", "dino"])
def test_the_new_state_carries_no_gradient(call, state, s, t):
    _, new = call(s.requires_grad_(), t.requires_grad_(), state=state)
    assert not any(x.requires_grad for x in leaves(new))


@pytest.mark.parametrize("call, state, s, t", steps(), ids=["crd", "queue_kl", "dino"])
def test_masked_samples_do_not_enter_the_state(call, state, s, t):
    where = torch.tensor([True, False, True, False])
    bad = [x.masked_fill(~where[:, None], torch.nan) for x in (s, t)]
    _, new = call(*bad, state=state, where=where)
    assert all(x.isfinite().all() for x in leaves(new))
    values, _ = call(s, t, state=new)
    _, short = call(s[where], t[where], state=state)
    close(values, call(s, t, state=short)[0])
    _, same = call(*bad, state=state, where=torch.zeros_like(where))
    close(call(s, t, state=same)[0], call(s, t, state=state)[0])


def test_the_queue_is_newest_first_and_drops_the_oldest():
    queue = queue_init(3, 1)
    for batch in ([1.0, 2.0], [3.0], [4.0]):
        queue = enqueue(queue, torch.tensor(batch)[:, None])
    assert queue.features.flatten().tolist() == [4.0, 3.0, 1.0]
    assert queue.valid.all()
    whole = enqueue(queue, torch.arange(5.0)[:, None])
    assert whole.features.flatten().tolist() == [0.0, 1.0, 2.0]


def test_the_order_of_a_full_queue_does_not_matter():
    s, t, k = vectors((4, 3), (4, 3), (6, 3))
    forward, backward = (enqueue(queue_init(6, 3, dtype=k.dtype), x) for x in (k, k.flip(0)))
    close(queue_kl(s, t, state=forward)[0], queue_kl(s, t, state=backward)[0])


def test_queue_kl_is_kl_of_similarities():
    s, t, k = (F.normalize(x) for x in vectors((4, 3), (4, 3), (6, 3)))
    queue = enqueue(queue_init(6, 3, dtype=k.dtype), k)
    want = kl(s @ k.T / 0.2, t @ k.T / 0.2)
    close(queue_kl(s, t, state=queue, temperature=0.2)[0], want)


def test_crd_of_both_anchors_is_the_sum():
    s, t, k = vectors((4, 3), (4, 3), (6, 3))
    state = crd(k, k.flip(1), state=crd_init(6, 3, dtype=k.dtype), dataset_size=50)[1]
    one, other, both = (
        crd(s, t, state=state, dataset_size=50, anchor=a)[0] for a in ("student", "teacher", "both")
    )
    close(one + other, both)


def test_crd_at_random_embeddings_and_few_samples():
    """h = 1/2 for e = N/M: the loss of N negatives at right angles is (N + 1) log 2."""
    state = crd_init(4, 8, dtype=torch.float64)
    keys = torch.eye(8, dtype=torch.float64)
    state = crd(keys[:4], keys[:4], state=state, dataset_size=4)[1]
    values, _ = crd(keys[5:6], keys[6:7], state=state, dataset_size=4, anchor="student")
    close(values, torch.full((1,), 5 * math.log(2), dtype=torch.float64))


def test_crd_prefers_the_positive():
    s, k = vectors((4, 3), (6, 3))
    state = crd(k, k, state=crd_init(6, 3, dtype=k.dtype), dataset_size=50)[1]
    near, far = (crd(s, x, state=state, dataset_size=50, anchor="student")[0] for x in (s, -s))
    assert (near < far).all()


def test_dino_of_one_view_is_soft_cross_entropy():
    s, t, c = vectors((4, 5), (4, 5), (5,))
    state = dino_init(5)._replace(center=c)
    values, _ = dino(s[:, None], t[:, None], state=state, same_view=True)
    close(values, soft_cross_entropy(s / 0.1, (t - c) / 0.04))


def test_dino_centre():
    s, t = vectors((4, 2, 5), (4, 2, 5))
    _, state = dino(s, t, state=dino_init(5, dtype=s.dtype), momentum=0.8)
    close(state.center, 0.2 * t.mean((0, 1)))
    _, again = dino(s, t, state=state, momentum=0.8)
    close(again.center, 0.36 * t.mean((0, 1)))


def test_dino_skips_the_same_view():
    s, t = vectors((1, 2, 5), (1, 2, 5))
    state = dino_init(5, dtype=s.dtype)
    values, _ = dino(s, t, state=state)
    swapped, _ = dino(s.flip(1), t, state=state, same_view=True)
    pairs = [
        dino(s[:, [j]], t[:, [i]], state=state, same_view=True)[0] for i, j in [(0, 1), (1, 0)]
    ]
    close(values, sum(pairs) / 2)
    every, _ = dino(s, t, state=state, same_view=True)
    close(swapped, every)


@pytest.mark.compile
def test_the_first_and_later_steps_share_one_compilation():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(
        lambda s, t, state: queue_kl(s, t, state=state), backend=counter, fullgraph=True
    )
    s, t = vectors((2, 3), (2, 3))
    state = queue_init(5, 3)
    for _ in range(4):
        _, state = step(s, t, state)
    assert counter.frame_count == 1 and state.valid.all()


@pytest.mark.plain
@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda x: crd(x, x, state=crd_init(4, 2), dataset_size=9),
            "crd: embeddings .* 2 features",
        ),
        (lambda x: queue_kl(x, x, state=queue_init(4, 2)), "queue_kl: embeddings"),
        (lambda x: queue_kl(x, x[:2], state=queue_init(4, 3)), "same shape"),
        (
            lambda x: crd(x, x, state=crd_init(4, 3), dataset_size=9, anchor="x"),
            "crd: anchor is 'x'",
        ),
        (lambda x: dino(x[:, None], x[:, None], state=dino_init(3)), "same_view=True"),
        (lambda x: dino(x[:, None], x[:, None], state=dino_init(2)), r"center \(2,\)"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.rand(4, 3))


def test_seed_is_a_cross_entropy_over_the_queue_and_the_own_embedding():
    """Fang et al., eq. 3 and 4: the teacher's embedding of the sample is in the dictionary, and
    each model has its temperature. The entropy of the teacher moves no student."""
    s, t, keys = vectors((4, 3), (4, 3), (5, 3))
    state = enqueue(queue_init(5, 3, dtype=torch.float64), F.normalize(keys))
    s.requires_grad_()
    options = {"temperature": 0.2, "teacher_temperature": 0.01, "teacher_key": True}
    values, queue = queue_kl(s, t, state=state, **options)
    n, m = F.normalize(s), F.normalize(t)
    dictionary = torch.cat([F.normalize(keys).expand(4, 5, 3), m[:, None]], 1)
    p = (torch.einsum("bd,bnd->bn", m, dictionary) / 0.01).softmax(-1)
    log_q = (torch.einsum("bd,bnd->bn", n, dictionary) / 0.2).log_softmax(-1)
    seed = -(p * log_q).sum(-1)
    close(values, seed + torch.special.xlogy(p, p).sum(-1))
    (grad,) = torch.autograd.grad(values.sum(), s, retain_graph=True)
    (want,) = torch.autograd.grad(seed.sum(), s)
    close(grad, want)
    close(queue.features[:4], m)  # what goes in is what it was


def test_an_empty_queue_leaves_nothing_of_seed():
    s, t = vectors((4, 3), (4, 3))
    state = queue_init(5, 3, dtype=torch.float64)
    values, _ = queue_kl(s, t, state=state, teacher_key=True, teacher_temperature=0.01)
    close(values, torch.zeros(4).double())
