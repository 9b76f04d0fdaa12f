"""The drawing: complete, well-formed, without overlaps, and safe whatever the names are."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import fkd
from fkd import (
    Drawing,
    Objective,
    batch,
    call,
    draw,
    ema,
    frozen,
    metric,
    ref,
    student,
    teacher,
    term,
    trainable,
)
from fkd._draw.layout import elide, layout
from fkd._draw.picture import picture, short
from fkd.losses import cross_entropy, kl, mse
from fkd.schedules import cosine, linear, warmup

from ..models import MLP, random_objective

SVG = "{http://www.w3.org/2000/svg}"
NASTY = [
    '<script>alert("1")</script>',
    "a & b",
    'end "]; click',
    "]]>",
    "a\x00b\x1b",
    "\ud800",
    "名前 🙂",
    "`x`",
]
project = fkd.module("project")


def many(count: int) -> Objective:
    layers = {
        f"layer {i}": term(
            mse, project(student.hidden_states[i % 3]), teacher.hidden_states[i % 5],
            where=batch.attention_mask, weight=cosine(1.0, 0.0, 100) if i % 2 else 1.0 / (i + 1),
        )
        for i in range(count - 1)
    }  # fmt: skip
    terms = {"kd": term(kl, student.logits, teacher.logits, temperature=4.0), "hidden": layers}
    models = {"student": trainable(MLP(8, 2)), "teacher": frozen(MLP(12, 4))}
    return Objective(terms, project=trainable(nn.Linear(8, 12)), **models)


def rich() -> Objective:
    return Objective(
        {
            "kd": term(kl, student.logits, ref("a").logits, weight=warmup(5, linear(1.0, 0.5, 9))),
            "both": term(kl, student.logits, call(torch.add, ref("a").logits, ref("b").logits)),
            "slow": term(mse, student.tap("layers.0"), fkd.stop_gradient(ref("slow").tap("norm"))),
            "deep": {"labels": term(cross_entropy, student.logits, batch.labels)},
            "top": metric(kl, student.logits, lambda ctx: ctx["b"].logits),
            "any": term(mse, lambda ctx: next(iter(ctx.values)), project(project(ref("b").logits))),
        },
        student=trainable(MLP()),
        a=frozen(MLP()),
        b=frozen(MLP()),
        slow=ema("student"),
        spare=frozen(MLP()),
        project=trainable(nn.Linear(5, 5)),
    )


OBJECTIVES: dict[str, Any] = {
    "one": lambda: Objective(
        term(kl, student.logits, teacher.logits), student=trainable(MLP()), teacher=frozen(MLP())
    ),
    "rich": rich,
    "eighty": lambda: many(80),
    **{f"random {i}": (lambda i=i: random_objective(i)) for i in range(4)},
}


def words(svg: str) -> str:
    return "\n".join(t.text or "" for t in ElementTree.fromstring(svg).iter() if t.text)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_everything_is_in_both_pictures(name):
    objective = OBJECTIVES[name]()
    drawing = draw(objective)
    text = words(drawing.svg)
    for term_name, made in objective.terms.items():
        assert f"{term_name}: {made!r}"[:60] in text or "lambda" in repr(made)
        assert term_name.rpartition("/")[2] in drawing.mermaid
    for model in objective.models:
        assert model in text and model in drawing.mermaid
    assert "total" in text and "total" in drawing.mermaid


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_svg_stands_alone(name):
    svg = draw(OBJECTIVES[name]()).svg
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and root.find(f"{SVG}title") is not None
    tags = {e.tag.removeprefix(SVG) for e in root.iter()}
    assert tags <= {"svg", "title", "style", "rect", "path", "polyline", "text", "g"}
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "", 1)
    assert "url(" not in svg and "@import" not in svg and "nan" not in svg
    assert "prefers-color-scheme" in svg


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_box_lies_on_another_and_all_are_on_the_page(name):
    at = layout(picture(OBJECTIVES[name]()))
    for p in at.places.values():
        assert p.x >= 0 and p.y - p.height / 2 >= 40
        assert p.x + p.width <= at.width and p.y + p.height / 2 <= at.height
    for (a, p), (b, q) in combinations(at.places.items(), 2):
        beside = p.x + p.width <= q.x or q.x + q.width <= p.x
        above = abs(p.y - q.y) >= (p.height + q.height) / 2
        assert beside or above, (a, b)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_lines_run_from_left_to_right(name):
    shown = picture(OBJECTIVES[name]())
    at = layout(shown)
    for source, target in shown.lines:
        assert at.places[source].x + at.places[source].width < at.places[target].x


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_term_is_connected_from_the_batch_to_the_total(name):
    objective = OBJECTIVES[name]()
    shown = picture(objective)
    reached, edge = set(), ["batch"]
    while edge:
        here = edge.pop()
        if here not in reached:
            reached.add(here)
            edge += [b for a, b in shown.lines if a == here]
    assert {f"loss:{n}" for n in objective.terms} <= reached
    into_total = {a for a, b in shown.lines if b == "total"}
    assert into_total == {f"weight:{n}" for n in objective.weighted}


def test_words_fit_their_boxes():
    shown = picture(rich())
    svg = ElementTree.fromstring(draw(rich()).svg)
    at = layout(shown)
    widest = max(p.x + p.width for p in at.places.values())
    for text in svg.iter(f"{SVG}text"):
        size = float(text.attrib["font-size"])
        length = len(text.text or "") * size * (0.6 if "font-family" in text.attrib else 0.5)
        assert float(text.attrib["x"]) + length <= widest + 30


def test_terms_of_a_group_stand_on_one_panel():
    at = layout(picture(many(5)))
    ((name, top, bottom),) = at.panels
    assert name == "hidden"
    inside = [f"loss:hidden/layer {i}" for i in range(4)]
    assert all(top < at.places[i].y < bottom for i in inside)
    assert not top < at.places["loss:kd"].y < bottom
    assert 'subgraph g0["hidden"]' in draw(many(5)).mermaid


def test_a_value_is_repeated_where_it_would_be_far_away():
    titles = [b.title for b in picture(many(80)).boxes.values() if b.kind == "value"]
    assert 1 < titles.count("teacher.hidden_states[0]") < 16
    small = [b.title for b in picture(many(4)).boxes.values() if b.kind == "value"]
    assert len(set(small)) == len(small)


def test_a_schedule_is_drawn_as_a_curve():
    svg = ElementTree.fromstring(draw(rich()).svg)
    (line,) = svg.iter(f"{SVG}polyline")
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    heights = [y for _, y in points]
    assert heights[0] == max(heights)  # starts at 0, which is at the bottom
    assert heights[-1] == pytest.approx(sum((min(heights), max(heights))) / 2, abs=0.2)


def test_metrics_and_unused_models_are_dashed():
    shown = picture(rich())
    dashed = {i for i, box in shown.boxes.items() if box.dashed}
    assert {"loss:top", "weight:top"} <= dashed and "loss:kd" not in dashed


def test_long_names_are_cut_and_told_in_full_on_hover():
    name = "a very long name " * 10
    objective = Objective({name: term(kl, student.logits, teacher.logits)}, **{
        "student": trainable(MLP()), "teacher": frozen(MLP()),
    })  # fmt: skip
    svg = draw(objective).svg
    shown = [e.text for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert name not in shown and any("\u2026" in (t or "") for t in shown)
    assert any(name in (e.text or "") for e in ElementTree.fromstring(svg).iter(f"{SVG}title"))


def test_eliding_keeps_both_ends():
    cut = elide("teacher.encoder.layers.hidden_states[12]", 120, 11.5, mono=True)
    assert len(cut) < 20 and cut.startswith("teach") and cut.endswith("[12]") and "\u2026" in cut
    assert elide("short", 120, 11.5, mono=True) == "short"


@pytest.mark.parametrize("name", NASTY)
def test_any_name_gives_well_formed_text(name, tmp_path):
    class Odd(MLP):
        pass

    Odd.__name__ = name.replace("\x00", "").replace("\ud800", "half")
    objective = Objective(
        {name: {name: term(kl, student[name], batch[name], where=batch[name])}},
        student=trainable(Odd()),
        **{name: frozen(Odd())},
    )
    drawing = draw(objective)
    root = ElementTree.fromstring(drawing.svg)
    assert not {e.tag for e in root.iter()} & {f"{SVG}script"}
    for line in drawing.mermaid.splitlines():
        for text in re.findall(r'"(.*)"', line):
            assert not set(text.replace("<br/>", "")) & set('"<>[]{}|`&'), line
    assert drawing.save(tmp_path / "a.svg").read_text(encoding="utf-8") == drawing.svg
    assert drawing.save(str(tmp_path / "a.mmd")).read_text(encoding="utf-8") == drawing.mermaid


def test_mermaid_lines_are_nodes_links_and_styles():
    text = draw(rich()).mermaid.splitlines()
    assert text[0] == "flowchart LR"
    node = r"n\d+(\[|\(\[|\[\(|\(\().*(\]|\]\)|\)\]|\)\))"
    colour = r"#\w{6}"
    style = rf"  classDef \w+ fill:{colour},stroke:{colour},color:{colour}"
    group = r'  subgraph g\d+\[".*"\]'
    forms = [rf"  +{node}", r"  n\d+ --> n\d+", group, r"  end", style, r"  class [n\d,]+ \w+"]
    assert [line for line in text[1:] if not any(re.fullmatch(f, line) for f in forms)] == []


def test_saving_asks_for_a_known_suffix(tmp_path: Path):
    with pytest.raises(ValueError, match=r"ends in '\.png'; \.svg or \.mmd is expected"):
        draw(rich()).save(tmp_path / "a.png")


def test_a_notebook_shows_it():
    drawing = draw(rich())
    assert isinstance(drawing, Drawing)
    assert drawing._repr_svg_() == drawing.svg
    assert "6 terms" in repr(drawing)


def test_the_same_objective_gives_the_same_picture():
    assert draw(many(9)).svg == draw(many(9)).svg


@pytest.mark.plain
def test_mistakes_are_reported_not_drawn():
    wrong = Objective(term(kl, student.logits, ref("x").logits), student=trainable(MLP()))
    with pytest.raises(fkd.ObjectiveError, match="no such model"):
        draw(wrong)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1k"),
        (999_999, "1M"),
        (109_482_240, "109M"),
        (7 * 10**9, "7B"),
    ],
)
def test_counts_in_three_digits(count, shown):
    assert short(count) == shown
