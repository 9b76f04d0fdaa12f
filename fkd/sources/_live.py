"""The teacher itself as a source: its forward pass, beside the step and not inside it."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fkd._base.errors import ObjectiveError, expect
from fkd._base.trees import map_tensors
from fkd._base.types import Batch, TensorBatch
from fkd._objective.frontier import frontier, read_twice
from fkd._objective.objective import Objective
from fkd._objective.plan import Plan
from fkd._objective.problems import read_problems
from fkd._objective.program import Parts, Program, make_program
from fkd._objective.reads import read_models
from fkd._refs.refs import Ref
from fkd.loops._base.compile import (
    captures_graphs,
    compiled,
    options_of,
    unlimited_recompilation,
)
from fkd.loops._base.precision import Precision as Precision
from fkd.loops._base.precision import autocast_dtype
from fkd.loops._base.random import drawn_so_far, fold_in, seeded
from fkd.loops._base.state import expect_device
from fkd.loops._base.waiting import Compiling, Say, on_standard_error
from fkd.loops._data.batch import normalised, signature
from fkd.loops._data.epochs import Loader

from ._errors import SourceError
from ._parameters import expect_kept, tensors_of
from ._source import attach


class Teacher:
    """The values of some refs for a batch: eval mode, no gradients, frozen models only.

    Attributes:
      refs: whose values it gives.
      program: of these refs.
      device: where it runs.
      draws: whether it draws random numbers; None: it has not run yet.
      seed: whether the process's generators are seeded for each batch. Beside a step in another
        thread they must not be: there is one of each, and the step draws from it.

    Args:
      say: shows a line while the teacher is compiled; None: nothing is said.
    """

    def __init__(
        self,
        objective: Objective,
        refs: Iterable[Ref],
        *,
        compile: bool | Mapping[str, Any] = False,
        precision: Precision = "fp32",
        device: torch.device | str | None = None,
        seed: bool = True,
        say: Say | None = on_standard_error,
    ) -> None:
        expect_device("teacher", device)
        self.refs = tuple(refs)
        self.seed = seed
        self.program = teacher_program(objective, self.refs)
        self._places = [self.program.plan.place[ref] for ref in self.refs]
        self.autocast = autocast_dtype("live", precision)
        parts = self.program.init()
        if device is not None:
            parts = map_tensors(lambda x: x.to(device), parts)
        self._parts = parts._replace(frozen=_inference(parts.frozen, self.autocast))
        tensors = [x for tree in parts[:2] for params in tree.values() for x in params.values()]
        self.device = next((x.device for x in tensors), torch.device("cpu"))
        options = options_of(compile)
        self._forward = compiled(self._of_a_batch, options)
        self._compiling = Compiling("the teacher")
        self._say = None if options is None else say
        self._twice = read_twice(objective, self.refs)
        self.draws: bool | None = None
        self._captures = captures_graphs(options) and self.device.type == "cuda"

    def __call__(self, batch: Batch, index: int = 0) -> list[Any]:
        """The value of every ref, on the device.

        Args:
          batch: as a loader yields it.
          index: of the batch, for teachers that draw random numbers.
        """
        tensors = normalised(batch, self.device)
        draws = seeded(fold_in(0, index), self.device) if self.seed else contextlib.nullcontext()
        line = self._compiling(lambda: signature(tensors), self._say)
        with torch.no_grad(), draws, unlimited_recompilation(), line:
            values = self._drawn(tensors) if self.draws is None else self._run(tensors)
        # The next call of a captured graph writes into the same memory.
        return map_tensors(torch.clone, values) if self._captures else values

    def _run(self, batch: TensorBatch) -> list[Any]:
        return self._forward(self._parts, batch)

    def _drawn(self, batch: TensorBatch) -> list[Any]:
        """The first values.

        Raises:
          SourceError: what is drawn for the teacher is read beside it, where it is drawn again.
        """
        before = drawn_so_far()
        values = self._run(batch)
        self.draws = drawn_so_far() != before
        if self.draws and self._twice:
            raise SourceError(
                f"the teacher's inputs are drawn at random, and {self._twice[0]!r} is read by the "
                "student as well, which would draw it again: they would see different inputs. Draw "
                "where batches are made, so that both read a field: batch.mixed."
            )
        return values

    def _of_a_batch(self, parts: Parts, batch: TensorBatch) -> list[Any]:
        forward = self.program.context(parts, batch, autocast=self.autocast)
        values = self.program.values(forward.context)
        return [values[i] for i in self._places]


def teacher_program(objective: Objective, refs: Sequence[Ref]) -> Program:
    """The part of an objective that computes some refs, with the models that it needs.

    Raises:
      ObjectiveError: a ref does not fit the models.
    """
    plan = Plan(refs)
    problems = read_problems({}, objective.models, plan.refs)
    if problems:
        raise ObjectiveError(problems)
    return make_program(plan, read_models(plan, objective.models), training=False)


def _inference(
    frozen: dict[str, dict[str, Tensor]], dtype: torch.dtype | None
) -> dict[str, dict[str, Tensor]]:
    """Matrices in the precision in which they are multiplied anyway, as a step holds them."""
    if dtype is None:
        return frozen
    return {
        name: {
            n: x.to(dtype) if x.ndim >= 2 and x.dtype is torch.float32 else x
            for n, x in tensors.items()
        }
        for name, tensors in frozen.items()
    }


class Live:
    """See `live`, which makes it."""

    def __init__(self, objective: Objective, **options: Any) -> None:
        refs = frontier(objective)
        if not refs:
            raise SourceError(
                "live: the objective reads nothing of a frozen model's forward pass, so there is "
                "nothing to take from elsewhere."
            )
        self.teacher = Teacher(objective, refs, **options)
        self._keys = {ref: f"v{i}" for i, ref in enumerate(refs)}
        self._models = objective.models
        named = hashlib.sha256("\n".join(self.codes).encode()).hexdigest()
        self.name = f"live-{named[:8]}"

    @functools.cached_property
    def codes(self) -> list[str]:
        """The refs whose values it gives, as code."""
        return [repr(ref) for ref in self._keys]

    def key(self, ref: Ref) -> str | None:
        """Under which key it gives the value of a ref; None if it does not."""
        return self._keys.get(ref)

    def values(self, batch: Batch) -> dict[str, Any]:
        """The values for a batch by key."""
        return dict(zip(self._keys.values(), self.teacher(batch), strict=True))

    def attach(self, loader: Loader) -> Loader:
        """The loader, with the values in its batches; see `Kept.attach`."""
        return attach(self, loader)

    def parameters(self, model: str, names: Sequence[str]) -> dict[str, Tensor]:
        """Some parameters of the teacher, that the terms read beside its values (a head).

        Raises:
          SourceError: it has none of that name.
        """
        known = tensors_of(self._models[model], names) if model in self._models else {}
        fix = "give a source of the objective that reads it"
        expect_kept(model, names, [*known], f"{self!r} has", fix)
        return known

    def beside(self) -> Live:
        """The same teacher for a thread beside the step: it leaves the process's generators of
        random numbers alone."""
        other, teacher = copy.copy(self), copy.copy(self.teacher)
        teacher.seed, other.teacher = False, teacher
        return other

    def __repr__(self) -> str:
        return f"<source {self.name!r}: {', '.join(self.codes)}, computed for each batch>"


def live(
    objective: Objective,
    *,
    compile: bool | Mapping[str, Any] = False,
    precision: Precision = "fp32",
    device: torch.device | str | None = None,
) -> Live:
    """The teacher itself as a source: it runs where the loader runs, outside the step.

        source = fkd.sources.live(objective, device="cuda:1")
        step = train_step(fkd.sources.bind(objective, source), optimizer)
        fit(step, step.init(), source.attach(loader), epochs=3)

    The values are those of the objective, computed when a batch is drawn, so that the teacher
    can have another device than the student. `fkd.sources.ahead` computes them before the step
    needs them.

    Args:
      objective: whose frontier it gives.
      compile: as in `train_step`.
      precision: as in `train_step`.
      device: where the teacher runs; by default where its parameters are.

    Raises:
      SourceError: the objective reads nothing of a frozen model.
      ObjectiveError: a ref does not fit the models.

    Example:
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits, temperature=2.0)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> fkd.sources.live(objective).codes
      ['teacher.logits']
    """
    expect("live", "objective", objective, Objective, "an fkd.Objective", "Try step.objective.")
    return Live(objective, compile=compile, precision=precision, device=device)
