"""The page of a sweep: its members beside each other, the best first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fkd
from fkd import batch, student, teacher, term
from fkd.loops._report.members import Members, lead, members_of
from fkd.loops._report.series import Series
from fkd.losses import cross_entropy, kl

from .test_report import Page


def series(**values: list[float]) -> dict[str, Series]:
    return {n: Series(n, np.arange(len(v), dtype=float), np.array(v)) for n, v in values.items()}


def logged(values: Mapping[str, list[float]], *names: str) -> Members:
    marks = {f"{kind}/{n}{end}": [1.0] for n in names
             for kind, end in (("finite", ""), ("loss", "/total"))}  # fmt: skip
    found = members_of(series(**marks, **values))
    assert found is not None and found.names == names
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep in which the member `labels` learns nothing, and a term is called so as well."""
    torch.manual_seed(0)
    large = nn.Linear(4, 3)
    terms = {
        "kd": term(kl, student.logits, teacher.logits, temperature=2.0),
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.5),
    }
    models = {"student": fkd.trainable(nn.Linear(4, 3)), "teacher": fkd.frozen(large)}
    members = {
        "labels": fkd.sweeps.member(lr=0.0),
        "no-labels": fkd.sweeps.member({"labels/weight": 0.0}),
        "hot": fkd.sweeps.member({"kd/temperature": 4.0}),
    }
    step = fkd.sweeps.sweep(
        fkd.Objective(terms, **models), lambda p: torch.optim.Adam(p, lr=0.05), members,
        compile=False,
    )  # fmt: skip
    inputs = torch.randn(64, 4)
    data = [{"input": x, "labels": large(x).argmax(-1)} for x in inputs.split(16)]
    metrics = {
        f"{n}/accuracy": fkd.metric(
            fkd.metrics.accuracy, fkd.ref(f"{n}/student").logits, batch.labels
        )
        for n in members
    }
    path = tmp_path_factory.mktemp("sweep")
    fkd.loops.run(step, step.init(0), data, epochs=4, dev=data, metrics=metrics, log_every=2,
                  log_dir=path, progress=False, tensorboard=False)  # fmt: skip
    return path


def page(folder: Path, **options: object) -> Page:
    path = fkd.loops.report(folder, out=folder / "page.html", **options)  # type: ignore[arg-type]
    return Page(path.read_text(encoding="utf-8"))


def test_members_come_first_and_the_best_of_them_before_all(folder: Path):
    found = page(folder)
    titles = found.texts["h2"]
    assert titles[:2] == ["Members", "Losses"]
    assert "Best member by eval/accuracy" in found.texts["span"]
    best = found.texts["b"][0]
    assert best in ("no-labels", "hot") and "best" in found.texts["small"]
    head = found.texts["th"]
    assert head[:5] == ["member", "eval/accuracy", "weight/labels", "kd/temperature", "lr/0"]
    rows = [text.strip() for text in found.texts["td"]]
    assert "labels" in rows and "4" in rows and "0" in rows  # what they have of their own


def test_every_chart_has_all_members_in_the_same_colors(folder: Path):
    charts = page(folder).charts
    several = [c for c in charts if len(c["series"]) > 1]
    assert {len(c["series"]) for c in several} == {3}
    hues = {(s["name"].removesuffix(" (best)"), s["color"]) for c in several for s in c["series"]}
    assert {name for name, _ in hues} == {"labels", "no-labels", "hot"} and len(hues) == 3
    assert any(s["name"].endswith(" (best)") for s in charts[0]["series"])


def test_what_best_goes_by_may_be_said(folder: Path):
    for metric in ("eval/loss/kd", "eval/loss/hot/kd"):
        found = page(folder, metric=metric, higher_is_better=False)
        assert "Best member by eval/loss/kd" in found.texts["span"]
        assert found.texts["b"][0] != "labels"
    worst = page(folder, metric="eval/accuracy", higher_is_better=False)
    assert worst.texts["b"][0] == "labels"
    with pytest.raises(ValueError, match="'eval/no' was not logged"):
        page(folder, metric="eval/no")


def test_another_run_has_no_members():
    assert members_of(series(**{"loss/a/total": [1.0], "finite": [1.0], "skipped": [0.0]})) is None


@pytest.mark.parametrize("full, member, rest", [
    ("loss/no-labels/labels", "no-labels", "loss/labels"),
    ("eval/loss/T1/labels", "T1", "eval/loss/labels"),
    ("eval/agreement/T1/labels", "T1", "eval/agreement/labels"),
    ("knob/T10/kd/temperature", "T10", "knob/kd/temperature"),
    ("skipped/labels", "labels", "skipped"),
    ("eval/T1", "T1", "eval"),
    ("eval/T10/accuracy", "T10", "eval/accuracy"),
    ("eval/accuracy of no-labels", "no-labels", "eval/accuracy of"),
    ("eval/T1_f1", "T1", "eval/f1"),
    ("eval/f1/T1", "T1", "eval/f1"),
])  # fmt: skip
def test_the_member_is_found_in_a_name(full: str, member: str, rest: str):
    found = logged({full: [1.0, 2.0]}, "T1", "T10", "labels", "no-labels")
    assert list(found.shared[rest]) == [member]


def test_what_belongs_to_all_stays_so():
    found = logged({"loss/total": [1.0], "eval/T1x/accuracy": [1.0], "loss/x/T1": [1.0]}, "T1")
    assert set(found.others) == {"loss/sum of the members/total", "eval/T1x/accuracy", "loss/x/T1"}


def test_without_a_direction_nobody_is_the_best():
    values = {"eval/a": [2.0, 1.0], "eval/b": [0.0, 3.0], "eval/c": [5.0, float("nan")]}
    found = logged(values, "a", "b", "c")
    by_value = lead(found, {"eval"}, None, None)
    assert by_value is not None and (by_value.ranked, by_value.best) == (("b", "a", "c"), None)
    lower = lead(found, {"eval"}, "eval", False)
    assert lower is not None and (lower.ranked, lower.best) == (("a", "b", "c"), "a")
    assert lead(logged({}, "a"), {"eval"}, None, None) is None


def test_many_members_and_one_are_drawn(tmp_path: Path):
    from fkd.loops._report.members import member_section

    for count in (1, 12):
        names = [f"<m{i}>" for i in range(count)]
        values = {f"eval/{n}/accuracy": [0.1, float(i)] for i, n in enumerate(names)}
        found = logged(values, *names)
        text = member_section(found, lead(found, {"eval"}, None, None), {"eval"}, (0.0, 1.0))
        assert text.count("&lt;m0&gt;") >= 2 and "<m0>" not in text
        assert ("<small>best</small>" in text) == (count > 1)
        Page(text)
