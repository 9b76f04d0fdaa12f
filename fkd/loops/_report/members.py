"""A sweep as one page: its members beside each other, and the best of them first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from fkd.metrics import higher_is_better as by_name

from .chart_card import chart_card
from .charts import color, number
from .page import card, section, tile
from .series import Series

_MARK = "finite/"  # what a sweep logs of each member, and no other run
_OF_SCHEME = re.compile(
    r"(?:\w+/)?(?:loss|agreement)/|(?:finite|skipped|grad_norm|lr|weight|knob)/"
)
_KNOBS = ("knob/", "weight/", "lr/")


@dataclass(frozen=True)
class Members:
    """What the log of a sweep says of its members.

    Attributes:
      names: in the order of the sweep.
      shared: by the name that remains without the member's ("eval/accuracy" of
        "eval/T4/accuracy"), the series of each, called as the member is.
      others: series of no member, by name.
    """

    names: tuple[str, ...]
    shared: dict[str, dict[str, Series]]
    others: dict[str, Series]

    def colors(self) -> dict[str, str]:
        """A hue for each member, the same in all charts."""
        return {name: color(i, len(self.names)) for i, name in enumerate(self.names)}


@dataclass(frozen=True)
class Lead:
    """What members are compared by.

    Attributes:
      name: a key of `Members.shared`.
      ranked: members by the last value, the best first; the highest if nobody says what is better.
      best: the first of them; None if nobody says what is better, or for one member.
    """

    name: str
    ranked: tuple[str, ...]
    best: str | None


def members_of(series: Mapping[str, Series]) -> Members | None:
    """The members of the sweep that was logged; None of another run."""
    names = [n.removeprefix(_MARK) for n in series if n.startswith(_MARK)]
    names = [n for n in names if f"loss/{n}/total" in series]
    if not names:
        return None
    shared: dict[str, dict[str, Series]] = {}
    others: dict[str, Series] = {}
    for full, values in series.items():
        member, rest = _divided(full, names)
        if member is None:  # "loss/total" is the sum
            others[re.sub("loss/total$", "loss/sum of the members/total", full)] = values
        else:
            shared.setdefault(rest, {})[member] = values._replace(name=member)
    return Members(tuple(names), shared, others)


def shared_name(full: str, members: Members) -> str:
    """The name of a metric without the member's, as in `Members.shared`."""
    return _divided(full, members.names)[1]


def _divided(full: str, names: Sequence[str]) -> tuple[str | None, str]:
    """The member that a name has in it, and the rest of the name.

    fkd writes `loss/<member>/<term>`, where a term may be called as a member is. A metric of the
    user's has the member's name anywhere, and the longest one counts: `no-labels`, not `labels`.
    """
    scheme = _OF_SCHEME.match(full)
    if scheme is not None:
        member, _, rest = full[scheme.end() :].partition("/")
        return (member, scheme[0] + rest if rest else scheme[0][:-1]) if member in names else (
            None, full)  # fmt: skip
    for name in sorted(names, key=len, reverse=True):
        at = re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", full)
        if at is not None:
            before, after = full[: at.start()].rstrip("/_- ."), full[at.end() :].lstrip("/_- .")
            return name, "/".join(part for part in (before, after) if part)
    return None, full


def lead(members: Members, kinds: set[str], metric: str | None, higher: bool | None) -> Lead | None:
    """What members are compared by: what is asked for, or else the first metric of the
    evaluations that is no loss; losses of members differ in what they weigh.

    Args:
      members: see `members_of`.
      kinds: of the log points besides "train".
      metric: a key of `shared`, or None.
      higher: whether higher is better, if somebody says so.
    """
    evaluated = [n for n in members.shared if n.split("/")[0] in kinds and "loss" not in n]
    evaluated.sort(key=lambda n: "agreement" in n)  # a metric of the user's comes first
    name = metric if metric in members.shared else next(iter(evaluated), None)
    if name is None:
        return None
    if higher is None or name != metric:
        higher = True if "agreement" in name else by_name(name)
    last = {m: float(s.values[-1]) for m, s in members.shared[name].items()}
    known = [m for m in last if np.isfinite(last[m])]
    known.sort(key=lambda m: last[m], reverse=higher is not False)
    ranked = tuple(known + [m for m in members.names if m not in known])
    best = known[0] if higher is not None and len(known) > 1 else None
    return Lead(name, ranked, best)


def member_tiles(members: Members, chosen: Lead | None) -> list[str]:
    """How many members there are, and which is the best."""
    tiles: list[str] = []
    if chosen is not None and chosen.best is not None:
        series = members.shared[chosen.name][chosen.best]
        note = f"{number(float(series.values[-1]))} at step {series.steps[-1]:,.0f}"
        tiles.append(tile(f"Best member by {chosen.name}", chosen.best, note, kind="lead"))
    return [*tiles, tile("Members", str(len(members.names)))]


def member_section(
    members: Members, chosen: Lead | None, kinds: set[str], steps: tuple[float, float]
) -> str:
    """The table of the members, and the curves of what they are compared by."""
    cards = [_table(members, chosen, kinds)]
    if chosen is not None:
        cards += [member_chart(members, n, steps, chosen.best) for n in leading(members, chosen)]
    return section("Members", cards)


def leading(members: Members, chosen: Lead) -> list[str]:
    """Whose curves are shown first: of the metric, and of the agreement with the teacher."""
    names = [n for n in members.shared if n.endswith("agreement/student") and n != chosen.name]
    return [chosen.name, *names[:1]]


def member_chart(
    members: Members, name: str, steps: tuple[float, float], best: str | None = None
) -> str:
    """One value of all members."""
    hues, by_member = members.colors(), members.shared[name]
    lines = [s._replace(name=f"{m} (best)") if m == best else s for m, s in by_member.items()]
    return chart_card(name, lines, steps, colors=[hues[m] for m in by_member])


def _table(members: Members, chosen: Lead | None, kinds: set[str]) -> str:
    """One row for each member: what it has of its own, and what came out."""
    names = members.names if chosen is None else chosen.ranked
    first = [] if chosen is None else [chosen.name]
    knobs = [n for n in members.shared if n.startswith(_KNOBS) and _differ(members, n)]
    metrics = [n for n in members.shared if n.split("/")[0] in kinds and n not in first]
    if any(s.values[-1] for s in members.shared.get("skipped", {}).values()):
        metrics.append("skipped")
    columns = [*first, *knobs, *metrics]
    head = ["member", *(n.removeprefix("knob/") for n in columns)]
    lines = [_row("th", head)]
    hues = members.colors()
    for name in names:
        mark = " <small>best</small>" if chosen is not None and name == chosen.best else ""
        swatch = f'<i style="background:{hues[name]}"></i>'
        values = [(n, members.shared[n].get(name)) for n in columns]
        cells = [_moving(s) if n in knobs else _last(s) for n, s in values]
        kind = "th" if mark else "td"
        lines.append(_row(kind, [name, *cells], first=f"{swatch}{escape(name)}{mark}"))
    note = "the last value of each; what a member has of its own is shown where they differ"
    if chosen is not None and chosen.best is None and len(names) > 1:
        note += "; report(higher_is_better=...) says which is the best"
    whole = f'<table style="font-size:12.5px">{"".join(lines)}</table>'
    return card("All members", f'<div class="members">{whole}</div>', note=note, wide=True)


def _row(kind: str, cells: Sequence[str], first: str | None = None) -> str:
    texts = [escape(cells[0]) if first is None else first, *map(escape, cells[1:])]
    return f"<tr>{''.join(f'<{kind}>{text}</{kind}>' for text in texts)}</tr>"


def _differ(members: Members, name: str) -> bool:
    texts = {_moving(members.shared[name].get(m)) for m in members.names}
    return len(texts) > 1


def _moving(series: Series | None) -> str:
    """A value that stays, or how far it moved."""
    if series is None:
        return ""
    low, high = float(series.values.min()), float(series.values.max())
    if number(low) == number(high):
        return number(low)
    first, last = float(series.values[0]), float(series.values[-1])
    if first != last:
        return f"{number(first)} to {number(last)}"
    return f"{number(low)} to {number(high)}"


def _last(series: Series | None) -> str:
    return "" if series is None else number(float(series.values[-1]))
