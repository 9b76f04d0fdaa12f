"""Which models a term trains (`to=`), and the fewest backward passes that give their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from .._base.errors import listing, nearest
from .terms import Term


class Backward(NamedTuple):
    """A backward pass: from the sum of some terms to the parameters of some models.

    Attributes:
      terms: whose contributions are added up.
      models: that all of these terms train, and no other term does.
    """

    terms: tuple[str, ...]
    models: tuple[str, ...]


def backward_passes(terms: Mapping[str, Term], models: Iterable[str]) -> list[Backward]:
    """The passes that give every model the gradient of the terms that train it.

    Models that the same terms train share one. A pass visits only what lies between its terms and
    its models, so that several passes to several models cost hardly more than one to all.

    Args:
      terms: by name.
      models: the trainable models whose gradient is wanted.

    Example:
      >>> terms = {"a": term(kl, student.logits, teacher.logits, to="student"),
      ...          "b": term(kl, student.logits, teacher.logits)}
      >>> [list(map(list, one)) for one in backward_passes(terms, ["student", "project"])]
      [[['a', 'b'], ['student']], [['b'], ['project']]]
    """
    shared: dict[tuple[str, ...], list[str]] = {}
    for model in models:
        reaching = tuple(name for name, term in terms.items() if term.reaches(model))
        shared.setdefault(reaching, []).append(model)
    return [Backward(names, tuple(members)) for names, members in shared.items()]


def reach_problems(term: Term, models: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the models that a term names."""
    trainable = [n for n, m in models.items() if getattr(m, "kind", "") == "trainable"]
    if term.to == ():
        yield "to=() names no model, so that the term trains nothing. Measure it: fkd.metric(...)."
    for name in term.to or ():
        if name in trainable:
            continue
        what = "is not trainable" if name in models else "is not a model of the objective"
        yield (
            f"to={name!r}, which {what}. {nearest(str(name), trainable)}"
            f"Trainable models: {listing(trainable)}."
        )
