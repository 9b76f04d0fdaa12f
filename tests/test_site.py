"""The documentation: its pages are whole, and its programs run."""

from __future__ import annotations

import json
import re
import runpy
import textwrap
from pathlib import Path

import pytest

import fkd
from docs.site.check import anchors_of, problems
from docs.site.objects import constant, described, markdown, signature
from docs.site.pages import DOCS, pages
from docs.site.programs import as_markdown
from docs.site.shown import public, wrong_signatures

PAGES = sorted(
    path for path in DOCS.rglob("*.md") if "```python" in path.read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def site() -> dict[str, bytes]:
    return pages()


def test_links_lead_somewhere_and_every_public_name_is_described(site: dict[str, bytes]):
    assert problems(site) == []


def test_a_dead_link_a_missing_anchor_and_a_lost_page_are_found(site: dict[str, bytes]):
    bad = b"# A\n\n[a](nowhere.md) [b](faq.md#nothing) [c](index.md#start) ![e](no.png)\n"
    bad += b"\n`[d](no.md)`\n"
    found = problems({**site, "bad.md": bad})
    assert len(found) == 4 and "bad.md: nowhere.md leads nowhere" in found
    assert "bad.md: index.md#start: there is no such place on index.md" not in found
    assert any("faq.md#nothing" in line for line in found)
    assert "bad.md is not in the nav of mkdocs.yml" in found
    without = {n: text for n, text in site.items() if n != "reference/metrics.md"}
    assert any("fkd.metrics.accuracy is on no page" in line for line in problems(without))


def test_a_name_that_does_not_exist_is_found(site: dict[str, bytes]):
    text = (
        b"# A\n\n`similarity`, `kl`, `tap`, `epochs`, `mine`, `fkd.losses.kd`, `examples/no.py`\n\n"
    )
    text += b"    mine = 1\n"
    named = [line for line in problems({**site, "bad.md": text}) if "there is no" in line]
    expected = ("`similarity`", "fkd.losses.kd", "examples/no.py")
    assert named == [f"bad.md: there is no {name}" for name in expected]


def test_anchors_are_those_of_markdown():
    text = "# KL, cross-entropy, T²: which?\n\n## `a` and b\n\n::: fkd.losses.kl\n"
    assert {"kl-cross-entropy-t2-which", "a-and-b", "fkd.losses.kl"} <= anchors_of(text)


def test_programs_that_read_have_a_list_of_the_pages(site: dict[str, bytes]):
    text = site["llms.txt"].decode()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert text.startswith("# fkd\n") and len(links) > 30
    assert all(link in site for link in links)
    assert b"## Knowledge distillation" in site["llms-full.txt"]


def test_they_find_signatures_and_docstrings_of_all_that_is_public(site: dict[str, bytes]):
    texts = as_markdown(site)
    whole = site["llms-full.txt"].decode()
    assert "\n::: " not in whole and " at 0x" not in whole
    headings = {*re.findall(r"^##+ `([\w.]+)`$", whole, re.MULTILINE)}
    assert public().keys() <= headings
    assert {f"fkd.ModelRef.{n}" for n in ("tap", "attention", "param", "on", "patched")} <= headings
    loops = texts["reference/loops.md"]
    for name in ("fit", "run"):
        call = loops.split(f"\n{name}(\n", 1)[1].split("\n)", 1)[0].splitlines()
        assert call[:4] == [
            "    step: TrainStep,",
            "    state: State,",
            "    loader: Loader,",
            "    *,",
        ]
        assert "    epochs: int | None = None," in call
    assert "- epochs: how many passes over the loader in all.\n" in loops
    assert "```python\n>>> " in texts["reference/losses-divergences-of-predictions.md"]
    # What is read first comes first.
    starts = [
        whole.index(f"\n# {t}") for t in ("Cache a teacher", "Objectives, ", "Recipes", "Bench")
    ]
    assert starts == sorted(starts) and whole.startswith("# fkd\n")


def test_arguments_are_listed_as_they_are_called():
    def call(a: int, /, b: str = "x", *rest: int, c: object = len, **more: int) -> int: ...

    short = "call(a: int, /, b: str = 'x', *rest: int, c: object = len, **more: int) -> int"
    assert signature("call", call) == short
    lines = (
        "    a: int,|    /,|    b: str = 'x',|    *rest: int,|    c: object = len,|    **more: int,"
    )
    long = "\n".join(["call_of_a_long_name(", *lines.split("|"), ") -> int"])
    assert signature("call_of_a_long_name", call) == long
    assert signature("Aux", fkd.Aux).splitlines()[1] == "    terms: dict[str, Mean],"
    assert "    kwargs: Mapping[str, object] = ...," in signature("Term", fkd.Term)
    assert list(described("fkd.loops.INTERRUPTED", fkd.loops.INTERRUPTED))[3:] == [
        "INTERRUPTED: int = 75", "```", "", constant("INTERRUPTED"), ""
    ]  # fmt: skip
    assert constant("INTERRUPTED").startswith("Exit code of a run")


def test_sections_of_docstrings_are_lists_and_programs():
    text = "One.\n\n    a = b\n\nArgs:\n  a, b: two\n    lines.\n\nMore.\n\nExample:\n  >>> 1\n  1"
    assert markdown(text) == (
        "One.\n\n    a = b\n\n**Args**\n\n- a, b: two\n  lines.\n\nMore.\n\n"
        "**Example**\n\n```python\n>>> 1\n1\n```"
    )


def test_a_signature_that_a_page_shows_wrongly_is_found(tmp_path: Path):
    (tmp_path / "reference").mkdir()
    heading = '<h2 id="{}" class="doc doc-heading"></h2><div class="doc-signature"><b>{}</b></div>'
    right = "layer_map(student: int, teacher: int) -&gt; tuple[tuple[int, int], ...]"
    parts = {
        "fkd.layer_map": right,
        "fkd.loops.run": "run(arguments: Arguments) -&gt; Result",
        "fkd.ModelRef.param": "param(name: str) -&gt; Ref",
    }
    page = "".join(heading.format(*part) for part in parts.items())
    (tmp_path / "reference" / "a.html").write_text(page, encoding="utf-8")
    wrong = "\n".join(wrong_signatures(tmp_path))
    assert "fkd.loops.run is shown with (arguments); it has (step, state, loader, epochs=," in wrong
    assert "fkd.loops.fit is shown with no signature" in wrong
    assert "fkd.ModelRef.on is shown with no signature" in wrong
    assert "fkd.ModelRef.param " not in wrong


def test_what_is_private_is_on_no_page(site: dict[str, bytes]):
    text = b"\n".join(site.values()).decode(errors="ignore")
    shown = {n for some in re.findall(r"members: (\[.*\])", text) for n in json.loads(some)}
    assert {"attach", "__call__"} <= shown
    assert not {name for name in shown if name.startswith("_")} - {"__call__"}


def test_every_recorded_output_is_there(site: dict[str, bytes]):
    for name, content in site.items():
        if name.startswith("tutorials/"):
            assert b"{{" not in re.sub(rb"```.*?```", b"", content, flags=re.DOTALL)
            assert b"```python title=" in content and b"```text title=" in content


@pytest.mark.plain
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # in peft
@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_the_programs_of_a_page_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    code = "\n".join(map(textwrap.dedent, blocks))
    exec(compile(code, str(path), "exec"), {"__name__": "page"})


def test_the_tables_of_the_tutorials_are_those_of_their_rows():
    summary = runpy.run_path(str(DOCS.parent / "examples" / "tutorials" / "summary.py"))
    for name, make in summary["TABLES"].items():
        assert (summary["RESULTS"] / f"{name}.txt").read_text(encoding="utf-8") == make()
