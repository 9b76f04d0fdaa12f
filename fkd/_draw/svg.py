"""A picture as SVG text: shapes, lines and words, in colours for light and dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from .layout import (
    GROUP_HEAD,
    LANE,
    LINE,
    TOP,
    Layout,
    Place,
    code_size,
    elide,
    free_height,
    layout,
)
from .picture import Box, Picture

COLOURS = {
    "trainable0": ("#e7f0fe", "#5b8def", "#1c2b45", "#6f9df2"),
    "trainable1": ("#e0f5f4", "#2fa7a0", "#123533", "#45b8b1"),
    "trainable2": ("#eae9fd", "#7a73e0", "#27254a", "#8f89ea"),
    "frozen0": ("#fdf0dc", "#dd9a3c", "#3b2c14", "#dba253"),
    "frozen1": ("#fde8e6", "#d9776b", "#3f2220", "#dd8a80"),
    "frozen2": ("#f1f0d8", "#a39a3a", "#32301a", "#b3aa54"),
    "ema0": ("#f4e8fb", "#ab6fd0", "#34213f", "#b583d6"),
    "ema1": ("#fbe7f3", "#cc6aa4", "#3d2033", "#d27fb1"),
    "ema2": ("#ece9f5", "#8a7bb0", "#2a2637", "#9a8dbd"),
    "batch": ("#e5f4e8", "#54a868", "#1a3321", "#64b277"),
    "plain": ("#ffffff", "#a3adba", "#1f252e", "#667180"),
    "total": ("#eef1f5", "#5d6877", "#29313c", "#95a1b2"),
}
"""Fill and line of each tint on a light page, then on a dark one."""

INK, FAINT, PAPER, PANEL = (
    ("#1f2937", "#e6e9ef"),
    ("#667085", "#98a2b3"),
    ("#fcfcfd", "#14181f"),
    ("#f1f3f6", "#1a1f28"),
)
SANS = "system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif"
MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"


def render(shown: Picture) -> str:
    """The SVG text of a picture."""
    at = layout(shown)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="fkd" role="img" width="{at.width:.0f}" '
        f'height="{at.height:.0f}" viewBox="0 0 {at.width:.0f} {at.height:.0f}" '
        f'style="max-width:100%;height:auto" font-family="{SANS}">',
        f"<title>{_text(f'distillation objective of {len(shown.bands)} terms')}</title>",
        f"<style>{dark_rules()}</style>",
        f'<rect width="100%" height="100%" rx="12" fill="{PAPER[0]}" class="paper"/>',
        *_heads(at),
        *_panels(shown, at),
        *_lines(shown, at),
        *(part for box_id, box in shown.boxes.items() for part in _box(box, at.places[box_id])),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def dark_rules() -> str:
    """The style of a page that is dark."""
    rules = [
        f".fkd .{tint}.box{{fill:{fill};stroke:{line}}}.fkd .{tint}.line{{stroke:{line}}}"
        f".fkd .{tint}.tip{{fill:{line}}}"
        for tint, (_, _, fill, line) in COLOURS.items()
    ]
    rules += [
        f".fkd .ink{{fill:{INK[1]}}}.fkd .faint{{fill:{FAINT[1]}}}.fkd .paper{{fill:{PAPER[1]}}}"
    ]
    rules += [f".fkd .panel{{fill:{PANEL[1]}}}.fkd .halo{{stroke:{PAPER[1]}}}"]
    return f"@media (prefers-color-scheme:dark){{{''.join(rules)}}}"


def _text(text: str) -> str:
    """Escaped for XML, which knows no control characters and no halves of surrogate pairs."""
    legal = (
        c if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff" else "\ufffd"
        for c in text
    )
    return escape("".join(legal), {'"': "&quot;"})


def _words(
    x: float, y: float, text: str, *, size: float, mono: bool, css: str = "ink", more: str = ""
) -> str:
    colour = (INK if css == "ink" else FAINT)[0]
    font = f' font-family="{MONO}"' if mono else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}" '
        f'class="{css}"{font}{more}>{_text(text)}</text>'
    )


def _heads(at: Layout) -> Iterator[str]:
    for head, x, _ in at.columns:
        if head:
            more = ' letter-spacing="1.2" font-weight="600"'
            yield _words(x, 34, head.upper(), size=10, mono=False, css="faint", more=more)


def _panels(shown: Picture, at: Layout) -> Iterator[str]:
    left = min(at.places[i].x for i in shown.of("loss")) - 14
    right = max(p.x + p.width for i in shown.of("weight") if (p := at.places[i])) + 14
    for name, top, bottom in at.panels:
        yield (
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}" rx="12" fill="{PANEL[0]}" class="panel"/>'
        )
        shown_name = elide(name, right - left - 40, 11, mono=False)
        more = ' font-weight="600"'
        yield _words(
            left + 14, top + GROUP_HEAD - 9, shown_name, size=11, mono=False, css="faint", more=more
        )


def _lines(shown: Picture, at: Layout) -> Iterator[str]:
    """Lines by their source: first a halo in the colour of the paper, so that what they cross
    seems to pass below them, then the lines themselves."""
    models = sorted(shown.of("model"), key=lambda i: at.places[i].y)
    for source in shown.boxes:
        targets = [b for a, b in shown.lines if a == source]
        paths = [_path(shown, at, models, source, target) for target in targets]
        tint = shown.boxes[source].tint
        line = COLOURS[tint][1]
        for path, target in zip(paths, targets, strict=True):
            if shown.boxes[target].kind == "total":
                continue
            halo = f'stroke="{PAPER[0]}" stroke-width="5" class="halo"'
            yield f'<path d="{path}" fill="none" {halo}/>'
        for path, target in zip(paths, targets, strict=True):
            yield (
                f'<path d="{path}" fill="none" stroke="{line}" stroke-width="1.6" '
                f'stroke-linejoin="round" class="{tint} line"/>'
            )
            x, y = at.places[target].x, at.ports[source, target]
            yield f'<path d="M{x:.1f} {y:.1f}l-7 -3.6v7.2z" fill="{line}" class="{tint} tip"/>'


def _path(shown: Picture, at: Layout, models: Sequence[str], source: str, target: str) -> str:
    start, end = at.places[source], at.places[target]
    kinds = (shown.boxes[source].kind, shown.boxes[target].kind)
    x, stop, port = start.x + start.width, end.x - 5, at.ports[source, target]
    if kinds == ("batch", "value"):  # on a lane of its own past the models
        lane = _lane(at, models, start.y, end.y)
        first, second = x + 16, end.x - 26 - LANE * len(models)
        return _bends(
            [
                (x, start.y),
                (first, start.y),
                (first, lane),
                (second, lane),
                (second, port),
                (stop, port),
            ]
        )
    if kinds[0] == "model":
        trunk = end.x - 26 - LANE * models.index(source)
    elif kinds[0] == "batch":
        trunk = x + 16
    elif kinds[1] == "total":
        trunk = end.x - 26
    else:
        return _curve(x, start.y, free_height(at, shown, start.y, x + 1, stop), stop, port)
    return _bends([(x, start.y), (trunk, start.y), (trunk, port), (stop, port)])


def _lane(at: Layout, models: Sequence[str], start: float, end: float) -> float:
    """A height at which no model stands, near to where the line begins and ends."""
    places = [at.places[i] for i in models]
    heights = [p.y + side * (p.height / 2 + 15) for p in places for side in (-1, 1)]
    free = [h for h in heights if all(abs(h - p.y) >= p.height / 2 + 8 for p in places)]
    legal = [h for h in free if h >= TOP - 18] or [start]
    return min(legal, key=lambda h: abs(h - start) + abs(h - end))


def _bends(points: Sequence[tuple[float, float]]) -> str:
    """A line of right angles with round corners."""
    corners = [
        p
        for i, p in enumerate(points)
        if i == 0 or abs(p[0] - points[i - 1][0]) + abs(p[1] - points[i - 1][1]) > 0.5
    ]
    path = f"M{corners[0][0]:.1f} {corners[0][1]:.1f}"
    for (ax, ay), (bx, by), (cx, cy) in zip(corners, corners[1:], corners[2:], strict=False):
        before, after = abs(bx - ax) + abs(by - ay), abs(cx - bx) + abs(cy - by)
        radius = min(8.0, before / 2, after / 2)
        px, py = bx - radius * _sign(bx - ax), by - radius * _sign(by - ay)
        qx, qy = bx + radius * _sign(cx - bx), by + radius * _sign(cy - by)
        path += f"L{px:.1f} {py:.1f}Q{bx:.1f} {by:.1f} {qx:.1f} {qy:.1f}"
    return path + f"L{corners[-1][0]:.1f} {corners[-1][1]:.1f}"


def _curve(x: float, y: float, lane: float, stop: float, end: float) -> str:
    """Past whatever stands between at the height of a lane, then a curve in the last gap."""
    bend = max(x, stop - 70)
    path = f"M{x:.1f} {y:.1f}"
    if lane != y:
        middle = x + 20
        path += f"C{middle:.1f} {y:.1f} {middle:.1f} {lane:.1f} {x + 40:.1f} {lane:.1f}"
    middle = (bend + stop) / 2
    return path + f"H{bend:.1f}C{middle:.1f} {lane:.1f} {middle:.1f} {end:.1f} {stop:.1f} {end:.1f}"


def _sign(x: float) -> float:
    return (x > 0) - (x < 0)


def _box(box: Box, at: Place) -> Iterator[str]:
    fill, line = COLOURS[box.tint][:2]
    top, inner = at.y - at.height / 2, at.width - 20
    round_ = 9 if box.kind in ("batch", "model", "loss", "total") else min(at.height / 2, 13)
    dash = ' stroke-dasharray="4 3"' if box.dashed else ""
    yield "<g>"
    if box.tooltip:
        yield f"<title>{_text(box.tooltip)}</title>"
    yield (
        f'<rect x="{at.x:.1f}" y="{top:.1f}" width="{at.width:.1f}" height="{at.height:.1f}" '
        f'rx="{round_:.1f}" fill="{fill}" stroke="{line}" stroke-width="1.3"{dash} '
        f'class="{box.tint} box"/>'
    )
    size, mono = code_size(box)
    words = 18 + LINE * len(box.lines) + (24 if box.curve else 0)
    y = top + (at.height - words) / 2 + 13
    weight = "" if mono else ' font-weight="600"'
    yield _words(
        at.x + 10, y, elide(box.title, inner, size, mono=mono), size=size, mono=mono, more=weight
    )
    for text in box.lines:
        y += LINE
        yield _words(
            at.x + 10, y, elide(text, inner, 11.5, mono=True), size=11, mono=True, css="faint"
        )
    if box.curve:
        yield _spark(box.curve, at.x + 10, y + 8, inner, 16)
    yield "</g>"


def _spark(values: Sequence[float], x: float, y: float, width: float, height: float) -> str:
    """A schedule as a small curve over its steps."""
    low, high = min(values), max(values)
    scale = height / (high - low) if high > low else 0.0
    step = width / (len(values) - 1)
    points = " ".join(
        f"{x + i * step:.1f},{y + height - (v - low) * scale:.1f}" for i, v in enumerate(values)
    )
    stroke = f'stroke="{COLOURS["total"][1]}" stroke-width="1.5" class="total line"'
    return f'<polyline points="{points}" fill="none" {stroke}/>'
