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
