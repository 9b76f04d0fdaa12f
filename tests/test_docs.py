"""What README, CONTRIBUTING and docstrings print as code runs as it is printed.

Blocks of the README run in `test_readme.py`, examples with `>>>` as doctests, recipes in
`test_recipes.py`; here are the code that stands between words and the indented code.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import kl

ROOT = Path(fkd.__file__).parent
PAGES = [ROOT.parent / "README.md", ROOT.parent / "CONTRIBUTING.md", ROOT / "losses" / "README.md"]


def docstrings() -> Iterator[tuple[str, str]]:
    """`(file:name, docstring)` of everything that has one."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
                text = ast.get_docstring(node)
                name = getattr(node, "name", "")
                if text:
                    yield f"{path.relative_to(ROOT)}:{name}", text


def test_every_name_exists_after_import_fkd() -> None:
    """In a fresh interpreter, with nothing imported but fkd."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES] + [t for _, t in docstrings()]
    names = sorted({n for text in texts for n in re.findall(r"\bfkd(?:\.[a-zA-Z]\w*)+", text)})
    assert "fkd.interop.torchao.fp8" in names and "fkd.interop.modules.bind" in names
    code = """
import functools, sys
import fkd
assert not [m for m in sys.modules if m.split(".")[0] in ("transformers", "torchao", "tensorboard")]
for name in sys.argv[1:]:
    try:
        functools.reduce(getattr, name.split(".")[1:], fkd)
    except AttributeError as error:
        print(name, error)
"""
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_prose_is_plain_english() -> None:
    pages = [*PAGES, *sorted((ROOT.parent / "docs").rglob("*.md"))]
    texts = [(str(page), page.read_text(encoding="utf-8")) for page in pages] + [*docstrings()]
    odd = re.compile(
        r"\b((is|are|returns) no tensors?|anew|in\s+the\s+place\s+of|what\s+fills\s+up)\b"
    )
    assert not [(where, match.group()) for where, text in texts for match in odd.finditer(text)]


def words() -> dict[str, Any]:
    """What the short names in the README's tables stand for."""
    net = functools.partial(torch.nn.Linear, 4, 3)
    objective = fkd.Objective(
        term(kl, student.logits, teacher.logits),
        student=fkd.trainable(net()),
        teacher=fkd.frozen(net()),
    )
    step = functools.partial(fkd.loops.train_step, objective, torch.optim.AdamW)
    names: dict[str, Any] = {n: getattr(fkd, n) for n in fkd.__all__} | {"fkd": fkd, "torch": torch}
    refs = {"a": student, "b": teacher, "x": student.logits, "ref": student.logits}
    return {**names, **refs, "fn": torch.add, "module": net(), "train_step": step}


def spans() -> list[str]:
    text = re.sub(r"```.*?```", "", PAGES[0].read_text(encoding="utf-8"), flags=re.DOTALL)
    return sorted({s for s in re.findall(r"`([^`\n]+)`", text) if is_code(s)})


def is_code(span: str) -> bool:
    """Whether it is an expression with a call, a comparison, ..., and not one word or a path."""
    try:
        tree = ast.parse(whole(span), mode="eval")
    except SyntaxError:
        return False
    kinds = ast.Attribute | ast.Call | ast.Compare | ast.Lambda | ast.Subscript
    return "/" not in span.replace(" / ", "") and any(isinstance(n, kinds) for n in ast.walk(tree))


def whole(span: str) -> str:
    """Methods stand in the README without their object."""
    return f"student{span}" if span.startswith(".") else span


@pytest.mark.parametrize("span", spans())
def test_code_between_words_runs(span: str) -> None:
    if "fp8(" in span:  # needs a GPU of these years, and says so
        with pytest.raises(ValueError, match="fp8: teacher is on cpu"):
            eval(span, {"fkd": fkd, "teacher": torch.nn.Linear(16, 16)})
        return
    precision = torch.get_float32_matmul_precision()
    try:
        assert eval(whole(span), words()) is not None or "set_float32" in span
    finally:
        torch.set_float32_matmul_precision(precision)


def test_results_are_those_that_are_printed() -> None:
    pairs = re.findall(r"`([^`\n]+)` gives `([^`\n]+)`", PAGES[0].read_text(encoding="utf-8"))
    assert pairs
    for code, value in pairs:
        assert eval(code, words()) == eval(value)


def blocks(text: str) -> list[str]:
    """The indented paragraphs of a docstring that are Python, and no formulas."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        lines = block.splitlines()
        if all(line.startswith("    ") for line in lines) and ">>>" not in block:
            code = textwrap.dedent(block)
            if is_python(code):
                found.append(code)
    return found


def is_python(code: str) -> bool:
    """Formulas are Python, too, but they call nothing that fkd has."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return False
    names = {*fkd.__all__, *fkd.loops.__all__, "objective", "bind", "fkd"}
    called = (n.func for n in ast.walk(tree) if isinstance(n, ast.Call))
    roots = {ast.unparse(f).split(".")[0].split("(")[0] for f in called}
    return bool(roots & names) or any(isinstance(n, ast.ImportFrom) for n in ast.walk(tree))


def small() -> dict[str, Any]:
    """An objective, its step, its state and a loader."""
    names = words()
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=fkd.trainable(torch.nn.Linear(4, 3)),
        teacher=fkd.frozen(torch.nn.Linear(4, 3)),
    )
    make = functools.partial(torch.optim.SGD, lr=0.1)
    step = fkd.loops.train_step(objective, lambda params: make(params), compile=False)
    loader = [torch.randn(2, 4) for _ in range(3)]
    loops = {n: getattr(fkd.loops, n) for n in fkd.loops.__all__}
    ready = {"objective": objective, "state": step.init(), "loader": loader, "batch": loader[0]}
    score = functools.partial(fkd.loops.score, compile=False)
    return {**names, **loops, **ready, "parts": objective.init(), "score": score, "step": step}


def bucketed() -> dict[str, Any]:
    rows = [{"input_ids": [1] * n, "labels": [1] * n} for n in (2, 3, 5, 8) * 20]
    names = {"functools": functools, "DataLoader": torch.utils.data.DataLoader, "rows": rows}
    return {**small(), **names, "lengths": [len(row["input_ids"]) for row in rows]}


def packed() -> dict[str, Any]:
    ids = torch.randint(9, (2, 6))
    names = {"ids": ids, "labels": ids, "batch": batch, "divergence": fkd.losses.head.kl()}
    return {**small(), **names, "head_divergence": fkd.losses.head_divergence}


def configured() -> dict[str, Any]:
    from fkd.interop.knowledge_distillation import Adapted

    model = torch.nn.Linear(4, 3)
    return {"fkd": fkd, "Adapted": Adapted, "model": model, "output_adaptor": lambda y: y}


def aligned() -> dict[str, Any]:
    return {**small(), "batch": batch, "take": fkd.loops.take, "kl": kl}


SETTINGS = {
    "_objective/objective.py:Objective": lambda: {**small(), "step": 0},
    "_objective/objective.py:without": None,
    "interop/knowledge_distillation/__init__.py:": dict,
    "interop/knowledge_distillation/_config.py:terms_from_config": configured,
    "interop/torchao.py:": None,
    "loops/_data/buckets.py:BucketBatchSampler": bucketed,
    "loops/_data/packing.py:": packed,
    "loops/_evaluate/score.py:score": small,
    "loops/_run/fit.py:fit": small,
    "loops/_text/align.py:": aligned,
    "parallel/__init__.py:": None,
    "parallel/_launch.py:torchrun_mesh": None,
    "parallel/_meta.py:on_meta": None,
    "parallel/_world.py:in_turn": None,
    "stages/_stages.py:stages": None,
    "sweeps/_sweep.py:sweep": None,
}
"""What each docstring's code stands in. None: it compiles, needs a GPU or several processes, or has
`...` for a value."""

PROGRAMS = {
    place: found
    for place, text in docstrings()
    if (found := blocks(text)) and not place.startswith("sources/")  # run in `tests/sources`
}


def test_every_indented_program_is_known() -> None:
    assert PROGRAMS.keys() == SETTINGS.keys()


@pytest.mark.parametrize("place", [place for place, make in SETTINGS.items() if make])
def test_indented_code_runs(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make: Any = SETTINGS[place]
    exec("\n".join(PROGRAMS[place]), make())


def test_the_version_is_that_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    tools = project["tool"]["setuptools"]
    assert tools["dynamic"]["version"] == {"attr": "fkd._base.version.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", fkd.__version__)
    # An editable install is a path then, which editors and type checkers follow.
    assert tools["package-dir"] == {"": "."}
    assert (ROOT / "py.typed").exists() and tools["package-data"]["fkd"][0] == "py.typed"
