"""The catalogue of losses is up to date and complete."""

from __future__ import annotations

import pytest

import fkd

from . import catalogue


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
