"""How much of a value is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from fkd._base.errors import listing
from fkd._refs.refs import Ref, batch
from fkd._refs.sourced import FIELD, Sourced
from fkd.loops._checkpoint.tensors import NAMES

from ._errors import SourceError
from ._rows import Samples

DRAWS = FIELD + "draws"
"""The field of a batch with the seeds of its samples, from which classes are drawn."""

_SAMPLES = "samples"

draws = Ref(Sourced(batch, DRAWS.removeprefix(FIELD), _SAMPLES))


@runtime_checkable
class Keep(Protocol):
    """How much of a ref's value is kept."""

    def computed(self, ref: Ref) -> Ref:
        """What the teacher computes for a ref, of which every number is kept."""
        ...


class Exact(NamedTuple):
    """Every number of a value; see `exact`."""

    dtype: torch.dtype | None

    def computed(self, ref: Ref) -> Ref:
        """What the teacher computes for a ref."""
        return ref


def exact(dtype: torch.dtype | None = None) -> Exact:
    """Keep every number of a value, in a dtype; the terms get it in the dtype of the teacher.

    In the teacher's own dtype nothing is lost, to the bit. `torch.bfloat16` keeps 8 bits of each
    number (a relative error of at most 0.4 %), `torch.float8_e4m3fn` 4 bits (6 %) up to 448; see
    `scaled` for hidden states in 8 bits.
    Integers (`torch.uint16` for the ids of a vocabulary, say) have to fit, and numbers must not
    become infinite: that is an error when the cache is made.

    Args:
      dtype: None: as the teacher gives it.

    Example:
      >>> fkd.sources.exact(torch.bfloat16)
      Exact(dtype=torch.bfloat16)
    """
    if dtype is not None and dtype not in NAMES:
        names = listing(map(str, NAMES), limit=20)
        raise SourceError(f"exact: {dtype} cannot be kept. Choose one of {names}.")
    return Exact(dtype)


def seeds_of(samples: Samples) -> dict[str, Any]:
    """The field `DRAWS` of a batch: numbers that are functions of each sample alone, and where its
    tokens begin, by the length of the batch."""
    seed: Any = samples.keys[:, 0].view("int64").copy()
    start = {str(span.length): torch.tensor(span.start) for span in reversed(samples.spans)}
    return {DRAWS: {_SAMPLES: {"seed": torch.from_numpy(seed), "start": start}}}


def reseeded(seeds: Mapping[str, Any], samples: Samples) -> dict[str, Any]:
    """The content of `DRAWS` with these seeds, and the starts of samples."""
    return {_SAMPLES: {**seeds_of(samples)[DRAWS][_SAMPLES], "seed": seeds[_SAMPLES]["seed"]}}
