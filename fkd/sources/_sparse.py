"""A teacher in a few numbers: its most probable classes, or classes drawn from it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fkd._base.sparse import SampledDistribution, SparseDistribution, TopKDistribution, id_dtype
from fkd._refs.derived import call
from fkd._refs.refs import Ref

from ._errors import SourceError
from ._keep import draws
from ._select import by_blocks, drawn, greatest


@dataclass(frozen=True)
class TopK:
    """A function from logits to their k most probable classes; see `top_k`, which makes it."""

    k: int
    tail: bool = True
    temperature: float = 1.0
    dtype: torch.dtype = torch.float32
    of: Ref | None = None

    def computed(self, ref: Ref) -> Ref:
        """What the teacher computes for a ref."""
        return call(replace(self, of=None), ref if self.of is None else self.of)

    def __call__(self, logits: Tensor | SparseDistribution) -> TopKDistribution:
        """The k most probable classes of `[*batch, vocab]` logits.

        Raises:
          SourceError: there are fewer than k classes, or no logits.
        """
        if isinstance(logits, SparseDistribution):
            return self._fewer(logits)
        vocab = _logits(self, logits).shape[-1]
        if self.k > vocab:
            raise SourceError(f"{self!r}: there are {vocab} classes. Give a k of at most {vocab}.")
        of_block = functools.partial(greatest, k=self.k, temperature=self.temperature)
        ids, log_probs, log_rest = by_blocks(of_block, logits)
        return TopKDistribution(
            ids=ids.to(id_dtype(vocab)),
            vocab=vocab,
            temperature=self.temperature,
            log_probs=log_probs.to(self.dtype),
            log_rest=log_rest if self.tail else None,
        )

    def _fewer(self, known: SparseDistribution) -> TopKDistribution:
        """The same of what is kept as such already."""
        as_asked = isinstance(known, TopKDistribution) and (
            known.known == self.k
            and known.temperature == self.temperature
            and (known.log_rest is not None) == self.tail
        )
        if not as_asked:
            raise SourceError(
                f"{self!r} is applied to a teacher that is known on {known.known} of {known.vocab} "
                f"classes at temperature {known.temperature:g} (a {type(known).__name__}). Keep it "
                f"as {self!r}."
            )
        assert isinstance(known, TopKDistribution)
        return known

    @property
    def __name__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        options = ["" if self.tail else ", tail=False", _at(self.temperature)]
        options += ["" if self.dtype == torch.float32 else f", dtype={self.dtype}"]
        options += ["" if self.of is None else f", of={self.of!r}"]
        return f"top_k({self.k}{''.join(options)})"


@dataclass(frozen=True)
class Sampled:
    """A function from logits to classes drawn from them; see `sampled`, which makes it."""

    n: int
    temperature: float = 1.0
    proposal: float = 1.0
    of: Ref | None = None

    def computed(self, ref: Ref) -> Ref:
        """What the teacher computes for a ref, from the seeds of the samples."""
        return call(replace(self, of=None), ref if self.of is None else self.of, draws)

    def __call__(
        self,
        logits: Tensor | SparseDistribution,
        uniform: Tensor | Mapping[str, Any] | None = None,
    ) -> SampledDistribution:
        """Classes drawn from `[*batch, vocab]` logits.

        Args:
          logits: of the teacher.
          uniform: `[*batch, n]`, random numbers from 0 up to 1; None: torch draws them, which in
            a training step are others in every step. A cache gives the seeds of its samples.

        Raises:
          SourceError: these are no logits, or too few random numbers.
        """
        if isinstance(logits, SparseDistribution):
            return self._as_kept(logits)
        z = _logits(self, logits)
        points, vocab = self._points(z, uniform), z.shape[-1]
        of_block = functools.partial(drawn, temperature=self.temperature, proposal=self.proposal)
        ids, entropy, top, *logs = by_blocks(of_block, z, points)
        weights = (logs[0] - logs[1]).exp() / self.n if logs else None
        return SampledDistribution(
            ids=ids.to(id_dtype(vocab)),
            vocab=vocab,
            temperature=self.temperature,
            weights=weights,
            entropy=entropy,
            top=top.to(id_dtype(vocab)),
        )

    def _points(self, z: Tensor, uniform: Tensor | Mapping[str, Any] | None) -> Tensor:
        """`[*batch, n]`, points from 0 up to 1, one in each of n equal parts."""
        shape, dtype = (*z.shape[:-1], self.n), torch.promote_types(z.dtype, torch.float32)
        if uniform is None:
            uniform = torch.rand(shape, dtype=dtype, device=z.device)
        elif isinstance(uniform, Mapping):
            starts: Any = uniform["start"]
            # Zeros that a compiler does not take for constants: their products overflow in it.
            start = starts.get(str(shape[1]), uniform["seed"] & 0)
            uniform = uniform_of(uniform["seed"], start, shape)
        if tuple(uniform.shape) != shape:
            raise SourceError(
                f"{self!r}: the random numbers are {tuple(uniform.shape)}; {shape} is expected, "
                "so many for each position."
            )
        part = torch.arange(self.n, device=z.device, dtype=dtype)
        return (part + uniform.to(dtype)) / self.n

    def _as_kept(self, known: SparseDistribution) -> SampledDistribution:
        as_asked = known.known == self.n and known.temperature == self.temperature
        if not (as_asked and isinstance(known, SampledDistribution)):
            raise SourceError(
                f"{self!r} is applied to a teacher that is known on {known.known} of {known.vocab} "
                f"classes at temperature {known.temperature:g} (a {type(known).__name__}). Keep it "
                f"as {self!r}."
            )
        return known

    @property
    def __name__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        proposal = "" if self.proposal == 1 else f", proposal={self.proposal:g}"
        of = "" if self.of is None else f", of={self.of!r}"
        return f"sampled({self.n}{_at(self.temperature)}{proposal}{of})"


def top_k(
    k: int,
    tail: bool = True,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
    *,
    of: Ref | None = None,
) -> TopK:
    """Keep the k most probable classes of logits, and how probable all others are together.

        cache(objective, loader, folder, keep={teacher.logits: top_k(64)})     # on the disk
        term(kl, student.logits, fkd.call(top_k(64), teacher.logits))          # in the step

    The value is a `TopKDistribution`, which `kl`, `soft_cross_entropy` and `head_divergence` take
    instead of the teacher. With `tail` all other classes are one class of both models: the
    loss is a lower bound of that of the whole teacher, 0 if the two agree on the k classes, and
    its gradient is biased, in that it does not say which of the other classes is right. The bias
    is at most that of losing p_r, the teacher's probability of all others together:

        kl - kl_tail = T^2 p_r KL(p' | q'),   p', q': teacher and student among the others

    Without `tail` the teacher is the distribution p / sum_k p over the k classes, which says that
    all others are impossible: the student is trained to be too sure (arXiv:2503.16870).

    Bytes for a position: k times 2 (the ids; 4 beyond 65,536 classes) and 4 (2 in half precision),
    and 4 for all others.

    Args:
      k: how many classes, at most as many as there are.
      tail: whether the others count as one class.
      temperature: T > 0 of the softmax. The term has to have the same.
      dtype: of the log-probabilities; `torch.float16` is off by at most 0.05 % of each.
      of: in a cache, the logits, where what the terms read is not those but the hidden states of
        a head: `keep={teacher.hidden_states[-1]: top_k(64, of=teacher.logits)}`.

    Example:
      >>> fkd.sources.top_k(2)(torch.tensor([[0.0, 2.0, 1.0]])).ids.tolist()
      [[1, 2]]
    """
    if not isinstance(k, int) or k < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SourceError(f"top_k: k is {k!r}; an integer from 1 on is expected.")
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise SourceError(
            f"top_k: dtype is {dtype}; torch.float32, torch.float16 or torch.bfloat16 is expected."
        )
    return TopK(k, bool(tail), _positive("top_k", "temperature", temperature), dtype, of)


def sampled(
    n: int, temperature: float = 1.0, proposal: float = 1.0, *, of: Ref | None = None
) -> Sampled:
    """Keep n classes drawn from a teacher (random sampling knowledge distillation, RS-KD).

        cache(objective, loader, folder, keep={teacher.logits: sampled(50)})   # on the disk
        term(kl, student.logits, fkd.call(sampled(50), teacher.logits))        # drawn in each step

    The value is a `SampledDistribution`, which `kl`, `soft_cross_entropy` and `head_divergence`
    take instead of the teacher. Value and gradient are unbiased: their mean over draws is
    that of the whole teacher, softened by the temperature as the loss is. One draw is from each
    of n equal parts of the distribution, which scatters less than independent draws.

    A cache draws once for each position, from numbers that are a function of the sample alone:
    resumed, or in other batches, it draws the same. `kl` may be negative at a position.

    Bytes for a position: n times 2 (the ids; 4 beyond 65,536 classes; 6 or 8 with a proposal), 4
    for the entropy, and 2 or 4 for the first choice.

    Args:
      n: how many draws.
      temperature: T > 0 of the softmax that is drawn from. The term has to have the same.
      proposal: draw from p^proposal / sum p^proposal instead, with weights: below 1 more of
        the tail.
      of: as in `top_k`.

    Example:
      >>> drawn = fkd.sources.sampled(4)(torch.tensor([[0.0, 0.0]]))
      >>> drawn.ids.tolist()
      [[0, 0, 1, 1]]

    Reference:
      Anshumann et al., Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs,
      arXiv:2503.16870.
    """
    if not isinstance(n, int) or n < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SourceError(f"sampled: n is {n!r}; an integer from 1 on is expected.")
    temperature = _positive("sampled", "temperature", temperature)
    return Sampled(n, temperature, _positive("sampled", "proposal", proposal), of)


def uniform_of(seed: Tensor, start: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[rows, *positions, n]`, random numbers from 0 up to 1, each a function of the seed of its
    row and of its place behind the row's first token: the same in every batch.

    Args:
      seed: `[rows]`, int64.
      start: `[rows]`, where the tokens of each begin on the first axis of positions.
      shape: of the numbers.
    """
    each = math.prod(shape[1:])
    inner = math.prod(shape[2:]) if len(shape) > 2 else 0
    place = torch.arange(each, device=seed.device) - start[:, None] * inner
    # SplitMix64: a Weyl sequence, mixed. Products of int64 are modulo 2^64, as they have to be.
    x = seed[:, None] + (place + 1) * -7046029254386353131
    x = (x ^ _shifted(x, 30)) * -4658895280553007687
    x = (x ^ _shifted(x, 27)) * -7723592293110705685
    x = x ^ _shifted(x, 31)
    return (_shifted(x, 40).float() / (1 << 24)).reshape(shape)


def _shifted(x: Tensor, places: int) -> Tensor:
    """The bits of int64 numbers, moved to the right, with zeros from the left."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def _logits(what: object, logits: Tensor) -> Tensor:
    """The logits.

    Raises:
      SourceError: they are none.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or not logits.ndim:  # pyright: ignore[reportUnnecessaryIsInstance]
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SourceError(
            f"{what!r}: {got} is given; logits [*batch, vocab] are expected: teacher.logits."
        )
    return logits


def _positive(name: str, knob: str, value: float) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SourceError(f"{name}: {knob} is {value!r}; a number above 0 is expected.")
    return float(value)


def _at(temperature: float) -> str:
    return "" if temperature == 1 else f", temperature={temperature:g}"
