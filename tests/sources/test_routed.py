"""Several teachers: each sample has those that the batch names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fkd
from fkd import frozen, student, teacher, term, trainable
from fkd.loops import run
from fkd.losses import mse
from fkd.sources import SourceError, ahead, bind, cache, live, routed
from tests.models import FEATURES, MLP

from .test_ahead import Slow, sgd
from .test_bind import assert_same, data, mlps
from .test_cache import goal, loader, rows


def goals(count=3, **terms):
    terms = terms or dict(mlps().terms)
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(fkd.Objective(terms, student=trainable(MLP(4)), teacher=frozen(MLP(8))))
    return made


def by_teacher(objectives, one):
    return [live(o).values(one)["v0"] for o in objectives]


FORMS = {
    "numbers": torch.tensor([2, 0, 2, 1]),
    "names": ["c", "a", "c", "b"],
    "one-name lists": [["c"], ["a"], ("c",), ["b"]],
    "bool": torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0]]).bool(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("multiple", [1, 3])
def test_each_sample_has_the_teacher_that_the_batch_names(form, multiple):
    objectives, one = goals(), {**data(), "by": FORMS[form]}
    source = routed("by", dict(zip("abc", objectives, strict=True)), multiple=multiple)
    cheap = bind(objectives[0], source)
    [attached] = source.attach([one])
    values = attached[f"fkd.sources/{source.name}"]["v0"]
    of = by_teacher(objectives, one)
    expected = torch.stack([of[t][r] for r, t in enumerate([2, 0, 2, 1])])
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    assert cheap(cheap.init(), attached)[0].isfinite()


def test_routed_with_one_teacher_is_live_to_the_bit(tmp_path):
    objective = goal()
    kept = cache(objective, loader(rows()), tmp_path, progress=False)
    for inner in (objective, kept, ahead(objective)):
        source = routed("by", {"one": inner})
        cheap = bind(objective, source)
        made = [{**b, "by": torch.zeros(4, dtype=torch.int64)} for b in loader(rows())]
        for one, attached in zip(made, source.attach(made), strict=True):
            assert_same(objective, cheap, one, attached)
    with pytest.raises(SourceError, match="another teacher"):
        bind(goal(seed=9), routed("by", {"one": kept}))


def test_a_sample_of_several_teachers_has_their_mean():
    objectives = goals()
    one = {**data(), "by": [["a", "b"], ["c"], ["c", "a", "b"], []]}
    source = routed("by", dict(zip("abc", objectives, strict=True)), fill=-1.0)
    bind(objectives[0], source)
    values = source.values(one)["v0"]
    a, b, c = by_teacher(objectives, one)
    torch.testing.assert_close(values[0], (a + b)[0] / 2)
    torch.testing.assert_close(values[1], c[1])
    torch.testing.assert_close(values[2], (a + b + c)[2] / 3)
    assert bool((values[3] == -1).all())


def test_teachers_without_a_sample_do_not_run():
    a, b = Slow(goal()), Slow(goal())
    source = routed("by", {"a": a, "b": b})
    cheap = bind(goal(), source)
    made = [{**b, "by": ["a"] * 4} for b in loader(rows())]
    step = sgd(cheap, compile=False)
    run(step, step.init(), source.attach(made), epochs=1, progress=False)
    assert len(a.asked) == 5 and not b.asked


def test_routed_sources_run_ahead():
    objectives = goals(2)
    with ahead(objectives[0]) as first, ahead(objectives[1], batches=2) as second:
        source = routed("by", {"a": first, "b": second})
        assert source.batches == 2
        cheap = bind(objectives[0], source)
        made = [{**data(), "by": torch.tensor([0, 1, 1, 0])} for _ in range(3)]
        losses = {float(cheap(cheap.init(), b)[0]) for b in source.attach(made)}
        [attached] = source.attach(made[:1])
        text = str(fkd.check(cheap, attached))
    assert len(losses) == 1
    assert "by batch['by']: a 1 ahead of the step; b 2 ahead of the step" in text


@pytest.mark.plain
def test_what_cannot_be_routed_is_refused():
    objectives = goals()
    source = routed("by", dict(zip("abc", objectives, strict=True)))
    with pytest.raises(SourceError, match="no objective was bound"):
        source.values({**data(), "by": FORMS["names"]})
    bind(objectives[0], source)
    for by, words in (
        (["a", "b", "d", "a"], "names 'd'.*The teachers are a, b, c"),
        (torch.tensor([0, 1, 3, 0]), "has the number 3"),
        (torch.tensor([0, 1, -1, 0]), "row 2 of the batch has no teacher"),
        (torch.ones(4), r"is float32\[4\]. Expected"),
    ):
        with pytest.raises(SourceError, match=words):
            source.values({**data(), "by": by})
    with pytest.raises(SourceError, match="no field 'by'"):
        source.values(data())
    wide = fkd.Objective(
        dict(mlps().terms),
        teacher=frozen(nn.Linear(FEATURES, 7), inputs=lambda b: b["x"], outputs=as_logits),
    )
    other = routed("by", {"a": objectives[0], "b": wide})
    bind(objectives[0], other)
    with pytest.raises(SourceError, match="one shape"):
        other.values({**data(), "by": ["a", "b", "a", "a"]})
    half = routed("by", {"a": objectives[0],
                         "b": goals(1, a=term(mse, student.hidden_states[1],
                                              teacher.hidden_states[1]))[0]})  # fmt: skip
    with pytest.raises(SourceError, match="given by a, and not by b"):
        bind(objectives[0], half)
    with pytest.raises(SourceError, match="0 routes"):
        routed("by", {})


def as_logits(y):
    return {"logits": y}
