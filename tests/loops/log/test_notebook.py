"""In a notebook a run shows HTML that is redrawn, without a package of widgets."""

from __future__ import annotations

import re
import sys
import types
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn

import fkd
from fkd import batch, student, term, trainable
from fkd.loops._log.notebook_bar import NotebookBar
from fkd.loops._log.progress import Lines, open_progress
from fkd.losses import cross_entropy


class Notebook:
    """The display of a notebook: what is shown in each output of a cell, now and before."""

    def __init__(self) -> None:
        self.outputs: list[list[str]] = []

    def display(self, page: Any, *, display_id: bool) -> Any:
        assert display_id
        output = [page]
        self.outputs.append(output)
        return types.SimpleNamespace(update=output.append)

    @property
    def now(self) -> list[str]:
        return [output[-1] for output in self.outputs]


class ZMQInteractiveShell:
    """What the shell of a kernel is called."""


class Shell(ZMQInteractiveShell):
    """The shell of a hosted notebook."""


class TerminalInteractiveShell:
    """IPython in a terminal."""


def in_shell(monkeypatch: pytest.MonkeyPatch, shell: Any) -> Notebook:
    notebook = Notebook()
    ipython: Any = types.ModuleType("IPython")
    shown: Any = types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: shell
    shown.display, shown.HTML = notebook.display, str
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # importing it fails
    return notebook


class _Text(HTMLParser):
    """The text of a page; tags must be closed in order, and be known."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self._open = "", []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in ("div", "p", "br", "progress")
        if tag != "br":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_run_in_a_notebook_shows_a_bar_and_its_evaluations(monkeypatch, capsys, tmp_path):
    notebook = in_shell(monkeypatch, Shell())
    torch.manual_seed(0)
    objective = fkd.Objective(
        {"labels": term(cross_entropy, student.logits, batch.y)},
        student=trainable(nn.Linear(4, 3), inputs=lambda b: b["x"]),
    )
    data = [{"x": torch.randn(5, 4), "y": torch.arange(5) % 3} for _ in range(4)]
    for folder in (None, tmp_path):
        step = fkd.loops.train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
        fkd.loops.run(step, step.init(), data, epochs=2, dev=data, evaluate_every=4, log_dir=folder)
        bar, below = notebook.now
        assert '<progress value="8" max="8">' in bar and "step 8/8 (100 %)" in bar
        assert re.search(r"done in \d.* s  loss/total \d", bar)
        assert re.search(r"step 4  .*<br>.*step 8  ", below)
        notebook.outputs.clear()
    assert capsys.readouterr() == ("", "")  # no line with control characters


def test_the_bar_says_what_it_waits_for_until_it_goes_on(monkeypatch):
    notebook = in_shell(monkeypatch, ZMQInteractiveShell())
    bar = open_progress(total=10, initial=2)
    assert isinstance(bar, NotebookBar) and bar.redrawn and "step 2/10" in notebook.now[0]
    bar.note("compiling the step, <3 s> so far")
    assert _Text(notebook.now[0]).text.endswith("compiling the step, <3 s> so far")
    bar.write({"step": 3, "kind": "train", "loss/total": 0.25})
    bar.message("a <b>\x1b[0m")
    text = _Text(notebook.now[0]).text
    assert "compiling" not in text and text.startswith(" step 3/10") and "loss/total 0.25" in text
    assert _Text(notebook.now[1]).text == "a <b>\x1b[0m"
    bar.close()
    assert "3/10" in notebook.now[0] and "done in" in notebook.now[0]


def test_many_steps_are_few_drawings(monkeypatch):
    notebook = in_shell(monkeypatch, ZMQInteractiveShell())
    bar = NotebookBar(total=None, every=60)
    for step in range(1000):
        bar.advance(step)
    assert len(notebook.outputs[0]) == 2  # when it is opened, and at the first step
    bar.close()
    assert "progress" not in notebook.now[0] and "step 999" in notebook.now[0]


def test_a_terminal_is_no_notebook(monkeypatch, capsys):
    for shell in (TerminalInteractiveShell(), None):
        notebook = in_shell(monkeypatch, shell)
        shown = open_progress()
        assert isinstance(shown, Lines)
        shown.message("to standard error")
        assert not notebook.outputs and capsys.readouterr().err == "to standard error\n"
