"""What a drawing of an objective shows: boxes in columns, and the lines between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from .._objective.models import trainable_parameters
from .._objective.objective import Objective
from .._objective.terms import Term, moves
from .._refs.derived import Call, Function
from .._refs.paths import name_of, show
from .._refs.refs import Ref, children, node, roots, walk
from .._refs.sourced import original, origins
from ..schedules import Schedule

NEAR = 6
"""A value is drawn once for so many terms in a row; further down it is drawn again."""

Drawn: TypeAlias = dict[Ref, tuple[str, int]]
"""Where a ref was drawn last: its box, and the number of the band."""

COLUMNS = ("batch", "models", "taken", "adapted", "losses", "weights", "total")
"""Column heads, left to right; "adapted" may span several columns, or none."""


@dataclass(frozen=True)
class Box:
    """One box: a bold title, lines of code below it, and everything in full as a tooltip.

    Attributes:
      kind: batch, model, value, adapter, loss, weight or total.
      tint: the colour that a model gives to itself and to what is taken from it.
      dashed: not part of the total (a metric, an unused model).
      curve: values of a schedule, drawn as a small curve.
    """

    kind: str
    title: str
    lines: tuple[str, ...] = ()
    tint: str = "plain"
    tooltip: str = ""
    dashed: bool = False
    curve: tuple[float, ...] = ()


@dataclass(frozen=True)
class Band:
    """What stands on the height of one term: its loss, its weight, and the values that it is
    the first to read."""

    group: str
    loss: str
    weight: str
    leaves: tuple[str, ...]
    adapters: tuple[str, ...]


@dataclass
class Picture:
    """All boxes by id, the lines between them as pairs of ids, and the bands, top to bottom."""

    boxes: dict[str, Box] = field(default_factory=dict[str, Box])
    lines: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    bands: list[Band] = field(default_factory=list[Band])
    depth: dict[str, int] = field(default_factory=dict[str, int])

    def connect(self, source: str, target: str) -> None:
        """A line, once."""
        if source in self.boxes and (source, target) not in self.lines:
            self.lines.append((source, target))

    def of(self, kind: str) -> list[str]:
        """The ids of all boxes of a kind."""
        return [i for i, box in self.boxes.items() if box.kind == kind]


def picture(objective: Objective) -> Picture:
    """The boxes and lines of an objective."""
    drawing = Picture()
    tints = _tints(objective)
    drawing.boxes["batch"] = Box("batch", "batch", tint="batch", tooltip="what the loader yields")
    applied = {
        r.name
        for r in map(node, objective.program.plan.refs)
        if isinstance(r, Call) and r.fn is None
    }
    for name in objective.models:
        if name not in applied or name in objective.program.runs:
            drawing.boxes[f"model:{name}"] = _model(objective, name, tints[name])
    for name in objective.program.runs:
        drawing.connect("batch", f"model:{name}")
    ids: dict[Ref, tuple[str, int]] = {}
    for name, term in objective.terms.items():
        _add_term(drawing, objective, tints, ids, name, term)
    drawing.boxes["total"] = Box("total", "total", ("sum of weight * mean",), tint="total")
    for band in drawing.bands:
        if not drawing.boxes[band.weight].dashed:
            drawing.connect(band.weight, "total")
    return drawing


def _tints(objective: Objective) -> dict[str, str]:
    """A colour for each model: a family for each kind, with variants."""
    counts: dict[str, int] = {}
    tints: dict[str, str] = {}
    for name, model in objective.models.items():
        counts[model.kind] = counts.get(model.kind, -1) + 1
        tints[name] = f"{model.kind}{counts[model.kind] % 3}"
    return tints


def _model(objective: Objective, name: str, tint: str) -> Box:
    model = objective.models[name]
    module = objective.program.model(name).module
    assert module is not None
    count = sum(p.numel() for p in module.parameters())
    moving = sum(p.numel() for p in trainable_parameters(model).values())
    size = f"{short(count)} parameters"
    if 0 < moving < count:
        size += f", {short(moving)} trained"
    kind = model.kind if model.kind != "ema" else f"ema of {model.of}, {show(model.decay)}"
    tooltip = f"{name}: {kind}, {type(module).__name__}, {count:,} parameters"
    unused = all(name not in (roots(r) or objective.models) for r in objective.program.plan.refs)
    lines = (kind + (", unused" if unused else ""), type(module).__name__, size)
    return Box("model", name, lines, tint, tooltip, dashed=unused)


def short(count: int) -> str:
    """A count in three digits: `109M`.

    Example:
      >>> short(820), short(109_482_240)
      ('820', '109M')
    """
    value, unit = float(count), 0
    while value >= 999.5 and unit < 4:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g}{' kMBT'[unit].strip()}"


def _add_term(
    drawing: Picture, objective: Objective, tints: dict[str, str], ids: Drawn, name: str, term: Term
) -> None:
    new: list[str] = []
    inputs = [*term.args, *(v for v in term.kwargs.values() if isinstance(v, Ref))]
    sources = [_add_ref(drawing, objective, tints, ids, ref, new) for ref in inputs]
    loss, weight = f"loss:{name}", f"weight:{name}"
    group, _, rest = name.partition("/")
    knobs = [f"{k}={show(v)}" for k, v in term.kwargs.items() if not isinstance(v, Ref)]
    lines = [name_of(term.loss) + (f"({', '.join(knobs)})" if knobs else "")]
    lines += [] if term.where is None else [f"where {term.where!r}"]
    metric = term.weight is None
    drawing.boxes[loss] = Box(
        "loss", rest or name, tuple(lines), "plain", f"{name}: {term!r}", metric
    )
    drawing.boxes[weight] = _weight(term)
    for source in sources:
        drawing.connect(source, loss)
    drawing.connect(loss, weight)
    leaves = tuple(i for i in new if i not in drawing.depth)
    adapters = tuple(i for i in new if i in drawing.depth)
    drawing.bands.append(Band(group if rest else "", loss, weight, leaves, adapters))


def _weight(term: Term) -> Box:
    if term.weight is None:
        return Box("weight", "metric", tooltip="measured, not part of the total", dashed=True)
    weight = term.weight
    shown = f"{weight:.4g}" if isinstance(weight, float) else show(weight)
    return Box("weight", f"\u00d7 {shown}", tooltip=f"weight {show(weight)}", curve=_curve(weight))


def _curve(knob: object) -> tuple[float, ...]:
    if not moves(knob) or isinstance(knob, Tensor):
        return ()
    steps = max((n for n in _integers(knob) if n > 1), default=0)
    if not steps:
        return ()
    return tuple(float(knob(round(i * 1.2 * steps / 40))) for i in range(41))


def _integers(value: Any) -> Iterator[int]:
    """The numbers of steps in a schedule; those of one in another add up."""
    if isinstance(value, Schedule):
        inner = [sum(_integers(a)) for a in value.args]
        yield sum(inner)
    elif type(value) is int:
        yield value
    elif isinstance(value, dict):
        yield max([k for k in value if type(k) is int], default=0)
    elif isinstance(value, list):
        yield sum(n for v in value if isinstance(v, Schedule) for n in _integers(v))


def _add_ref(
    drawing: Picture,
    objective: Objective,
    tints: dict[str, str],
    ids: Drawn,
    ref: Ref,
    new: list[str],
) -> str:
    """The id of a ref's box; a new one, and those below it, are appended to `new`."""
    drawn, band = ids.get(ref, ("", -NEAR))
    if len(drawing.bands) - band < NEAR:
        return drawn
    called = _called(ref)
    if called is None:
        below: list[str] = []
    else:
        below = [_add_ref(drawing, objective, tints, ids, c, new) for c in children(called)]
    box = f"value:{len(drawing.boxes)}"
    ids[ref] = box, len(drawing.bands)
    if called is None:
        names = _roots(ref, objective)
        tint = "plain" if len(names) != 1 else {"batch": "batch", **tints}[names[0]]
        shown = repr(original(ref)).replace("<lambda>", "lambda ctx: ...")
        pairs = [(part.source, part.place) for part in origins(ref)]
        texts = (text for name, place in pairs for text in (f"from {name}", place) if text)
        lines = tuple(dict.fromkeys(texts))
        tooltip = " ".join([shown, *lines])
        drawing.boxes[box] = Box("value", shown, lines, tint=tint, tooltip=tooltip)
        for name in names:
            drawing.connect("batch" if name == "batch" else f"model:{name}", box)
    else:
        drawing.boxes[box] = _adapter(objective, tints, called, ref)
        drawing.depth[box] = 1 + max((drawing.depth.get(b, 0) for b in below), default=0)
    for source in below:
        drawing.connect(source, box)
    new.append(box)
    return box


def _called(ref: Ref) -> Ref | None:
    """What stands between a ref and the boxes that it is computed from: a call, or an operation
    on calls; None if it is read from models and the batch alone."""
    chain = list(_chain(ref))
    calls = any(isinstance(node(part), Call) for part in walk(ref))
    return chain[-1] if calls else None


def _chain(ref: Ref) -> Iterator[Ref]:
    """The ref and, while it is an item of another, that one."""
    while True:
        yield ref
        below = children(ref)
        if isinstance(node(ref), Call) or len(below) != 1:
            return
        ref = below[0]


def _adapter(objective: Objective, tints: dict[str, str], called: Ref, ref: Ref) -> Box:
    call = node(called)
    if not isinstance(call, Call):
        title = repr(ref)
        for child in children(called):
            title = title.replace(repr(child), _short(child))
        return Box("adapter", title, tint="plain", tooltip=repr(ref))
    before, _, after = repr(ref).partition(repr(call))
    if call.fn is not None:
        constants = [show(a) for a in call.args if not isinstance(a, Ref)]
        constants += [f"{k}={show(v)}" for k, v in call.kwargs if not isinstance(v, Ref)]
        name = repr(call).partition("(")[0] if repr(call)[:4] == "stop" else name_of(call.fn)
        inner = f"({', '.join(constants)})" if constants else ""
        return Box("adapter", before + name + inner + after, tint="plain", tooltip=repr(ref))
    module = objective.program.model(call.name).module
    count = sum(p.numel() for p in module.parameters()) if module is not None else 0
    title = f"{before}{call.name}{after}: {type(module).__name__}, {short(count)}"
    return Box("adapter", title, tint=tints[call.name], tooltip=repr(ref))


def _short(ref: Ref) -> str:
    """A value by its code; what has a box of its own by its name."""
    called = _called(ref)
    call = None if called is None else node(called)
    if not isinstance(call, Call):
        return repr(ref)
    return repr(ref).replace(repr(call), call.name or name_of(call.fn))


def _roots(ref: Ref, objective: Objective) -> Sequence[str]:
    """What a value is taken from. A plain function may read anything; those models that its
    code names are drawn, or all of them if it names none."""
    below = [r for r in map(node, _chain(ref)) if isinstance(r, Function)]
    if not below:
        return sorted(roots(ref) or ())
    able = ["batch", *objective.program.runs]
    code = getattr(below[0].fn, "__code__", None)
    named = [n for n in able if n in getattr(code, "co_consts", ())]
    return named or able
