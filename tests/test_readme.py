"""The README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.compile
def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 2
    code = "\n".join(blocks)
    # Inductor would take most of the time; what is tested is the code, not the backend.
    assert "lr=1e-3))" in code
    code = code.replace("lr=1e-3))", 'lr=1e-3), compile={"backend": "aot_eager"})')
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    first = names["objective"].init()  # the student begins with layers of its teacher
    place = "bert.encoder.layer.{}.output.dense.weight".format
    begun = first.trainable["student"][place(1)]
    assert torch.equal(begun, first.frozen["teacher"][place(3)])
    assert names["values"].shape == (8,)  # pyright: ignore
    assert (tmp_path / "objective.svg").exists()
    assert names["result"].state.step == 30  # pyright: ignore
    assert (tmp_path / "small-bert" / "config.json").exists()


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README.read_text()))
def test_links_lead_somewhere(link: str) -> None:
    assert link.startswith("https://") or (README.parent / link).exists()


def test_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200
