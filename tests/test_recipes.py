"""Every recipe runs as it is printed."""

from __future__ import annotations

import re

import pytest
import torch

import fkd
from examples.recipes import FILES, RECIPES, Recipe
from fkd._catalogue.docstrings import public
from fkd.loops._step.gradient import differentiated


def test_there_are_recipes_of_many_papers():
    assert len(RECIPES) >= 80
    assert len({recipe.title for recipe in RECIPES}) == len(RECIPES)
    assert all(re.search(r"arXiv:\d{4}\.\d{4,5}|20\d\d", recipe.paper) for recipe in RECIPES)
    assert all((file.__doc__ or "").strip() for file in FILES)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.title)
def test_a_recipe_checks_and_reaches_every_parameter(recipe: Recipe):
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(recipe.source, names)  # as it is printed
    data, objective = recipe.data(), fkd.Objective(names["terms"], **recipe.models())
    rows = fkd.check(objective, data).rows
    assert {row.term for row in rows} == objective.terms.keys()
    assert recipe.losses or "def " in recipe.source  # of fkd, or its own

    parts = objective.init()
    leaves = [p.requires_grad_() for held in parts.trainable.values() for p in held.values()]
    _, aux = objective(parts, data, step=499)
    parts = parts._replace(loss_state=aux.loss_state)  # a queue is empty at first
    new = differentiated(objective, parts, objective.scalars(500), data)  # as a step does
    assert all(torch.isfinite(mean.value).all() for mean in new.means.values())
    moved = sum(bool(g.abs().sum() > 0) for g in new.grads)
    assert moved > len(leaves) // 2


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.title)
def test_a_recipe_is_short(recipe: Recipe):
    body = recipe.source.split("\n\n", 1)[1]
    assert len(body.splitlines()) <= 36 and max(map(len, body.splitlines())) <= 100


def test_most_losses_are_in_a_recipe():
    functions = {n for n, v in public(fkd.losses).items() if not isinstance(v, type)}
    used = {name for recipe in RECIPES for name in recipe.losses}
    assert len(used) > 0.6 * len(functions), sorted(functions - used)


def own_loss(title: str, term: str):
    """The loss that a recipe writes itself."""
    (recipe,) = [recipe for recipe in RECIPES if recipe.title == title]
    names: dict[str, object] = {}
    exec(recipe.source, names)
    return fkd.Objective(names["terms"], **recipe.models()).terms[term].loss


LOGITS = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 4, 2])


def test_plackett_luce_is_the_weighted_likelihood_of_a_ranking():
    ours, theirs = LOGITS
    got = own_loss("Plackett-Luce distillation (PLD)", "pld")(ours, theirs, LABELS)
    for value, s, t, label in zip(got, ours, theirs, LABELS, strict=True):
        rest = sorted(set(range(5)) - {int(label)}, key=lambda c: -float(t[c]))
        order = [int(label), *rest]
        expected = sum(
            t.softmax(-1)[c] * -torch.log_softmax(s[order[i:]], -1)[0] for i, c in enumerate(order)
        )
        torch.testing.assert_close(value, expected)


def test_differences_of_logits_are_two_divergences():
    ours, theirs = LOGITS
    bild = own_loss("Differences of logits (BiLD)", "bild")
    got = bild(ours, theirs, k=3, temperature=1.0)
    expected = torch.zeros(3, dtype=torch.float64)
    for led in (theirs, ours):
        for row in range(3):
            top = led[row].argsort(descending=True)[:3].tolist()
            gaps = [[x[row, a] - x[row, b] for i, a in enumerate(top) for b in top[i + 1 :]]
                    for x in (ours, theirs)]  # fmt: skip
            s, t = (torch.stack(g).log_softmax(-1) for g in gaps)
            expected[row] += (t.exp() * (t - s)).sum()
    torch.testing.assert_close(got, expected)


def test_refined_logits_leave_out_what_the_teacher_has_wrong():
    ours, theirs = LOGITS
    correlation = own_loss("Refined logits (RLD)", "correlation")
    got = correlation(ours, theirs, LABELS, temperature=1.0)
    for value, s, t, label in zip(got, ours, theirs, LABELS, strict=True):
        kept = [c for c in range(5) if t[c] < t[label]]
        p, q = t[kept].log_softmax(-1), s[kept].log_softmax(-1)
        torch.testing.assert_close(value, (p.exp() * (p - q)).sum())
    confidence = own_loss("Refined logits (RLD)", "confidence")
    got = confidence(ours, theirs, LABELS, temperature=1.0)
    p, q = theirs.softmax(-1).amax(-1), ours.softmax(-1).gather(-1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(got, p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
