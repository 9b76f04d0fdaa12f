"""One row of the table of losses: how to call a loss and which laws it promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A loss, inputs for it, an independent reference, and the laws that hold for it.

    Attributes:
      loss: the loss, as users import it (or a `functools.partial` of it).
      inputs: makes its positional arguments in float64 (integer tensors stay integer) from a
        seeded generator. The first two are the student's and the teacher's. An argument may
        be a list or tuple of tensors.
      reference: the same values, unreduced, from NumPy arrays in float64, written from the
        paper (same positional arguments, same keyword arguments). Never calls fkd. For a loss
        that returns a `Mean`: its value, or the pair (total, count). For (values, state): the
        values.
      kwargs: keyword arguments of this case. Tensors are passed to the reference as arrays.
      positions: how many leading axes `where` covers; 0 if the loss takes no `where`.
      zero_at_equality: equal student and teacher inputs give 0.
      nonnegative: values are >= 0.
      gradcheck: which positional arguments are gradchecked (default: all floating ones).
      relational: values depend on other positions of the batch (no vmap or slicing law
        against single rows; the mask law still compares against the sliced batch). Also set
        for a loss that returns a `Mean` or a scalar.
      half_rtol: tolerance of half-precision inputs against float64 of the same rounded inputs.
      compile: whether to run the eager == compiled law (fullgraph).
      note: why a law is switched off.
      name: the id in the test report; the name of the loss if empty.
      shared: positional indices and keyword names of tensors that are not one per position
        (never sliced, permuted or masked). Tensors whose leading axes differ from those of
        the first input are shared without being named here.
      static: names of float keyword arguments that must be Python numbers.
      permutes: a permutation of the batch permutes the values.
      padding: a tail masked along the last position axis equals a shorter tensor.
      rtol: tolerance against the reference, in float64.
      atol: the same, absolute; also the tolerance of zero at equality.
    """

    loss: Callable[..., Any]
    inputs: Callable[[torch.Generator], tuple[Any, ...]]
    reference: Callable[..., Any] | None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    positions: int = 1
    zero_at_equality: bool = True
    nonnegative: bool = True
    gradcheck: tuple[int, ...] | None = None
    relational: bool = False
    half_rtol: float = 1e-4
    compile: bool = True
    note: str = ""
    name: str = ""
    shared: tuple[int | str, ...] = ()
    static: tuple[str, ...] = ()
    permutes: bool = True
    padding: bool = True
    rtol: float = 1e-9
    atol: float = 1e-11

    @property
    def function(self) -> Callable[..., Any]:
        """The public function that this row covers."""
        return getattr(self.loss, "func", self.loss)

    @property
    def id(self) -> str:
        return self.name or self.function.__name__

    def make(self, seed: int = 0) -> tuple[Any, ...]:
        """The positional arguments; the same for the same seed."""
        return self.inputs(torch.Generator().manual_seed(seed))


def normal(*shape: int, scale: float = 1.0) -> Callable[[torch.Generator], Tensor]:
    """A maker of one standard normal tensor in float64."""
    return lambda g: scale * torch.randn(*shape, generator=g, dtype=torch.float64)


def pair(*shape: int, scale: float = 1.0) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """Inputs of a loss of two tensors of one shape."""
    make = normal(*shape, scale=scale)
    return lambda g: (make(g), make(g))
