"""Options that may differ from model to model: `{"student": ..., ("generator", "noise"): ...}`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from fkd._base.errors import expect, listing, nearest
from fkd._objective.models import trainable_parameters
from fkd._objective.objective import Objective
from fkd.schedules import Schedule as Fixed

from .optimizer import MakeOptimizer

T = TypeVar("T")

Schedule: TypeAlias = Callable[[int], float]
"""`step -> factor`."""

When: TypeAlias = Callable[[int], bool]
"""`step -> whether a model is updated`."""

Names: TypeAlias = tuple[str, ...]
"""The models for which one option holds."""

_LEAST = 0.005
"""A schedule that is never above this is one of learning rates, and not of factors on them."""

ByModel: TypeAlias = Mapping[str | Names, T]
"""An option by model; a tuple of names has one option in common."""


def by_models(
    option: str, options: ByModel[T], trainable: Sequence[str], *, all_of_them: bool = False
) -> dict[Names, T]:
    """An option by the models for which it holds.

    Args:
      option: its name, for messages.
      options: by the name of a model, or by a tuple of names.
      trainable: the models that there are.
      all_of_them: each has to be named.

    Raises:
      ValueError: a name is unknown or given twice, or a model is missing.
    """
    chosen = {(k,) if isinstance(k, str) else tuple(k): value for k, value in options.items()}
    named = [name for names in chosen for name in names]
    for name in named:
        if name not in trainable:
            raise ValueError(
                f"train_step: {option} names {name!r}, which is not a trainable model. "
                f"{nearest(str(name), trainable)}Trainable models: {listing(trainable)}."
            )
        if named.count(name) > 1:
            raise ValueError(
                f"train_step: {option} names {name!r} twice; each model is expected once."
            )
    missing = [name for name in trainable if name not in named]
    if all_of_them and missing:
        raise ValueError(
            f"train_step: {option} names no {listing(map(repr, missing))}. Every trainable model "
            f"is expected; several may share one: {{{tuple(trainable)!r}: ...}}."
        )
    return chosen


@dataclass(frozen=True)
class Choices:
    """What may differ from model to model.

    Attributes:
      models: those that are trained, in the order of a state.
      optimizers, clips, rates, when: see `train_step`.
    """

    models: Names
    optimizers: Mapping[Names, MakeOptimizer]
    clips: Mapping[Names, float]
    rates: Mapping[Names, Schedule]
    when: Mapping[Names, When]

    def updated(self, step: int) -> Names:
        """The models that are updated at a step.

        Raises:
          ValueError: none is.
        """
        if not self.when:
            return self.models
        resting = {n for names, when in self.when.items() if not _says(when, step) for n in names}
        updated = tuple(name for name in self.models if name not in resting)
        if not updated:
            raise ValueError(f"train_step: at step {step} no model is updated, as `when` has it.")
        return updated

    def factors(self, step: int) -> dict[Names, float]:
        """On the learning rate of each optimizer.

        Raises:
          ValueError: one is not finite.
        """
        factors = dict.fromkeys(self.optimizers, 1.0)
        for names, schedule in self.rates.items():
            factors[names] = factor = _number_at("lr", schedule, step)
            if not (math.isfinite(factor) and factor >= 0):
                raise ValueError(
                    f"train_step: lr gives {factor} at step {step}; a finite factor on the "
                    "learning rate is expected, 0 or more. Nothing was updated."
                )
        return factors


def choices_of(
    objective: Objective,
    optimizer: MakeOptimizer | ByModel[MakeOptimizer],
    *,
    clip: float | ByModel[float] | None,
    lr: Schedule | ByModel[Schedule] | None,
    when: ByModel[When],
) -> Choices:
    """The options of `train_step`, by the models for which they hold.

    Raises:
      ValueError: a name is unknown, given twice, or missing; a number is out of range.
      TypeError: an optimizer is no function.
    """
    models = trainable_models(objective)
    expect("train_step", "when", when, Mapping, "{model: step -> bool}")
    for function in when.values():
        _is_function("when", function, _WHEN)
    optimizers = optimizers_of(optimizer, models)
    return Choices(
        models=models,
        optimizers=optimizers,
        clips=clips_of(clip, models),
        rates=rates_of(lr, optimizers, models),
        when=by_models("when", when, models),
    )


def trainable_models(objective: Objective) -> Names:
    """The models of an objective that have something to train, in the order of a state."""
    return tuple(
        name
        for name, model in objective.models.items()
        if model.kind == "trainable" and trainable_parameters(model)
    )


def optimizers_of(
    optimizer: MakeOptimizer | ByModel[MakeOptimizer], trainable: Names
) -> dict[Names, MakeOptimizer]:
    """What makes an optimizer, by the models that it updates.

    Raises:
      ValueError: a name is unknown, given twice, or missing.
      TypeError: what is given cannot be called.
    """
    if isinstance(optimizer, Mapping):
        makers = by_models("optimizer", optimizer, trainable, all_of_them=True)
    else:
        makers = {trainable: optimizer}
    for names, maker in makers.items():
        if not callable(maker):
            whose = f" of {label(names)!r}" if isinstance(optimizer, Mapping) else ""
            raise TypeError(
                f"train_step: optimizer{whose} is a {type(maker).__name__}; a function of the "
                "parameters is expected: lambda params: torch.optim.AdamW(params, lr=1e-4)."
            )
    return makers


def clips_of(norms: float | ByModel[float] | None, trainable: Names) -> dict[Names, float]:
    """The greatest norms of gradients, by the models that are clipped together."""
    clips = by_models("clip", norms, trainable) if isinstance(norms, Mapping) else {}
    if norms is not None and not isinstance(norms, Mapping):
        clips[trainable] = norms
    for clip in clips.values():
        expect("train_step", "clip", clip, (int, float), "a positive norm or None")
        if not clip > 0:
            raise ValueError(f"train_step: clip is {clip}; a positive norm or None is expected.")
    return clips


def rates_of(
    schedules: Schedule | ByModel[Schedule] | None,
    optimizers: Mapping[Names, object],
    trainable: Names,
) -> dict[Names, Schedule]:
    """The schedules of learning rates, by the models of an optimizer.

    Raises:
      ValueError: a schedule is for models that no single optimizer updates alone.
    """
    if schedules is None:
        return {}
    if not isinstance(schedules, Mapping):
        return dict.fromkeys(optimizers, _factor(schedules))
    rates: dict[Names, Schedule] = {}
    for names, schedule in by_models("lr", schedules, trainable).items():
        owner = next((key for key in optimizers if set(key) == set(names)), None)
        if owner is None:
            raise ValueError(
                f"train_step: lr names {label(names)!r}, and these have no optimizer of their own. "
                f"Optimizers: {listing(map(label, optimizers))}. Give them one: "
                "optimizer={'student': ..., ...}."
            )
        rates[owner] = _factor(schedule)
    return rates


_LR = (
    "a schedule of a factor on the learning rate, step -> float, is expected. The rate itself is "
    "given to the optimizer: lambda params: torch.optim.AdamW(params, lr=1e-4)"
)
_WHEN = "a function step -> bool is expected, as fkd.schedules.turns makes them"


def _number_at(option: str, schedule: Schedule, step: int) -> float:
    try:
        return float(schedule(step))
    except Exception as error:
        raise ValueError(
            f"train_step: {option} failed at step {step}: {type(error).__name__}: {error}. A "
            "function of the step alone is expected, which gives a number: lambda step: 0.99**step."
        ) from error


def _says(when: Callable[[int], object], step: int) -> bool:
    try:
        answer = when(step)
    except Exception as error:
        raise ValueError(
            f"train_step: when failed at step {step}: {type(error).__name__}: {error}. {_WHEN}."
        ) from error
    if answer is None:
        raise ValueError(f"train_step: when gives None at step {step}; {_WHEN}.")
    return bool(answer)


def _factor(schedule: Schedule) -> Schedule:
    """A schedule of the learning rate; one that gives rates instead of factors is told."""
    _is_function("lr", schedule, _LR)
    if isinstance(schedule, Fixed):
        greatest = max(schedule(step) for step in (0, *(10**i for i in range(8))))
        if 0 < greatest < _LEAST:
            warnings.warn(
                f"train_step: lr={schedule!r} is at most {greatest:g}, and it is a factor on the "
                "learning rate of the optimizer, which would hardly move anything. The rate is "
                "given to the optimizer: lambda params: torch.optim.AdamW(params, lr=1e-4); "
                "factors are about 1.",
                stacklevel=5,
            )
    return schedule


def _is_function(option: str, value: object, expected: str) -> None:
    if not callable(value):
        raise TypeError(f"train_step: {option} is {value!r}; {expected}.")


def label(names: Names) -> str:
    """Models that share an option, in logs."""
    return "+".join(names)
