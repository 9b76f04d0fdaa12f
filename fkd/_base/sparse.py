"""A distribution over classes that is known on some of them, as a teacher's value.

`kl`, `soft_cross_entropy` and `head_divergence` take one instead of the teacher's logits (or
hidden states), so that a term reads the same whether its teacher is whole or sparse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import optree
import optree.registry
import torch
from torch import Tensor

Self = TypeVar("Self", bound="SparseDistribution")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SparseDistribution:
    """A distribution over `vocab` classes that is known on some of them; see its two kinds,
    `TopKDistribution` and `SampledDistribution`.

    Attributes:
      ids: `[*batch, k]`, the classes, of any integer dtype (`id_dtype` gives the smallest).
      vocab: how many classes there are.
      temperature: of the softmax that the distribution is. A loss has to be taken at the same.

    Example:
      >>> known = fkd.sources.top_k(2)(torch.zeros(4, 7, 100))
      >>> known.shape, known.known, known[:, :-1].shape
      ((4, 7, 100), 2, (4, 6, 100))
    """

    ids: Tensor
    vocab: int
    temperature: float

    LEAVES: ClassVar[tuple[str, ...]] = ("ids",)
    """The fields that are tensors (or None)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`[*batch, vocab]`, that of the logits that it stands for."""
        return (*self.ids.shape[:-1], self.vocab)

    @property
    def known(self) -> int:
        """On how many classes a position is known."""
        return self.ids.shape[-1]

    def index(self) -> Tensor:
        """`[*batch, k]`, the classes as int64, to gather with."""
        return self.ids.long()

    def first(self) -> Tensor:
        """`[*batch]`, the most probable class of each position, int64.

        Raises:
          ValueError: it is not known.
        """
        raise NotImplementedError

    def map(self: Self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same with a function of each tensor, which leaves their last axes as they are."""
        leaves = {name: getattr(self, name) for name in self.LEAVES}
        return replace(self, **{n: fn(x) for n, x in leaves.items() if x is not None})

    def __getitem__(self: Self, index: Any) -> Self:
        """The distributions at some positions: `values[:, :-1]`. The classes stay."""
        places = index if isinstance(index, tuple) else (index,)
        axes = sum(1 for i in places if i is not None)
        if Ellipsis in [i for i in places if not isinstance(i, Tensor)] or axes > self.ids.ndim - 1:
            raise ValueError(
                f"a distribution known on {self.known} of {self.vocab} classes is indexed by "
                f"{index!r}; an index of its {self.ids.ndim - 1} axes of positions is expected, "
                "such as [:, :-1]. Its classes are not all there to be indexed."
            )
        return self.map(lambda x: x[index])

    def to(self: Self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same on a device."""
        return self.map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self: Self, device: Any = None) -> Self:
        """The same in pinned memory, which a `DataLoader` asks for by this name."""
        return self.map(lambda x: x.pin_memory())

    def __reduce__(self) -> tuple[Any, ...]:
        return _read, (type(self), {n: _signed(x) for n, x in vars(self).items()})

    def _check(self, **entries: object) -> None:
        kind, ids = type(self).__name__, vars(self)["ids"]
        if not isinstance(ids, Tensor):
            return  # a tree of something else than tensors
        if ids.is_floating_point() or ids.dtype == torch.bool or not ids.ndim:
            raise ValueError(
                f"{kind}: ids is {ids.dtype} {tuple(ids.shape)}; integers [*batch, k] are expected."
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"{kind}: temperature {self.temperature}; a number above 0 is needed.")
        for name, x in entries.items():
            by_class = name in ("log_probs", "weights")
            expected = ids.shape if by_class else ids.shape[:-1]
            if isinstance(x, Tensor) and x.shape != expected:
                raise ValueError(
                    f"{kind}: {name} has shape {tuple(x.shape)}; {tuple(expected)} is expected "
                    f"beside ids {tuple(ids.shape)}."
                )


@dataclass(frozen=True, eq=False)
class TopKDistribution(SparseDistribution):
    """The most probable classes of a teacher, and how probable all others are together.

    Attributes:
      ids: `[*batch, k]`, the classes, the most probable one first, each at most once.
      vocab: how many classes there are.
      temperature: T of the softmax.
      log_probs: `[*batch, k]`, log p of the softmax over all classes at T; `-inf` marks an unused
        place.
      log_rest: `[*batch]`, log of the probability of all other classes together; None: they have
        none, and `log_probs` is normalised over the k classes when it is read.

    Example:
      >>> half = torch.tensor([0.5]).log()
      >>> made = fkd.sources.TopKDistribution(
      ...     ids=torch.tensor([1]), vocab=3, temperature=1.0, log_probs=half, log_rest=half[0]
      ... )
      >>> kl(torch.zeros(3), made)
      tensor(0.0589)
    """

    log_probs: Tensor
    log_rest: Tensor | None = None

    LEAVES: ClassVar[tuple[str, ...]] = ("ids", "log_probs", "log_rest")

    def __post_init__(self) -> None:
        self._check(log_probs=self.log_probs, log_rest=self.log_rest)

    def first(self) -> Tensor:
        """`[*batch]`, the most probable class of each position, int64."""
        return self.index()[..., 0]


@dataclass(frozen=True, eq=False)
class SampledDistribution(SparseDistribution):
    """Classes drawn from a teacher, of which the mean over draws is the teacher (RS-KD).

    Attributes:
      ids: `[*batch, n]`, the classes drawn, with replacement.
      vocab: how many classes there are.
      temperature: T of the softmax that is drawn from.
      weights: `[*batch, n]`, what each draw stands for, whose sum is 1 on average (p / (n r) for a
        proposal r; any numbers, of either sign, weigh single tokens); None: 1 / n each.
      entropy: `[*batch]`, of the softmax at T in nats, which `kl` has to know and
        `soft_cross_entropy` has not.
      top: `[*batch]`, the most probable class, for metrics.

    Example:
      >>> made = fkd.sources.SampledDistribution(ids=torch.tensor([1, 0]), vocab=3, temperature=1)
      >>> fkd.losses.soft_cross_entropy(torch.zeros(3), made)
      tensor(1.0986)
    """

    weights: Tensor | None = None
    entropy: Tensor | None = None
    top: Tensor | None = None

    LEAVES: ClassVar[tuple[str, ...]] = ("ids", "weights", "entropy", "top")

    def __post_init__(self) -> None:
        self._check(weights=self.weights, entropy=self.entropy, top=self.top)

    def first(self) -> Tensor:
        """`[*batch]`, the most probable class of each position, int64.

        Raises:
          ValueError: it was not kept.
        """
        if self.top is None:
            raise ValueError("the most probable class of drawn classes was not kept: top is None.")
        return self.top.long()


class Instead(NamedTuple):
    """What a loss need not be told besides a sparse distribution.

    Attributes:
      argument: of the loss, in whose place the distribution stands.
      others: the arguments that have done their work then.
    """

    argument: str
    others: tuple[str, ...]


def sparse_instead(argument: str, *others: str) -> Callable[[T], T]:
    """Attach to a loss what it need not be told besides a sparse distribution.

    Example:
      >>> @sparse_instead("teacher_hidden", "teacher_weight")
      ... def error(student, teacher_hidden, teacher_weight): ...
      >>> error.sparse_instead.others
      ('teacher_weight',)
    """

    def attach(loss: T) -> T:
        setattr(loss, "sparse_instead", Instead(argument, others))  # noqa: B010  any callable
        return loss

    return attach


def id_dtype(vocab: int) -> torch.dtype:
    """The smallest dtype for the classes of a vocabulary: uint16, or uint32 beyond 65,536.

    Example:
      >>> id_dtype(32_000), id_dtype(128_256)
      (torch.uint16, torch.uint32)
    """
    return torch.uint16 if vocab <= 1 << 16 else torch.uint32


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32}


def _signed(x: Any) -> Any:
    """What pickle of torch can write of a field: the bits of unsigned numbers as signed ones."""
    unsigned = isinstance(x, Tensor) and x.dtype in _SIGNED
    return (x.view(_SIGNED[x.dtype]), x.dtype) if unsigned else x


def _read(kind: type[SparseDistribution], fields: dict[str, Any]) -> SparseDistribution:
    """What `__reduce__` has written."""
    as_it_was = {n: x[0].view(x[1]) if isinstance(x, tuple) else x for n, x in fields.items()}
    return kind(**as_it_was)


def _register(kind: type[SparseDistribution]) -> None:
    """Let trees see the tensors; what is not one (vocab, temperature) is part of the structure."""

    def flatten(x: SparseDistribution) -> tuple[tuple[Any, ...], Any, tuple[str, ...]]:
        return tuple(getattr(x, n) for n in kind.LEAVES), (x.vocab, x.temperature), kind.LEAVES

    def unflatten(known: tuple[int, float], leaves: Any) -> SparseDistribution:
        vocab, temperature = known
        fields = dict(zip(kind.LEAVES, leaves, strict=True))
        return kind(vocab=vocab, temperature=temperature, **fields)

    register: Any = optree.register_pytree_node  # typed for collections, which this is not
    register(kind, flatten, unflatten, path_entry_type=optree.GetAttrEntry, namespace=_EVERYWHERE)


_EVERYWHERE: Any = vars(optree.registry)["__GLOBAL_NAMESPACE"]  # of which optree makes no name

for _kind in (TopKDistribution, SampledDistribution):
    _register(_kind)
