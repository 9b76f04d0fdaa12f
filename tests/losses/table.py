"""The table of losses: the CASES of every `cases_*.py` below this folder.

A module may also define `NOT_LOSSES: dict[str, str]`, public names of `fkd.losses` that are no
losses, each with the place where its laws are tested.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from .case import Case

HERE = Path(__file__).parent
CASES: list[Case] = []
NOT_LOSSES: dict[str, str] = {}
BROKEN: dict[str, Exception] = {}

for path in sorted(HERE.rglob("cases_*.py")):
    try:
        module = importlib.import_module(f"{__package__}.{path.parent.name}.{path.stem}")
    except Exception as error:  # reported by a test of its own, so the other rows still run
        BROKEN[path.stem] = error
        continue
    CASES.extend(module.CASES)
    NOT_LOSSES.update(getattr(module, "NOT_LOSSES", {}))
