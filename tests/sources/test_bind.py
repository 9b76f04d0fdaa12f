"""The frontier, and objectives that read it from the batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fkd
from fkd import batch, call, ema, frozen, module, ref, student, teacher, term, trainable
from fkd.losses import attention_kl, cross_entropy, head, head_divergence, kl, mse
from fkd.sources import SourceError, bind, frontier, live
from tests.interop.tiny import tiny
from tests.models import CLASSES, CNN, FEATURES, MLP


def mean(*values):
    return torch.stack(values).mean(0)


def mlps(**terms):
    torch.manual_seed(0)
    return fkd.Objective(
        terms or {"kd": term(kl, student.logits, teacher.logits, temperature=2.0)},
        student=trainable(MLP(4)),
        teacher=frozen(MLP(8)),
    )


def data(rows=4, length=3):
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(rows, length, FEATURES, generator=generator),
        "y": torch.randint(CLASSES, (rows, length), generator=generator),
        "mask": torch.arange(length).expand(rows, length) < length - 1,
    }


def value_and_gradient(objective, made):
    parts = objective.init()
    leaves = {
        m: {n: x.requires_grad_() for n, x in held.items()} for m, held in parts.trainable.items()
    }
    loss, aux = objective(parts._replace(trainable=leaves), made)
    wanted = [x for held in leaves.values() for x in held.values()]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    return loss.detach(), grads, {n: m.value.detach() for n, m in aux.terms.items()}


def assert_same(one, other, made, attached):
    a, b = value_and_gradient(one, made), value_and_gradient(other, attached)
    assert torch.equal(a[0], b[0])
    for x, y in zip(a[1], b[1], strict=True):
        assert (x is None and y is None) or torch.equal(x, y)
    assert all(torch.equal(a[2][n], b[2][n]) for n in a[2])


def test_the_frontier_is_the_largest_that_frozen_models_say():
    soft = call(torch.softmax, teacher.logits / 2, dim=-1)
    objective = mlps(
        labels=term(cross_entropy, student.logits, batch.y),
        soft=term(mse, torch.softmax(student.logits, -1), soft),
        hidden=term(mse, student.hidden_states[1], module("narrow")(teacher.hidden_states[2])),
        masked=term(kl, student.logits, soft.log(), where=batch.mask),
    )
    assert frontier(objective) == (soft, teacher.hidden_states[2])


def test_what_follows_from_others_is_not_kept_twice():
    objective = mlps(
        a=term(kl, student.logits, teacher.logits[:, 1:]),
        b=term(kl, student.logits, teacher.logits),
        c=term(kl, student.logits, torch.softmax(teacher.logits, -1)),
    )
    assert frontier(objective) == (teacher.logits,)


def test_parameters_and_the_batch_are_not_of_the_frontier():
    objective = mlps(
        a=term(mse, student.logits, batch.y * teacher.param("head.weight").mean()),
        b=term(mse, student.param("head.weight"), teacher.param("head.weight")[:, :4]),
    )
    assert frontier(objective) == ()


def test_a_model_that_follows_the_student_is_not_of_the_frontier():
    objective = fkd.Objective(
        {
            "mean teacher": term(kl, student.logits, ref("average").logits),
            "kd": term(kl, student.logits, call(mean, teacher.logits, ref("average").logits)),
        },
        student=trainable(MLP(4)),
        teacher=frozen(MLP(8)),
        average=ema("student"),
    )
    assert frontier(objective) == (teacher.logits,)
    cheap = bind(objective, live(objective))
    assert sorted(cheap.models) == ["average", "student"]


def ensemble():
    projected = module("project")(student.hidden_states[1])
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, call(mean, teacher.logits, ref("wide").logits)),
            "hidden": {"0": term(mse, projected, teacher.hidden_states[1])},
            "weight": term(
                kl,
                student.logits,
                teacher.logits,
                weight=torch.softmax(teacher.logits, -1).amax(-1),
                where=call(torch.ge, ref("wide").logits.amax(-1), teacher.logits.amin(-1)),
            ),
            "fixed module": term(mse, student.logits, module("still")(teacher.hidden_states[0])),
            "of the student": term(mse, student.logits, module("still")(student.hidden_states[0])),
        },
        student=trainable(MLP(8)),
        teacher=frozen(MLP(8)),
        wide=frozen(MLP(12)),
        project=trainable(nn.Linear(8, 8)),
        still=frozen(nn.Linear(8, CLASSES)),
    )


def test_bound_is_live_for_several_teachers_weights_masks_and_modules():
    objective, made = ensemble(), data()
    source = live(objective)
    cheap = bind(objective, source, compare=made)
    assert sorted(cheap.models) == ["project", "still", "student"]
    assert cheap.program.runs == ("student",)
    [attached] = source.attach([made])
    assert_same(objective, cheap, made, attached)
    assert frontier(cheap) == ()
    assert "x" in made and len(made) == 3


def test_taps_and_inputs_of_a_cnn():
    torch.manual_seed(0)
    objective = fkd.Objective(
        {
            "tap": term(mse, student.tap("first"), teacher.tap("first")),
            "input": term(mse, student.tap("second", side="input"), teacher.tap("second", "input")),
            "maps": term(mse, student.maps[0], teacher.maps[0]),
            "kd": term(kl, student.logits, teacher.logits, temperature=4.0),
        },
        student=trainable(CNN(4), inputs=lambda b: b["image"]),
        teacher=frozen(CNN(4), inputs=lambda b: b["image"]),
    )
    made = {"image": torch.randn(3, 3, 8, 8)}
    source = live(objective)
    [attached] = source.attach([made])
    cheap = bind(objective, source)
    assert sorted(cheap.models) == ["student"]
    assert_same(objective, cheap, made, attached)


def test_attention_captures_and_hidden_states_of_transformers():
    torch.manual_seed(0)
    big, small = tiny("bert"), tiny("bert")
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    made = {"input_ids": torch.randint(1, 30, (2, 5)), "attention_mask": mask}
    objective = fkd.Objective(
        {
            "attention": term(
                attention_kl, student.attention(1), teacher.attention(2), where=batch.attention_mask
            ),
            "hidden": term(
                mse, student.hidden_states[1], teacher.hidden_states[3], where=batch.attention_mask
            ),
            "kd": term(kl, student.logits, teacher.logits),
        },
        student=trainable(small, training=False, unused=["bert.pooler"]),
        teacher=frozen(big),
    )
    source = live(objective)
    [attached] = source.attach([made])
    assert_same(objective, bind(objective, source), made, attached)


def test_of_a_teacher_that_is_read_for_a_parameter_only_that_parameter_is_held():
    torch.manual_seed(0)
    small, big = tiny("llama"), tiny("llama")
    objective = fkd.Objective(
        {
            "head": term(
                head_divergence,
                student.hidden_states[-1],
                student.param("lm_head.weight"),
                teacher.hidden_states[-1],
                teacher.param("lm_head.weight"),
                divergence=head.kl(),
                labels=batch.labels,
                shift=True,
            )
        },
        student=trainable(small),
        teacher=frozen(big),
    )
    made = {"input_ids": torch.randint(1, 30, (2, 5))}
    made["labels"] = made["input_ids"]
    source = live(objective)
    cheap = bind(objective, source)
    assert list(cheap.init().frozen["teacher"]) == ["lm_head.weight"]
    assert cheap.program.runs == ("student",)
    [attached] = source.attach([made])
    assert_same(objective, cheap, made, attached)
    held = cheap.models["teacher"].module
    assert sum(p.numel() for p in held.parameters()) == big.lm_head.weight.numel()


def test_a_function_of_the_context_keeps_the_models_and_says_so():
    objective = mlps(
        kd=term(kl, student.logits, teacher.logits),
        own=term(mse, student.logits, lambda ctx: ctx["teacher"].logits),
    )
    assert frontier(objective) == (teacher.logits,)
    source = live(objective)
    with pytest.warns(UserWarning, match=r"plain function .* teacher stays .* fkd\.call"):
        cheap = bind(objective, source)
    [attached] = source.attach([data()])
    assert_same(objective, cheap, data(), attached)


def test_check_and_draw_say_where_a_value_comes_from():
    objective = mlps()
    source = live(objective)
    cheap = bind(objective, source)
    [attached] = source.attach([data()])
    text = str(fkd.check(cheap, attached))
    assert f"teacher.logits: read from the batch, where {source.name} writes it" in text
    assert f"teacher.logits<br/>from {source.name}" in fkd.draw(cheap).mermaid
    assert "MLP" not in [line for line in text.splitlines() if line.startswith("teacher:")]


def test_the_name_of_the_source_is_part_of_the_code():
    objective = mlps()
    cheap = bind(objective, live(objective))
    assert repr(cheap.terms["kd"].args[1]).startswith("sourced(teacher.logits, 'live-")


def test_a_batch_without_the_values_is_refused_with_words():
    objective = mlps()
    cheap = bind(objective, live(objective))
    with pytest.raises(fkd.ObjectiveError, match=r"teacher\.logits is read .* source\.attach"):
        fkd.check(cheap, data())


def test_a_source_of_which_nothing_is_read_is_refused():
    other = mlps(a=term(mse, student.logits, teacher.hidden_states[1]))
    with pytest.raises(SourceError, match=r"no term reads .*hidden_states\[1\].*teacher\.logits"):
        bind(mlps(), live(other))
    with pytest.raises(SourceError, match="nothing of a frozen model"):
        live(mlps(a=term(cross_entropy, student.logits, batch.y)))


def test_another_teacher_shows_on_a_batch_to_compare():
    objective = mlps()
    torch.manual_seed(7)
    other = fkd.Objective(
        dict(objective.terms), student=objective.models["student"], teacher=frozen(MLP(8))
    )
    with pytest.raises(SourceError, match=r"teacher\.logits differs by .* another teacher"):
        bind(objective, live(other), compare=data())


def test_an_objective_without_a_teacher_can_be_bound():
    source = live(mlps())
    lone = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits, temperature=2.0)},
        student=trainable(MLP(4)),
    )
    assert lone.problems
    cheap = bind(lone, source)
    assert not cheap.problems
    [attached] = source.attach([data()])
    loss, _ = cheap(cheap.init(), attached)
    assert loss.isfinite()


def test_the_teacher_is_not_in_the_bound_objective():
    import gc
    import weakref

    objective = mlps()
    gone = weakref.ref(objective.models["teacher"].module)
    source = live(objective)
    cheap = bind(objective, source)
    del objective, source
    gc.collect()
    assert gone() is None
    assert cheap.init().frozen == {}


def test_evaluation_still_measures_agreement():
    objective = mlps()
    source = live(objective)
    cheap = bind(objective, source)
    step = fkd.loops.train_step(cheap, torch.optim.SGD, compile=False)
    measured = fkd.loops.evaluate(cheap, step.init(), source.attach([data()]))
    plain = fkd.loops.evaluate(objective, step.init(), [data()])
    assert measured == plain and "agreement" in measured


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_with_a_bound_objective_has_the_bits_of_training_with_the_teacher(accumulate):
    objective = mlps()
    source = live(objective)
    loader = [data(), data()]
    ends = []
    for goal, made in ((objective, loader), (bind(objective, source), source.attach(loader))):
        step = fkd.loops.train_step(
            goal, lambda p: torch.optim.SGD(p, lr=0.1), compile=False, accumulate=accumulate
        )
        ends.append(fkd.loops.run(step, step.init(), made, epochs=2, progress=False).state)
    for name, p in ends[0].trainable["student"].items():
        assert torch.equal(p, ends[1].trainable["student"][name])


def test_what_is_drawn_for_the_teacher_and_the_student_is_refused_from_a_source():
    def noisy(x):
        return x + torch.randn_like(x)

    for inputs, drawn in ((call(noisy, batch.x), True), (call(torch.abs, batch.x), False)):
        objective = mlps(
            kd=term(kl, student.on(inputs).logits, teacher.on(inputs).logits, where=batch.mask)
        )
        source = live(objective)
        if not drawn:
            source.values(data())
            continue
        with pytest.raises(SourceError, match=r"call\(noisy, batch.x\) is read by the student"):
            source.values(data())
    apart = mlps(kd=term(kl, student.logits, teacher.on(call(noisy, batch.x)).logits))
    assert live(apart).values(data())  # noise of the teacher alone
