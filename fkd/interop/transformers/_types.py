"""What can be captured, and how it is named."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

KINDS = ("attention", "attention_scores", "query", "key", "value")
STATES = KINDS[2:]


class Capture(NamedTuple):
    """An inner value of one attention layer.

    Attributes:
      kind: `"attention"`: probabilities after the softmax, before dropout, `[batch, head, query,
        key]`. `"attention_scores"`: what the softmax is taken of, with the mask in it: a pair
        that the model masks holds about the lowest number of the dtype, as in the eager path
        (the losses of `fkd.losses` leave such pairs out; padding goes to `where`).
        `"query"`, `"key"`, `"value"`: what the attention function is given, `[batch, head,
        length, head_dim]`, after rotary positions; key and value before they are repeated for
        grouped-query attention. Of a module that computes attention in its own code: what it
        projects, where there is a projection for each and no rotation; the factors of its
        products otherwise.
      layer: counted from 0, or from the end if negative.
      part: `"encoder"`, `"decoder"`, `"cross"`, `"text"`, `"vision"`: needed where a model has
        several stacks of layers.
    """

    kind: str
    layer: int
    part: str | None = None


@runtime_checkable
class CaptureLike(Protocol):
    """Anything with the fields of a `Capture` (a ref, say)."""

    @property
    def kind(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def part(self) -> str | None: ...
