"""What the terms of one step are computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .._base.errors import listing, nearest
from .attached import without_values


@dataclass(frozen=True)
class ModelFunction:
    """A model as a pure function of its inputs: what `fkd.call(fn, fkd.module("student"))` hands
    to `fn`.

    Attributes:
      params: the parameters of this step, by name.
    """

    _run: Callable[..., Any]
    params: Mapping[str, Tensor]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        return self._run(self.params, *args, **kwargs)

    def at(self, params: Mapping[str, Tensor]) -> ModelFunction:
        """The same model at other parameters: after a step of gradient descent, say, through
        which `torch.func.grad` differentiates.

        Args:
          params: by name; those that are left out stay as they are.
        """
        unknown = [name for name in params if name not in self.params]
        if unknown:
            raise ValueError(
                f"at: {unknown[0]!r} is no parameter of this model. "
                f"{nearest(unknown[0], self.params)}Parameters: {listing(self.params)}."
            )
        return ModelFunction(self._run, {**self.params, **params})


@dataclass(frozen=True, repr=False)
class Context:
    """What the terms of one step are computed from. Filled once, never changed.

    `ctx["student"]` is what the student returned and `ctx["batch"]` is the batch; a part of it
    is best read by its ref, `student.logits(ctx)`, whatever the model returns.

    Attributes:
      values: outputs by model name, and the batch under `"batch"`.
      taps: by model name, what its taps and attention captures saw.
      params: by model name, its parameters (trainable and frozen ones) and buffers.
      modules: by model name, the module as a function of values; taps and buffers are kept.
      functions: makes the same as a `ModelFunction`; neither taps nor buffers are kept.
      runs: by model name, the model on other inputs, `(args, kwargs) -> (output, taps)`.
      patched: by model name, the model on its own inputs, as a function of what some of its
        submodules return instead; likewise.
    """

    values: Mapping[str, Any]
    taps: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    params: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    modules: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    functions: Mapping[str, Callable[[], ModelFunction]] = field(default_factory=dict)
    runs: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    patched: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        try:
            return without_values(self.values[name])
        except KeyError:
            raise KeyError(
                f"ctx[{name!r}]: {nearest(name, self.values)}Available: {listing(self.values)}."
            ) from None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(
            f"ctx.{name}: a Context has no such attribute. Write ctx[{name!r}] for all that "
            f"{name!r} returned, or fkd.ref({name!r}).logits(ctx) for a part of it, which works "
            "for records, dicts and bare tensors alike."
        )

    def __repr__(self) -> str:
        return f"<Context of {listing(self.values)}; ctx['student'], student.logits(ctx)>"
