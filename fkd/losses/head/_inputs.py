"""From the arguments of a head to a `Problem`: checked, flattened, restricted and masked."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._base.sparse import SampledDistribution, SparseDistribution
from .._shared.checks import covers, floating, positive, temperature_fits
from .._shared.known import entropy_of, same_temperature
from .._shared.labels import integers
from ._arguments import HeadArguments, Side, Targets
from ._cut import divided
from ._divergence import Divergence, as_divergence
from ._known import KINDS
from ._problem import Head, Problem, Vocabulary


def problem_of(arguments: HeadArguments, *, metrics: bool) -> Problem:
    """The problem that the arguments of `head_divergence` describe."""
    student, teacher = arguments.student, arguments.teacher
    temperature, divergence = arguments.temperature, as_divergence(arguments.divergence)
    _expect_numbers(divergence)
    caps = {"student_softcap": student.softcap, "teacher_softcap": teacher.softcap}
    positive("head_divergence", temperature=temperature, **caps)
    _expect_tensors(student)
    assert isinstance(student.hidden, Tensor) and student.weight is not None
    labels, keep = _flat_targets(
        student.hidden, student.weight, student.vocabulary, arguments.targets
    )
    _expect_needed(divergence, labels, teacher)
    if not (divergence.needs_teacher or metrics):
        teacher = teacher._replace(hidden=None)
    student, teacher, division = divided(student, teacher)
    assert isinstance(student.hidden, Tensor)
    _same_positions(student.hidden, teacher.hidden)
    head = _head("student", student, keep)
    assert head is not None
    dtype = arguments.logits_dtype or torch.promote_types(student.hidden.dtype, torch.float32)
    temperature_fits("head_divergence", temperature, dtype)
    problem = Problem(
        head, None, labels if divergence.needs_labels else None, keep, divergence, temperature,
        dtype, arguments.operand_dtype, metrics, division=division,
    )  # fmt: skip
    weights = _token_weights(arguments.token_weights, student.hidden, problem)
    problem = problem._replace(token_weights=weights)
    if isinstance(teacher.hidden, SparseDistribution):
        _expect_known(problem, teacher, teacher.hidden)
        return problem._replace(known=_flat(teacher.hidden))
    other = _head("teacher", teacher, keep)
    _same_vocabulary(head, other)
    return problem._replace(teacher=other)


def _expect_needed(divergence: Divergence, labels: Tensor | None, teacher: Side) -> None:
    """Refuse a divergence whose labels or teacher are missing."""
    if labels is None and divergence.needs_labels:
        raise ValueError("head_divergence: cross_entropy() needs labels; got None. Pass labels=.")
    if teacher.hidden is None and divergence.needs_teacher:
        raise ValueError(
            f"head_divergence: {divergence!r} needs teacher_hidden and teacher_weight; got None."
        )


def _expect_numbers(divergence: Divergence) -> None:
    """Refuse weights that only an objective can evaluate."""
    if divergence.knobs:
        name, knob = next(iter(divergence.knobs.items()))
        raise ValueError(
            f"head_divergence: the weight of {name} is {knob!r}, a function of the step; a number "
            "or a 0-d tensor is expected. An objective evaluates it at every step; elsewhere "
            f"write divergence.at({{{name!r}: 0.5}})."
        )


def _token_weights(weights: Tensor | None, hidden: Tensor, problem: Problem) -> Tensor | None:
    """`[tokens]`, 0 where a token does not count, whatever stands there."""
    if weights is None:
        return None
    batch = tuple(hidden.shape[:-1])
    if not isinstance(weights, Tensor) or tuple(weights.shape) != batch[: weights.ndim]:  # pyright: ignore[reportUnnecessaryIsInstance]
        got = tuple(weights.shape) if isinstance(weights, Tensor) else weights  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(
            f"head_divergence: token_weights {got} must have the positions of student_hidden "
            f"{tuple(hidden.shape)}: {batch}, or its leading axes (one weight an example)."
        )
    floating("head_divergence", token_weights=weights)
    whole = weights.reshape(*weights.shape, *[1] * (len(batch) - weights.ndim)).expand(batch)
    return torch.where(problem.keep, whole.reshape(-1).to(problem.dtype), 0.0)


def _expect_tensors(student: Side) -> None:
    """Refuse refs, and what is missing."""
    if not (isinstance(student.hidden, Tensor) and isinstance(student.weight, Tensor)):
        kinds = [type(x).__name__ for x in (student.hidden, student.weight)]
        raise ValueError(
            f"head_divergence: student_hidden and student_weight are of {' and '.join(kinds)}; "
            "tensors are expected. In an objective, hand the function over instead of calling it: "
            "fkd.term(head_divergence, hidden, weight, ...) as a loss, "
            "fkd.call(head_metrics, hidden, weight, ...) for a value."
        )


def _expect_known(problem: Problem, teacher: Side, known: SparseDistribution) -> None:
    """Refuse what a teacher that is known on some classes cannot say."""
    loss, divergence = "head_divergence", problem.divergence
    whole = [atom.name for atom in divergence.atoms if atom.kind not in KINDS]
    if whole:
        raise ValueError(
            f"{loss}: {whole[0]} needs all classes of the teacher, which is known on {known.known} "
            f"of {known.vocab}. Use head.kl() or head.soft_cross_entropy(); or keep its hidden "
            "states whole (fkd.sources.exact()), to which its head is applied here."
        )
    same_temperature(loss, known, problem.temperature)
    vocab = problem.student.weight.shape[0]
    if teacher.vocabulary is not None or known.vocab != vocab:
        restricted = "" if teacher.vocabulary is None else " and teacher_vocabulary is given"
        raise ValueError(
            f"{loss}: the teacher is known on {known.known} of {known.vocab} classes, the student "
            f"has {vocab}{restricted}. One vocabulary with the same ids is expected: of a student "
            f"with more rows than classes take student_vocabulary=slice(0, {known.vocab})."
        )
    if isinstance(known, SampledDistribution) and any(a.kind == "kl" for a in divergence.atoms):
        entropy_of(loss, known)


def _flat(known: SparseDistribution) -> SparseDistribution:
    """`[tokens]`, one axis of positions."""
    axes = known.ids.ndim - 1
    return known.map(lambda x: x.reshape(-1, *x.shape[axes:]))


def counted(
    student_hidden: Tensor,
    student_weight: Tensor,
    labels: Tensor | None,
    where: Tensor | None,
    ignore_index: int,
    shift: bool,
    student_vocabulary: Vocabulary | None,
) -> Tensor:
    """`[*batch]`, the positions that count."""
    targets = Targets(labels, where, ignore_index, shift)
    _, keep = _flat_targets(student_hidden, student_weight, student_vocabulary, targets)
    return keep.reshape(student_hidden.shape[:-1])


def _head(name: str, side: Side, keep: Tensor) -> Head | None:
    """One model's head over flat tokens and the shared vocabulary."""
    if not isinstance(side.hidden, Tensor) or side.weight is None:
        return None
    hidden, weight, bias = side.hidden, side.weight, side.bias
    floating("head_divergence", **{f"{name}_hidden": hidden, f"{name}_weight": weight})
    if weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"head_divergence: {name}_weight {tuple(weight.shape)} must be [vocab, features] with "
            f"the features of {name}_hidden {tuple(hidden.shape)}. Is it transposed?"
        )
    if side.vocabulary is not None:
        weight = _restrict(weight, side.vocabulary)
        bias = None if bias is None else _restrict(bias, side.vocabulary)
    flat = hidden.reshape(-1, hidden.shape[-1])
    flat = flat.masked_fill(~keep[:, None], 0.0)
    return Head(flat, weight, bias, side.scale, side.softcap)


def _same_positions(student: Tensor, teacher: Tensor | SparseDistribution | None) -> None:
    if teacher is not None and student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"head_divergence: student_hidden {tuple(student.shape)} and teacher_hidden "
            f"{tuple(teacher.shape)} must have the same positions."
        )


def _same_vocabulary(student: Head, teacher: Head | None) -> None:
    if teacher is not None and student.weight.shape[0] != teacher.weight.shape[0]:
        raise ValueError(
            f"head_divergence: student_weight has {student.weight.shape[0]} entries and "
            f"teacher_weight {teacher.weight.shape[0]}; one shared vocabulary is expected. "
            "Give student_vocabulary and teacher_vocabulary, the ids both models have."
        )


def _restrict(x: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The rows of a head that belong to the shared vocabulary."""
    return x[vocabulary] if isinstance(vocabulary, slice) else x.index_select(0, vocabulary)


def _flat_targets(
    hidden: Tensor, weight: Tensor, vocabulary: Vocabulary | None, targets: Targets
) -> tuple[Tensor | None, Tensor]:
    """Labels within the shared vocabulary (0 where there is none), and which tokens count."""
    labels, where, ignore_index, shift = targets
    batch = hidden.shape[:-1]
    covers("head_divergence", where, batch)
    if labels is not None and labels.shape != batch:
        raise ValueError(
            f"head_divergence: labels {tuple(labels.shape)} must have the positions of "
            f"student_hidden {tuple(hidden.shape)}: {tuple(batch)}."
        )
    if labels is not None:
        integers("head_divergence", labels)
    keep = torch.ones(batch, dtype=torch.bool, device=hidden.device)
    if labels is not None:
        keep = labels != ignore_index
        labels = torch.where(keep, labels, 0).long()
    if shift:
        keep = _next(keep)
        labels = None if labels is None else _next(labels)
    if where is not None:
        keep = keep & where.bool()
    if labels is not None and vocabulary is not None:
        labels = _translate(labels, vocabulary, weight.shape[0])
        keep = keep & (labels >= 0)
    if labels is not None:
        labels = torch.where(keep, labels, 0).flatten()
    return labels, keep.flatten()


def _next(x: Tensor) -> Tensor:
    """What the next position holds; 0 (False) at the last one."""
    return torch.cat([x[..., 1:], torch.zeros_like(x[..., :1])], dim=-1)


def _translate(labels: Tensor, vocabulary: Vocabulary, vocab: int) -> Tensor:
    """From ids of the model to places in the shared vocabulary; -1 if the id is not shared."""
    ids = torch.arange(vocab, device=labels.device)
    shared = ids[vocabulary] if isinstance(vocabulary, slice) else vocabulary
    places = torch.full_like(ids, -1).scatter(0, shared, ids[: shared.numel()])
    return places[labels]
