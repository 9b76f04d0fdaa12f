"""Several teachers, of which each sample has the one, or the ones, that the batch names."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor

from fkd._base.errors import listing
from fkd._base.types import Batch
from fkd._objective.objective import Objective
from fkd._refs.refs import Ref
from fkd.loops._data.ahead import Pending
from fkd.loops._data.epochs import Loader
from fkd.loops._data.fields import Field, as_fields

from ._errors import SourceError
from ._identity import describe_tensor
from ._live import Live
from ._routes import index_of, members, of_rows
from ._source import AheadSource, Source, attach


class Routed:
    """See `routed`, which makes it.

    Attributes:
      field: of the batch, with the teachers of each sample.
      routes: the source of each teacher, by name.
      name: of the source.
    """

    def __init__(
        self, field: Field, routes: Mapping[str, Source], multiple: int, fill: float | None
    ) -> None:
        self.field, self.routes = field, dict(routes)
        self.multiple, self.fill = multiple, fill
        code = repr((field, [(name, source.name) for name, source in routes.items()], fill))
        self.name = "routed-" + hashlib.sha256(code.encode()).hexdigest()[:8]
        self._keys: dict[str, dict[str, str]] = {}  # of each value, the key at every source

    @property
    def place(self) -> str:
        """In words, for `check` and `draw`."""
        places = {n: getattr(s, "place", "") or s.name for n, s in self.routes.items()}
        told = "; ".join(f"{name} {place}" for name, place in places.items())
        return f"by batch[{self.field!r}]: {told}"

    @property
    def batches(self) -> int:
        """How many batches ahead of the step: as many as the furthest of the sources."""
        return max(s.batches if isinstance(s, AheadSource) else 0 for s in self.routes.values())

    @property
    def codes(self) -> list[str]:
        """The refs whose values every one of them gives, as code."""
        of_each = [getattr(source, "codes", []) for source in self.routes.values()]
        return [code for code in of_each[0] if all(code in codes for codes in of_each)]

    def key(self, ref: Ref) -> str | None:
        """Under which key it gives the value of a ref; None if it does not.

        Raises:
          SourceError: some of the sources give it, and others do not.
        """
        keys = {name: source.key(ref) for name, source in self.routes.items()}
        there = {name: key for name, key in keys.items() if key is not None}
        if not there:
            return None
        if len(there) < len(keys):
            raise SourceError(
                f"routed: {ref!r} is given by {listing(there)}, and not by "
                f"{listing(n for n in keys if n not in there)}. Every source needs it."
            )
        first = next(iter(there.values()))
        self._keys[first] = there
        return first

    def is_sparse(self, key: str) -> bool:
        """Whether a value is a distribution that is known on some classes, by all of them."""
        known = [getattr(source, "is_sparse", None) for source in self.routes.values()]
        keys = self._keys[key].values()
        return all(ask is not None and ask(key) for ask, key in zip(known, keys, strict=True))

    def values(self, batch: Batch) -> dict[str, Any]:
        """The values for a batch by key.

        Raises:
          SourceError: the field is not as it should be, or names no teacher; or two teachers give
            values that cannot stand in one batch.
        """
        return self.start(batch).result()

    def start(self, batch: Batch) -> Pending:
        """Ask the teachers, each for the samples that it has."""
        if not self._keys:
            raise SourceError(
                "routed: no objective was bound to this source, so that it is not known which "
                "values are wanted: fkd.sources.bind(objective, source)."
            )
        fields = as_fields(batch)
        if self.field not in fields:
            have = listing(map(str, fields))
            raise SourceError(
                f"routed: the batch has no field {self.field!r}, by which each sample has its "
                f"teachers. It has: {have}."
            )
        chosen = members(fields[self.field], tuple(self.routes), self.field)
        if self.fill is None and len(chosen) and not bool(chosen.any(1).all()):
            row = int(np.flatnonzero(~chosen.any(1))[0])
            raise SourceError(
                f"routed: row {row} of the batch has no teacher in {self.field!r}. For samples "
                "without one: routed(..., fill=0.0), and where= in the terms."
            )
        parts: list[_Part] = []
        try:
            for column, (name, source) in enumerate(self.routes.items()):
                rows = np.flatnonzero(chosen[:, column])
                if len(rows):
                    parts.append(self._part(name, source, batch, rows, len(chosen)))
        except BaseException:
            _Combined(self, parts, chosen).cancel()
            raise
        return _Combined(self, parts, chosen)

    def _part(self, name: str, source: Source, batch: Batch, rows: Any, count: int) -> _Part:
        whole = len(rows) == count
        padded = min(-(-len(rows) // self.multiple) * self.multiple, count)
        taken = np.concatenate([rows, np.repeat(rows[-1:], padded - len(rows))])
        some = batch if whole else of_rows(batch, taken, count)
        if isinstance(source, AheadSource):
            return _Part(name, rows, padded, source.start(some))
        return _Part(name, rows, padded, _Later(source, some))

    def attach(self, loader: Loader) -> Loader:
        """The loader, with the values in its batches; see `Kept.attach`."""
        return attach(self, loader)

    def verify_models(self, objective: Objective) -> None:
        """Compare the teacher in an objective with that of the source, if there is only one."""
        verify = [getattr(source, "verify_models", None) for source in self.routes.values()]
        if len(verify) == 1 and verify[0] is not None:
            verify[0](objective)

    def expect_parameters(self, read: Mapping[str, Sequence[str]]) -> None:
        """Refuse terms that read parameters of a teacher in which the teachers differ: a head would
        be applied to the hidden states of another.

        Raises:
          SourceError: they differ, or a source does not say which they are.
        """
        for model, names in read.items():
            for parameter in names:
                self._expect_one(model, parameter)

    def _expect_one(self, model: str, parameter: str) -> None:
        told = {n: _described(source, model, parameter) for n, source in self.routes.items()}
        first, *others = told
        for name in others:
            if told[name] != told[first] or told[name] is None:
                raise SourceError(
                    f"routed: the terms apply {model}.param({parameter!r}) to what {first!r} and "
                    f"{name!r} give, and it is not the same of both (or not known of one). Let the "
                    "sources give what is behind it: teacher.logits, or kept as "
                    "top_k(k, of=teacher.logits); or write a term for each teacher."
                )

    def parameters(self, model: str, names: Sequence[str]) -> dict[str, Tensor]:
        """Some parameters, which all teachers share; see `Kept.parameters`."""
        source: Any = next(iter(self.routes.values()))
        return source.parameters(model, names)

    def of(self, name: str, key: str) -> str:
        """The key at a source."""
        return self._keys[key][name]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the values that are wanted."""
        return tuple(self._keys)

    def __repr__(self) -> str:
        return f"<source {self.name!r}: {listing(self.codes)}, {self.place}>"


class _Later:
    """The values of a source that cannot be asked before they are needed."""

    def __init__(self, source: Source, batch: Batch) -> None:
        self.source, self.batch = source, batch

    def result(self) -> Mapping[str, Any]:
        return self.source.values(self.batch)

    def cancel(self) -> None:
        pass


class _Part:
    """What one teacher was asked: for some rows, so many with those that are repeated."""

    def __init__(self, name: str, rows: Any, padded: int, values: Pending) -> None:
        self.name, self.rows, self.padded, self.values = name, rows, padded, values


class _Combined:
    """The values of a batch from those of its teachers."""

    def __init__(self, routed: Routed, parts: Sequence[_Part], chosen: Any) -> None:
        self.routed, self.parts, self.chosen = routed, parts, chosen

    def result(self) -> dict[str, Any]:
        """The values by key; waits for all of them."""
        answers = {part.name: part.values.result() for part in self.parts}
        return {key: self._joined(key, answers) for key in self.routed.keys}

    def cancel(self) -> None:
        """Nobody wants them any more."""
        for part in self.parts:
            part.values.cancel()

    def _joined(self, key: str, answers: Mapping[str, Any]) -> Any:
        trees = [answers[part.name][self.routed.of(part.name, key)] for part in self.parts]
        if not trees:
            raise SourceError("routed: no sample of the batch has a teacher.")
        flat = [optree.tree_flatten(tree) for tree in trees]
        if any(spec != flat[0][1] for _, spec in flat):
            raise SourceError(
                f"routed: {listing(answers)} give values of different structures: "
                f"{flat[0][1]} and others."
            )
        joined = [self._tensor(list(one)) for one in zip(*(x for x, _ in flat), strict=True)]
        return optree.tree_unflatten(flat[0][1], joined)

    def _tensor(self, tensors: list[Any]) -> Tensor:
        """One tensor of the batch: a row of one teacher as it is, and the mean of several."""
        self._expect_alike(tensors)
        counts = self.chosen.sum(1)
        if len(tensors) == 1 and len(self.parts[0].rows) == len(counts):
            return tensors[0]
        first: Tensor = tensors[0]
        fill = 0.0 if self.routed.fill is None else self.routed.fill
        joined = torch.full((len(counts), *first.shape[1:]), fill, dtype=first.dtype,
                            device=first.device)  # fmt: skip
        seen = np.zeros(len(counts), bool)
        for part, x in zip(self.parts, tensors, strict=True):
            again, values = seen[part.rows], x[: len(part.rows)]
            new, old = np.flatnonzero(~again), np.flatnonzero(again)
            joined[index_of(part.rows[new], first)] = values[index_of(new, first)]
            if len(old):
                joined[index_of(part.rows[old], first)] += values[index_of(old, first)]
            seen[part.rows] = True
        several = np.flatnonzero(counts > 1)
        if len(several):
            shape = (-1, *([1] * (first.ndim - 1)))
            by = torch.as_tensor(counts[several], device=first.device).reshape(shape)
            joined[index_of(several, first)] /= by.to(first.dtype)
        return joined

    def _expect_alike(self, tensors: list[Any]) -> None:
        several = bool((self.chosen.sum(1) > 1).any())
        first = tensors[0]
        for part, x in zip(self.parts, tensors, strict=True):
            if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] != part.padded:
                shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise SourceError(
                    f"routed: {part.name!r} gives {shape} for {part.padded} samples; a tensor with "
                    "a row for each of them is expected."
                )
            if x.shape[1:] != first.shape[1:] or x.dtype != first.dtype:
                raise SourceError(
                    f"routed: {self.parts[0].name!r} gives {tuple(first.shape)} of {first.dtype}, "
                    f"and {part.name!r} {tuple(x.shape)} of {x.dtype}. Values of one batch need "
                    "one shape: the same vocabulary, and the same width of hidden states."
                )
            if several and not x.is_floating_point():
                raise SourceError(
                    f"routed: a sample has several teachers, and there is no mean of {x.dtype} "
                    "(the ids of sparse distributions differ). Let the objective have a term for "
                    "each teacher, or keep exact values."
                )


def _described(source: Source, model: str, parameter: str) -> str | None:
    """A parameter of the teacher of a source; None if it does not know it."""
    parameters: Any = getattr(source, "parameters", None)
    if parameters is None:
        return None
    with contextlib.suppress(SourceError):
        return describe_tensor(parameters(model, [parameter])[parameter])
    return None


def routed(
    field: Field,
    routes: Mapping[str, Source | Objective],
    *,
    multiple: int = 1,
    fill: float | None = None,
) -> Routed:
    """Several teachers under one name: each sample has those that its batch says.

        source = fkd.sources.routed("domain", {
            "math": fkd.sources.served("http://10.0.0.7:8400"),
            "code": fkd.sources.open("cache-of-the-code-teacher"),
            "chat": fkd.Objective(terms, teacher=fkd.frozen(chat)),
        })
        step = train_step(fkd.sources.bind(objective, source), optimizer)
        fit(step, step.init(), source.attach(loader), epochs=3)

    The terms read one teacher, `teacher.logits`, and do not change; the values of a batch have one
    shape, whoever they are from. A teacher runs on the samples that it has, and not at all where
    it has none. A sample of several teachers has the mean of their values (of logits: the
    geometric mean of the distributions, normalised). With one teacher for all of a batch, the
    values are that teacher's, to the bit.

    Args:
      field: of the batch (of a tuple, its place): for each sample a name, a list of names, a
        number (the teachers counted in their order; -1: none), or a row of bool,
        `[samples, teachers]`.
      routes: the source of each teacher by name; of an objective, its live teacher. All give the
        refs that the terms read, in the same shapes.
      multiple: a teacher gets a multiple of so many samples, by repeating one, so that one that is
        compiled sees few shapes; the size of the batch gives one shape.
      fill: what stands for a sample without a teacher (mask it: `where=`); None: an error.

    Raises:
      SourceError: there are no routes, or `multiple` is less than 1.

    Example:
      >>> goals = [
      ...     Objective(
      ...         {"kd": term(kl, student.logits, teacher.logits)},
      ...         student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ...     )
      ...     for _ in range(2)
      ... ]
      >>> source = fkd.sources.routed("by", {"one": goals[0], "two": goals[1]})
      >>> cheap = fkd.sources.bind(goals[0], source)
      >>> [batch] = source.attach([{"input": torch.ones(3, 4), "by": ["two", "one", "two"]}])
      >>> list(cheap.models), cheap(cheap.init(), batch)[0].shape
      (['student'], torch.Size([]))
    """
    if not routes or multiple < 1:
        raise SourceError(
            f"routed: {len(routes)} routes and multiple={multiple}; at least one of each is "
            "expected."
        )
    sources = {n: Live(s) if isinstance(s, Objective) else s for n, s in routes.items()}
    return Routed(field, sources, multiple, fill)
