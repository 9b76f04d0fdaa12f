"""Laws of the train step, against hand-written loops."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

import fkd
from fkd import Objective, batch, ema, frozen, ref, student, teacher, term, trainable
from fkd.loops import State, TrainStep, param_groups, train_step
from fkd.losses import cross_entropy, kl, mse
from fkd.schedules import linear
from tests.trees import tree_map

from ...models import CNN, MLP, adamw, images, leaves, random_objective, same_bits, sgd, tokens

AOT = {"backend": "aot_eager"}


def run(step: TrainStep, batches: list[Any], seed: int = 0) -> tuple[State, list[Any]]:
    """The last state, and the metrics of every step."""
    state, found = step.init(seed), []
    for data in batches:
        state, metrics = step(state, data)
        found.append(metrics)
    return state, found


def close(a: Any, b: Any, **tolerance: float) -> None:
    for x, y in zip(leaves(a), leaves(b), strict=True):
        torch.testing.assert_close(x, y, equal_nan=True, **tolerance)


def copied(state: State) -> State:
    """A state of its own, as after saving and loading."""
    return tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, state)


def simple(**models: Any) -> Objective:
    return Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, temperature=2.0, weight=0.7),
            "labels": term(cross_entropy, student.logits, batch.labels, weight=0.3),
        },
        **({"student": trainable(MLP()), "teacher": frozen(MLP(12, 3))} | models),
    )


# Against a hand-written loop


@pytest.mark.parametrize("make", [sgd, adamw])
def test_a_run_is_the_hand_written_loop(make):
    net, big = MLP(), MLP(12, 3)
    batches = [tokens(seed=i) for i in range(4)]
    state, metrics = run(
        train_step(simple(student=trainable(net), teacher=frozen(big)), make, compile=False),
        batches,
    )
    plain = copy.deepcopy(net)
    optimizer = make(list(plain.parameters()))
    losses = []
    for data in batches:
        optimizer.zero_grad()
        with torch.no_grad():
            t = torch.log_softmax(big(data["x"]).logits / 2, -1)
        logits = plain(data["x"]).logits
        q = torch.log_softmax(logits / 2, -1)
        labels = nn.functional.cross_entropy(
            logits.flatten(0, 1), data["labels"].flatten(), ignore_index=-100
        )
        loss = 0.7 * 4 * (t.exp() * (t - q)).sum(-1).mean() + 0.3 * labels
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    close(state.trainable["student"], dict(plain.named_parameters()))
    close([m["loss/total"] for m in metrics], losses)
    assert state.step == 4 and state.skipped == 0


def test_the_users_modules_are_never_touched():
    net, big = CNN(), CNN(8)
    before = leaves([net.state_dict(), big.state_dict()])
    objective = Objective(
        term(kl, student.logits, teacher.logits), student=trainable(net), teacher=frozen(big)
    )
    state, _ = run(train_step(objective, adamw, compile=False), [images(seed=i) for i in range(3)])
    after = leaves([net.state_dict(), big.state_dict()])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for m in (net, big) for p in m.parameters())
    assert same_bits(state.frozen["teacher"], dict(big.named_parameters()))
    assert same_bits(state.buffers["teacher"], dict(big.named_buffers()))


@pytest.mark.parametrize("seed", range(4))
def test_the_same_run_gives_the_same_bits(seed):
    batches = [tokens(seed=i) for i in range(3)]

    def once() -> Any:
        return run(train_step(random_objective(seed, dropout=0.2), adamw, compile=False), batches)

    assert same_bits(once(), once())


def test_batch_norm_is_that_of_a_plain_loop():
    net = CNN()
    objective = Objective(term(cross_entropy, student.logits, batch.labels), student=trainable(net))
    batches = [images(seed=i) for i in range(3)]
    state, _ = run(train_step(objective, sgd, compile=False), batches)
    plain = copy.deepcopy(net).train()
    optimizer = sgd(plain.parameters())
    for data in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(data["image"]).logits, data["labels"]).backward()
        optimizer.step()
    close(state.trainable["student"], dict(plain.named_parameters()))
    close(state.buffers["student"], dict(plain.named_buffers()))


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(6, 6, bias=False)
            self.head = nn.Linear(6, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(torch.tanh(self.embed(x)))

    net = Tied()
    objective = Objective(term(mse, student.logits, batch.x), student=trainable(net))
    batches = [{"x": torch.randn(5, 6)} for _ in range(3)]
    state, _ = run(train_step(objective, sgd, compile=False), batches)
    plain = copy.deepcopy(net)
    optimizer = sgd(plain.parameters())
    for data in batches:
        optimizer.zero_grad()
        (plain(data["x"]) - data["x"]).square().mean().backward()
        optimizer.step()
    assert list(state.trainable["student"]) == ["embed.weight"]
    close(state.trainable["student"]["embed.weight"], plain.head.weight)


def test_several_students_and_adapters_are_trained_together():
    project = fkd.module("project")
    objective = Objective(
        {
            "one": term(kl, ref("one").logits, teacher.logits),
            "two": term(mse, project(ref("two").hidden_states[2]), teacher.hidden_states[1]),
            "mutual": term(kl, ref("two").logits, fkd.stop_gradient(ref("one").logits)),
        },
        one=trainable(MLP()),
        two=trainable(MLP(4, 2)),
        teacher=frozen(MLP(12, 3)),
        project=trainable(nn.Linear(4, 12)),
    )
    step = train_step(objective, sgd, compile=False)
    before = copied(step.init())
    state, (metrics,) = run(step, [tokens()])
    assert set(state.trainable) == {"one", "two", "project"}
    for old, new in zip(leaves(before.trainable), leaves(state.trainable), strict=True):
        assert not torch.equal(old, new)
    norms = [metrics[f"grad_norm/{n}"] for n in ("one", "two", "project")]
    close(metrics["grad_norm/total"], sum(n**2 for n in norms) ** 0.5)


# Law 2


@pytest.mark.compile
@pytest.mark.parametrize("seed", range(3))
def test_compiled_is_eager_and_compiled_once(seed):
    objective = random_objective(seed)
    batches = [tokens(seed=i) for i in range(5)]
    counter = CompileCounterWithBackend("aot_eager")
    options: dict[str, Any] = {"clip": 1.0, "lr": linear(1.0, 0.1, 5)}
    eager = run(train_step(objective, sgd, compile=False, **options), batches)
    compiled = run(train_step(objective, sgd, compile={"backend": counter}, **options), batches)
    assert counter.frame_count == 1
    close(compiled, eager, rtol=2e-5, atol=1e-6)


@pytest.mark.compile
def test_moving_knobs_do_not_recompile():
    weight = torch.tensor(1.0)
    objective = Objective(
        {
            "a": term(kl, student.logits, teacher.logits, temperature=linear(8.0, 1.0, 6)),
            "b": term(kl, student.logits, teacher.logits, weight=lambda step: 1.0 / (1 + step)),
            "c": term(mse, student.logits, teacher.logits, weight=weight),
        },
        student=trainable(MLP()),
        teacher=ema("student", decay=linear(0.5, 1.0, 6)),
    )
    counter = CompileCounterWithBackend("aot_eager")
    step = train_step(objective, adamw, compile={"backend": counter}, lr=linear(1.0, 0.0, 6))
    state = step.init()
    for i in range(6):
        weight.fill_(1.0 + i)
        state, metrics = step(state, tokens(seed=i))
        assert metrics["weight/c"] == 1.0 + i
        assert metrics["knob/a/temperature"] == linear(8.0, 1.0, 6)(i)
    assert counter.frame_count == 1


@pytest.mark.compile
def test_one_compilation_for_each_shape_and_one_more_way_of_accumulating():
    counter = CompileCounterWithBackend("aot_eager")
    step = train_step(simple(), sgd, compile={"backend": counter}, accumulate=2)
    state = step.init()
    for i in range(3):
        state, _ = step(state, tokens(seed=i))
    first = counter.frame_count
    for i in range(3):
        state, _ = step(state, tokens(length=9, seed=i))
    assert first == 3  # counts, gradients of a part, and what is done once for the whole
    assert counter.frame_count - first == 2  # the last of them does not see the batch


@pytest.mark.compile
def test_batch_norm_taps_states_and_skips_compile():
    def centred(s, t, *, state):
        return (s - t + state).square().mean(-1), 0.9 * state + 0.1 * t.mean(0)

    def objective() -> Objective:
        torch.manual_seed(0)
        return Objective(
            {
                "tap": term(mse, student.tap("first.1"), teacher.tap("first.2", "input")),
                "centre": term(centred, student.logits, teacher.logits, state=torch.zeros(5)),
            },
            student=trainable(CNN()),
            teacher=frozen(CNN()),
            slow=ema("student", decay=0.5),
        )

    batches = [images(seed=i) for i in range(4)]
    batches[2] = {**batches[2], "image": batches[2]["image"] * float("nan")}
    eager = run(train_step(objective(), sgd, compile=False), batches)
    compiled = run(train_step(objective(), sgd, compile=AOT), batches)
    assert compiled[0].skipped == 1
    close(compiled, eager, rtol=2e-5, atol=1e-6)


@pytest.mark.compile
def test_layers_that_nothing_reads_are_not_in_the_graph():
    def products(layers: int) -> int:
        torch._dynamo.reset()
        found: Counter[str] = Counter()

        def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            found.update(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
            return graph

        objective = Objective(
            term(mse, student.hidden_states[2], teacher.hidden_states[4]),
            student=trainable(MLP(8, 2), unused=["norm", "head"]),
            teacher=frozen(MLP(8, layers)),
        )
        step = train_step(objective, sgd, compile={"backend": aot_autograd(fw_compiler=count)})
        run(step, [tokens()])
        return sum(n for target, n in found.items() if "mm" in target)

    needed = products(4)
    assert needed >= 5 + 3 + 3  # embedding and layers of the two, and the student's backward
    assert products(12) == needed


# Law 4


@pytest.mark.parametrize("parts", [2, 3, 6])
@pytest.mark.parametrize("seed", range(4))
def test_parts_of_a_batch_give_what_the_batch_gives(seed, parts):
    objective, data = random_objective(seed), tokens(seed=seed)
    whole = run(train_step(objective, sgd, compile=False, clip=0.5), [data] * 2)
    split = run(train_step(objective, sgd, compile=False, clip=0.5, accumulate=parts), [data] * 2)
    close(split[0].trainable, whole[0].trainable, rtol=1e-4, atol=1e-6)
    for a, b in zip(split[1], whole[1], strict=True):
        assert a.keys() == b.keys()
        close(list(a.values()), [b[n] for n in a], rtol=1e-4, atol=1e-6)


def test_parts_in_which_nothing_counts_are_fine():
    objective = Objective(
        term(kl, student.logits, teacher.logits, where=batch.attention_mask),
        student=trainable(MLP()),
        teacher=frozen(MLP()),
    )
    data = tokens()
    data["attention_mask"][:3] = 0
    whole = run(train_step(objective, sgd, compile=False), [data])
    split = run(train_step(objective, sgd, compile=False, accumulate=2), [data])
    close(split[0].trainable, whole[0].trainable)


def test_a_count_that_depends_on_a_model_is_merged_as_well():
    sure = fkd.call(lambda x: x.softmax(-1).amax(-1) > 0.25, teacher.logits)
    objective = Objective(
        term(kl, student.logits, teacher.logits, where=sure),
        student=trainable(MLP()),
        teacher=frozen(MLP(12, 3)),
    )
    whole = run(train_step(objective, sgd, compile=False), [tokens()])
    split = run(train_step(objective, sgd, compile=False, accumulate=3), [tokens()])
    close(split[0].trainable, whole[0].trainable)


def test_states_go_from_part_to_part():
    def counting(s, t, *, state):
        return (s - t).square().mean(-1), {"seen": state["seen"] + s.shape[0]}

    objective = Objective(
        term(counting, student.logits, teacher.logits, state={"seen": torch.tensor(0)}),
        student=trainable(MLP()),
        teacher=frozen(MLP()),
    )
    for parts in (1, 2, 3):
        step = train_step(objective, sgd, compile=False, accumulate=parts)
        state, _ = run(step, [tokens(), tokens()])
        assert state.loss_state["loss"]["seen"] == 12


# What is not finite


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_left_out_and_counted(poison, accumulate):
    def centred(s, t, *, state):
        return (s - t).square().mean(-1), 0.9 * state + 0.1 * t.mean(0) + s.mean()

    objective = Objective(
        {
            "c": term(centred, student.logits, ref("slow").logits, state=torch.zeros(5)),
            "labels": term(cross_entropy, student.logits, batch.labels),
        },
        student=trainable(CNN()),
        slow=ema("student", decay=0.5),
    )
    good = [images(seed=i) for i in range(3)]
    bad = {**images(seed=9)}
    bad["image"][0, 0, 0, 0] = poison
    step = train_step(objective, adamw, compile=False, accumulate=accumulate)
    state, _ = run(step, good[:2])
    before = copied(state)
    state, metrics = step(state, bad)
    assert (
        metrics["finite"] == 0 and metrics["skipped"] == 1 and not metrics["loss/total"].isfinite()
    )
    assert state.step == before.step + 1 and state.skipped == 1
    for name in ("trainable", "frozen", "buffers", "optimizer", "loss_state"):
        assert same_bits(getattr(state, name), getattr(before, name)), name
    state, metrics = step(state, good[2])
    without, _ = run(train_step(objective, adamw, compile=False, accumulate=accumulate), good)
    assert metrics["finite"] == 1 and metrics["skipped"] == 1
    assert same_bits(state.trainable, without.trainable)
    assert same_bits(state.optimizer, without.optimizer)


def test_a_first_update_that_is_not_finite_leaves_no_trace():
    step = train_step(simple(), adamw, compile=False)
    before = copied(step.init())
    state, _ = run(step, [{**tokens(), "x": torch.full((6, 7, 6), float("nan"))}])
    assert same_bits(state.trainable, before.trainable)
    state, _ = step(state, tokens())
    clean, _ = run(train_step(step.objective, adamw, compile=False), [tokens()])
    assert same_bits(state.trainable, clean.trainable)


# Options


def test_clipping_scales_the_gradient_to_the_norm():
    objective = simple()
    plain, (metrics,) = run(train_step(objective, sgd, compile=False), [tokens()])
    start = train_step(objective, sgd, compile=False).init()
    norm = float(metrics["grad_norm/total"])
    clipped, (other,) = run(train_step(objective, sgd, compile=False, clip=norm / 2), [tokens()])
    assert other["grad_norm/total"] == metrics["grad_norm/total"]
    moved = [
        torch.cat(
            [
                (a - b).flatten()
                for a, b in zip(leaves(s.trainable), leaves(start.trainable), strict=True)
            ]
        )
        for s in (plain, clipped)
    ]
    close(moved[1], moved[0] / 2, rtol=1e-3, atol=1e-6)
    loose, _ = run(train_step(objective, sgd, compile=False, clip=norm * 2), [tokens()])
    assert same_bits(loose.trainable, plain.trainable)


def test_an_ema_follows_its_formula():
    decay = linear(0.5, 1.0, 4)
    net = CNN()
    objective = Objective(
        {
            "labels": term(cross_entropy, student.logits, batch.labels),
            "self": term(mse, student.logits, ref("slow").logits),
        },
        student=trainable(net),
        slow=ema("student", decay=decay),
    )
    step = train_step(objective, sgd, compile=False)
    state = step.init()
    held = {n: p.detach().clone() for n, p in net.state_dict().items()}
    for i in range(3):
        state, _ = step(state, images(seed=i))
        for name, e in held.items():
            new = {**state.trainable["student"], **state.buffers["student"]}[name]
            whole = not e.is_floating_point()
            held[name] = new.clone() if whole else decay(i) * e + (1 - decay(i)) * new
        found = {**state.frozen["slow"], **state.buffers["slow"]}
        assert found.keys() == held.keys()
        close(found, {n: held[n] for n in found})


def test_groups_have_their_own_rates_and_decay():
    objective = Objective(
        term(mse, fkd.module("project")(student.hidden_states[2]), teacher.hidden_states[1]),
        student=trainable(MLP(), unused=["norm", "head"]),
        teacher=frozen(MLP(12, 2)),
        project=trainable(nn.Linear(8, 12)),
    )

    def make(params):
        groups = param_groups(params, weight_decay=0.5, lr={"project": 0.01})
        return torch.optim.SGD(groups, lr=0.1)

    step = train_step(objective, make, compile=False, lr=lambda s: 0.5)
    start = copied(step.init())
    assert set(step.rates(start).values()) == {0.05, 0.005}
    state, _ = run(step, [tokens()])
    names = [(m, n) for m, held in start.trainable.items() for n in held]
    grads = torch.func.grad(lambda p: objective(start.parts._replace(trainable=p), tokens())[0])(
        start.trainable
    )
    for m, n in names:
        lr = 0.5 * (0.01 if m == "project" else 0.1)
        p = start.trainable[m][n]
        decayed = grads[m][n] + (0.5 * p if p.ndim == 2 else 0)
        close(state.trainable[m][n], p - lr * decayed)


def test_bf16_is_near_float32_and_keeps_float32_where_it_matters():
    objective = simple()
    full, (a,) = run(train_step(objective, sgd, compile=False), [tokens()])
    half, (b,) = run(train_step(objective, sgd, compile=False, precision="bf16"), [tokens()])
    assert all(p.dtype is torch.float32 for p in leaves(half.trainable))
    assert half.frozen["teacher"]["head.weight"].dtype is torch.bfloat16
    assert half.frozen["teacher"]["head.bias"].dtype is torch.float32
    assert b["loss/total"].dtype is torch.float32
    close(b["loss/total"], a["loss/total"], rtol=2e-2, atol=2e-2)
    close(half.trainable, full.trainable, rtol=5e-2, atol=5e-3)


def test_metrics_are_scalars_without_a_gradient():
    objective = Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, weight=linear(1.0, 0.0, 4)),
            "m": fkd.metric(mse, student.logits, teacher.logits),
        },
        student=trainable(MLP()),
        teacher=frozen(MLP()),
    )
    _, (metrics,) = run(train_step(objective, sgd, compile=False), [tokens()])
    assert {"loss/total", "loss/kd", "loss/m", "weight/kd", "skipped", "finite"} <= set(metrics)
    assert {"grad_norm/student", "grad_norm/total"} <= set(metrics)
    assert all(x.ndim == 0 and not x.requires_grad for x in metrics.values())
    close(metrics["loss/total"], metrics["loss/kd"])


def test_metrics_of_a_step_stay_what_they_were():
    step = train_step(simple(), sgd, compile=False)
    state, metrics = step(step.init(), tokens())
    before = copied(metrics)
    step(state, {**tokens(), "x": torch.full((6, 7, 6), float("nan"))})
    assert same_bits(metrics, before)


# Randomness, resuming


def test_randomness_follows_the_seed_and_the_step_alone():
    net = MLP(dropout=0.5)
    objective = simple(student=trainable(net))
    batches = [tokens()] * 3
    before = torch.get_rng_state()
    one = run(train_step(objective, sgd, compile=False), batches, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(7)
    again = run(train_step(objective, sgd, compile=False), batches, seed=1)
    other = run(train_step(objective, sgd, compile=False), batches, seed=2)
    assert same_bits(one, again)
    assert one[1][0]["loss/total"] != other[1][0]["loss/total"]
    still = train_step(objective, lambda p: torch.optim.SGD(p, lr=0.0), compile=False)
    losses = [float(m["loss/total"]) for m in run(still, batches)[1]]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("seed", range(2))
def test_a_run_that_stops_and_goes_on_is_the_run_that_does_not(seed, make):
    objective = random_objective(seed, dropout=0.3)
    batches = [tokens(seed=i) for i in range(5)]
    whole, _ = run(train_step(objective, make, compile=False, lr=linear(1.0, 0.1, 5)), batches)
    half, _ = run(train_step(objective, make, compile=False, lr=linear(1.0, 0.1, 5)), batches[:3])
    state = copied(half)
    again = train_step(objective, make, compile=False, lr=linear(1.0, 0.1, 5))
    for data in batches[3:]:
        state, _ = again(state, data)
    assert same_bits(state, whole)


def test_one_step_serves_several_runs():
    step = train_step(simple(), adamw, compile=False)
    one, two = step.init(), step.init()
    for i in range(3):
        one, _ = step(one, tokens(seed=i))
        two, _ = step(two, tokens(seed=i))
    assert same_bits(one, two)
    alone, _ = run(
        train_step(step.objective, adamw, compile=False), [tokens(seed=i) for i in range(3)]
    )
    assert same_bits(one, alone)


def test_a_batch_may_hold_what_is_no_tensor():
    step = train_step(simple(), sgd, compile=False)
    one, _ = run(step, [tokens()])
    two, _ = run(step, [{**tokens(), "text": ["a"] * 6, "index": None}])
    assert same_bits(one.trainable, two.trainable)


# Wrong input


@pytest.mark.plain
def test_mistakes_are_reported_before_anything_is_compiled():
    objective = simple()
    step = train_step(objective, sgd, compile=AOT)
    with pytest.raises(fkd.ObjectiveError, match=r"batch\.labels: no 'labels' here"):
        step(step.init(), {"x": torch.randn(2, 3, 6)})
    wrong = Objective(term(kl, student.logits, ref("tcher").logits), **objective.models)
    with pytest.raises(fkd.ObjectiveError, match="no such model"):
        train_step(wrong, sgd).init()


@pytest.mark.plain
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate is 0; at least 1"),
        ({"precision": "half"}, "precision is 'half'"),
        ({"clip": 0.0}, "clip is 0.0; a positive norm or None"),
        ({"clip": -1.0}, "clip is -1.0; a positive norm"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        train_step(simple(), sgd, **options)


@pytest.mark.plain
def test_an_optimizer_that_is_no_function():
    with pytest.raises(TypeError, match="optimizer is a SGD; a function of the parameters"):
        train_step(simple(), sgd([nn.Parameter(torch.zeros(1))]))


def test_a_batch_too_small_to_be_split():
    step = train_step(simple(), sgd, compile=False, accumulate=7)
    with pytest.raises(ValueError, match="accumulate=7, and the batch has only 6 examples"):
        step(step.init(), tokens())
