"""Models on other inputs, buffers as values, and models at other parameters."""

from __future__ import annotations

import pytest
import torch

import fkd
from examples.recipes._small import bert
from fkd import batch, call, module, ref, student, teacher, term
from fkd.losses import kl, mse

from ..loops.training import Net as Dict
from ..models import same_bits


class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width))
        self.head = torch.nn.Linear(width, 3)

    def forward(self, x, scale=1.0):
        return {"logits": self.head(torch.tanh(self.first(x * scale)))}


class Maker(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 4)

    def forward(self, noise):
        return self.linear(noise)


def data(seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = {"x": 4, "other": 4, "noise": 2}
    return {name: torch.randn(6, width, generator=g) for name, width in sizes.items()}


def objective(terms, **models):
    torch.manual_seed(0)
    every = {"student": fkd.trainable(Net(5)), "teacher": fkd.frozen(Net(8))}
    return fkd.Objective(terms, **(models or every))


def modules(made):
    return {name: model.module for name, model in made.models.items()}


def test_a_run_on_other_inputs_has_outputs_and_taps_of_its_own():
    seen = teacher.on(batch.other, scale=2.0)
    made = objective(
        {
            "kd": term(kl, student.logits, seen.logits),
            "tap": term(mse, student.tap("first"), student.on(batch.other).tap("first")),
            "input": term(mse, seen.tap("first", "input"), torch.zeros(6, 4), weight=0.0),
        }
    )
    values, nets = data(), modules(made)
    nets["teacher"].eval(), nets["student"].train()
    fkd.check(made, values)
    assert made.program.runs == ("student",)  # the teacher never runs on the batch
    _, aux = made(made.init(), values)
    x, other = values["x"], values["other"]
    want = kl(nets["student"](x)["logits"], nets["teacher"](other, 2.0)["logits"]).mean()
    torch.testing.assert_close(aux.terms["kd"].value, want)
    one, two = (nets["student"].first(y) for y in (x, other))
    torch.testing.assert_close(aux.terms["tap"].value, (one - two).square().mean())
    torch.testing.assert_close(aux.terms["input"].value, (2 * other).square().mean())


def test_batch_statistics_move_in_every_run_of_what_is_trained_and_in_no_other():
    made = objective(
        {"a": term(mse, student.on(batch.other).logits, teacher.on(batch.other).logits),
         "b": term(mse, student.logits, teacher.logits)}
    )  # fmt: skip
    before = made.init()
    _, aux = made(before, data())
    assert aux.buffers["student"]["first.1.num_batches_tracked"] == 2
    assert same_bits(aux.buffers["teacher"], before.buffers["teacher"])


def test_gradients_pass_through_a_frozen_model_to_what_made_its_inputs():
    made = objective(
        {"kd": term(kl, teacher.on(module("maker")(batch.noise)).logits, teacher.logits)},
        maker=fkd.trainable(Maker()),
        teacher=fkd.frozen(Net(8)),
    )
    parts = made.init()
    leaves = {n: p.requires_grad_() for n, p in parts.trainable["maker"].items()}
    loss, _ = made(parts, data())
    nets = modules(made)
    nets["teacher"].eval()
    direct = kl(
        nets["teacher"](nets["maker"](data()["noise"]))["logits"],
        nets["teacher"](data()["x"])["logits"],
    ).mean()
    torch.testing.assert_close(loss, direct)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    for a, b in zip(grads, torch.autograd.grad(direct, nets["maker"].parameters()), strict=True):
        torch.testing.assert_close(a, b)


def test_models_of_transformers_are_read_inside_in_a_further_run():
    seen = student.on(input_ids=batch.other_ids, attention_mask=batch.other_mask)
    made = fkd.Objective(
        {
            "hidden": term(mse, seen.hidden_states[1], student.hidden_states[1]),
            "attention": term(mse, seen.attention(0), student.attention(0)),
            "logits": term(kl, seen.logits, student.logits),
        },
        student=fkd.trainable(bert(8, 2), training=False),
    )
    ids = torch.arange(2, 12).reshape(2, 5)
    ones = torch.ones_like(ids)
    same = {"input_ids": ids, "attention_mask": ones, "other_ids": ids, "other_mask": ones}
    _, aux = made(made.init(), same)
    assert all(mean.value == 0 for mean in aux.terms.values())
    _, aux = made(made.init(), {**same, "other_ids": ids.flip(0)})
    assert all(mean.value > 0 for mean in aux.terms.values())


def test_an_average_is_run_on_other_inputs():
    made = objective(
        {"a": term(mse, student.logits, ref("average").on(batch.x).logits)},
        student=fkd.trainable(Dict(6), training=False),
        average=fkd.ema("student"),
    )
    assert made(made.init(), {"x": torch.randn(3, 5)})[0] == 0


def test_buffers_are_read_as_they_were_before_the_batch():
    def moved(x, mean):
        return (x.mean(0) - mean).square()

    inside, name = student.tap("first.1", "input"), "first.1.running_mean"
    made = objective(
        {"moved": term(moved, inside, student.param(name)),
         "theirs": term(moved, teacher.tap("first.1", "input"), teacher.param(name)),
         "head": term(mse, student.logits, teacher.logits)}
    )  # fmt: skip
    parts, values = made.init(), data()
    _, aux = made(parts, values)
    want = modules(made)["student"].first[0](values["x"]).mean(0).square().mean()
    torch.testing.assert_close(aux.terms["moved"].value, want)
    wrong = objective({"a": term(mse, teacher.param("first.1.running_men"), student.logits)})
    with pytest.raises(fkd.ObjectiveError, match=r"Did you mean 'first\.1\.running_mean'"):
        fkd.check(wrong, values)


def test_a_teacher_that_is_read_by_further_runs_and_buffers_is_kept_on_disk(tmp_path):
    seen = teacher.on(batch.other)
    statistic = teacher.param("first.1.running_var").sum()
    made = objective(
        {"kd": term(kl, student.logits, seen.logits), "tap": term(mse, student.logits,
         seen.tap("first")[:, :3]), "var": term(mse, student.logits, student.logits * statistic)}
    )  # fmt: skip
    values = data()
    kept = fkd.sources.cache(made, [values], tmp_path, progress=False)
    bound = fkd.sources.bind(made, kept)
    (attached,) = kept.attach([values])
    assert torch.equal(bound(bound.init(), attached)[0], made(made.init(), values)[0])


def test_a_sweep_names_the_models_of_further_runs():
    made = objective({"kd": term(kl, student.on(batch.other).logits, teacher.on(batch.x).logits)})
    sgd = lambda params: torch.optim.SGD(params, lr=0.1)
    members = {"a": fkd.sweeps.member(), "b": fkd.sweeps.member(lr=2.0)}
    step = fkd.sweeps.sweep(made, sgd, members, compile=False)
    state, metrics = step(step.init(), data())
    assert metrics["loss/a/kd"] == metrics["loss/b/kd"]
    assert fkd.loops.evaluate(step.objective, state, [data()])["loss/a/kd"] > 0


def after_a_step(net, x, wanted, rate):
    def practised(params):
        return kl(net.at(params)(x)["logits"], wanted).mean()

    slopes = torch.func.grad(practised)(dict(net.params))
    after = {name: p - rate * slopes[name] for name, p in net.params.items()}
    return kl(net.at(after)(x)["logits"], wanted)


def looking_ahead():
    ahead = call(after_a_step, module("student"), batch.x, teacher.logits, 0.5)
    return objective({"ahead": term(lambda x: x, ahead)})


def test_the_gradient_goes_through_a_step_of_training():
    made = looking_ahead()
    parts, values, nets = made.init(), data(), modules(made)
    params = {n: p.requires_grad_() for n, p in parts.trainable["student"].items()}
    loss, _ = made(parts, values)
    nets["teacher"].eval()
    wanted = nets["teacher"](values["x"])["logits"].detach()
    run = lambda p: torch.func.functional_call(nets["student"].train(), p, (values["x"],))["logits"]
    first = kl(run(params), wanted).mean()
    slopes = torch.autograd.grad(first, list(params.values()), create_graph=True)
    after = {n: p - 0.5 * g for (n, p), g in zip(params.items(), slopes, strict=True)}
    want = kl(run(after), wanted).mean()
    torch.testing.assert_close(loss, want)
    ours = torch.autograd.grad(loss, list(params.values()))
    for a, b in zip(ours, torch.autograd.grad(want, list(params.values())), strict=True):
        torch.testing.assert_close(a, b)


def test_a_parameter_that_a_model_has_not_is_said():
    wrong = call(lambda net, x: net.at({"haed.bias": x})(x)["logits"], module("student"), batch.x)
    made = objective({"a": term(mse, wrong, teacher.logits)})
    with pytest.raises(fkd.ObjectiveError, match=r"Did you mean 'head\.bias'"):
        fkd.check(made, data())


def test_a_further_run_is_code_and_mistakes_are_said():
    run = teacher.on(batch.other, scale=2.0)
    assert repr(run.logits) == "teacher.on(batch.other, scale=2.0).logits"
    assert repr(run.tap("a", "input")) == "teacher.on(batch.other, scale=2.0).tap('a', 'input')"
    assert repr(ref("m").on(batch.x).attention(1)) == "ref('m').on(batch.x).attention(1)"
    assert run.logits == eval(repr(run.logits)) and run.logits != teacher.on(batch.x).logits
    assert run.tap == run["tap"]  # an output of that name stays within reach
    made = objective({"a": term(mse, teacher.on(batch.x).tap("frist"), student.logits)})
    with pytest.raises(fkd.ObjectiveError, match=r"teacher\.on\(batch\.x\).*Did you mean 'first'"):
        fkd.check(made, data())
    with pytest.raises(fkd.ObjectiveError, match="no such model"):
        fkd.check(objective({"a": term(mse, ref("w").on(batch.x).logits, student.logits)}), data())
    with pytest.raises(TypeError, match="no inputs are given"):
        teacher.on()


@pytest.mark.compile
def test_compiled_steps_are_the_eager_ones_and_compile_once():
    made = objective(
        {"a": term(kl, student.on(batch.other).logits, teacher.on(batch.other).logits),
         "b": term(mse, student.logits, teacher.tap("first.1")[:, :3])}
    )  # fmt: skip
    for one in (made, looking_ahead()):
        seen = []
        for options in (False, {"backend": "aot_eager"}):
            sgd = lambda params: torch.optim.SGD(params, lr=0.1)
            step = fkd.loops.train_step(one, sgd, compile=options)
            state = step.init(seed=0)
            for k in range(2):
                state, measured = step(state, data(k))
            assert step.compilations == bool(options)
            seen.append((state.trainable, state.buffers, measured["loss/total"]))
        torch.testing.assert_close(seen[1], seen[0])
