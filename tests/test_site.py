"""The documentation: its pages are whole, and its programs run."""

from __future__ import annotations

import re
import runpy
import textwrap
from pathlib import Path

import pytest

from docs.site.check import anchors_of, problems
from docs.site.pages import DOCS, pages

FRAGMENTS = {"parallel.md"}  # of scripts that several processes run
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if "```python" in path.read_text(encoding="utf-8") and path.name not in FRAGMENTS
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


def test_anchors_are_those_of_markdown():
    text = "# KL, cross-entropy, T²: which?\n\n## `a` and b\n\n::: fkd.losses.kl\n"
    assert {"kl-cross-entropy-t2-which", "a-and-b", "fkd.losses.kl"} <= anchors_of(text)


def test_programs_that_read_have_a_list_of_the_pages(site: dict[str, bytes]):
    text = site["llms.txt"].decode()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert text.startswith("# fkd\n") and len(links) > 30
    assert all(link in site for link in links)
    assert b"## Knowledge distillation" in site["llms-full.txt"]


def test_what_is_private_is_on_no_page(site: dict[str, bytes]):
    text = b"\n".join(site.values()).decode(errors="ignore")
    shown = {n for some in re.findall(r"members: \[(.*)\]", text) for n in some.split(", ")}
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
