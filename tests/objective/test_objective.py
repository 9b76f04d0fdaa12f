"""Laws of an objective: pure, masked, differentiated as a hand-written loop would."""

from __future__ import annotations

import copy
import math

import optree
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fkd
from fkd import Objective, batch, call, ema, frozen, metric, ref, student, teacher, term, trainable
from fkd.losses import cross_entropy, kl, mse

from ..models import CNN, MLP, images, leaves, random_objective, same_bits, tokens

SEEDS = range(6)


def loss_and_grads(objective, data, **options):
    """By plain autograd, as a user's own loop would."""
    parts = objective.init()
    for held in parts.trainable.values():
        for p in held.values():
            p.requires_grad_()
    loss, aux = objective(parts, data, **options)
    names = [(m, n) for m, held in parts.trainable.items() for n in held]
    grads = torch.autograd.grad(loss, [parts.trainable[m][n] for m, n in names])
    return loss.detach(), dict(zip(names, grads, strict=True)), aux


def close_trees(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


# Law 1


@pytest.mark.parametrize("seed", SEEDS)
def test_same_inputs_same_bits(seed):
    objective, data = random_objective(seed), tokens(seed=seed)
    assert same_bits(loss_and_grads(objective, data), loss_and_grads(objective, data))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_given_is_never_changed(seed):
    objective, data = random_objective(seed), tokens(seed=seed)
    modules = [m.module for m in objective.models.values() if m.module is not None]
    parts = objective.init()
    given = [parts, data, [m.state_dict() for m in modules]]
    modes = [m.training for module in modules for m in module.modules()]
    before = leaves(given)
    loss_and_grads(objective, data)
    objective(parts, data)
    assert all(torch.equal(a, b) for a, b in zip(before, leaves(given), strict=True))
    assert modes == [m.training for module in modules for m in module.modules()]
    assert all(p.grad is None for module in modules for p in module.parameters())


def test_buffers_come_back_and_only_those_of_trained_models_move():
    objective = Objective(
        term(mse, student.logits, teacher.logits), student=trainable(CNN()), teacher=frozen(CNN())
    )
    parts = objective.init()
    before = leaves(parts.buffers)
    _, aux = objective(parts, images())
    assert all(torch.equal(a, b) for a, b in zip(before, leaves(parts.buffers), strict=True))
    assert same_bits(aux.buffers["teacher"], parts.buffers["teacher"])
    assert aux.buffers["student"]["first.1.num_batches_tracked"] == 1


def test_batch_norm_is_that_of_a_plain_loop():
    net, data = CNN(), images()
    objective = Objective(term(mse, student.logits, torch.zeros(4, 5)), student=trainable(net))
    parts = objective.init()
    buffers = parts.buffers
    plain = copy.deepcopy(net).train()
    for seed in range(3):
        data = images(seed=seed)
        _, aux = objective(parts._replace(buffers=buffers), data)
        buffers = aux.buffers
        plain(data["image"])
    close_trees(buffers["student"], dict(plain.named_buffers()))


# Gradients


def test_value_and_gradient_are_those_of_a_hand_written_loop():
    net, big, proj = MLP(8, 2), MLP(12, 4), nn.Linear(8, 12)
    data = tokens()
    project = fkd.module("project")
    objective = Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, temperature=4.0, weight=0.9),
            "labels": term(cross_entropy, student.logits, batch.labels, weight=0.1),
            "hidden": term(
                mse,
                project(student.hidden_states[1]),
                teacher.tap("layers.1"),
                where=batch.attention_mask,
                weight=0.5,
            ),
        },
        student=trainable(net),
        teacher=frozen(big),
        project=trainable(proj),
    )
    loss, grads, _ = loss_and_grads(objective, data)

    mask = data["attention_mask"].bool()
    with torch.no_grad():
        t = big(data["x"])
        t_hidden = big.layers[1](t.hidden_states[1])
    s = net(data["x"])
    q, p = (F.log_softmax(x.logits / 4.0, -1) for x in (s, t))
    kd = 16 * (p.exp() * (p - q)).sum(-1).mean()
    labels = F.cross_entropy(s.logits[mask], data["labels"][mask])
    hidden = (proj(s.hidden_states[1]) - t_hidden).square().mean(-1)[mask].mean()
    expected = 0.9 * kd + 0.1 * labels + 0.5 * hidden
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    by_hand = {("student", n): p.grad for n, p in net.named_parameters()}
    by_hand |= {("project", n): p.grad for n, p in proj.named_parameters()}
    close_trees(grads, by_hand)


@pytest.mark.parametrize("seed", SEEDS)
def test_functional_and_plain_gradients_agree(seed):
    objective, data = random_objective(seed), tokens(seed=seed)
    parts = objective.init()
    loss, grads, _ = loss_and_grads(objective, data)
    found, (value, _) = torch.func.grad_and_value(
        lambda p: objective(parts._replace(trainable=p), data), has_aux=True
    )(parts.trainable)
    torch.testing.assert_close(value, loss)
    close_trees({(m, n): g for m, held in found.items() for n, g in held.items()}, grads)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_is_the_slope(seed):
    objective, data = random_objective(seed), tokens(seed=seed)
    double = {n: v.double() if v.is_floating_point() else v for n, v in data.items()}
    parts = objective.init()
    trees = [{m: {n: p.double() for n, p in h.items()} for m, h in t.items()} for t in parts[:3]]
    scalars = {n: v.double() for n, v in objective.scalars(3).items()}

    def value(moving):
        return objective(fkd.Parts(moving, *trees[1:], {}), double, scalars=scalars)[0]

    grads = torch.func.grad(value)(trees[0])
    g = torch.Generator().manual_seed(seed)
    direction = optree.tree_map(
        lambda p: torch.randn(p.shape, generator=g, dtype=p.dtype), trees[0]
    )
    slope = sum((a * b).sum() for a, b in zip(leaves(grads), leaves(direction), strict=True))
    h = 1e-6
    ahead, behind = (
        value(optree.tree_map(lambda p, d, s=s: p + s * h * d, trees[0], direction))
        for s in (1, -1)
    )
    torch.testing.assert_close((ahead - behind) / (2 * h), slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_total_is_the_weighted_sum_of_the_means(seed):
    objective, data = random_objective(seed), tokens(seed=seed)
    loss, _, aux = loss_and_grads(objective, data, step=4)
    assert set(aux.terms) == set(objective.terms)
    assert set(aux.weights) == set(objective.weighted) == set(objective.terms) - {"top1"}
    total = sum(aux.weights[n] * aux.terms[n].value for n in aux.weights)
    torch.testing.assert_close(total.detach(), loss)


# Law 3


POISON = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("own", [False, True], ids=["a loss of fkd", "a loss of the user"])
def test_masked_positions_have_no_value_and_no_gradient(poison, own):
    def spoil(x, mask):
        return torch.where(mask.bool()[..., None], x, poison)

    def squared(a, b):
        return (a - b).square().mean(-1)

    def objective(*, spoiled):
        mine, theirs = student.logits, teacher.logits
        if spoiled:
            mine = call(spoil, mine, batch.attention_mask)
            theirs = call(spoil, theirs, batch.attention_mask)
        loss = squared if own else kl
        return Objective(
            term(loss, mine, theirs, where=batch.attention_mask),
            student=trainable(net),
            teacher=frozen(big),
        )

    net, big, data = MLP(), MLP(12, 3), tokens()
    clean = loss_and_grads(objective(spoiled=False), data)
    dirty = loss_and_grads(objective(spoiled=True), data)
    torch.testing.assert_close(dirty[0], clean[0])
    close_trees(dirty[1], clean[1])


@pytest.mark.parametrize("seed", SEEDS)
def test_padding_changes_nothing(seed):
    objective, data = random_objective(seed), tokens(seed=seed)
    if objective.terms["kd"].where is None:
        terms = {n: t for n, t in objective.terms.items() if n == "labels"}
        models = {"student": objective.models["student"]}
        objective = Objective(terms, **models)
    g = torch.Generator().manual_seed(seed)
    padded = {
        "x": torch.cat([data["x"], torch.randn(6, 3, 6, generator=g)], 1),
        "attention_mask": F.pad(data["attention_mask"], (0, 3)),
        "labels": F.pad(data["labels"], (0, 3), value=-100),
    }
    one, two = loss_and_grads(objective, data), loss_and_grads(objective, padded)
    torch.testing.assert_close(one[0], two[0])
    close_trees(one[1], two[1])


def test_a_batch_in_which_nothing_counts_is_zero_with_zero_gradients():
    objective = Objective(
        term(kl, student.logits, teacher.logits, where=batch.attention_mask),
        student=trainable(MLP()),
        teacher=frozen(MLP()),
    )
    data = tokens()
    data["attention_mask"] = torch.zeros_like(data["attention_mask"])
    loss, grads, aux = loss_and_grads(objective, data)
    assert loss == 0 and aux.terms["loss"].count == 0
    assert all((g == 0).all() for g in grads.values())


# Models and refs


def test_tied_weights_are_one_parameter_whose_gradients_add_up():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(6, 6, bias=False)
            self.head = nn.Linear(6, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(torch.tanh(self.embed(x)))

    net = Tied()
    terms = {
        "out": term(mse, student.logits, batch.x),
        "weight": term(lambda w: w.square().mean(-1), student.param("head.weight"), weight=0.1),
    }
    objective = Objective(terms, student=trainable(net))
    data = {"x": torch.randn(4, 6)}
    loss, grads, _ = loss_and_grads(objective, data)
    assert list(grads) == [("student", "embed.weight")]
    expected = F.mse_loss(net(data["x"]), data["x"]) + 0.1 * net.head.weight.square().mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(grads["student", "embed.weight"], net.embed.weight.grad)


def test_a_module_and_a_buffer_in_two_places_are_swapped_in_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.again = nn.Linear(3, 3, bias=False)
            self.inner = nn.Linear(3, 3, bias=False)
            self.register_buffer("shift", torch.ones(3))
            self.inner.register_buffer("shift", self.shift)

        def forward(self, x):
            return self.again(self.first(x)) + self.shift + self.inner.shift

    net = Twice()
    objective = Objective(term(lambda x: x.sum(-1), student.logits), student=trainable(net))
    parts, x = objective.init(), torch.randn(2, 3)
    for factor in (1.0, 2.0):
        weight = net.first.weight.detach() * factor
        shift = torch.full((3,), factor)
        scaled = parts._replace(
            trainable={"student": {**parts.trainable["student"], "first.weight": weight}},
            buffers={"student": {"shift": shift}},
        )
        loss, _ = objective(scaled, x)
        expected = ((x @ weight.T @ weight.T) + 2 * shift).sum(-1).mean()
        torch.testing.assert_close(loss, expected)
    assert torch.equal(net.shift, torch.ones(3))


def test_a_parameter_needs_no_forward_pass():
    net = MLP()

    def norm(w):
        return w.square().sum()

    objective = Objective(
        term(norm, student.param("head.weight")),
        student=trainable(net, unused=["embed", "layers", "norm", "head.bias"]),
    )
    assert objective.program.runs == ()
    parts = objective.init()
    assert list(parts.trainable["student"]) == ["head.weight"]
    loss, _ = objective(parts, {})
    torch.testing.assert_close(loss, net.head.weight.detach().square().sum())


def test_partly_frozen_students_keep_what_is_frozen():
    net = MLP()
    net.embed.requires_grad_(False)
    objective = Objective(
        term(kl, student.logits, teacher.logits),
        student=trainable(net, unused=["layers.0"]),
        teacher=frozen(MLP()),
    )
    parts = objective.init()
    assert set(parts.frozen["student"]) == {
        *("embed.weight", "embed.bias", "layers.0.weight", "layers.0.bias")
    }
    _, grads, _ = loss_and_grads(objective, tokens())
    assert not any("embed" in n or "layers.0" in n for _, n in grads)
    assert all(g.abs().sum() > 0 for g in grads.values())


def test_several_students_and_teachers_learn_apart():
    one, two, data = MLP(), MLP(4, 1), tokens()
    teachers = {"a": frozen(MLP(12, 3)), "b": frozen(MLP(16, 2))}

    def objective(*names):
        terms = {
            f"{n}<-{t}": term(kl, ref(n).logits, ref(t).logits) for n in names for t in teachers
        }
        models = {"one": trainable(one), "two": trainable(two)}
        return Objective(terms, **{n: models[n] for n in names}, **teachers)

    together = loss_and_grads(objective("one", "two"), data)
    apart = [loss_and_grads(objective(n), data) for n in ("one", "two")]
    torch.testing.assert_close(together[0], apart[0][0] + apart[1][0])
    close_trees(together[1], apart[0][1] | apart[1][1])


def test_mutual_learning_stops_the_gradient_where_it_is_told_to():
    models = {"one": trainable(MLP()), "two": trainable(MLP())}
    stopped = term(kl, ref("one").logits, fkd.stop_gradient(ref("two").logits))
    parts = Objective(stopped, **models).init()
    objective = Objective(stopped, **models)
    grads = torch.func.grad(lambda p: objective(parts._replace(trainable=p), tokens())[0])(
        parts.trainable
    )
    assert all((g == 0).all() for g in grads["two"].values())
    assert any((g != 0).any() for g in grads["one"].values())


def test_metrics_are_measured_and_have_no_gradient():
    terms = {"kd": term(kl, student.logits, teacher.logits)}
    models = {"student": trainable(MLP()), "teacher": frozen(MLP())}
    data = tokens()
    plain = loss_and_grads(Objective(terms, **models), data)
    terms["m"] = metric(mse, student.logits, teacher.logits)
    measured = loss_and_grads(Objective(terms, **models), data)
    assert same_bits(plain[:2], measured[:2])
    assert not measured[2].terms["m"].total.requires_grad
    assert measured[2].terms["m"].value > 0


def test_frozen_models_run_in_eval_mode_and_trained_ones_in_train_mode():
    class Mode(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 0 + float(self.training)

    def value(model):
        objective = Objective(
            term(lambda a, b: (a - b).mean(-1), student.logits, ref("m").logits),
            student=trainable(nn.Linear(6, 5)),
            m=model,
        )
        parts = objective.init()
        return objective.program.context(parts, torch.randn(2, 6)).context["m"].mean()

    assert value(frozen(Mode(6, 5).train())) == 0
    assert value(trainable(Mode(6, 5).eval())) == 1
    assert value(trainable(Mode(6, 5), training=False)) == 0


def test_an_objective_that_evaluates_uses_running_statistics():
    net, data = CNN(), images()
    objective = Objective(term(mse, student.logits, torch.zeros(4, 5)), student=trainable(net))
    parts = objective.init()
    _, aux = objective.evaluating()(parts, data)
    assert same_bits(aux.buffers, parts.buffers)
    expected = copy.deepcopy(net).eval()(data["image"]).logits.square().mean()
    torch.testing.assert_close(aux.terms["loss"].value, expected)


def test_models_may_see_different_inputs_and_give_other_outputs():
    net, big = nn.Linear(6, 5), nn.Linear(3, 5)
    objective = Objective(
        term(mse, student.scores, teacher.logits),
        student=trainable(
            net, inputs=lambda b: {"input": b["x"]}, outputs=lambda out: {"scores": 2 * out}
        ),
        teacher=frozen(big, inputs=lambda b: (b["other"],)),
    )
    data = {"x": torch.randn(2, 6), "other": torch.randn(2, 3)}
    loss, _ = objective(objective.init(), data)
    torch.testing.assert_close(loss, F.mse_loss(2 * net(data["x"]), big(data["other"])))


@pytest.mark.parametrize(
    "form", [lambda x: x, lambda x: (x, None), lambda x: {"input": x, "id": 3}]
)
def test_a_batch_is_a_tensor_a_tuple_or_a_mapping(form):
    net, x = nn.Linear(6, 5), torch.randn(2, 6)
    objective = Objective(term(mse, student.logits, torch.zeros(2, 5)), student=trainable(net))
    loss, _ = objective(objective.init(), form(x))
    torch.testing.assert_close(loss, net(x).square().mean())


def test_a_tap_sees_what_a_module_was_given_and_returned_before_it_is_changed_in_place():
    net, data = CNN(), images()
    seen = {}

    def keep(name, value):
        seen[name] = value
        return value.mean()

    terms = {
        "in": term(lambda x: keep("in", x), student.tap("first.2", "input")),
        "norm": term(lambda x: keep("norm", x), student.tap("first.1")),
        "out": term(lambda x: keep("out", x), student.tap("first.2")),
        "model": term(lambda x: keep("model", x.logits), student.tap("")),
    }
    objective = Objective(terms, student=trainable(net, training=False))
    objective(objective.init(), data)
    plain = copy.deepcopy(net).eval()
    torch.testing.assert_close(seen["norm"], plain.first[:2](data["image"]))
    torch.testing.assert_close(seen["in"], seen["norm"])
    torch.testing.assert_close(seen["out"], seen["norm"].relu())
    torch.testing.assert_close(seen["model"], plain(data["image"]).logits)


def test_each_distinct_value_is_computed_once():
    calls = []

    def heavy(x):
        calls.append(1)
        return x * 2

    def twice():
        return call(heavy, student.logits)

    objective = Objective(
        {"a": term(mse, twice(), teacher.logits), "b": term(kl, twice(), teacher.logits)},
        student=trainable(MLP()),
        teacher=frozen(MLP()),
    )
    objective(objective.init(), tokens())
    assert len(calls) == 1


def test_models_that_no_term_needs_do_not_run():
    objective = Objective(
        term(kl, student.logits, teacher.logits),
        spare=frozen(nn.Linear(999, 1)),
        student=trainable(MLP()),
        teacher=frozen(MLP()),
    )
    assert objective.program.runs == ("teacher", "student")
    objective(objective.init(), tokens())


def test_a_function_of_the_context_sees_every_model():
    objective = Objective(
        term(mse, lambda ctx: ctx["student"].logits, lambda ctx: ctx["teacher"].logits),
        student=trainable(MLP()),
        teacher=frozen(MLP()),
    )
    written = Objective(term(mse, student.logits, teacher.logits), **objective.models)
    data = tokens()
    assert same_bits(loss_and_grads(objective, data)[:2], loss_and_grads(written, data)[:2])


def test_a_weight_may_be_learned():
    class LogVariance(nn.Module):
        def __init__(self):
            super().__init__()
            self.s = nn.Parameter(torch.tensor(0.3))

    objective = Objective(
        {
            "kd": term(
                kl,
                student.logits,
                teacher.logits,
                weight=call(lambda s: torch.exp(-s), ref("u").param("s")),
            ),
            "u": term(lambda s: s, ref("u").param("s")),
        },
        student=trainable(MLP()),
        teacher=frozen(MLP()),
        u=trainable(LogVariance()),
    )
    _, grads, aux = loss_and_grads(objective, tokens())
    kd = aux.terms["kd"].value.detach()
    torch.testing.assert_close(grads["u", "s"], 1 - math.exp(-0.3) * kd)
    fkd.check(objective, tokens())


def test_a_knob_may_be_one_value_for_every_position():
    objective = Objective(
        term(
            lambda a, b, *, scale: ((a - b).square().mean(-1)) * scale,
            student.logits,
            teacher.logits,
            scale=batch.scale,
        ),
        student=trainable(MLP()),
        teacher=frozen(MLP()),
    )
    data = {**tokens(), "scale": torch.zeros(6, 7)}
    assert objective(objective.init(), data)[0] == 0


def test_stateful_losses_take_state_in_and_give_it_out():
    def centred(s, t, *, state):
        centre = 0.9 * state["centre"] + 0.1 * t.mean((0, 1))
        return (s - (t - state["centre"])).square().mean(-1), {"centre": centre}

    start = {"centre": torch.zeros(5)}
    objective = Objective(
        {"c": term(centred, student.logits, teacher.logits, state=start)},
        student=trainable(MLP()),
        teacher=frozen(MLP()),
    )
    parts, data = objective.init(), tokens()
    _, one = objective(parts, data)
    _, again = objective(parts, data)
    assert same_bits(one.loss_state, again.loss_state)
    assert start["centre"].abs().sum() == 0
    _, two = objective(parts._replace(loss_state=one.loss_state), data)
    centre = objective.program.context(parts, data).context["teacher"].logits.mean((0, 1))
    torch.testing.assert_close(one.loss_state["c"]["centre"], 0.1 * centre)
    torch.testing.assert_close(two.loss_state["c"]["centre"], 0.19 * centre)
    assert two.terms["c"].value != one.terms["c"].value


def test_an_ema_starts_as_a_copy():
    net = MLP()
    objective = Objective(
        term(mse, student.logits, ref("slow").logits), student=trainable(net), slow=ema("student")
    )
    parts = objective.init()
    assert same_bits(parts.frozen["slow"], dict(net.named_parameters()))
    assert objective(parts, tokens())[0] == 0
    parts.trainable["student"]["head.bias"].add_(1)
    assert torch.equal(parts.frozen["slow"]["head.bias"], net.head.bias)


def test_scalars_are_what_moves():
    weight = torch.tensor(0.5)
    objective = Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, temperature=lambda step: 1.0 + step),
            "b": term(mse, student.logits, teacher.logits, weight=weight),
            "c": term(mse, student.logits, teacher.logits, weight=2.0),
        },
        student=trainable(MLP()),
        teacher=ema("student", decay=fkd.schedules.linear(0.9, 1.0, 10)),
    )
    assert {n: round(float(v), 6) for n, v in objective.scalars(5).items()} == {
        "kd/temperature": 6.0,
        "b/weight": 0.5,
        "teacher/decay": 0.95,
    }


def test_it_prints_as_code():
    objective = Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=trainable(nn.Linear(1, 1)),
        teacher=ema("student"),
    )
    assert repr(objective).splitlines()[2:4] == [
        "        'kd': term(kl, student.logits, teacher.logits, weight=1.0),",
        "    },",
    ]
    assert "student=trainable(Linear)" in repr(objective)
    assert "teacher=ema('student')" in repr(objective)
