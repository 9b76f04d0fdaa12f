"""What a source is: something that gives a batch the values of refs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, Protocol, runtime_checkable

from fkd._base.types import Batch
from fkd._refs.refs import Ref
from fkd._refs.sourced import FIELD
from fkd.loops._data.ahead import Pending
from fkd.loops._data.epochs import Loader, Mapped
from fkd.loops._data.fields import with_fields


@runtime_checkable
class Keys(Protocol):
    """Which refs a source has values of.

    Attributes:
      name: of the source; the field of the batch that it writes is called by it.
    """

    name: str

    def key(self, ref: Ref) -> str | None:
        """Under which key it gives the value of a ref; None if it does not."""
        ...


@runtime_checkable
class Source(Keys, Protocol):
    """Where the values of a teacher come from, instead of its forward pass."""

    def values(self, batch: Batch) -> Mapping[str, Any]:
        """The values for a batch by key."""
        ...


@runtime_checkable
class AheadSource(Source, Protocol):
    """A source whose values are on their way before the step needs them.

    Attributes:
      batches: how many batches ahead of the step.
    """

    batches: int

    def start(self, batch: Batch) -> Pending:
        """Begin with the values for a batch, which `result()` of what is returned gives."""
        ...


class Attach:
    """The function that gives a batch the values of a source. The batch stays as it is."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, batch: Batch) -> Any:
        """The batch with one more field, or with the values beside it (`Attached`).

        Raises:
          TypeError: the batch has no parts.
        """
        return self.with_values(batch, self.source.values(batch))

    def with_values(self, batch: Batch, values: Mapping[str, Any]) -> Any:
        """The batch with the values that came."""
        return with_fields(batch, {FIELD + self.source.name: dict(values)})


class AttachAhead(Attach):
    """Likewise for a source that can be asked before the step needs the values."""

    source: AheadSource

    @property
    def batches(self) -> int:
        """How many batches ahead of the step."""
        return self.source.batches

    def start(self, batch: Batch) -> Attaching:
        """Ask for the values of a batch."""
        return Attaching(self, batch, self.source.start(batch))


class Attaching:
    """A batch whose values are on their way."""

    def __init__(self, attach: AttachAhead, batch: Batch, values: Pending) -> None:
        self.attach, self.batch, self.values = attach, batch, values

    def result(self) -> Any:
        """The batch with its values; waits for them."""
        return self.attach.with_values(self.batch, self.values.result())

    def cancel(self) -> None:
        """Nobody wants them any more."""
        self.values.cancel()


def attaching(source: Source) -> Attach:
    """The function that gives a batch the values of a source, ahead of the step if it can be."""
    return AttachAhead(source) if isinstance(source, AheadSource) else Attach(source)


class AttachedLoader(Mapped):
    """The batches of a loader with the values of a source; see `Kept.attach`.

    It stands for the loader: what a loop tells the loader's samplers (seed, epoch) reaches them.
    """

    def __init__(self, source: Source, loader: Iterable[Batch]) -> None:
        super().__init__(attaching(source), loader)

    def __getattr__(self, name: str) -> Any:
        # sampler, batch_sampler, generator, set_epoch: the loop seeds the order through them.
        if name.startswith("_") or name in ("fn", "loader"):
            raise AttributeError(name)
        return getattr(self.loader, name)


class SizedLoader(AttachedLoader):
    """Likewise for a loader that knows how many batches it has."""

    def __len__(self) -> int:
        sized: Any = self.loader
        return len(sized)


class AttachedFunction:
    """Likewise for a loader that is a function of a seed."""

    def __init__(self, source: Source, loader: Callable[[int], Iterable[Batch]]) -> None:
        self.source, self.loader = source, loader

    def __call__(self, seed: int) -> Iterable[Batch]:
        return AttachedLoader(self.source, self.loader(seed))


class AttachedCollate:
    """A `collate_fn` that attaches the values, so that a `DataLoader`'s workers read them."""

    def __init__(self, source: Source, collate: Callable[[Any], Batch]) -> None:
        self.attach, self.collate = Attach(source), collate

    def __call__(self, rows: Any) -> Any:
        return self.attach(self.collate(rows))


def attach(source: Source, loader: Loader) -> Loader:
    """A loader whose batches have the values of a source, each time it is iterated."""
    if isinstance(loader, Iterable):
        kind = SizedLoader if isinstance(loader, Sized) else AttachedLoader
        return kind(source, loader)
    return AttachedFunction(source, loader)
