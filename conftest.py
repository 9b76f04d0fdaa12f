"""Names that the examples in docstrings use, and one seed for every test."""

from __future__ import annotations

from typing import Any

import pytest

import tests.typecheck  # noqa: F401  the run-time type check looks it up by name


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, Any]) -> None:
    # Imported here, not above: the run-time type check hooks into the first import of fkd.
    import torch

    import fkd

    for module in (fkd.losses, fkd.schedules, fkd):
        public = {n: v for n, v in vars(module).items() if not n.startswith("_")}
        doctest_namespace.update(public)
    doctest_namespace.update(torch=torch, fkd=fkd)
