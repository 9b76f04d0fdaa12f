"""The catalogue of losses is up to date and complete, and its recipes run."""

from __future__ import annotations

import pytest
import torch

import fkd

from . import catalogue
from .recipes import RECIPES, Recipe


def test_docstrings_have_a_formula_a_reference_and_an_example():
    assert catalogue.faults() == []


@pytest.mark.plain
def test_the_page_is_up_to_date():
    assert catalogue.main(["--check"]) == 0, "run `python -m tests.catalogue`"


def test_every_loss_and_adapter_is_on_the_page():
    page = catalogue.PAGE.read_text()
    for package in (fkd.losses, fkd.adapters):
        assert [n for n in catalogue.public(package) if f"**{n}**" not in page] == []


def test_costs_and_adapters_name_losses_that_exist():
    losses, adapters = catalogue.public(fkd.losses), catalogue.public(fkd.adapters)
    assert not (catalogue.COSTS.keys() | catalogue.ADAPTERS.keys()) - losses.keys()
    assert not {a for pair in catalogue.ADAPTERS.values() for a in pair} - adapters.keys()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.title)
def test_recipe_checks_and_reaches_every_parameter(recipe: Recipe):
    torch.manual_seed(0)
    data = recipe.data()
    objective = fkd.Objective(recipe.terms(), **recipe.models())
    rows = fkd.check(objective, data).rows
    assert {row.term for row in rows} == objective.terms.keys()

    parts = objective.init()
    leaves = [p.requires_grad_() for held in parts.trainable.values() for p in held.values()]
    loss, aux = objective(parts, data, step=500)
    assert all(torch.isfinite(mean.value).all() for mean in aux.terms.values())
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    moved = sum(g is not None and bool(g.abs().sum() > 0) for g in grads)
    assert moved > len(leaves) // 2
