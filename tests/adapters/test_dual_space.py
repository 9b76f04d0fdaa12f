"""Laws of the attention between the tokens of two models."""

from __future__ import annotations

import torch

from fkd.adapters import CrossModelAttention


def example(length=3, teacher_length=4):
    g = torch.Generator().manual_seed(0)
    ours = [torch.randn(2, 3, 5, generator=g)[:, :length] for _ in range(3)]
    theirs = [torch.randn(2, 4, 6, generator=g)[:, :teacher_length] for _ in range(3)]
    torch.manual_seed(0)
    return CrossModelAttention(5, 6), ours, theirs


def run(attend, ours, theirs, **masks):
    pairs = tuple(ours[1:]), tuple(theirs[1:])
    return attend(ours[0], theirs[0], *pairs, **masks)


def test_it_is_the_attention_of_the_paper():
    attend, (h, e_in, e_out), (H, E_in, E_out) = example()
    at_student, at_teacher = run(attend, (h, e_in, e_out), (H, E_in, E_out))

    def scaled(x):
        return x / x.std(correction=0)

    q = attend.query(torch.cat([e_in, e_out], -1))
    scores = q @ scaled(torch.cat([E_in, E_out], -1)).mT / (2 * 6) ** 0.5
    values = attend.to_student(scaled(H) + scaled(E_out))
    torch.testing.assert_close(at_student, scores.softmax(-1) @ values)
    torch.testing.assert_close(at_teacher, scores.mT.softmax(-1) @ attend.to_teacher(h))


def test_padding_changes_nothing_even_nan():
    attend, ours, theirs = example()
    where = torch.tensor([[True, True, False]] * 2)
    teacher_where = torch.tensor([[True, True, True, False]] * 2)
    bad = [x.masked_fill(~where[..., None], float("nan")) for x in ours]
    wrong = [x.masked_fill(~teacher_where[..., None], float("nan")) for x in theirs]
    leaf = bad[0].requires_grad_()
    out = run(attend, (leaf, *bad[1:]), wrong, where=where, teacher_where=teacher_where)
    _, short, few = example(2, 3)
    want = run(attend, short, few)
    for got, expected in zip(out, want, strict=True):
        torch.testing.assert_close(got[:, : expected.shape[1]], expected)
        assert (got[:, expected.shape[1] :] == 0).all()
    (grad,) = torch.autograd.grad(out[1].square().sum(), leaf)
    assert grad.isfinite().all() and (grad[:, 2] == 0).all() and grad[:, :2].any()
