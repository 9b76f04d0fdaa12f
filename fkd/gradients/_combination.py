"""A combination: from the gradients of groups of terms to the one that the optimizer receives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

Gradient: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""`{model: {parameter: tensor}}`, as the trainable parameters of a state."""

Groups: TypeAlias = Mapping[str, Sequence[str]]
"""`{group: names of terms}`; a name stands for all terms below it: `"hidden"` for `hidden/0`."""


@runtime_checkable
class Combination(Protocol):
    """A pure function of gradients, with a state that goes in and comes out.

    `train_step(..., combine=combination)` computes one forward pass, one backward pass for each
    group, and calls the combination in the same compiled graph. Weights of terms are in their
    gradients already. Clipping, norms and the optimizer come after it.

    Attributes:
      groups: which terms share a gradient, and so a backward pass; None: each term has its own.
    """

    @property
    def groups(self) -> Groups | None: ...

    def init(self, parameters: Gradient, groups: Sequence[str]) -> Any:
        """The state before the first step, a tree of tensors.

        Args:
          parameters: of the models that are trained.
          groups: the names under which gradients will come.
        """
        ...

    def __call__(
        self, gradients: Mapping[str, Gradient], losses: Mapping[str, Tensor], state: Any
    ) -> tuple[Gradient, Any]:
        """The combined gradient, and the new state.

        Args:
          gradients: by group; of the models that are updated in this step.
          losses: `[]` by group, what it adds to the total.
          state: of the step before.
        """
        ...


@dataclass(frozen=True)
class Stateless:
    """A plain function of the gradients as a combination."""

    fn: Callable[[Mapping[str, Gradient]], Gradient]
    groups: Groups | None = None

    def init(self, parameters: Gradient, groups: Sequence[str]) -> Any:
        """Nothing to remember."""
        return {}

    def __call__(
        self, gradients: Mapping[str, Gradient], losses: Mapping[str, Tensor], state: Any
    ) -> tuple[Gradient, Any]:
        return self.fn(gradients), state


def together(
    fn: Callable[[Mapping[str, Gradient]], Gradient], groups: Groups | None = None
) -> Stateless:
    """A plain function of the gradients, `{group: gradient} -> gradient`, as a combination.

    Args:
      fn: pure; written with tensors, such as `weighted_sum` of what it is given.
      groups: `{name: terms}`; None: each term has a gradient of its own.

    Example:
      >>> def larger(gradients):
      ...     a, b = gradients["kd"]["student"], gradients["labels"]["student"]
      ...     return {"student": {n: torch.maximum(a[n], b[n]) for n in a}}
      >>> combine = together(larger)
      >>> one = {"student": {"w": torch.tensor([1.0, 5.0])}}
      >>> two = {"student": {"w": torch.tensor([2.0, 0.0])}}
      >>> combine({"kd": one, "labels": two}, {}, {})[0]
      {'student': {'w': tensor([2., 5.])}}
    """
    return Stateless(fn, groups)


def weighted_sum(gradients: Sequence[Gradient], weights: Sequence[Tensor] | Tensor) -> Gradient:
    """The sum of gradients, each times its weight."""
    return {
        model: {name: sum_of([g[model][name] for g in gradients], weights) for name in params}
        for model, params in gradients[0].items()
    }


def sum_of(tensors: Sequence[Tensor], weights: Sequence[Tensor] | Tensor) -> Tensor:
    """`sum_i w_i x_i`, in the dtype of the tensors."""
    total = tensors[0] * weights[0].to(tensors[0].dtype)
    for i, x in enumerate(tensors[1:], 1):
        total = total + x * weights[i].to(x.dtype)
    return total


def gram(gradients: Sequence[Gradient], *, under: str = "") -> Tensor:
    """`[K, K]`, the inner products of K gradients, in float32 at least.

    Args:
      gradients: one for each group.
      under: a dotted prefix of parameters, `"student.layers.11"`, that alone are counted.
    """
    flat = [_under(gradient, under) for gradient in gradients]
    products: dict[tuple[int, int], Tensor] = {}
    for i, one in enumerate(flat):
        for j, other in enumerate(flat[: i + 1]):
            parts = [_inner(x, y) for x, y in zip(one, other, strict=True)]
            products[i, j] = products[j, i] = torch.stack(parts).sum()
    count = range(len(flat))
    return torch.stack([torch.stack([products[i, j] for j in count]) for i in count])


def squares(gradients: Sequence[Gradient], *, under: str = "") -> Tensor:
    """`[K]`, the squared norms of K gradients: the diagonal of `gram`."""
    flat = [_under(gradient, under) for gradient in gradients]
    return torch.stack([torch.stack([_inner(x, x) for x in parts]).sum() for parts in flat])


def _inner(x: Tensor, y: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(wide) * y.to(wide)).sum()


def _under(gradient: Gradient, prefix: str) -> list[Tensor]:
    named = [(f"{m}.{n}", x) for m, params in gradient.items() for n, x in params.items()]
    chosen = [x for n, x in named if not prefix or n == prefix or n.startswith(prefix + ".")]
    if not chosen:
        raise ValueError(
            f"no parameter under {prefix!r} has a gradient; {named[0][0]!r} is one that has."
        )
    return chosen
