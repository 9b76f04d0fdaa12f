"""The run-time type check: `pytest --jaxtyping-packages=fkd,tests.typecheck.checker`."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
