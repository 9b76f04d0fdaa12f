"""What refs say of a model: what it computed inside, its parameters, and further runs of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .._base.errors import RefError
from .code import Node, Ref, Root, filled, listed, node
from .context import Context


@dataclass(frozen=True, eq=False, repr=False)
class OfModel(Node):
    """What names a model itself, apart from what it is computed from.

    Attributes:
      root: the name of the model.
    """

    root: str

    @property
    def roots(self) -> frozenset[str] | None:
        below = super().roots
        return None if below is None else below | {self.root}


@dataclass(frozen=True, eq=False, repr=False)
class Tap(OfModel):
    """What a submodule returned or was given."""

    module: str
    side: Literal["output", "input"] = "output"

    def __repr__(self) -> str:
        side = "" if self.side == "output" else f", {self.side!r}"
        return f"{Root(self.root)!r}.tap({self.module!r}{side})"

    def compute(self, ctx: Context, *values: Any) -> Any:
        try:
            return ctx.taps[self.root][self.module, self.side]
        except KeyError:
            raise RefError(f"{self!r}: the forward pass did not run this module.") from None


@dataclass(frozen=True, eq=False, repr=False)
class Capture(OfModel):
    """An inner value of one attention layer of a transformers model."""

    kind: str
    layer: int
    part: str | None = None

    def __repr__(self) -> str:
        part = "" if self.part is None else f", part={self.part!r}"
        return f"{Root(self.root)!r}.{self.kind}({self.layer!r}{part})"

    def compute(self, ctx: Context, *values: Any) -> Any:
        try:
            return ctx.taps[self.root][self.kind, self.layer, self.part]
        except KeyError:
            raise RefError(f"{self!r}: the forward pass did not run this layer.") from None


@dataclass(frozen=True, eq=False, repr=False)
class Param(OfModel):
    """A parameter of a model."""

    parameter: str

    def __repr__(self) -> str:
        return f"{Root(self.root)!r}.param({self.parameter!r})"

    def compute(self, ctx: Context, *values: Any) -> Any:
        return ctx.params[self.root][self.parameter]


@dataclass(frozen=True, eq=False, repr=False)
class Patched(OfModel):
    """What a model returns on its own inputs where submodules return other values."""

    outputs: tuple[tuple[str, Ref], ...]

    def __repr__(self) -> str:
        listed = ", ".join(f"{name!r}: {value!r}" for name, value in self.outputs)
        return f"{Root(self.root)!r}.patched({{{listed}}})"

    @property
    def roots(self) -> frozenset[str] | None:
        below = super().roots
        return None if below is None else below | {"batch"}

    def compute(self, ctx: Context, *values: Any) -> Any:
        names = (name for name, _ in self.outputs)
        return ctx.patched[self.root](dict(zip(names, values, strict=True)))


@dataclass(frozen=True, eq=False, repr=False)
class Run(OfModel):
    """A run of a model on inputs of its own: its output, and what was seen inside."""

    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        return f"{Root(self.root)!r}.on({listed(self.args, self.kwargs)})"

    def compute(self, ctx: Context, *values: Any) -> Any:
        args, kwargs = filled((self.args, self.kwargs), iter(values))
        return ctx.runs[self.root](args, dict(kwargs))


@dataclass(frozen=True, eq=False, repr=False)
class Returned(Node):
    """What a model returned in such a run."""

    run: Ref

    def __repr__(self) -> str:
        return repr(self.run)

    def compute(self, ctx: Context, *values: Any) -> Any:
        return values[0][0]


@dataclass(frozen=True, eq=False, repr=False)
class Inside(Node):
    """What was seen inside a model in such a run.

    Attributes:
      run: a ref to the run.
      key: the fields of a `Tap` or a `Capture` after its root.
    """

    run: Ref
    key: tuple[Any, ...]

    @property
    def place(self) -> Tap | Capture:
        """The same in the model's run on the batch."""
        run = node(self.run)
        return inside(run.root if isinstance(run, Run) else "", self.key)

    def __repr__(self) -> str:
        return repr(inside("", self.key)).replace(repr(Root("")), repr(self.run), 1)

    def compute(self, ctx: Context, *values: Any) -> Any:
        _, taps = values[0]
        if self.key not in taps:
            raise RefError(f"{self!r}: the run of the model did not come by there.")
        return taps[self.key]


def inside(root: str, key: tuple[Any, ...]) -> Tap | Capture:
    """What is captured under a key inside a model."""
    return Tap(root, *key) if len(key) == 2 else Capture(root, *key)
