"""The arguments of `fit` and `run`: listed once, with their types, and checked at once."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from fkd._base.errors import expect
from fkd._base.types import Batch
from fkd.metrics import higher_is_better, refuse_reserved

from .._base.state import State
from .._data.epochs import Loader
from .._data.loaders import expect_again, expect_loader
from .._evaluate.evaluate import Metric
from .._log.loggers import Logger
from .._step.train_step import TrainStep
from .events import Event

PathLike: TypeAlias = str | os.PathLike[str]
Prepare: TypeAlias = Callable[[State, Batch], Batch]

TOTAL = "loss/total"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `fit`, which documents them."""

    epochs: int | None = None
    steps: int | None = None
    prepare: Prepare | None = None
    dev: Loader | None = None
    metrics: Mapping[str, Metric] | None = None
    evaluate_every: int | None = None
    compile_evaluation: bool = False
    best: str = TOTAL
    higher_is_better: bool | None = None
    patience: int | None = None
    log_dir: PathLike | None = None
    log_every: int = 50
    tensorboard: bool | None = None
    progress: bool = True
    checkpoint_dir: PathLike | None = None
    save_every: int | None = None
    save_async: bool = False
    keep_last: int = 3
    keep_best: int = 1
    export_best: PathLike | None = None
    export_model: str | None = None
    resume: bool = True
    max_nonfinite: int = 100
    callbacks: Sequence[Callable[[Event], None]] = ()
    loggers: Sequence[Logger] = ()
    config: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before anything is done."""
        at_least = {
            1: ("log_every", "keep_last", "max_nonfinite", "evaluate_every", "save_every"),
            0: ("epochs", "steps", "keep_best"),
        }
        for least, names in at_least.items():
            _whole_numbers(least, {name: getattr(self, name) for name in names})
        _whole_numbers(1, {"patience": self.patience})
        if self.epochs is None and self.steps is None:
            raise ValueError("fit: neither epochs nor steps is given, so the run would never end.")
        if self.export_best is not None and self.keep_best == 0:
            raise ValueError(
                "fit: export_best needs keep_best of at least 1: a resumed run reads the best "
                "checkpoint to write its student again."
            )
        for name in ("log_every", "keep_last", "keep_best", "max_nonfinite"):
            expect("fit", name, getattr(self, name), int, "a whole number")
        for name in ("log_dir", "checkpoint_dir", "export_best"):
            kinds = (str, os.PathLike, type(None))
            expect("fit", name, getattr(self, name), kinds, "the path of a folder")
        for name in ("metrics", "config"):
            kinds = (Mapping, type(None))
            expect("fit", name, getattr(self, name), kinds, "a dict, by name")
        _needed_together(self)
        _functions(self)
        refuse_reserved("fit", self.metrics or ())

    @property
    def higher(self) -> bool:
        """Whether the higher value of `best` is the better one.

        Raises:
          ValueError: neither an option nor the name says so.
        """
        by_name = higher_is_better(self.best)
        higher = by_name if self.higher_is_better is None else self.higher_is_better
        if higher is None:
            raise ValueError(
                f"fit: the name best={self.best!r} does not say whether higher or lower is better. "
                "Say it: higher_is_better=True, as for an accuracy, or False, as for an error."
            )
        return higher

    @property
    def checkpoints(self) -> Path | None:
        """The folder of the checkpoints."""
        return None if self.checkpoint_dir is None else Path(self.checkpoint_dir)

    @property
    def logs(self) -> Path | None:
        """The folder of the log."""
        return None if self.log_dir is None else Path(self.log_dir)

    @property
    def with_tensorboard(self) -> bool:
        """Whether TensorBoard's events are written: by default if the package is there."""
        installed = importlib.util.find_spec("tensorboard") is not None
        return installed if self.tensorboard is None else self.tensorboard


@dataclass(frozen=True)
class Arguments(Options):
    """The arguments of `fit`, which documents them."""

    step: TrainStep
    state: State
    loader: Loader

    def __post_init__(self) -> None:
        """Refuse what is no step, no state or no loader."""
        expect("fit", "step", self.step, TrainStep, "a step from train_step")
        expect("fit", "state", self.state, State, "a state from step.init(seed=0)")
        expect_loader("fit", "loader", self.loader)
        if self.dev is not None:
            expect_loader("fit", "dev", self.dev)
        super().__post_init__()
        self._again()

    def _again(self) -> None:
        """Refuse an iterator where its batches are asked for more than once."""
        if self.epochs is not None and self.epochs > 1:
            expect_again("fit", "loader", self.loader, f"there are {self.epochs} epochs")
        if self.epochs != 1 or self.evaluate_every is not None:
            expect_again("fit", "dev", self.dev, "it is evaluated on several times")

    @property
    def options(self) -> Options:
        """The options alone: a run must not keep the state that it began with."""
        return Options(**{field.name: getattr(self, field.name) for field in fields(Options)})


def _whole_numbers(least: int, options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"fit: {name} is {value!r}; a whole number is expected.")
        if value < least:
            raise ValueError(f"fit: {name} is {value}; at least {least} is expected.")


def _needed_together(options: Options) -> None:
    """Options that would be ignored without another one."""
    evaluated = {
        "metrics": bool(options.metrics),
        "evaluate_every": options.evaluate_every is not None,
        "compile_evaluation": options.compile_evaluation,
        "best": options.best != TOTAL,
        "patience": options.patience is not None,
        "export_best": options.export_best is not None,
    }
    needs = [
        ("dev", options.dev, "the batches to evaluate on", evaluated),
        (
            "export_best",
            options.export_best,
            "the folder to write to",
            {"export_model": options.export_model is not None},
        ),
        ("log_dir", options.log_dir, "its folder", {"tensorboard": bool(options.tensorboard)}),
        (
            "checkpoint_dir",
            options.checkpoint_dir,
            "the folder of the checkpoints",
            {
                "save_every": options.save_every is not None,
                "save_async": options.save_async,
                "export_best": options.export_best is not None,
            },
        ),
    ]
    for needed, value, what, users in needs:
        for name in (name for name, used in users.items() if used and value is None):
            raise ValueError(f"fit: {name} needs {needed}, {what}. Give {needed}, or leave it out.")


def _functions(options: Options) -> None:
    """What is called later must be a function now."""
    functions: dict[str, Any] = {}
    for name in ("callbacks", "loggers"):
        listed = getattr(options, name)
        if callable(listed):
            raise ValueError(f"fit: {name} is one function; a list is expected: {name}=[function].")
        expect("fit", name, listed, (list, tuple), "a list of functions")
        functions |= {f"{name}[{i}]": f for i, f in enumerate(listed)}
    functions |= {} if options.prepare is None else {"prepare": options.prepare}
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(f"fit: {name} is {function!r}; a function is expected.")
