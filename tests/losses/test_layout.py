"""Classes are last; maps of logits, whose classes are the second axis, are refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fkd
from fkd.losses import token_log_probs

OTHERWISE = {"universal_kd"}  # a stack of layers before the classes


def _of_logits_alone() -> dict[str, Callable[..., Any]]:
    losses: dict[str, Callable[..., Any]] = {}
    for name, loss in vars(fkd.losses).items():
        if inspect.isfunction(loss) and name not in OTHERWISE:
            needed = [
                p for p in inspect.signature(loss).parameters.values() if p.default is p.empty
            ]
            if needed and all(p.name.endswith("logits") for p in needed):
                losses[name] = loss
    return losses


@pytest.mark.plain
@pytest.mark.parametrize("name", _of_logits_alone())
def test_a_square_map_of_logits_is_refused(name: str) -> None:
    loss = _of_logits_alone()[name]
    count = sum(p.default is p.empty for p in inspect.signature(loss).parameters.values())
    with pytest.raises(ValueError, match=r"classes are expected last|are expected, "):
        loss(*[torch.randn(2, 5, 4, 4)] * count)


@pytest.mark.plain
def test_what_lists_classes_refuses_a_square_map_of_logits() -> None:
    logits = torch.randn(2, 5, 4, 4)
    with pytest.raises(ValueError, match=r"top_k: .* classes are expected last"):
        fkd.losses.top_k(logits, 2)
    with pytest.raises(ValueError, match=r"sample: .* classes are expected last"):
        fkd.losses.sample(logits, torch.rand(2, 5, 4, 3))


@pytest.mark.plain
def test_one_token_at_each_position() -> None:
    with pytest.raises(ValueError, match="one token at each position"):
        token_log_probs(torch.randn(2, 3, 5), torch.zeros(2, 4, dtype=torch.long))
