"""Where the boxes of a drawing stand.

Terms stack from top to bottom, each in a band of its own with the values that it is the first
to read; so most lines are short and straight. Models, batch and total are centred on what they
are connected to.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .picture import COLUMNS, Band, Box, Picture

TITLE, LINE, PAD = 18.0, 16.0, 8.0
"""Heights of a title, of a line of code, and of the space above and below them."""

BAND_GAP, BOX_GAP, GROUP_HEAD, LANE = 16.0, 8.0, 26.0, 13.0
WIDEST = {
    "batch": 90,
    "model": 190,
    "value": 250,
    "adapter": 210,
    "loss": 290,
    "weight": 250,
    "total": 170,
}
TOP, MARGIN = 62.0, 24.0


@dataclass
class Place:
    """A box's left edge, the height of its centre, and its size."""

    x: float
    y: float
    width: float
    height: float


@dataclass
class Layout:
    """Places by id, columns as `(head, left, width)`, panels of groups as `(head, top, bottom)`,
    and for each line the height at which it ends."""

    places: dict[str, Place] = field(default_factory=dict[str, Place])
    columns: list[tuple[str, float, float]] = field(default_factory=list[tuple[str, float, float]])
    panels: list[tuple[str, float, float]] = field(default_factory=list[tuple[str, float, float]])
    ports: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    width: float = 0.0
    height: float = 0.0


def layout(shown: Picture) -> Layout:
    """Places for all boxes."""
    result = Layout()
    for box_id, box in shown.boxes.items():
        result.places[box_id] = Place(0.0, TOP, *_size(box))
    _stack(shown, result)
    for kind in ("model", "batch", "total"):
        _centre(shown, result, kind)
    _columns(shown, result)
    _ports(shown, result)
    bottoms = [p.y + p.height / 2 for p in result.places.values()]
    result.height = max([*bottoms, *(bottom for _, _, bottom in result.panels)]) + MARGIN
    return result


def text_width(text: str, size: float, *, mono: bool) -> float:
    """About how wide a text is; a little too much rather than too little."""
    wide = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
    return wide * size * (0.61 if mono else 0.58)


def elide(text: str, width: float, size: float, *, mono: bool) -> str:
    """The text, without its middle where it is too wide: a path's last part says most."""
    if text_width(text, size, mono=mono) <= width:
        return text
    keep = max(int(width / (size * (0.61 if mono else 0.58))) - 1, 4)
    head = keep // 2
    return f"{text[:head]}\u2026{text[len(text) - (keep - head) :]}"


def code_size(box: Box) -> tuple[float, bool]:
    """Size of a box's title, and whether it is code."""
    return (11.5, True) if box.kind in ("value", "adapter", "weight") else (13.0, False)


def _size(box: Box) -> tuple[float, float]:
    size, mono = code_size(box)
    widths = [
        text_width(box.title, size, mono=mono),
        *(text_width(t, 11.5, mono=True) for t in box.lines),
    ]
    width = min(max(widths) + 24, WIDEST[box.kind])
    height = 2 * PAD + TITLE + LINE * len(box.lines) + (24 if box.curve else 0)
    slim = box.kind in ("value", "weight", "adapter")
    return max(width, 110.0 if box.curve else 64.0), height - (8 if slim else 2)


def _stack(shown: Picture, result: Layout) -> None:
    """One band below the other; the bands of one group on a common panel."""
    y, group, top = TOP, "", TOP
    for band in shown.bands:
        if band.group != group:
            if group:
                result.panels.append((group, top, y - BAND_GAP + 12))
                y += 14
            group, top = band.group, y
            y += GROUP_HEAD if group else 0
        y = _band(shown, result, band, y) + BAND_GAP
    if group:
        result.panels.append((group, top, y - BAND_GAP + 12))


def _band(shown: Picture, result: Layout, band: Band, top: float) -> float:
    """Place one band; gives its lower end."""
    places = result.places
    sides = (places[band.loss].height, places[band.weight].height)
    columns = [band.leaves, *_by(band.adapters, lambda a: shown.depth[a])]
    stacks = [
        sum(places[i].height + BOX_GAP for i in column) - BOX_GAP for column in columns if column
    ]
    height = max([*sides, *stacks])
    middle = top + height / 2
    places[band.loss].y = places[band.weight].y = middle
    for column in columns:
        y = middle - (sum(places[i].height + BOX_GAP for i in column) - BOX_GAP) / 2
        for box_id in column:
            places[box_id].y = y + places[box_id].height / 2
            y += places[box_id].height + BOX_GAP
    for column in columns[1:]:
        wanted = [_mean(places[a].y for a, b in shown.lines if b == box_id) for box_id in column]
        pairs = sorted(zip(wanted, column, strict=True))
        _spread([places[i] for _, i in pairs], [y for y, _ in pairs], BOX_GAP, top)
    lowest = max(
        (places[i].y + places[i].height / 2 for column in columns for i in column), default=top
    )
    return max(top + height, lowest)


def _by(items: Iterable[str], key: Callable[[str], int]) -> list[tuple[str, ...]]:
    items = list(items)
    return [tuple(i for i in items if key(i) == k) for k in sorted({key(i) for i in items})]


def _mean(values: Iterable[float], default: float = TOP) -> float:
    values = list(values)
    return sum(values) / len(values) if values else default


def _spread(places: Sequence[Place], wanted: Sequence[float], gap: float, top: float) -> None:
    """One below the other, each as near to its wanted height as those above it allow."""
    lowest = top
    for place, height in zip(places, wanted, strict=True):
        place.y = max(height, lowest + place.height / 2)
        lowest = place.y + place.height / 2 + gap


def _centre(shown: Picture, result: Layout, kind: str) -> None:
    """Models on their values; batch on the models, total on the weights."""
    ids = sorted(shown.of(kind), key=lambda i: shown.boxes[i].dashed)  # what is unused comes last
    wanted: list[float] = []
    for box_id in ids:
        ends = [b for a, b in shown.lines if a == box_id] + [
            a for a, b in shown.lines if b == box_id
        ]
        if kind != "total":
            ends = [
                e for e in ends if shown.boxes[e].kind == ("value" if kind == "model" else "model")
            ]
        middles = [result.places[e].y for e in ends]
        wanted.append((min(middles) + max(middles)) / 2 if middles else TOP)
    places = [result.places[i] for i in ids]
    _spread(places, wanted, 30.0, TOP)
    # The stack as a whole, moved up by what pushing down has added, as far as there is room.
    excess = sum(p.y - w for p, w in zip(places, wanted, strict=True)) / max(len(places), 1)
    room = min((p.y - p.height / 2 for p in places), default=TOP) - TOP
    for place in places:
        place.y -= min(max(excess, 0.0), room)


def _columns(shown: Picture, result: Layout) -> None:
    """Left edges of the columns, with room between them for the lines."""
    depths = sorted({d for d in shown.depth.values()})
    models = len(shown.of("model"))
    kinds = [
        ("batch", shown.of("batch")),
        ("models", shown.of("model")),
        ("taken", shown.of("value")),
    ]
    kinds += [("adapted", [i for i, d in shown.depth.items() if d == depth]) for depth in depths]
    kinds += [
        ("losses", shown.of("loss")),
        ("weights", shown.of("weight")),
        ("total", shown.of("total")),
    ]
    after = {"batch": 44.0, "models": 40 + LANE * (models + 1), "weights": 56.0}
    x = MARGIN
    for head, ids in kinds:
        if not ids:
            continue
        assert head in COLUMNS
        width = max(result.places[i].width for i in ids)
        repeated = any(head == h for h, _, _ in result.columns)
        result.columns.append(("" if repeated else head, x, width))
        for box_id in ids:
            place = result.places[box_id]
            stretched = shown.boxes[box_id].kind in ("loss", "model")
            place.x, place.width = x, width if stretched else place.width
        gap = 40.0 if head == "losses" else after.get(head, 64.0)
        x += width + gap
    result.width = result.columns[-1][1] + result.columns[-1][2] + MARGIN


def _ports(shown: Picture, result: Layout) -> None:
    """Lines into one box end side by side, in the order in which they come."""
    for target, place in result.places.items():
        sources = [a for a, b in shown.lines if b == target]
        sources.sort(key=lambda a: result.places[a].y)
        apart = (
            0.0
            if shown.boxes[target].kind == "total"
            else min(9.0, (place.height - 12) / max(len(sources) - 1, 1))
        )
        for i, source in enumerate(sources):
            result.ports[source, target] = place.y + (i - (len(sources) - 1) / 2) * apart


def free_height(result: Layout, shown: Picture, start: float, left: float, right: float) -> float:
    """The height nearest to `start` at which no adapter stands between two edges."""
    between = [result.places[i] for i in shown.of("adapter")]
    blocks = [p for p in between if left < p.x + p.width and p.x < right]
    sides = [p.y + side * (p.height / 2 + 6) for p in blocks for side in (-1, 1)]
    free = [y for y in (start, *sides) if all(abs(y - p.y) > p.height / 2 + 3 for p in blocks)]
    return min(free, key=lambda y: abs(y - start), default=start)
