"""Models that run again with other values inside, and models as functions of their inputs."""

from __future__ import annotations

import pytest
import torch

import fkd
from fkd import batch, call, module, student, teacher, term
from fkd.losses import jacobian_matching, kl, mse


class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = torch.nn.Linear(4, width)
        self.second = torch.nn.Sequential(torch.nn.BatchNorm1d(width), torch.nn.Tanh())
        self.head = torch.nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x)))


class Pair(torch.nn.Module):
    """Returns a tuple, whose first element goes on."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x), "more"


class WithPair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Pair()

    def forward(self, x):
        y, more = self.inner(x)
        return {"logits": y * 2, "more": more}


def objective(terms=None, **models):
    torch.manual_seed(0)
    mixed = teacher.patched({"first": module("bridge")(student.tap("first"))})
    every = {"kd": term(kl, student.logits, teacher.logits)}
    every["path"] = term(kl, mixed.logits, teacher.logits)
    return fkd.Objective(
        terms or every,
        student=fkd.trainable(Net(5)),
        teacher=fkd.frozen(Net(6)),
        **({} if terms else {"bridge": fkd.trainable(torch.nn.Linear(5, 6))}),
        **models,
    )


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def test_a_patched_model_computes_from_the_patch_on():
    made = objective()
    fkd.check(made, X)
    parts = made.init()
    for named in parts.trainable.values():
        for p in named.values():
            p.requires_grad_()
    loss, aux = made(parts, X)
    modules = {n: m.module for n, m in made.models.items()}
    big, small, bridge = (modules[n] for n in ("teacher", "student", "bridge"))
    assert big is not None and small is not None and bridge is not None
    big.eval()
    states = bridge(small.first(X))
    want = kl(big.head(big.second(states)), big(X)).mean()
    torch.testing.assert_close(aux.terms["path"].value, want)
    grads = torch.autograd.grad(loss, list(parts.trainable["bridge"].values()))
    direct = torch.autograd.grad(want, list(bridge.parameters()))
    for a, b in zip(grads, direct, strict=True):
        torch.testing.assert_close(a, b)


def test_the_models_own_run_its_taps_and_its_buffers_are_untouched():
    swapped = call(torch.flip, student.tap("first"), dims=(0,))
    other = student.patched({"first": swapped})
    plain = {"kd": term(kl, student.logits, teacher.logits)}
    plain["tap"] = term(mse, student.tap("second"), torch.zeros(8, 5))
    both = {**plain, "swapped": term(kl, other.logits, teacher.logits, weight=0.0)}
    (_, one), (_, two) = (m(m.init(), X) for m in (objective(plain), objective(both)))
    for name in plain:
        assert torch.equal(one.terms[name].value, two.terms[name].value)
    for a, b in zip(one.buffers["student"].values(), two.buffers["student"].values(), strict=True):
        assert torch.equal(a, b)
    # The batch statistics do not depend on the order, so that flipped states flip the logits.
    flipped = objective({"kd": term(kl, torch.flip(other.logits, (0,)), student.logits)})
    assert flipped(flipped.init(), X)[0] < 1e-7


def test_of_a_tuple_the_first_element_is_replaced():
    terms = {"kd": term(mse, teacher.patched({"inner": student.logits}).logits, student.logits)}
    made = fkd.Objective(
        terms, student=fkd.trainable(torch.nn.Linear(4, 3)), teacher=fkd.frozen(WithPair())
    )
    x = torch.randn(2, 4)
    loss, _ = made(made.init(), x)
    torch.testing.assert_close(loss, made.models["student"].module(x).square().mean())


def test_a_patched_ref_is_code():
    ref = teacher.patched({"first": student.tap("first")}).logits
    assert repr(ref) == "teacher.patched({'first': student.tap('first')}).logits"
    assert ref == teacher.patched({"first": student.tap("first")}).logits
    assert ref != teacher.patched({"second": student.tap("first")}).logits
    assert repr(call(slope, module("student"), batch)) == "call(slope, module('student'), batch)"


def test_mistakes_are_named():
    terms = {"kd": term(kl, teacher.patched({"frist": student.tap("first")}).logits, batch)}
    with pytest.raises(fkd.ObjectiveError, match=r"no submodule 'frist'. Did you mean 'first'"):
        fkd.check(objective(terms), X)
    terms = {"kd": term(kl, fkd.ref("other").patched({"a": student.logits}), student.logits)}
    with pytest.raises(fkd.ObjectiveError, match="the objective has no such model"):
        fkd.check(objective(terms), X)


@pytest.mark.plain
def test_what_is_no_patch_is_refused():
    with pytest.raises(TypeError, match="of 'first' a Tensor is given; a ref"):
        teacher.patched({"first": X})  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="a dict of a submodule's name"):
        teacher.patched({})


def slope(model, x, logits):
    chosen = logits.argmax(-1, keepdim=True)
    return torch.func.grad(lambda y: model(y).gather(-1, chosen).sum())(x)


def matching():
    slopes = [call(slope, module(name), batch, teacher.logits) for name in ("student", "teacher")]
    return {
        "kd": term(kl, student.logits, teacher.logits),
        "slopes": term(jacobian_matching, *slopes),
    }


def test_a_model_is_handed_to_a_function_and_differentiated_by_its_inputs():
    made = objective(matching())
    fkd.check(made, X)
    _, aux = made(made.init(), X)
    big, small = (made.models[n].module for n in ("teacher", "student"))
    assert big is not None and small is not None
    big.eval(), small.train()
    x = X.clone().requires_grad_()
    chosen = big(x).argmax(-1, keepdim=True)
    grads = [torch.autograd.grad(m(x).gather(-1, chosen).sum(), x)[0] for m in (small, big)]
    torch.testing.assert_close(aux.terms["slopes"].value, jacobian_matching(*grads).mean())
    assert aux.buffers["student"]["second.0.num_batches_tracked"] == 1  # of its own run alone


def test_a_teacher_that_is_called_as_a_function_stays_beside_its_cached_values():
    made = objective(matching())
    assert fkd.sources.frontier(made) == (
        teacher.logits,
        call(slope, module("teacher"), batch, teacher.logits),
    )
    without = made.without([teacher.logits])
    assert "teacher" in without.models
    parts = made.init()
    given = {teacher.logits: made.models["teacher"].module.eval()(X)}
    torch.testing.assert_close(without(parts, X, given=given)[0], made(parts, X)[0])


@pytest.mark.compile
@pytest.mark.parametrize("make", [lambda: objective(), lambda: objective(matching())])
def test_compiled_steps_are_the_eager_ones_and_compile_once(make):
    made = make()
    seen = []
    for options in (False, {"backend": "aot_eager"}):
        step = fkd.loops.train_step(made, lambda p: torch.optim.SGD(p, lr=0.1), compile=options)
        state = step.init(seed=0)
        for _ in range(2):
            state, measured = step(state, X)
        assert step.compilations == bool(options)
        seen.append((state.trainable, state.buffers, measured["loss/total"]))
    torch.testing.assert_close(seen[1][0], seen[0][0])
    torch.testing.assert_close(seen[1][1], seen[0][1])
    torch.testing.assert_close(seen[1][2], seen[0][2])
