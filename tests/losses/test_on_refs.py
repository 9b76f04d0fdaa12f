"""A loss that is called on refs, where it should be handed over, says so in one line."""

from __future__ import annotations

import inspect

import pytest

import fkd
from fkd import student

LOSSES = {
    name: loss
    for name, loss in vars(fkd.losses).items()
    if inspect.isfunction(loss) and name != "counted_where"  # a decorator
}


@pytest.mark.plain
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_on_refs_is_a_ref_or_says_how_to_write_it(name: str) -> None:
    needed = [
        p for p in inspect.signature(LOSSES[name]).parameters.values() if p.default is p.empty
    ]
    args = [student.logits for p in needed if p.kind is p.POSITIONAL_OR_KEYWORD]
    options = {p.name: student.logits for p in needed if p.kind is p.KEYWORD_ONLY}
    try:
        value = LOSSES[name](*args, **options)
    except (TypeError, ValueError) as error:
        assert any(way in str(error) for way in ("fkd.call", "fkd.term", "fkd.module")), error
    else:
        assert "student.logits" in repr(value)  # arithmetic of refs, which is a ref
