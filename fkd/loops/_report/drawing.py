"""The drawing of an objective, rebuilt from a file: only what fkd itself draws gets into the page.

Everything is an allow list: shapes and words of SVG, with attributes whose values are numbers,
colours, or words of fkd. What is anything else is left out, with all that it holds.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html import escape
from pathlib import Path

from fkd._draw.svg import MONO, PAPER, SANS, dark_rules

from .._base.files import read_bytes

_SVG = "{http://www.w3.org/2000/svg}"
_ELEMENTS = ("g", "title", "rect", "path", "polyline", "text", "tspan", "circle", "line")
_DEEPEST, _LARGEST = 20, 4 << 20

_LENGTH = re.compile(r"-?\d{1,6}(\.\d{1,6})?%?")
_NUMBERS = re.compile(r"[-\d.,\s]*")
_PATH = re.compile(r"[MLHVCSQTAZmlhvcsqtaz\d\s.,-]*")
_COLOUR = re.compile(r"none|#[0-9a-fA-F]{3,8}")
_WORD = re.compile(r"[a-z]+")
_CLASS = re.compile(r"(trainable|frozen|ema)\d|batch|plain|total|box|line|tip|ink|faint|halo|panel")
_LENGTHS = ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "rx", "ry", "width", "height")
_SIZES = ("font-size", "stroke-width", "letter-spacing", "opacity", "font-weight")
_VALUES = {
    **dict.fromkeys((*_LENGTHS, *_SIZES), _LENGTH),
    **dict.fromkeys(("fill", "stroke"), _COLOUR),
    **dict.fromkeys(("text-anchor", "stroke-linejoin", "stroke-linecap", "paint-order"), _WORD),
    "d": _PATH,
    "points": _NUMBERS,
    "stroke-dasharray": _NUMBERS,
}


def drawing(path: Path) -> str:
    """The SVG of a file, made again; empty if it is not a drawing."""
    try:
        content = read_bytes(path)
        if len(content) > _LARGEST or b"<!" in content:  # entities can grow without end
            return ""
        root = ElementTree.fromstring(content)
    except (OSError, ElementTree.ParseError, ValueError, LookupError):
        return ""
    box = root.get("viewBox", "")
    if root.tag != f"{_SVG}svg" or not _NUMBERS.fullmatch(box) or len(box.split()) != 4:
        return ""
    width, height = (_number(root.get(name)) for name in ("width", "height"))
    inside = "".join(part for child in root for part in _element(child, 0))
    return (
        f'<svg class="fkd" role="img" width="{width}" height="{height}" viewBox="{box}" '
        f'style="max-width:100%;height:auto" font-family="{SANS}"><style>{dark_rules()}</style>'
        f'<rect width="100%" height="100%" rx="12" fill="{PAPER[0]}" class="paper"/>{inside}</svg>'
    )


def _number(text: str | None) -> str:
    return text if text is not None and _LENGTH.fullmatch(text) else "100%"


def _element(node: ElementTree.Element, depth: int) -> Iterator[str]:
    name = str(node.tag).removeprefix(_SVG)
    if name not in _ELEMENTS or node.tag != _SVG + name or depth > _DEEPEST:
        return
    if node.get("class") == "paper":  # the page draws it
        return
    yield f"<{name}{''.join(_attribute(k, v) for k, v in node.attrib.items())}>"
    yield escape(node.text or "") if name in ("title", "text", "tspan") else ""
    for child in node:
        yield from _element(child, depth + 1)
    yield f"</{name}>"


def _attribute(name: str, value: str) -> str:
    if name == "class":
        known = " ".join(word for word in value.split() if _CLASS.fullmatch(word))
        return f' class="{known}"' if known else ""
    if name == "font-family":
        return f' font-family="{MONO}"' if "mono" in value else ""
    allowed = _VALUES.get(name)
    return f' {name}="{value}"' if allowed is not None and allowed.fullmatch(value) else ""
