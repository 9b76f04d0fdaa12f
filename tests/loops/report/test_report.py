"""The page of a run: whole, alone, and true to the log, whatever state the run is in."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import fkd
from fkd._draw.svg import dark_rules
from fkd.loops._log.log import open_log
from fkd.loops._report.report import report

from ..training import objective

VOID = {"meta", "br", "input", "link", "img", "hr"}


class Page(HTMLParser):
    """The elements and the texts of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)

    @property
    def charts(self) -> list[dict[str, Any]]:
        return [json.loads(t) for t in self.texts.get("script", []) if t.startswith('{"low"')]


def page(folder: Path, **options: Any) -> Page:
    return Page(report(folder, **options).read_text(encoding="utf-8"))


def tile(folder: Path, what: str) -> str:
    text = report(folder).read_text(encoding="utf-8")
    found = re.search(rf'<span class="what">{re.escape(what)}</span><b>([^<]*)</b>', text)
    assert found, what
    return found[1]


def write(folder: Path, *records: dict[str, Any]) -> None:
    with open(folder / "metrics.jsonl", "a") as file:
        for record in records:
            file.write(json.dumps({"time": 1e9 + record["step"], "kind": "train"} | record) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "a <run> & more"
    with open_log(folder, tensorboard=False, progress=False) as log:
        for step in range(10, 510, 10):
            losses = {"loss/kd": 100 / step, "loss/labels": 2.0, "loss/total": 100 / step + 2}
            speed = {"examples_per_s": 64.0 + step, "grad_norm/student": 1.0 + 1 / step}
            log.write({**losses, **speed, "weight/kd": 0.9, "skipped": 3}, step=step, epoch=1)
            if step % 100 == 0:
                accuracy = {100: 0.5, 200: 0.75, 300: 0.9, 400: 0.8, 500: 0.85}[step]
                values = {"eval/accuracy": accuracy, "eval/loss/kd": 1 - accuracy}
                log.write(values, step=step, kind="eval", epoch=1)
        log.hyperparameters({"optimizer": {"lr": 0.001}, "name": "<b>bold</b>"})
        log.text("check", "term <kd>")
        log.graph('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><text>kd</text></svg>')
    names = {"student_layers": ["0", "1"], "teacher_layers": ["0", "6", "12"]}
    values = [[1.0, 0.5, 0.25], [0.25, 0.5, 0.875]]
    (folder / "similarity.json").write_text(json.dumps({**names, "values": values}))
    return folder


def test_the_page_has_everything_that_the_folder_has(run: Path):
    found = page(run)
    headings = [t.strip() for t in found.texts["h2"]]
    assert headings == [
        "Losses",
        "Evaluation",
        "Layers",
        "Training",
        "Speed",
        "Objective",
        "Settings",
    ]
    titles = [t.strip() for t in found.texts["h3"]]
    assert {
        *("Loss by term", "eval/accuracy", "eval/loss", "Gradient norm", "Examples per second"),
        *("Graph", "Terms", "Hyper-parameters", "Logged and constant"),
    } <= set(titles)
    assert found.texts["pre"] == ["term <kd>"]
    assert "0.88" in found.texts["text"] and "kd" in found.texts["text"]
    assert {"optimizer/lr", "0.001", "<b>bold</b>", "weight/kd", "0.9"} <= set(found.texts["td"])


def test_the_charts_have_the_numbers_of_the_log(run: Path):
    charts = {tuple(s["name"] for s in c["series"]): c["series"] for c in page(run).charts}
    kd, labels, total = charts[("kd", "labels", "total")]
    assert kd["steps"] == list(range(10, 510, 10))
    assert kd["values"] == pytest.approx([100 / s for s in kd["steps"]], rel=1e-5)
    assert total["values"][-1] == pytest.approx(2.2) and labels["values"] == [2.0] * 50
    (accuracy,) = charts[("accuracy",)]
    assert accuracy["values"] == [0.5, 0.75, 0.9, 0.8, 0.85]


def test_the_numbers_at_the_top(run: Path):
    assert tile(run, "Best eval/accuracy") == "0.9"
    assert tile(run, "Last eval/accuracy") == "0.85"
    assert tile(run, "Total loss") == "2.2"
    assert tile(run, "Steps") == "500"
    assert tile(run, "Skipped updates") == "3"
    assert tile(run, "Examples/s") == "319"


def test_best_is_what_the_run_went_by(run: Path):
    config = json.loads((run / "config.json").read_text())
    for higher, value in ((True, "0.5"), (False, "0.1")):  # "kd" under a loss, and yet it is asked
        config |= {"best": "loss/kd", "higher_is_better": higher}
        (run / "config.json").write_text(json.dumps(config))
        assert tile(run, "Best eval/loss/kd") == value
        assert "Best eval/loss/kd" in report(run, metric="eval/loss/kd").read_text()
    assert "Best eval/accuracy" in report(run, metric="eval/accuracy").read_text()
    for odd in ([], {"best": ["accuracy"]}, {"best": "accuracy", "higher_is_better": "no"}):
        (run / "config.json").write_text(json.dumps(odd))
        assert tile(run, "Best eval/accuracy") == "0.9"


def test_best_may_be_another_metric_and_direction(run: Path):
    text = report(run, metric="eval/loss/kd").read_text()
    assert re.search(r"Best eval/loss/kd</span><b>0\.1</b><small>at step 300", text)
    text = report(run, metric="eval/accuracy", higher_is_better=False).read_text()
    assert re.search(r"Best eval/accuracy</span><b>0\.5</b><small>at step 100", text)
    with pytest.raises(
        ValueError, match="metric 'f1' was not logged; there is loss/kd, loss/labels"
    ):
        report(run, metric="f1")


def test_the_page_needs_no_network_and_runs_nothing_foreign(run: Path):
    (run / "graph.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'onload="alert(1)"><script>alert(2)</script><image href="http://x/y.png"/>'
        '<a xlink:href="https://x">kd</a><use href="#a"/><foreignObject>z</foreignObject></svg>'
    )
    text = report(run).read_text()
    found = Page(text)
    assert "alert(" not in text and "onload" not in text and "<run>" not in text
    assert "default-src 'none'" in text
    for tag, attributes in found.elements:
        assert tag not in ("link", "img", "iframe", "object", "foreignobject", "image")
        for name in ("src", "href", "xlink:href"):
            assert not (attributes.get(name) or "#").startswith(("http", "//", "data:"))
    assert not re.search(r"url\(|@import", text)


def test_where_it_is_written(run: Path, tmp_path: Path):
    assert report(run) == run / "report.html"
    assert report(run, out=tmp_path / "x.html") == tmp_path / "x.html"
    assert not list(run.glob(".*"))


def test_an_empty_folder_has_a_page(tmp_path: Path):
    assert "There are no log points to draw." in report(tmp_path).read_text()
    (tmp_path / "metrics.jsonl").write_text("")
    assert page(tmp_path).charts == []
    with pytest.raises(ValueError, match="is not a folder"):
        report(tmp_path / "absent")


def test_a_killed_run_has_a_page(tmp_path: Path):
    write(tmp_path, {"step": 1, "loss/total": 1.0}, {"step": 2, "loss/total": 0.5})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "loss/to')
    (chart,) = page(tmp_path).charts
    assert chart["series"][0]["steps"] == [1, 2]
    assert tile(tmp_path, "Steps") == "2"


def test_values_that_are_not_finite_are_counted_and_marked(tmp_path: Path):
    write(tmp_path, *({"step": s, "loss/total": "nan" if s > 3 else s} for s in range(1, 6)))
    assert tile(tmp_path, "Values not finite") == "2" and tile(tmp_path, "Total loss") == "nan"
    found = page(tmp_path)
    assert found.charts[0]["series"][0]["values"] == [1, 2, 3, None, None]
    assert "total is nan at step 4" in " ".join(found.texts["title"]).replace("loss/", "")
    write(tmp_path, *({"step": s, "other": "nan"} for s in range(1, 4)))
    assert "No value is finite." in report(tmp_path).read_text()


def test_an_interrupted_run_says_so(tmp_path: Path):
    write(tmp_path, *({"step": s, "time": 1e9 + s + 7200 * (s > 50), "x": s} for s in range(100)))
    assert "interrupted once (2 h 0 min in all)" in report(tmp_path).read_text()
    assert tile(tmp_path, "Time at work") == "1 min 38 s"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
        '{"student_layers": []}',
        '{"student_layers": [0], "teacher_layers": [0, 1], "values": [[1]]}',
        '{"student_layers": [0], "teacher_layers": [0], "values": [["x"]]}',
    ],
)
def test_damaged_extras_are_left_out(run: Path, content: str):
    (run / "similarity.json").write_text(content)
    (run / "config.json").write_text(content)
    (run / "graph.svg").write_text("<svg><unclosed>")
    (run / "check.txt").write_bytes(b"\xff\xfe")
    found = page(run)
    assert "Layers" not in found.texts["h2"]
    assert "Graph" not in found.texts["h3"]


def test_similarities_that_are_not_known_are_drawn_empty(run: Path):
    names = {"student_layers": [0], "teacher_layers": [0, 1]}
    (run / "similarity.json").write_text(json.dumps({**names, "values": [[None, 0.5]]}))
    classes = [a.get("class") for tag, a in page(run).elements if tag == "rect"]
    assert classes.count("empty") == 1 and classes.count("best") == 1


def test_a_long_run_has_a_small_page(tmp_path: Path):
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for step in range(20_000):
            losses = {f"loss/hidden/{i}": (i + step % 7) / 10 for i in range(12)}
            file.write(json.dumps({"step": step, "time": 1e9 + step, **losses}) + "\n")
    started = time.monotonic()
    path = report(tmp_path)
    assert time.monotonic() - started < 30
    assert path.stat().st_size < 600_000
    (chart,) = Page(path.read_text()).charts
    assert len(chart["series"]) == 12 and chart["series"][0]["steps"][-1] == 19_999


SVG = 'xmlns="http://www.w3.org/2000/svg"'
HOSTILE = [
    '<desc><iframe xmlns="" srcdoc="EVIL"/></desc>',
    '<iframe xmlns="http://www.w3.org/1999/xhtml" src="javascript:EVIL"/>',
    '<meta xmlns="" http-equiv="refresh" content="0;url=http://EVIL"/>',
    '<meta xmlns="http://www.w3.org/1999/xhtml" http-equiv="refresh" content="0;url=EVIL"/>',
    "<script>EVIL</script>",
    '<script xmlns="">EVIL</script>',
    '<SCRIPT xmlns="">EVIL</SCRIPT>',
    '<g onload="EVIL"><rect onclick="EVIL" x="1"/></g>',
    '<a href="javascript:EVIL"><text>kd</text></a>',
    '<use href="data:image/svg+xml,EVIL"/>',
    "<style>* { background: url(EVIL) } @import 'EVIL';</style>",
    '<rect style="background:url(EVIL)" fill="url(EVIL)" x="1"/>',
    '<animate attributeName="href" values="javascript:EVIL"/>',
    '<set attributeName="onload" to="EVIL"/>',
    '<foreignObject><body xmlns="http://www.w3.org/1999/xhtml" onload="EVIL"/></foreignObject>',
    '<text class="card EVIL" id="EVIL" x="1&quot; onload=&quot;EVIL">kd</text>',
    "<title>&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;</title>",
    "<text><![CDATA[<script>alert(1)</script>]]></text>",
    '<g filter="url(#EVIL)" d="M0 0EVIL" points="EVIL" font-family="EVIL"/>',
]


@pytest.mark.parametrize("part", HOSTILE)
def test_only_what_fkd_draws_gets_into_the_page(run: Path, part: str):
    (run / "graph.svg").write_text(f'<svg {SVG} viewBox="0 0 9 9"><text>kept</text>{part}</svg>')
    text = report(run).read_text()
    assert "EVIL" not in text and "<script>alert" not in text
    tags = {tag for tag, _ in Page(text).elements}
    assert not tags & {"iframe", "a", "use", "animate", "set", "foreignobject", "body "}
    assert text.count("<script>") == 1


@pytest.mark.parametrize(
    "root",
    [
        f'<svg {SVG} viewBox="0 0 9 9" onload="EVIL" id="EVIL" class="EVIL"><text>kd</text></svg>',
        f'<svg {SVG} viewBox="0 0 9 EVIL"/>',
        f'<!DOCTYPE svg [<!ENTITY a "EVIL">]><svg {SVG} viewBox="0 0 9 9"><text>&a;</text></svg>',
        f'<svg {SVG} viewBox="0 0 9 9">{"<g>" * 5000}<text>EVIL</text>{"</g>" * 5000}</svg>',
        "<html><script>EVIL</script></html>",
        "",
    ],
)
def test_a_drawing_of_another_form_does_no_harm(run: Path, root: str):
    (run / "graph.svg").write_text(root)
    assert "EVIL" not in report(run).read_text()


def test_a_drawing_of_fkd_comes_through_whole(run: Path):
    goal = objective(weight=fkd.schedules.linear(1.0, 0.1, steps=10))
    svg = fkd.draw(goal).svg
    (run / "graph.svg").write_text(svg)
    shown = report(run).read_text()
    drawn = [e for e in ElementTree.fromstring(svg).iter() if "}g" not in e.tag]
    card = shown[shown.index('<div class="drawing">') : shown.index("</svg></div>")]
    for element in drawn:
        name = element.tag.rsplit("}", 1)[-1]
        if name == "svg" or name == "style" or element.get("class") == "paper":
            continue
        for key, value in element.attrib.items():
            assert f'{key}="{html.escape(value, quote=False)}"' in card
    assert card.count("<path ") == svg.count("<path ")
    assert card.count("<text ") == svg.count("<text ")
    assert dark_rules() in card


def test_the_page_runs_its_own_script_only(run: Path):
    text = report(run).read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "x": 1e400}',
        '{"step": 1, "x": %s}' % (10**400),
        '{"step": 9007199254740991, "x": 1}',
        '{"step": 1, "time": 1e18, "x": 1}',
        '{"step": 1, "time": null, "x": 1}',
        '{"step": 1, "epoch": "one", "x": 1}',
        '{"step": 1, "epoch": 1e308, "x": 1}',
        '{"step": 1, "kind": "", "": 1, "/": 2, "//": 3}',
        '{"step": 1, "kind": "loss", "loss/total": 1, "loss": 2}',
        '{"step": 1, "x": true, "y": [1], "z": {"a": 1}}',
        '{"step": 1, "loss/total": 1e308}\n{"step": 2, "loss/total": -1e308}',
        '{"step": 1, "loss/total": 5e-324}\n{"step": 2, "loss/total": 1e-320}',
        '{"step": 1, "x": 1e16}\n{"step": 2, "x": 10000000000000002}',
        '{"step": 1, "\\ud800": 1, "</script><script>alert(1)</script>": 2}',
        "[" * 100_000,
        "\x00" * 1000,
    ],
)
def test_a_strange_line_does_not_fail_the_page(run: Path, line: str):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    text = report(run).read_text()
    assert "<script>alert" not in text
    (run / "metrics.jsonl").write_text(line + "\n")
    report(run)


@pytest.mark.parametrize("kind", ["folder", "fifo", "deep"])
@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "config.json", "check.txt", "graph.svg", "similarity.json"]
)
def test_a_file_of_another_kind_does_not_fail_the_page(run: Path, name: str, kind: str):
    (run / name).unlink()
    if kind == "folder":
        (run / name).mkdir()
    elif kind == "fifo":
        os.mkfifo(run / name)
    else:
        (run / name).write_text('{"a": ' * 50_000 + "1" + "}" * 50_000)
    report(run)
    (run / "config.json").unlink() if (run / "config.json").is_file() else None


def test_settings_that_are_nested_deep_are_cut(run: Path):
    (run / "config.json").write_text('{"a": ' * 900 + "1" + "}" * 900)
    report(run)
