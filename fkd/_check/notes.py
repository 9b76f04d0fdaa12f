"""What runs and is seldom meant: notes below the table of a check, which are no mistakes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss  # pyright: ignore[reportPrivateUsage]

from .._base.types import Batch
from .._objective.evaluation import Evaluated, counted_positions, takes
from .._objective.objective import Objective
from .._objective.terms import Term
from .._refs.code import Method
from .._refs.derived import Call
from .._refs.paths import name_of
from .._refs.refs import Item, Param, Ref, node, output_path, roots, walk
from .padded import moved_by_padding
from .rows import counted_mask
from .shifted import unshifted_masks

_SOFTMAXES = ("softmax", "sigmoid")
_ADAPTED = ".base_layer.weight"
_SAME_NUMBERS = ("float", "double", "to", "detach", "contiguous", "squeeze", "unsqueeze")
"""Methods after which probabilities are still some."""


def notes(
    objective: Objective,
    values: Sequence[Any],
    evaluations: Mapping[str, Evaluated | None],
    batch: Batch,
) -> Iterator[str]:
    """One line for each.

    Args:
      objective: what was checked, without a mistake.
      values: of its refs, by place; fake ones have shapes.
      evaluations: what its terms gave.
      batch: the real one.
    """
    by_ref = {ref: values[i] for ref, i in objective.program.plan.place.items()}
    for name, term in objective.terms.items():
        evaluated = evaluations[name]
        assert evaluated is not None
        said = [
            *_weightless(term),
            *_untrained(term, evaluated),
            *_reduced(term, evaluated),
            *_nothing_counts(objective, term, evaluated, by_ref, batch),
            *_probabilities(objective, term, by_ref),
            *_swapped(term, by_ref),
            *_without_adapters(objective, term),
            *_padding(objective, term, evaluated, by_ref, batch),
        ]
        yield from (f"term {name!r}: {note}" for note in said)
    yield from unshifted_masks(objective, batch)
    yield from moved_by_padding(objective, batch)
    yield from _trained_teacher(objective)


def _weightless(term: Term) -> Iterator[str]:
    if isinstance(term.weight, int | float) and term.weight == 0:
        yield (
            f"weight={term.weight!r}: it is computed, and no part of the total. Leave it out, or "
            f"measure it: fkd.metric({name_of(term.loss)}, ...)."
        )


def _untrained(term: Term, evaluated: Evaluated) -> Iterator[str]:
    """A part of the total that no parameter can lower."""
    if isinstance(term.weight, Ref):  # a weight that may be learned
        return
    if not term.weight or evaluated.mean.total.requires_grad:
        return
    yield (
        "it has no gradient, since it does not depend on what is trained, or does so through "
        "argmax, a comparison or detach: it is added to the total, and trains nothing. Measure "
        f"it: fkd.metric({name_of(term.loss)}, ...); or compute it by what has a gradient."
    )


def _reduced(term: Term, evaluated: Evaluated) -> Iterator[str]:
    """A loss of torch that takes the mean itself, so that parts of a batch cannot be merged."""
    loss = getattr(term.loss, "func", term.loss)
    of_torch = getattr(loss, "__module__", "") == F.__name__ or isinstance(loss, _Loss)
    if not of_torch or not isinstance(evaluated.result, Tensor) or evaluated.result.ndim:
        return
    yield (
        f"{name_of(term.loss)} of torch gives one number for all positions. With "
        "train_step(accumulate=...), and over batches of dev, the mean of such numbers weighs "
        "every part alike, however many of its positions count, and is nan if in one none does. "
        "Use a loss of fkd.losses, or one number for each position: reduction='none'."
    )


def _nothing_counts(
    objective: Objective,
    term: Term,
    evaluated: Evaluated,
    values: Mapping[Ref, Any],
    batch: Batch,
) -> Iterator[str]:
    """A mask, or labels that are to be ignored, which leave no position of this batch."""
    if term.where is None and counted_positions(term.loss) is None:
        return
    counts = counted_mask(objective, term, evaluated, values, batch)
    if counts is not None and counts.numel() and not counts.any():
        by = "its labels" if term.where is None else f"where={term.where!r}"
        yield f"no position of this batch counts, by {by}: its value is 0, without a gradient."


def _probabilities(objective: Objective, term: Term, values: Mapping[Ref, Any]) -> Iterator[str]:
    """Probabilities where a loss of fkd takes the softmax itself."""
    for parameter, ref in zip(_parameters(term), term.args, strict=False):
        if parameter.endswith("logits") and _are_probabilities(objective, ref, values[ref]):
            yield (
                f"{name_of(term.loss)} takes logits and makes probabilities of them itself, and "
                f"{ref!r} are probabilities already. Give it the logits."
            )


def _are_probabilities(objective: Objective, ref: Ref, value: Any) -> bool:
    """Whether the last thing that was done is a softmax: by the code of the ref, by the gradient
    of its value, or by the last module of the model whose logits it is."""
    gradient = getattr(value, "grad_fn", None)
    if gradient is not None and str(gradient.name()).lower().startswith(_SOFTMAXES):
        return True
    part = node(ref)
    while isinstance(part, Method) and part.name in _SAME_NUMBERS:
        part = node(part.parent)
    if isinstance(part, Call) and part.fn is torch.detach:
        return _are_probabilities(objective, part.children[0], None)
    if isinstance(part, Call | Method):
        fn = part.name if isinstance(part, Method) or part.fn is None else name_of(part.fn)
        return fn.lower() in _SOFTMAXES
    path = output_path(ref)
    if path is None or path[1][-1:] != ("logits",) or path[0] not in objective.models:
        return False
    last = objective.program.model(path[0]).module
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    return isinstance(last, nn.Softmax | nn.Sigmoid)


def _swapped(term: Term, values: Mapping[Ref, Any]) -> Iterator[str]:
    """What is not trained in the student's place of a loss, and what is in the teacher's."""
    if term.weight is None:
        return
    named = list(zip(_parameters(term), term.args, strict=False))
    constant = [(p, ref) for p, ref in named if p.startswith("student_")
                and isinstance(values[ref], Tensor) and not _has_gradient(values[ref])]  # fmt: skip
    trained = [(p, ref) for p, ref in named if p.startswith("teacher_")
               and _has_gradient(values[ref])]  # fmt: skip
    if not constant or not trained:
        return
    loss = name_of(term.loss)
    places = [p for p, _ in named if p.startswith(("student_", "teacher_"))]
    if len(places) > 2:
        (theirs, large), (place, small) = constant[0], trained[0]
        yield (
            f"{large!r} stands where {loss} expects {theirs}, and has no gradient; {small!r} "
            f"stands where it expects {place}, and is trained. Their order is "
            f"{loss}({', '.join(places)}), unless that is meant."
        )
        return
    reverse = " For KL(student | teacher) there is fkd.losses.reverse_kl."
    yield (
        f"{constant[0][1]!r} stands where {loss} expects the student, and has no "
        f"gradient; {trained[0][1]!r} stands where it expects the teacher, and is trained. Swap "
        f"them, unless that is meant.{reverse if loss == 'kl' else ''}"
    )


def _without_adapters(objective: Objective, term: Term) -> Iterator[str]:
    """The weight of a head that has adapters of PEFT, which it leaves out."""
    weights = [term.kwargs.get(name) for name in ("student_weight", "teacher_weight")]
    for ref in (*term.args, *(w for w in weights if isinstance(w, Ref))):
        part = node(ref)
        if not isinstance(part, Param) or not part.parameter.endswith(_ADAPTED):
            continue
        model = objective.program.model(part.root).module
        layer: Any = model and model.get_submodule(part.parameter.removesuffix(_ADAPTED))
        if getattr(layer, "active_adapters", None) and not layer.merged:
            yield (
                f"{ref!r} is the weight without the adapters of its layer, which then learn "
                "nothing here. With them: fkd.interop.transformers.heads(student=model)."
            )


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _parameters(term: Term) -> list[str]:
    """The names of the arguments of a loss of fkd."""
    inner = getattr(term.loss, "func", term.loss)
    if not str(getattr(inner, "__module__", "")).startswith("fkd.losses"):
        return []
    return list(inspect.signature(term.loss).parameters)


def _padding(
    objective: Objective,
    term: Term,
    evaluated: Evaluated,
    values: Mapping[Ref, Any],
    batch: Batch,
) -> Iterator[str]:
    """Positions that the batch says are padding, and that count in a term without a mask."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.is_floating_point():
        return
    if term.where is not None or isinstance(term.weight, Ref) or _masks_by_itself(objective, term):
        return
    shape, code = _positions_of(term, evaluated, values), "batch.attention_mask"
    if shape == (mask.shape[0], mask.shape[1] - 1):  # the logits without those of the last token
        mask, code = mask[:, 1:], f"{code}[:, 1:]"
    if shape != tuple(mask.shape):
        return
    padding, of = mask == 0, mask.numel()
    if counted_positions(term.loss) is not None:
        counts = counted_mask(objective, term, evaluated, values, batch)
        if counts is None or counts.shape != padding.shape:
            return
        padding, of = padding & counts.to(padding.device), int(counts.sum())
    if padding.any():
        yield f"{int(padding.sum())} of {of} positions are padding: where={code}."


def _positions_of(
    term: Term, evaluated: Evaluated, values: Mapping[Ref, Any]
) -> tuple[int, ...] | None:
    """The shape of the positions that a term takes the mean of, if it can have a mask."""
    if isinstance(evaluated.result, Tensor):
        return tuple(evaluated.result.shape)
    first = values[term.args[0]] if term.args else None
    if not isinstance(first, Tensor) or not takes(term.loss, "where"):
        return None
    return tuple(first.shape[:-1])


def _masks_by_itself(objective: Objective, term: Term) -> bool:
    """Whether padding may be left out in another way, or where it stands cannot be told: by a
    function of the mask, by labels of the next token, by a decoder, which has other positions."""
    for ref in {part for whole in term.refs for part in walk(whole)}:
        part = node(ref)
        if roots(ref) is None or (isinstance(part, Item) and part.key == "attention_mask"):
            return True
        if isinstance(part, Call) and part.fn is not None and name_of(part.fn) == "next_tokens":
            return True
    models = {root for ref in term.refs for root in roots(ref) or ()} & {*objective.models}
    modules = [objective.program.model(name).module for name in models]
    encodes = (getattr(getattr(m, "config", None), "is_encoder_decoder", False) for m in modules)
    return not models or any(encodes) or bool(term.kwargs.get("shift"))


def _trained_teacher(objective: Objective) -> Iterator[str]:
    """A model called teacher that is trained, and stands only where others are compared to it."""
    model = objective.models.get("teacher")
    if model is None or model.kind != "trainable":
        return
    trained = [t for t in objective.terms.values() if t.reaches("teacher") and _reads(t.refs)]
    if trained and all(
        _parameters(t)[1:2] == ["teacher_logits"] and not _reads(t.args[:1]) for t in trained
    ):
        yield (
            "model 'teacher' is trainable, and terms only compare others with it: it is pulled to "
            "the student. If it is to stay as it is: fkd.frozen(module)."
        )


def _reads(refs: Sequence[Ref]) -> bool:
    return any("teacher" in (roots(ref) or ()) for ref in refs)
