"""What a source is: something that gives a batch the values of refs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, Protocol, runtime_checkable

from fkd._refs.refs import Ref
from fkd._refs.sourced import FIELD
from fkd._types import Batch
from fkd.loops._data.epochs import Loader, Mapped


@runtime_checkable
class Source(Protocol):
    """Where the values of a teacher come from, instead of its forward pass.

    Attributes:
      name: of the source; the field of the batch that it writes is called by it.
    """

    name: str

    def key(self, ref: Ref) -> str | None:
        """Under which key it gives the value of a ref; None if it does not."""
        ...

    def values(self, batch: Batch) -> Mapping[str, Any]:
        """The values for a batch by key."""
        ...


def attached(source: Source, batch: Batch) -> dict[str, Any]:
    """A batch with the values of a source. The batch that was given stays as it is.

    Raises:
      TypeError: the batch is not a mapping of fields.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"attach: a batch is a {type(batch).__name__}; a dict of fields is expected, since the "
            "values of a source are one more field. Name the parts in the loader's collate_fn: "
            "{'image': image, 'label': label}, and fkd.frozen(module, inputs=lambda b: b['image'])."
        )
    return {**batch, FIELD + source.name: dict(source.values(batch))}


class AttachedLoader(Mapped):
    """The batches of a loader with the values of a source; see `Kept.attach`.

    It stands for the loader: what a loop tells the loader's samplers (seed, epoch) reaches them.
    """

    def __init__(self, source: Source, loader: Iterable[Batch]) -> None:
        super().__init__(functools.partial(attached, source), loader)

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
        self.source, self.collate = source, collate

    def __call__(self, rows: Any) -> dict[str, Any]:
        return attached(self.source, self.collate(rows))


def attach(source: Source, loader: Loader) -> Loader:
    """A loader whose batches have the values of a source, each time it is iterated."""
    if isinstance(loader, Iterable):
        kind = SizedLoader if isinstance(loader, Sized) else AttachedLoader
        return kind(source, loader)
    return AttachedFunction(source, loader)
