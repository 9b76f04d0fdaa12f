"""What is logged is what was measured, once, also across kills and resumes."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import pty
import random
import re
import shlex
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fkd.loops._base.errors import CheckpointError
from fkd.loops._base.waiting import duration
from fkd.loops._log.lines import JsonLines, read_log
from fkd.loops._log.log import Log, Throughput, open_log
from fkd.loops._log.progress import Lines, open_progress

fork = multiprocessing.get_context("fork")


def quiet(folder: Path, **options: Any) -> Log:
    return open_log(folder, **{"tensorboard": False, "progress": False, **options})


def steps(folder: Path) -> list[int]:
    return [r["step"] for r in read_log(folder / "metrics.jsonl")]


# -- JSON lines -----------------------------------------------------------------------------


def test_a_line_is_one_json_object(tmp_path: Path):
    before = time.time()
    with quiet(tmp_path) as log:
        log.write({"loss/kd": 0.1, "skipped": 0}, step=10, epoch=1)
        log.write({"eval/accuracy": 0.5}, step=10, kind="eval")
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # before it is closed
    first, second = (json.loads(line) for line in lines)
    assert before <= first.pop("time") <= time.time()
    assert first == {"step": 10, "kind": "train", "epoch": 1, "loss/kd": 0.1, "skipped": 0}
    assert (second["kind"], second["eval/accuracy"]) == ("eval", 0.5)


def test_nan_and_inf_are_strict_json_and_come_back(tmp_path: Path):
    with quiet(tmp_path) as log:
        log.write({"a": float("nan"), "b": float("inf"), "c": float("-inf")}, step=1)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse)["b"] == "inf"
    (record,) = read_log(tmp_path / "metrics.jsonl")
    assert repr([record[k] for k in "abc"]) == "[nan, inf, -inf]"


def test_resuming_cuts_what_came_after_the_checkpoint(tmp_path: Path):
    with quiet(tmp_path) as log:
        for step in range(1, 11):
            log.write({"x": step}, step=step)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 11, "ti')
    with quiet(tmp_path, resume_step=6) as log:
        assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
        log.write({"x": 70}, step=7)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
    with quiet(tmp_path, resume_step=0):
        assert steps(tmp_path) == []


def test_resuming_without_a_log_starts_one(tmp_path: Path):
    with quiet(tmp_path / "new", resume_step=5) as log:
        log.write({}, step=6)
    assert steps(tmp_path / "new") == [6]


def test_a_half_written_line_is_cut_before_more_is_written(tmp_path: Path):
    with quiet(tmp_path) as log:
        log.write({}, step=1)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "lo')
    with quiet(tmp_path, resume_step=9) as log:
        log.write({}, step=2)
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == 2
    assert steps(tmp_path) == [1, 2]


def test_a_new_run_keeps_the_old_log_under_another_name(tmp_path: Path):
    for step in (1, 2, 3):
        with quiet(tmp_path) as log:
            log.write({}, step=step)
    assert steps(tmp_path) == [3]
    aside = [next(read_log(tmp_path / f"metrics.{i}.jsonl"))["step"] for i in (1, 2)]
    assert aside == [1, 2]


def test_damaged_lines_are_left_out(tmp_path: Path):
    lines = [b'{"step": 1}', b"\xff\xfe", b"", b"[1]", b'{"step": "x"}', b"nul", b'{"step": 2}']
    (tmp_path / "x").write_bytes(b"\n".join(lines) + b'\n{"step": 3}')
    assert [r["step"] for r in read_log(tmp_path / "x")] == [1, 2]


def _log_for_ever(path: Path) -> None:
    lines = JsonLines(path, resume_step=0)
    for step in range(1, 10**9):
        lines.write({"step": step, "x": "y" * 500})


def test_kill_loses_at_most_the_line_being_written(tmp_path: Path):
    rng = random.Random(0)
    for _ in range(10):
        process = fork.Process(target=_log_for_ever, args=(tmp_path / "x",))
        process.start()
        time.sleep(rng.uniform(0.01, 0.05))
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        if (tmp_path / "x").exists():
            found = [r["step"] for r in read_log(tmp_path / "x")]
            assert found == list(range(1, len(found) + 1))


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.write
    lines = JsonLines(tmp_path / "x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda d, data: real(d, data[:3]))
        lines.write({"step": 1, "x": 0.5})
    assert [r["x"] for r in read_log(tmp_path / "x")] == [0.5]
    lines.close()


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with quiet(tmp_path) as log, monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(CheckpointError, match=r"metrics.jsonl.*: No space left"):
            log.write({}, step=1)


@pytest.mark.plain
def test_a_tensor_is_refused_since_it_would_wait_for_the_device(tmp_path: Path):
    with quiet(tmp_path) as log, pytest.raises(TypeError, match="loss/kd is a Tensor"):
        log.write({"loss/kd": torch.tensor(1.0)}, step=1)  # type: ignore[dict-item]


# -- TensorBoard ----------------------------------------------------------------------------


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


def points(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in found.Scalars(tag)]


def test_tensorboard_has_every_value_at_its_step(tmp_path: Path):
    with open_log(tmp_path, progress=False) as log:
        for step in range(1, 21):
            log.write({"loss/kd": 0.5 * step, "lr/0": 2.0**-step}, step=step, epoch=step / 10)
        log.write({"eval/accuracy": 0.5, "loss/kd": 3.0}, step=20, kind="eval")
        found = events(tmp_path)  # before it is closed: a killed run has them too
    assert points(found, "loss/kd") == [(s, 0.5 * s) for s in range(1, 21)]
    assert points(found, "lr/0") == [(s, 2.0**-s) for s in range(1, 21)]
    assert points(found, "eval/accuracy") == [(20, 0.5)]
    assert points(found, "eval/loss/kd") == [(20, 3.0)]
    assert set(found.Tags()["scalars"]) == {
        *("loss/kd", "lr/0", "epoch", "eval/accuracy", "eval/loss/kd")
    }
    logged = [r["time"] for r in read_log(tmp_path / "metrics.jsonl")]
    assert found.Scalars("loss/kd")[0].wall_time == pytest.approx(logged[0])


def test_a_resumed_run_has_no_point_twice(tmp_path: Path):
    with open_log(tmp_path, progress=False) as log:
        for step in range(1, 11):
            log.write({"x": 1.0}, step=step)
    time.sleep(1.1)  # the names of event files have the second in them
    with open_log(tmp_path, progress=False, resume_step=6) as log:
        for step in range(7, 13):
            log.write({"x": 2.0}, step=step)
    found = events(tmp_path)
    assert points(found, "x") == [(s, 1.0 if s <= 6 else 2.0) for s in range(1, 13)]
    assert steps(tmp_path) == list(range(1, 13))


def test_settings_texts_and_the_graph_are_kept(tmp_path: Path):
    with open_log(tmp_path, progress=False) as log:
        log.hyperparameters(
            {"lr": 0.1, "terms": {"kd": "a|b"}, "layers": (3, 6), "x": torch.float16}
        )
        log.text("check", "term  shape\nkd    [8]")
        log.graph("<svg/>", text="a -> b")
        found = events(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {"lr": 0.1, "terms": {"kd": "a|b"}, "layers": [3, 6], "x": "torch.float16"}
    assert (tmp_path / "check.txt").read_text() == "term  shape\nkd    [8]"
    assert (tmp_path / "graph.svg").read_text() == "<svg/>"
    texts = {
        tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in ("check/text_summary", "hyperparameters/text_summary", "graph/text_summary")
    }
    assert "    kd    [8]" in texts["check/text_summary"]
    assert "| terms/kd | a&#124;b |" in texts["hyperparameters/text_summary"]
    plugin = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"terms/kd" in plugin
    assert len(list(tmp_path.glob("**/events*"))) == 1  # and no second run beside this one


def test_tensorboard_is_imported_only_when_it_is_asked_for(tmp_path: Path):
    code = """
import sys
from fkd.loops._log.log import open_log
with open_log(sys.argv[1], tensorboard=False) as log:
    log.write({"x": 1.0}, step=1)
assert not [name for name in sys.modules if name.startswith("tensorboard")]
sys.modules["tensorboard"] = None
try:
    open_log(sys.argv[1])
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert "open_log: tensorboard is not installed. Install fkd[tensorboard]" in done.stdout


# -- faults ---------------------------------------------------------------------------------


def test_a_flipped_byte_costs_its_line_only(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with quiet(tmp_path) as log:
        for step in range(1, 11):
            log.write({"x": step / 3, "name/y": -step}, step=step, epoch=step // 5)
    whole = path.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == 10]
    for offset in range(0, len(whole), 3):
        for mask in (0x01, 0x20, 0xFF):
            damaged = bytearray(whole)
            damaged[offset] ^= mask
            path.write_bytes(damaged)
            JsonLines(path, resume_step=10).close()
            lost = {1 + sum(end < offset for end in ends)}
            assert set(steps(tmp_path)) >= set(range(1, 11)) - lost
    for end in ends:  # two lines in one
        path.write_bytes(whole[:end] + b"X" + whole[end + 1 :])
        JsonLines(path, resume_step=10).close()
        assert steps(tmp_path) in (list(range(1, 11)), list(range(1, 10)))


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("resume_step", [None, 5])
def test_a_log_that_is_a_link_is_not_written_through(tmp_path: Path, link: Any, resume_step: Any):
    precious, run = tmp_path / "precious", tmp_path / "run"
    text = "all of it\n" * 3
    precious.write_text(text)
    run.mkdir()
    link(precious, run / "metrics.jsonl")
    try:
        with quiet(run, resume_step=resume_step) as log:
            log.write({"x": 1}, step=6)
        assert steps(run) == [6]
    except CheckpointError as error:
        assert "is a link, which is not followed" in str(error)
    assert precious.read_text() == text


@pytest.mark.parametrize("resume_step", [None, 5])
def test_a_log_that_is_no_file_is_named(tmp_path: Path, resume_step: Any):
    os.mkfifo(tmp_path / "metrics.jsonl")
    if resume_step is None:  # it is kept under another name
        with quiet(tmp_path) as log:
            log.write({}, step=1)
        assert steps(tmp_path) == [1] and (tmp_path / "metrics.1.jsonl").is_fifo()
        return
    with pytest.raises(CheckpointError, match="not a regular file"):
        JsonLines(tmp_path / "metrics.jsonl", resume_step=resume_step)


def test_what_is_logged_again_for_the_step_of_a_resume_is_there_once(tmp_path: Path):
    for resume_step in (None, 4, 4):
        with open_log(tmp_path, progress=False, resume_step=resume_step) as log:
            log.write({"x": 1.0}, step=4)
            log.write({"eval/y": 2.0}, step=4, kind="eval")
    assert [r["kind"] for r in read_log(tmp_path / "metrics.jsonl")] == ["train", "eval"]
    assert points(events(tmp_path), "x") == [(4, 1.0)]
    with quiet(tmp_path, resume_step=4) as log:
        log.write({"x": 1.0}, step=5)
    assert steps(tmp_path) == [4, 4, 5]


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"step": true}',
        '{"step": -1}',
        '{"step": 1e3}',
        '{"step": 9007199254740993}',
        '{"step": ' + "9" * 5000 + "}",
        '{"step": 3, "kind": ["train"]}',
        '{"step": 3, "kind": null}',
        "3",
        "null",
    ],
)
def test_lines_of_another_form_are_left_out(tmp_path: Path, line: str):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    assert steps(tmp_path) == [1, 2]
    with quiet(tmp_path, resume_step=2) as log:
        log.write({}, step=3)
    assert steps(tmp_path) == [1, 2, 3]


def test_fields_of_another_form_are_left_out(tmp_path: Path):
    fields = ['"time": "x"', '"time": 1e300', '"epoch": null', f'"x": {10**400}', '"y": 1']
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": 1, {f}}}\n' for f in fields))
    read = list(read_log(tmp_path / "metrics.jsonl"))
    assert read == [{"step": 1, "kind": "train"}] * 4 + [{"step": 1, "y": 1, "kind": "train"}]


def test_a_log_that_is_deleted_is_begun_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with quiet(tmp_path) as log:
        log.write({}, step=1)
        (tmp_path / "metrics.jsonl").unlink()
        log.write({}, step=2)
    assert steps(tmp_path) == [2] and "was deleted during the run" in caplog.text


@pytest.mark.parametrize("failures", [1, 10**9])
def test_tensorboard_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, failures: int
):
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    real, left = EventFileWriter.add_event, failures

    def fails(self: Any, event: Any) -> None:
        nonlocal left
        if event.step == 2 and left:
            left -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, event)

    monkeypatch.setattr(EventFileWriter, "add_event", fails)
    order = [1, *[2] * 9, 3]
    with open_log(tmp_path, progress=False) as log:
        for step in order:
            log.write({"x": float(step)}, step=step)
    assert steps(tmp_path) == order
    assert caplog.text.count("No space left") == 1
    files = sorted(tmp_path.glob("events*"))
    assert len(files) == (2 if failures == 1 else 3)  # it is tried three times


def test_a_progress_that_nobody_can_see_does_not_end_the_run(tmp_path: Path):
    read, write = os.pipe()
    os.close(read)
    broken = open(write, "w", encoding="utf-8")
    for stream in (None, broken):
        with quiet(tmp_path) as log:
            log._progress = open_progress(stream=stream) if stream else None
            for step in (1, 2):
                log.advance(step)
                log.write({"loss/total": 1.0}, step=step, kind="eval")
        assert steps(tmp_path) == [1, 2]
    with pytest.raises(BrokenPipeError):
        broken.close()
    assert broken.closed and open_progress(stream=broken) is None


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_without_standard_error_there_is_no_progress(tmp_path: Path, redirection: str):
    code = (
        "import sys; from fkd.loops._log.log import open_log\n"
        "with open_log(sys.argv[1], tensorboard=False) as log:\n"
        "    log.write({'loss/total': 1.0}, step=1); log.advance(2)\n"
    )
    command = f"exec {sys.executable} -c {shlex.quote(code)} {tmp_path} {redirection}"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    assert steps(tmp_path) == [1]


# -- the progress bar -----------------------------------------------------------------------


def _run(folder: Path, descriptor: int) -> None:
    sys.stderr = open(descriptor, "w", encoding="utf-8")
    with open_log(folder, tensorboard=False, total_steps=300) as log:
        for step in range(1, 301):
            time.sleep(0.002)
            log.advance(step)
            if step % 50 == 0:
                log.write({"loss/total": 1 / step}, step=step)
            if step % 100 == 0:
                log.write({"eval/accuracy": step / 300}, step=step, kind="eval")
    sys.stderr.flush()
    os._exit(0)


def _output(folder: Path, reading: int, writing: int) -> str:
    """What a run in a process of its own writes to a pipe or a terminal."""
    process = fork.Process(target=_run, args=(folder, writing))
    process.start()
    os.close(writing)
    output = b""
    while True:
        try:
            part = os.read(reading, 4096)
        except OSError:  # the other end of a terminal is closed
            break
        if not part:
            break
        output += part
    process.join()
    os.close(reading)
    assert process.exitcode == 0
    return output.decode()


def test_a_pipe_gets_few_plain_lines(tmp_path: Path):
    shown = _output(tmp_path, *os.pipe())
    assert "\r" not in shown and "\x1b" not in shown
    lines = shown.splitlines()
    patterns = [
        r"step 50/300 \(17 %\), .* left, .* step/s  loss/total 0\.02",
        r"step 100/300 \(33 %\), .* left, .* step/s  accuracy 0\.3333",
        r"step 200/300 .*  accuracy 0\.6667",
        r"step 300/300 \(100 %\), .* step/s  accuracy 1",
        r"step 300/300 \(100 %\), .*  done in .* s",
    ]
    assert len(lines) == len(patterns)
    assert all(re.fullmatch(p, line) for p, line in zip(patterns, lines, strict=True)), lines


@pytest.mark.parametrize("columns", [0, 100])
def test_a_terminal_gets_a_bar(tmp_path: Path, columns: int):
    reading, writing = pty.openpty()
    termios.tcsetwinsize(writing, (30, columns))
    shown = _output(tmp_path, reading, writing).replace("\r\n", "\n")
    assert shown.count("\n") == 4  # three evaluations, the bar
    assert re.search(r"\r100%\|.*\| 300/300 \[.*loss/total 0\.003333\]", shown)
    assert "step 100  accuracy 0.3333\n" in shown


def test_lines_without_a_total_and_after_a_resume():
    stream = io.StringIO()
    lines = Lines(stream, initial=100, every=0.0)
    lines.write({"step": 110, "kind": "train", "loss/total": 0.5})
    lines.advance(115)
    lines.close()
    first, last = stream.getvalue().splitlines()
    assert re.fullmatch(r"step 110, .* step/s  loss/total 0\.5", first)
    assert re.fullmatch(r"step 115, .* step/s  done in 0\.0 s", last)


def test_a_stream_that_is_no_terminal_gets_lines():
    assert isinstance(open_progress(stream=io.StringIO()), Lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (59.6, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (200_000, "2 d 7 h"),
        (12.3, "12 s"),
    ],
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


def test_throughput_counts_what_was_added():
    meter = Throughput(since=1.0)
    assert meter.rates(now=2.0) == {}
    assert meter.add(examples=3).add(examples=5).rates(now=5.0) == {"examples_per_s": 2.0}
    assert meter.examples == 0
    assert meter.add(tokens=4).rates(now=1.0)["tokens_per_s"] > 1e6
