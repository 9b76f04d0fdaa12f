"""A report card from the JSON that it was saved as."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from .record import Calibration, Cost, Difference, Disagreement, ModelCard, Quality, Record

T = TypeVar("T")


def record_of(data: Any) -> Record:
    """The record that `dataclasses.asdict` has made plain data of.

    Raises:
      KeyError, TypeError: it is no card.
    """
    return Record(_model(data["teacher"]), tuple(map(_model, data["students"])), data["method"])


def _model(row: Mapping[str, Any]) -> ModelCard:
    return _filled(
        ModelCard,
        row,
        quality={name: _quality(value) for name, value in row["quality"].items()},
        cost=_filled(Cost, row["cost"]),
        calibration=_calibration(row.get("calibration")),
        disagreements=tuple(_filled(Disagreement, one) for one in row["disagreements"]),
        similarity=tuple(map(tuple, row["similarity"])),
    )


def _quality(row: Mapping[str, Any]) -> Quality:
    less = row.get("difference")
    difference = None if less is None else _filled(Difference, less)
    return _filled(Quality, row, seeds=tuple(row["seeds"]), difference=difference)


def _calibration(row: Mapping[str, Any] | None) -> Calibration | None:
    if row is None:
        return None
    bins: dict[str, Sequence[float]] = {
        n: tuple(row[n]) for n in ("confidence", "accuracy", "count")
    }
    return _filled(Calibration, row, **bins)


def _filled(kind: type[T], row: Mapping[str, Any], **parts: Any) -> T:
    """A dataclass from the fields that it has of a row; cards of later versions may have more."""
    names = {f.name for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**{**{n: v for n, v in row.items() if n in names}, **parts})
