"""Models whose tokenizers differ: what reads, embeds or compares ids that mean other tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from .._base.errors import listing
from .._base.types import Batch
from .._objective.apply import call_arguments, embedded_ids
from .._objective.objective import Objective
from .._objective.terms import Term
from .._refs.derived import Call
from .._refs.paths import name_of
from .._refs.refs import Ref, node, output_path, roots
from .._refs.sourced import original, origins
from .tokenizers import Tokenizer, TokenizerReport, compare_tokenizers

_OF_TWO_VOCABULARIES = ("uld", "multi_level_ot", "sinkhorn_ot", "shared_kl", "universal_kd")
"""Losses of fkd over logits that compare no entry with that of the same id."""


def expect_names(objective: Objective, tokenizers: Mapping[str, Tokenizer]) -> None:
    """Refuse tokenizers of models that are not there, and what is no tokenizer."""
    sources = {p for ref in objective.program.plan.refs for p in origins(ref)}
    names = {*objective.models, *(root for p in sources for root in roots(p.of) or ())}
    for name, tokenizer in tokenizers.items():
        if name not in names:
            raise ValueError(
                f"check: tokenizers has {name!r}; the models are {listing(sorted(names))}."
            )
        if not callable(getattr(tokenizer, "get_vocab", None)):
            raise ValueError(
                f"check: tokenizers[{name!r}] is a {type(tokenizer).__name__}; a tokenizer of "
                "transformers is expected, such as AutoTokenizer.from_pretrained(...)."
            )


def compared(
    objective: Objective, tokenizers: Mapping[str, Tokenizer]
) -> dict[tuple[str, str], TokenizerReport]:
    """Each trained model's tokenizer beside those of the others; without one, the first's."""
    trained = [n for n in tokenizers if (m := objective.models.get(n)) and m.kind == "trainable"]
    trained = trained or [*tokenizers][:1]
    return {
        (ours, theirs): compare_tokenizers(tokenizers[ours], tokenizers[theirs])
        for ours in trained
        for theirs in tokenizers
        if theirs not in trained
    }


def vocabulary_problems(
    objective: Objective,
    batch: Batch,
    tokenizers: Mapping[str, Tokenizer],
    reports: Mapping[tuple[str, str], TokenizerReport],
) -> Iterator[str]:
    """One message for each mistake: a vocabulary that a model has no embeddings for; a model that
    reads ids, or a term that compares logits, which mean other tokens.

    Args:
      objective: what is checked.
      batch: the real one.
      tokenizers: of its models, by name.
      reports: what `compared` gave.
    """
    yield from _without_embedding(objective, tokenizers)
    for (ours, theirs), report in reports.items():
        if report.same_ids:
            continue
        differ = f"of {ours!r} and {theirs!r} {report.differences[0].split(':')[0]}"
        if _same_input(objective, batch, ours, theirs):
            yield (
                f"models {ours!r} and {theirs!r} both read batch.input_ids, and by the tokenizers "
                f"{differ}. Give {theirs!r} ids of its own: token_batch(..., "
                f"prefix='{theirs}_') and inputs=fkd.loops.language.fields_of('{theirs}_')."
            )
        for name, term in objective.terms.items():
            if _compares_ids(term, ours, theirs):
                yield (
                    f"term {name!r}: {name_of(term.loss)} compares the logits of each id, and by "
                    f"the tokenizers {differ}. Compare what both have (fkd.losses.shared_kl, or "
                    "student_vocabulary= and teacher_vocabulary= of a head, with ids from "
                    "fkd.loops.language.shared_vocabulary), or take fkd.losses.uld."
                )


def _without_embedding(objective: Objective, tokenizers: Mapping[str, Tokenizer]) -> Iterator[str]:
    for name, tokenizer in tokenizers.items():
        if name not in objective.models:
            continue  # a source has its values
        rows = embedded_ids(objective.program.model(name).module)
        size = max(tokenizer.get_vocab().values(), default=-1) + 1
        if rows is not None and size > rows:
            yield (
                f"model {name!r} embeds {rows} ids, and its tokenizer has ids up to {size - 1}. "
                "Call model.resize_token_embeddings(len(tokenizer)), or take its own tokenizer."
            )


def _same_input(objective: Objective, batch: Batch, *names: str) -> bool:
    """Whether models read the same tensor of ids."""
    if not all(name in objective.models for name in names):
        return False
    read: list[Any] = []
    for name in names:
        try:
            args, kwargs = call_arguments(objective.program.model(name), batch)
        except Exception:  # said by the dry run
            return False
        ids = kwargs.get("input_ids", args[0] if args else None)
        read.append(ids if isinstance(ids, Tensor) and not ids.is_floating_point() else None)
    return read[0] is not None and all(ids is read[0] for ids in read)


def _compares_ids(term: Term, ours: str, theirs: str) -> bool:
    """Whether a loss of fkd is given logits, or heads, of both models, each with all its ids."""
    inner = getattr(term.loss, "func", term.loss)
    if not str(getattr(inner, "__module__", "")).startswith("fkd.losses"):
        return False
    name, kwargs = name_of(term.loss), term.kwargs
    if name.startswith("head_"):
        refs = [*term.args, *(v for v in kwargs.values() if isinstance(v, Ref))]
        read = {root for ref in refs for root in roots(original(ref)) or ()}
        return {ours, theirs} <= read and kwargs.get("student_vocabulary") is None
    if name in _OF_TWO_VOCABULARIES or len(term.args) < 2:
        return False
    return [_model_of_logits(ref) for ref in term.args[:2]] == [ours, theirs]


def _model_of_logits(ref: Ref) -> str | None:
    """The model whose logits these are, all of them, at all positions or at some (`take`)."""
    whole = original(ref)
    part = node(whole)
    if isinstance(part, Call) and part.fn is not None and name_of(part.fn) == "take":
        whole = part.children[0]
    path = output_path(whole)
    return path[0] if path is not None and path[1][-1:] == ("logits",) else None
