"""`python -m fkd`: what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fkd
from fkd._catalogue.entries import entries, search
from fkd._catalogue.uses import USES
from fkd._commands.main import COMMANDS, main
from fkd.interop.loggers import json_lines


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "fkd", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"fkd {fkd.__version__}\n"


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        told = " ".join(
            capsys.readouterr().out.split()
        )  # argparse breaks lines as wide as the terminal
        assert end.value.code == 0 and COMMANDS[name].help in told


def test_without_a_command_it_says_which_there_are(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    said = capsys.readouterr().err
    assert all(f"\n    {name} " in said for name in COMMANDS)


def test_env_names_versions_devices_and_caches(capsys: pytest.CaptureFixture[str]):
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert fkd.__version__ in text and "torch" in text and "compiled code" in text
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["fkd"] == fkd.__version__
    assert set(found) == {"versions", "machine", "settings", "caches"}
    assert "MISSING" not in found["versions"].values()


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["dkd"], "dkd"),
        (["2203.08679"], "dkd"),
        (["Decoupled", "knowledge"], "dkd"),
        (["minilm-relation"], "minilm_relation"),
        (["vocabularies", "two"], "uld"),
        (["different widths"], "mse"),
    ],
)
def test_losses_are_found(words: list[str], first: str, capsys: pytest.CaptureFixture[str]):
    assert main(["losses", "--names", *words]) == 0
    assert first in capsys.readouterr().out.split()


def test_one_loss_is_shown_whole(capsys: pytest.CaptureFixture[str]):
    assert main(["losses", "kl"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("fkd.losses.kl(student_logits: Float[Tensor, '*batch vocab'],")
    assert "Args:" in text and "LearnableTemperature" in text and "Also:" in text


def test_without_words_all_are_listed_by_family(capsys: pytest.CaptureFixture[str]):
    assert main(["losses"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {entry.name} " in text for entry in entries())
    assert text.count("\n\n") == len({entry.family for entry in entries()}) - 1


def test_an_unknown_loss_gets_the_nearest_names(capsys: pytest.CaptureFixture[str]):
    assert main(["losses", "minilm_relatoin"]) == 1
    assert "Did you mean 'minilm_relation'" in capsys.readouterr().out


def test_search_prefers_names():
    found = [entry.name for entry in search(["kl"])]
    assert found[0] == "kl" and found.index("reverse_kl") < found.index("dkd")
    assert search(["no", "such", "thing", "anywhere"]) == []


def test_uses_name_losses_and_adapters_that_exist():
    known = {entry.name for entry in entries()}
    assert not {n for use in USES for n in (*use.losses, *use.adapters)} - known
    assert len({(use.task, use.has, use.wants) for use in USES}) == len(USES)


def test_report_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = '{"step": 1, "time": 0, "kind": "train", "loss/total": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_text(line)
    assert main(["report", str(tmp_path)]) == 0
    page = tmp_path / "report.html"
    assert capsys.readouterr().out == f"{page}\n" and page.stat().st_size > 1000


def test_an_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: report: ")
    assert main(["report", str(tmp_path), "--metric", "x"]) == 2
    assert "was not logged" in capsys.readouterr().err


def test_the_catalogue_is_in_the_package():
    assert (Path(fkd.__file__).parent / "losses" / "README.md").exists()
    assert callable(json_lines)
