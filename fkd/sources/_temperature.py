"""The temperature at which a teacher is kept, and that of the terms that will read it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace

from fkd._objective.terms import Term
from fkd._refs.paths import show
from fkd._refs.refs import Ref

from ._errors import SourceError
from ._keep import Keep
from ._sparse import Sampled, TopK


def expect_temperature(terms: Mapping[str, Term], ref: Ref, how: Keep) -> None:
    """Refuse, before a teacher runs, classes at another temperature than that of their terms.

    Args:
      terms: of the objective.
      ref: of which classes are kept.
      how: which classes.

    Raises:
      SourceError: a term that reads the ref has another temperature, or one that moves.
    """
    if not isinstance(how, TopK | Sampled):
        return
    for name, term in terms.items():
        if not any(ref is x or ref == x for x in (*term.args, *term.kwargs.values())):
            continue
        wanted = _temperature(term)
        if isinstance(wanted, int | float) and math.isclose(wanted, how.temperature, rel_tol=1e-6):
            continue
        if wanted is None:
            continue
        fix = "Give the term the temperature at which the classes are kept, or keep exact(dtype)."
        if isinstance(wanted, int | float):
            fix = f"Keep {replace(how, temperature=float(wanted))!r}."
        raise SourceError(
            f"cache: keep[{ref!r}] is {how!r}, of temperature {how.temperature:g}, and term "
            f"{name!r} reads it at temperature {show(wanted)}. {fix}"
        )


def _temperature(term: Term) -> object:
    """What a term gives its loss as the temperature, or the loss has by default; None: nothing."""
    if "temperature" in term.kwargs:
        return term.kwargs["temperature"]
    try:
        parameter = inspect.signature(term.loss).parameters.get("temperature")
    except (TypeError, ValueError):
        return None
    known = parameter is not None and parameter.default is not parameter.empty
    return parameter.default if parameter is not None and known else None
