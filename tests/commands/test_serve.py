"""`python -m fkd serve`: what is served, and what is refused in words."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from fkd._commands.main import main
from fkd.sources import live, served
from tests.sources.test_bind import data, mlps

TARGET = "tests.sources.test_bind:mlps"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "does not name an object"),
        (["no.such.module:make"], "no module 'no.such.module'"),
        (["no/such/file.py:make"], "no file no/such/file.py"),
        ([TARGET[:-1]], "Did you mean 'mlps'"),
        (["tests.sources.test_bind:CLASSES"], "is a int; an Objective is expected"),
        ([TARGET, "--host", "0.0.0.0"], "error: serve: other machines reach '0.0.0.0', so a token"),
        ([TARGET, "--token-file", "no/such"], "No such file or directory: 'no/such'"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(capsys, monkeypatch, arguments, words):
    monkeypatch.delenv("FKD_TOKEN", raising=False)
    assert main(["serve", *arguments]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said) and said.count("\n") == 1


def test_a_file_is_served_until_it_is_told_to_end(tmp_path):
    (tmp_path / "beside.py").write_text("from tests.sources.test_bind import mlps\n")
    file = tmp_path / "objective.py"
    file.write_text("from beside import mlps\ndef make():\n    return mlps()\n")
    secret = "a token of some length"
    process = subprocess.Popen(
        [sys.executable, "-m", "fkd", "serve", f"{file}:make", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "FKD_TOKEN": secret, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving teacher.logits as served-")
        with served(line.split()[-1], token=secret) as source:
            [attached] = source.attach([data()])
            theirs = attached[f"fkd.sources/{source.name}"]["v0"]
            assert torch.equal(theirs, live(mlps()).values(data())["v0"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
