"""Charts show the numbers that were given, where they belong."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fkd.loops._report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    color,
    line_chart,
    number,
    value_range,
)
from fkd.loops._report.heat_map import heat, heat_map
from fkd.loops._report.series import Series, history, running_time, smooth, thin

nan, inf = math.nan, math.inf


def series(values: list[float], name: str = "x") -> Series:
    return Series(name, np.arange(1.0, len(values) + 1), np.array(values, dtype=float))


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<svg>{svg}</svg>")


def drawn(svg: str, kind: str = "line") -> list[list[tuple[float, float]]]:
    """The pieces of the lines of a kind, in units of the drawing."""
    found: list[list[tuple[float, float]]] = []
    for path in parse(svg).iter("path"):
        if path.get("class") == kind:
            for piece in (path.get("d") or "").split("M")[1:]:
                pairs = re.findall(r"(-?[\d.]+) (-?[\d.]+)", piece)
                found.append([(float(a), float(b)) for a, b in pairs])
    return found


def test_a_line_goes_through_its_points():
    (line,) = drawn(line_chart([series([0.0, 1.0, 4.0])]))
    x, y = zip(*line, strict=True)
    assert x == (LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT)
    assert y[0] == HEIGHT - BOTTOM  # zero is at the bottom
    assert (y[0] - y[1]) * 4 == pytest.approx(y[0] - y[2], abs=0.5)
    assert y[2] > TOP


def test_a_logarithmic_axis_makes_ratios_lengths():
    (line,) = drawn(line_chart([series([0.01, 0.1, 1.0])], log=True))
    y = [b for _, b in line]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2)


def test_a_line_breaks_at_what_is_not_a_number_and_says_so():
    svg = line_chart([series([1.0, nan, 2.0, 3.0, inf], "kd")])
    assert [len(piece) for piece in drawn(svg)] == [1, 2]
    marks = [p.findtext("title") for p in parse(svg).iter("path") if p.get("class") == "bad"]
    assert marks == ["kd is nan at step 2", "kd is inf at step 5"]


def test_what_is_not_positive_has_no_place_on_a_logarithmic_axis():
    assert [len(p) for p in drawn(line_chart([series([1.0, 0.0, -1.0, 2.0])], log=True))] == [1, 1]
    assert line_chart([series([0.0, -1.0])], log=True) == ""


@pytest.mark.parametrize("values", [[], [nan], [inf, -inf]])
def test_nothing_to_show_is_nothing(values: list[float]):
    assert line_chart([series(values)]) == "" and value_range([series(values)], log=False) is None


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [-3.0], [1e300, -1e300], [1e-300], [5e-324]])
def test_degenerate_ranges_are_drawn(values: list[float]):
    (line,) = drawn(line_chart([series(values)]))
    assert all(TOP - 1 <= y <= HEIGHT - BOTTOM + 1 for _, y in line)


@given(st.lists(st.floats(width=64), min_size=1, max_size=30), st.booleans())
def test_any_values_give_well_formed_svg_inside_its_box(values: list[float], log: bool):
    svg = line_chart([series(values)], log=log)
    assert "nan," not in svg and "Mnan" not in svg and "Lnan" not in svg
    for piece in drawn(svg) if svg else []:
        assert all(LEFT - 1 <= x <= WIDTH - RIGHT + 1 and abs(y) <= 999 for x, y in piece)


@given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e12), st.booleans(), st.integers(3, 8))
def test_ticks_are_inside_and_enough(low: float, width: float, log: bool, about: int):
    low = abs(low) + 1e-9 if log else low
    high = low * (1 + width) if log else low + max(width, abs(low) * 1e-3)
    if not high > low * (1 + 1e-9) and log:
        return
    ticks = Axis(low, high, 0, 100, log).ticks(about)
    room = 1e-6 * max(abs(low), abs(high))
    assert 2 <= len(ticks) <= 2 * about + 12
    assert all(low - room <= t <= high + room for t in ticks)
    assert ticks == sorted(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.31234, "0.3123"),
        (-12.0, "-12"),
        (9999.0, "9999"),
        (12345.0, "12.3k"),
        (999_999.0, "1M"),
        (2.5e6, "2.5M"),
        (3.2e9, "3.2G"),
        (1e15, "1e+15"),
        (1e-4, "1e-4"),
        (2.5e-5, "2.5e-5"),
        (nan, "nan"),
        (inf, "inf"),
    ],
)
def test_numbers_read_well(value: float, text: str):
    assert number(value) == text


def test_close_ticks_have_different_names():
    svg = line_chart([series([0.999912, 0.999931])])
    ticks = [e.text for e in parse(svg).iter("text")]
    assert "0.99992" in ticks and len(set(ticks)) == len(ticks)


def test_few_points_are_dots_and_many_are_not():
    assert len(drawn(line_chart([series([1.0] * 30)]), "dots")) == 30
    assert drawn(line_chart([series([1.0] * 31)]), "dots") == []


def test_an_outlier_does_not_flatten_the_rest():
    low, high = value_range([series([*[1.0, 2.0] * 500, 1e6, 1.0])], log=False) or (0, 0)
    assert low <= 1 and high < 10
    low, high = value_range([series([1.0] * 1000 + [50.0])], log=False) or (0, 0)
    assert high >= 50  # the last value always shows


def test_names_are_escaped():
    svg = line_chart([series([1.0, 2.0], "<script>&")])
    assert "<script>" not in svg and parse(svg) is not None
    assert "<script>" not in heat_map([[0.5]], rows=["<script>"], columns=["<b>"])


def test_colors_are_distinct():
    for count in (1, 8, 9, 40):
        assert len({color(i, count) for i in range(count)}) == count


# -- the heat map ---------------------------------------------------------------------------


def test_the_heat_map_has_each_value_and_frames_the_best():
    svg = heat_map([[0.1, 0.9], [nan, 0.25], [nan, nan]], rows=list("abc"), columns=list("xy"))
    root = ElementTree.fromstring(svg)
    titles = [e.findtext("title") for e in root.iter("rect") if e.find("title") is not None]
    assert titles[1] == "student a, teacher y: 0.900"
    assert len(titles) == 6
    cells = {e.findtext("title"): e for e in root.iter("rect")}
    best = [e for e in root.iter("rect") if e.get("class") == "best"]
    near = float(cells["student a, teacher y: 0.900"].get("x") or 0)
    assert len(best) == 2 and float(best[0].get("x") or 0) == near + 2
    first, second = (float(cells[t].get("y") or 0) for t in (titles[0], titles[2]))
    assert first > second  # the first row is at the bottom


@pytest.mark.parametrize("size", [1, 16, 17, 49, 120])
def test_heat_maps_of_any_size_fit(size: int):
    names = [str(i) for i in range(size)]
    root = ElementTree.fromstring(heat_map(np.eye(size).tolist(), rows=names, columns=names))
    _, _, width, height = (float(x) for x in (root.get("viewBox") or "").split())
    for rect in root.iter("rect"):
        assert float(rect.get("x") or 0) + float(rect.get("width") or 0) <= width
        assert float(rect.get("y") or 0) + float(rect.get("height") or 0) <= height
    assert width < 1300


def test_heat_is_darker_for_more():
    light = [sum(int(heat(i / 20)[k : k + 2], 16) for k in (1, 3, 5)) for i in range(21)]
    assert light == sorted(light, reverse=True)


# -- series ---------------------------------------------------------------------------------


def test_the_log_becomes_series():
    run = history(
        [
            {"step": 2, "time": 5.0, "kind": "train", "epoch": 0, "loss/kd": 1, "note": "x"},
            {"step": 4, "time": 6.0, "kind": "train", "epoch": 1, "loss/kd": 0.5, "lr": 0.1},
            {"step": 4, "time": 7.0, "kind": "eval", "eval/accuracy": 0.5, "loss/kd": 3.0},
            {"step": 4, "time": 8.0, "kind": "train", "epoch": 1, "loss/kd": 0.25},
        ]
    )
    found = {n: (s.steps.tolist(), s.values.tolist()) for n, s in run.series.items()}
    assert found == {
        "loss/kd": ([2, 4], [1.0, 0.25]),  # logged last counts
        "lr": ([4], [0.1]),
        "eval/accuracy": ([4], [0.5]),
        "eval/loss/kd": ([4], [3.0]),
    }
    assert (run.kinds, run.step, run.epoch, run.times) == ({"eval"}, 4, 1, [5.0, 6.0, 7.0, 8.0])


def test_thinning_keeps_peaks_ends_and_what_is_not_a_number():
    values = np.random.default_rng(0).normal(size=100_000)
    values[[777, 50_000, 99_998]] = [100.0, -100.0, nan]
    x = thin(Series("x", np.arange(100_000.0), values), most=400)
    assert len(x.steps) <= 403 and (np.diff(x.steps) > 0).all()
    assert {0.0, 777.0, 50_000.0, 99_998.0, 99_999.0} <= set(x.steps.tolist())
    assert all(values[int(s)] == v or math.isnan(v) for s, v in zip(x.steps, x.values, strict=True))
    short = series([1.0, 2.0])
    assert thin(short) is short


def test_smoothing_is_an_average_without_a_bias_at_the_start():
    assert smooth(series([3.0] * 50), span=10).values == pytest.approx([3.0] * 50)
    x = smooth(series([1.0, nan, 3.0]), span=2.0)
    assert x.values[0] == 1 and math.isnan(x.values[1])
    assert x.values[2] == pytest.approx((0.5 * 1 + 1 * 3) / 1.5)
    values = np.random.default_rng(0).normal(5, 1, size=50_000)
    long = smooth(Series("x", np.arange(50_000.0), values), span=5000)
    assert len(long.steps) == 2000 and long.steps[-1] == 49_999
    assert abs(long.values[-1] - values[-5000:].mean()) < 0.05


def test_running_time_leaves_interruptions_out():
    times = [*range(0, 100, 2), *range(5000, 5100, 2)]
    seconds, pauses = running_time(times)
    assert seconds == 98 + 98 and pauses == [5000 - 98]
    assert running_time([]) == (0.0, []) and running_time([5.0]) == (0.0, [])
