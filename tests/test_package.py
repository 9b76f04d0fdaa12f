"""What is packed, and what a package index shows of it."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

import fkd

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_page_of_the_index_has_no_relative_links():
    index_page = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["index_page"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = index_page(readme)
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert all(link.startswith("https://") for link in links)
    assert "](" in readme and "[CONTRIBUTING.md]" not in page and "CONTRIBUTING.md" in page
    assert index_page("a\n\n![x](docs/a.svg)\n\n[b](c.md) [d](https://e)\n") == (
        "a\n\nb [d](https://e)\n"
    )


def test_the_citation_has_the_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {fkd.__version__}\n" in text


def test_the_changelog_has_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {fkd.__version__}\n" in text and text.index("## Unreleased") > 0


def test_the_extras_and_groups_are_there():
    groups, extras = PROJECT["dependency-groups"], PROJECT["project"]["optional-dependencies"]
    assert {"dev", "docs", "bench"} <= groups.keys()
    assert {"dev", "examples", "transformers", "peers"} <= extras.keys()  # README, .ci/run


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("examples/*.py"), *ROOT.glob("examples/tutorials/*.py")],
    ids=lambda p: p.name,
)
def test_an_example_is_short(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert not re.search(r"^\s*(from|import) _(?!_future)", text, re.MULTILINE)  # nothing private


def test_the_lock_has_what_is_asked_for():
    def versions(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return dict(line.split("==") for line in lines if line and not line.startswith("#"))

    asked, locked = versions("constraints.txt"), versions("requirements.lock")
    assert asked.items() <= locked.items()
    assert len(locked) > 2 * len(asked)


def test_the_lock_is_made_of_what_pip_reports():
    report = {"install": [
        {"metadata": {"name": name, "version": version}}
        for name, version in (("torch", "2.13.0+cpu"), ("Fsspec_x", "1"), ("fkd", "0"))
    ]}  # fmt: skip
    text = runpy.run_path(str(ROOT / ".ci" / "lock"), run_name="lock")["locked"](report)
    assert text.splitlines()[2:] == ["fsspec-x==1", "torch==2.13.0"]


@pytest.mark.parametrize("line", (ROOT / "MANIFEST.in").read_text().splitlines())
def test_what_the_source_distribution_holds_is_there(line: str):
    verb, *names = line.split()
    if verb in ("include", "graft"):
        assert [name for name in names if not (ROOT / name).exists()] == []
