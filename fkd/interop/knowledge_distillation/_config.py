"""The list-of-dicts config: its items, checked, and the terms that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from fkd._base.errors import listing, nearest
from fkd._objective.terms import Term, term
from fkd._refs.derived import call
from fkd._refs.paths import describe
from fkd._refs.refs import Ref, batch, ref

from ._losses import MASKED, NAMED, UserLoss, as_label_loss, as_teacher_loss, label_cross_entropy

Config: TypeAlias = Sequence[Mapping[str, Any]]
Losses: TypeAlias = Mapping[str, Callable[..., Any]]

KINDS = ("ts_distill", "hard_distill")
_TEACHER_KEYS = ("teacher_layer_name", "teacher_layer_output_name")
_STUDENT_KEYS = ("student_layer_name", "student_layer_output_name")


@dataclass(frozen=True)
class Item:
    """One entry of a config, complete and checked.

    Attributes:
      kind: `"ts_distill"` (teacher against student) or `"hard_distill"` (against labels).
      student: layer and output of the student.
      teacher: layer and output of the teacher; None for labels.
      teacher_name: the teacher's name among the models.
      loss: a name, or a function of the user.
      args: its further options.
      weight: its factor in the total.
      label: batch -> labels, for labels that the student's input does not hold.
    """

    kind: str
    student: tuple[Any, Any]
    teacher: tuple[Any, Any] | None
    teacher_name: str
    loss: str | UserLoss
    args: Mapping[str, Any]
    weight: Any
    label: Callable[[Any], Any] | None

    @property
    def fixed(self) -> tuple[Any, ...]:
        """All that a compiled step is compiled for: everything but the value of the weight."""
        fixed = (self.kind, self.student, self.teacher, self.teacher_name, self.loss, self.args)
        return (*fixed, self.label, type(self.weight))

    @property
    def name(self) -> str:
        """The name of its term in logs."""
        source = "labels" if self.teacher is None else ".".join(map(str, self.teacher))
        prefix = "" if self.teacher_name in ("teacher", "") else f"{self.teacher_name}."
        return f"{'.'.join(map(str, self.student))}<-{prefix}{source}"


def terms_from_config(
    config: Config,
    *,
    losses: Losses | None = None,
    teachers: Sequence[str] = ("teacher",),
    inputs: Mapping[str, Ref] | None = None,
    masks: Mapping[str, Ref] | None = None,
    whole_batch: Ref = batch,
) -> dict[str, Term]:
    """The terms that a distill config stands for, to go on in fkd's own style.

    Models are `student`, and `teacher` or the names in `teachers`; each gives what its output
    adaptor makes of its output:

        fkd.trainable(Adapted(model, output_adaptor), inputs=lambda batch: (keywords,))

    Args:
      config: the list of dicts. With several teachers an item says which by `"teacher"`, a name
        or its place in `teachers`.
      losses: functions of the user by name, besides the named losses.
      teachers: names of the teachers.
      inputs: ref to what a model is called with, by its name: what masks and labels are read
        from, and functions of the user are given. Default: the batch, for every model.
      masks: ref to each teacher's attention mask. Default: `inputs[teacher]["attention_mask"]`.
      whole_batch: what `"batch_data_to_label"` is called with.

    Returns:
      `{name: term}`, in the order of the config.

    Raises:
      ValueError: an item lacks a key, or names an unknown loss, type or teacher.

    Example:
      >>> config = [{
      ...     "teacher_layer_name": "layer4", "teacher_layer_output_name": "hidden",
      ...     "student_layer_name": "layer1", "student_layer_output_name": "hidden",
      ...     "loss": {"loss_function": "mse_with_mask", "args": {}}, "weight": 0.5,
      ... }]
      >>> terms = terms_from_config(config)
      >>> list(terms), terms["layer1.hidden<-layer4.hidden"].args[1:]
      (['layer1.hidden<-layer4.hidden'], (teacher.layer4.hidden, batch.attention_mask))
    """
    calls = dict.fromkeys(["student", *teachers], batch) | dict(inputs or {})
    terms: dict[str, Term] = {}
    for item in parse(config, losses=losses, teachers=teachers):
        name = item.name
        while name in terms:
            name += "'"
        mask = (masks or {}).get(item.teacher_name)
        terms[name] = _term(item, losses or {}, calls, mask, whole_batch)
    return terms


def _term(
    item: Item, losses: Losses, inputs: Mapping[str, Ref], mask: Ref | None, whole_batch: Ref
) -> Term:
    of_student = ref("student")[item.student[0]][item.student[1]]
    function = losses.get(item.loss) if isinstance(item.loss, str) else item.loss
    if item.teacher is None:
        truth = _truth(item, function, inputs["student"], whole_batch)
        if function is not None:
            return term(as_label_loss(function, item.args), of_student, truth, weight=item.weight)
        loss = label_cross_entropy if item.loss == "cross_entropy" else NAMED[str(item.loss)]
        return term(loss, of_student, truth, weight=item.weight, **item.args)
    of_teacher = ref(item.teacher_name)[item.teacher[0]][item.teacher[1]]
    if function is not None:
        both = (inputs["student"], inputs[item.teacher_name])
        loss = as_teacher_loss(function, item.args)
        return term(loss, of_student, of_teacher, *both, weight=item.weight)
    args = [of_student, of_teacher]
    if item.loss in MASKED:
        args.append(inputs[item.teacher_name]["attention_mask"] if mask is None else mask)
    return term(NAMED[str(item.loss)], *args, weight=item.weight, **item.args)


def _truth(
    item: Item, function: Callable[..., Any] | None, student_input: Ref, whole_batch: Ref
) -> Ref:
    """Labels: from the batch by a function, or the student's input (whole, for a function of
    the user, which reads from it what it needs)."""
    if item.label is not None:
        return call(item.label, whole_batch)
    return student_input["labels"] if function is None else student_input


def parse(
    config: Config, *, losses: Losses | None = None, teachers: Sequence[str] = ("teacher",)
) -> list[Item]:
    """The items of a config.

    Raises:
      ValueError: what `terms_from_config` says.
    """
    if isinstance(config, Mapping | str) or not config:
        raise ValueError(
            f"distill_config is {config!r}; a list of dicts, one for each loss, is expected."
        )
    known = {**NAMED, **(losses or {})}
    return [_item(f"distill_config[{i}]", entry, known, teachers) for i, entry in enumerate(config)]


def _item(place: str, entry: Mapping[str, Any], known: Losses, teachers: Sequence[str]) -> Item:
    kind = entry.get("type", KINDS[0])
    if kind not in KINDS:
        raise ValueError(f"{place}: type {kind!r}; one of {listing(KINDS)} is expected.")
    needed = (*_STUDENT_KEYS, "loss", *(_TEACHER_KEYS if kind == KINDS[0] else ()))
    missing = [key for key in needed if key not in entry]
    if missing:
        raise ValueError(f"{place}: no {listing(missing)}; it has {listing(map(str, entry))}.")
    loss: Any = entry["loss"]
    loss = loss if isinstance(loss, Mapping) else {"loss_function": loss}
    fn: Any = loss.get("loss_function")
    fn = next((name for name, named in NAMED.items() if fn is named), fn)
    if not callable(fn) and fn not in known:
        raise ValueError(
            f"{place}: unknown loss {fn!r}. {nearest(str(fn), list(known))}Available: "
            f"{listing(sorted(known))}, or a function of (teacher_output, student_output, "
            "teacher_input, student_input)."
        )
    if fn in MASKED and kind == KINDS[1]:
        raise ValueError(f"{place}: {fn!r} compares with a teacher; type is 'hard_distill'.")
    return Item(
        kind=kind,
        student=(entry[_STUDENT_KEYS[0]], entry[_STUDENT_KEYS[1]]),
        teacher=None if kind == KINDS[1] else (entry[_TEACHER_KEYS[0]], entry[_TEACHER_KEYS[1]]),
        teacher_name="" if kind == KINDS[1] else _teacher(place, entry, teachers),
        loss=fn,  # pyright: ignore[reportArgumentType]
        args=dict(loss.get("args") or {}),
        weight=entry.get("weight", 1.0),
        label=entry.get("batch_data_to_label"),
    )


def _teacher(place: str, entry: Mapping[str, Any], teachers: Sequence[str]) -> str:
    chosen = entry.get("teacher", teachers[0] if len(teachers) == 1 else None)
    if isinstance(chosen, int) and 0 <= chosen < len(teachers):
        return teachers[chosen]
    if chosen not in teachers:
        raise ValueError(
            f"{place}: 'teacher' is {chosen!r}; there are {len(teachers)} teachers, and one of "
            f"{listing(teachers)} (or its place, 0..{len(teachers) - 1}) is expected."
        )
    return str(chosen)


def wanted_of(items: Sequence[Item], model: str) -> list[tuple[Any, Any]]:
    """The `(layer, output)` that a config reads from a model."""
    if model == "student":
        return [item.student for item in items]
    return [i.teacher for i in items if i.teacher is not None and i.teacher_name == model]


def same_items(items: Sequence[Item], others: Sequence[Item]) -> bool:
    """Whether two configs differ in nothing but the values of their weights."""
    return len(items) == len(others) and all(
        _same(a.fixed, b.fixed) for a, b in zip(items, others, strict=True)
    )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    try:
        return a is b or bool(a == b)
    except (RuntimeError, ValueError):  # tensors and arrays, which have no one truth value
        return False


def check_outputs(items: Sequence[Item], outputs: Mapping[str, Any]) -> None:
    """Refuse layers and outputs that the adaptors do not give.

    Args:
      items: what `parse` gave.
      outputs: what the output adaptor of each model gave, by model name.

    Raises:
      ValueError: lists every unknown layer and output, with those there are.
    """
    problems: list[str] = []
    for i, item in enumerate(items):
        problems += _unknown(f"distill_config[{i}]: student", item.student, outputs["student"])
        if item.teacher is not None:
            taught = outputs[item.teacher_name]
            problems += _unknown(f"distill_config[{i}]: teacher", item.teacher, taught)
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))


def _unknown(whose: str, wanted: tuple[Any, Any], adapted: Any) -> list[str]:
    place, _, role = whose.rpartition(" ")
    value, where = adapted, ""
    for key, name in zip((f"{role}_layer_name", f"{role}_layer_output_name"), wanted, strict=True):
        try:
            value = value[name]
        except Exception:
            names = _names_in(value)
            if names is None:
                what = where or f"what {role}_output_adaptor gave"
                return [
                    f"{place} {key} is {name!r}, but {what} is {describe(value)}; a dict "
                    "{layer: {output: tensor}} is expected."
                ]
            return [
                f"{place} {key} is {name!r}: no such name{where and f' in {where}'}. "
                f"{nearest(str(name), names)}Available: {listing(names, limit=100)}."
            ]
        where = f"layer {name!r}"
    if isinstance(value, Tensor | Mapping | list | tuple):
        return []
    return [f"{place} {role} output {wanted[0]}.{wanted[1]} is {describe(value)}, not a tensor."]


def _names_in(value: Any) -> list[str] | None:
    if isinstance(value, Mapping):
        return [str(k) for k in value]
    if isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.ndim):
        return [str(i) for i in range(len(value))]
    return None
