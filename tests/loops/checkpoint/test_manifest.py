"""Laws of what is read: everything is compared with its schema, and refused in words."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fkd.loops import UnreadableError
from fkd.loops._base import files as _files
from fkd.loops._base.errors import CheckpointError, DamagedError
from fkd.loops._checkpoint import manifest as manifests
from fkd.loops._checkpoint.checkpoint import load, load_latest, save
from fkd.loops._checkpoint.folder import best, set_aside


def two(folder: Path) -> Path:
    """The newer of two checkpoints."""
    save(folder, {"w": torch.full((7,), 1.0), "n": 1}, step=1)
    return save(folder, {"w": torch.full((7,), 2.0), "n": 2, "t": (1, 2**70)}, step=2)


def forge(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Another manifest with a right checksum, as another release or a hand would write it."""
    content = json.loads((path / "manifest.json").read_bytes())["manifest"]
    changed = change(content)
    body = changed if isinstance(changed, bytes) else json.dumps(content).encode()
    head, middle, tail = b'{"sha256": "', b'", "manifest": ', b"}\n"
    sha256 = hashlib.sha256(body).hexdigest().encode()
    (path / "manifest.json").write_bytes(head + sha256 + middle + body + tail)


DEEP = b"[" * 100_000 + b"]" * 100_000
NESTED = json.loads("[" * 500 + "]" * 500)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(extra=1), "unknown fields: extra"),
        (lambda c: c.pop("tree"), "no field tree"),
        (lambda c: c.pop("serial"), "no field serial"),
        (lambda c: c.pop("version"), "version is None; an integer"),
        (lambda c: c.update(version="1"), "version is '1'; an integer"),
        (lambda c: c.update(version=True), "version is"),
        (lambda c: c.update(format="other"), "does not say that it is of"),
        (lambda c: c.update(step=-1), "step is -1; an integer from 0 on"),
        (lambda c: c.update(step=1.5), "step is 1.5"),
        (lambda c: c.update(step=10**30), "step is a huge integer"),
        (lambda c: c.update(serial=None), "serial is None"),
        (lambda c: c.update(metric="best"), "metric is 'best'; a finite number or null"),
        (lambda c: c.update(metric=float("nan")), "metric is nan; a finite number or null"),
        (lambda c: c.update(metric=10**400), "metric is a huge integer"),
        (lambda c: c.update(time=[]), "time is a list"),
        (lambda c: c.update(finite=1), "finite is 1"),
        (lambda c: c.update(files={}), "no field state.safetensors"),
        (lambda c: c.update(files=[]), "files is a list; an object"),
        (lambda c: c["files"].update({"../../x": [1, "0" * 64]}), "unknown fields"),
        (lambda c: c["files"].update({"state.safetensors": [3]}), "has 1 items; 2 are expected"),
        (lambda c: c["files"]["state.safetensors"].__setitem__(1, None), "64 hexadecimal digits"),
        (lambda c: c["files"]["state.safetensors"].__setitem__(0, "9"), "0 is '9'"),
        (lambda c: c.update(tensors=[]), "tensors is a list"),
        (lambda c: c["tensors"].clear(), "other tensors"),
        (lambda c: c["tensors"]["w"].update(dtype="float31"), "the name of a dtype"),
        (lambda c: c["tensors"]["w"].update(dtype="float64"), "float32 stands for one of"),
        (lambda c: c["tensors"]["w"].update(dtype="int32"), "float32 stands for one of"),
        (lambda c: c["tensors"]["w"].update(shape=[10**12]), "stands for one of"),
        (lambda c: c["tensors"]["w"].update(shape=[7, 1]), "stands for one of"),
        (lambda c: c["tensors"]["w"].update(shape=None), "shape is None; a list"),
        (lambda c: c["tensors"]["w"].update(stride=[10**9]), "strides"),
        (lambda c: c["tensors"]["w"].update(stride=[0]), "strides"),
        (lambda c: c.update(tree={"tensor": "v"}), "names a tensor 'v' that is not there"),
        (lambda c: c.update(tree={"tensor": ["w"]}), "names a tensor"),
        (lambda c: c.update(tree={}), "object of 0 fields"),
        (lambda c: c.update(tree={"set": [1]}), "unknown kind of value: 'set'"),
        (lambda c: c.update(tree={"dict": 3}), "a dict that is not a list"),
        (lambda c: c.update(tree={"dict": [[1]]}), "something else than pairs"),
        (lambda c: c.update(tree={"dict": [[[1], 2]]}), "a list for the key of a dict"),
        (lambda c: c.update(tree={"int": "xyz"}), "'xyz' for a int"),
        (lambda c: c.update(tree={"float": "1e5"}), "'1e5' for a float"),
        (lambda c: c.update(tree={"tuple": None}), "a tuple that is not a list"),
        (lambda c: c.update(tree=NESTED), "not nested over 100 levels"),
        (lambda c: c.update(fingerprint=NESTED), "not nested over 100 levels"),
        (lambda c: DEEP, "manifest"),
        (lambda c: b"[]", "manifest"),
        (lambda c: b"not JSON", "not JSON"),
        (lambda c: b"", "manifest"),
    ],
)
def test_a_malformed_manifest_with_a_right_checksum_is_damage(tmp_path, change, message):
    path = two(tmp_path)
    forge(path, change)
    with pytest.raises(DamagedError, match=message):
        load(path)
    fallback = load_latest(tmp_path)
    assert fallback and fallback.tree["n"] == 1 and len(fallback.skipped) == 1
    assert "step-00000002" in fallback.skipped[0]
    best(tmp_path)
    save(tmp_path, {"n": 3}, step=3)
    assert load_latest(tmp_path).tree == {"n": 3}  # type: ignore[union-attr]


@pytest.mark.parametrize("more", [{}, {"another": {"field": 1}}])
def test_a_newer_release_is_named(tmp_path, more):
    forge(two(tmp_path), lambda c: c.update(version=3, **more))
    with pytest.raises(CheckpointError, match=r"newer release of fkd.*version 3.*reads 2") as e:
        load_latest(tmp_path)
    assert not isinstance(e.value, DamagedError) and "step-00000002" in str(e.value)


def test_a_state_of_another_form_with_a_right_checksum_is_damage(tmp_path):
    path = two(tmp_path)
    state = path / "state.safetensors"
    for tensors in (
        {"w": torch.zeros(7, dtype=torch.int32)},
        {"w": torch.zeros(8)},
        {"v": torch.zeros(7)},
        {"w": torch.zeros(7), "v": torch.zeros(7)},
        None,
    ):
        save_file(tensors, state) if tensors else state.write_bytes(b"\xff" * 64)
        raw = state.read_bytes()
        about = [len(raw), hashlib.sha256(raw).hexdigest()]
        forge(path, lambda c, about=about: c.update(files={state.name: about}))
        with pytest.raises(DamagedError):
            load(path)
        assert load_latest(tmp_path).step == 1  # type: ignore[union-attr]


# -- what cannot be read now ----------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("victim", ["manifest.json", "state.safetensors"])
def test_an_error_of_the_disk_is_no_damage(tmp_path, monkeypatch, code, victim):
    two(tmp_path)
    real, left = _files.open_regular, 0

    def fails(path: Path) -> Any:
        nonlocal left
        if left and path.name == victim and path.parent.name == "step-00000002":
            left -= 1
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    monkeypatch.setattr(_files, "open_regular", fails)
    left = 1000
    with pytest.raises(UnreadableError, match=r"step-00000002.*cannot be read now"):
        load_latest(tmp_path)
    if code != errno.EACCES:  # in passing
        left = 2
        assert load_latest(tmp_path).step == 2  # type: ignore[union-attr]
    left = 1000
    save(tmp_path, {"n": 3}, step=3, keep_last=1)
    left = 0
    assert load_latest(tmp_path).step == 3  # type: ignore[union-attr]
    assert (tmp_path / "step-00000002").exists() == (victim == "manifest.json")


@pytest.mark.parametrize("victim", ["manifest.json", "state.safetensors"])
def test_a_fifo_is_damage_and_is_not_waited_for(tmp_path, victim):
    path = two(tmp_path) / victim
    size = path.stat().st_size
    path.unlink()
    os.mkfifo(path)
    assert size and load_latest(tmp_path).step == 1  # type: ignore[union-attr]


# -- what is in the way ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
@pytest.mark.parametrize("name", [".writing-step-00000003", ".deleting-step-00000002"])
def test_a_leftover_of_any_kind_does_not_stop_a_save(tmp_path, name, kind):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("all of it")
    run = tmp_path / "run"
    two(run)
    leftover = run / name
    {"file": leftover.touch, "link": lambda: leftover.symlink_to(precious)}.get(
        kind, lambda: (leftover / "below").mkdir(parents=True)
    )()
    save(run, {"n": 3}, step=3, keep_last=1, keep_best=0)
    assert [p.name for p in run.iterdir()] == ["step-00000003"]
    assert (precious / "thesis").read_text() == "all of it"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_folder_that_cannot_be_synced_is_saved_to(tmp_path, monkeypatch, code):
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(_files.os, "fsync", fsync)
    save(tmp_path / "new" / "run", {"n": 1}, step=1)
    assert load_latest(tmp_path / "new" / "run").step == 1  # type: ignore[union-attr]


# -- which stay -----------------------------------------------------------------------------


def test_the_newest_finite_one_is_never_removed(tmp_path):
    for step in range(1, 8):
        w = torch.full((3,), float("nan") if step > 2 else 1.0)
        save(tmp_path, {"w": w, "n": step}, step=step, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-0000000{i}" for i in (2, 6, 7)]
    assert [load(p).finite for p in sorted(tmp_path.iterdir())] == [True, False, False]
    save(tmp_path, {"w": torch.ones(3)}, step=8, keep_last=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000008"]
    save(tmp_path, {"w": torch.full((3,), float("inf"))}, step=9, finite=True)
    assert load(tmp_path / "step-00000009").finite is True


def test_a_manifest_that_does_not_say_whether_it_is_finite_counts_as_finite(tmp_path):
    path = save(tmp_path, {"w": torch.ones(3)}, step=1)
    forge(path, lambda c: c.pop("finite"))
    for step in (2, 3, 4):
        save(tmp_path, {"w": torch.full((3,), float("nan"))}, step=step, keep_last=1)
    assert load(path).finite is None and load(path).tree["w"].sum() == 3


def test_checkpoints_of_an_earlier_run_are_moved_aside(tmp_path):
    assert set_aside(tmp_path) is None
    two(tmp_path)
    assert set_aside(tmp_path) == tmp_path / "earlier-1"
    assert load_latest(tmp_path) is None and best(tmp_path) is None
    assert load_latest(tmp_path / "earlier-1").step == 2  # type: ignore[union-attr]
    two(tmp_path)
    assert set_aside(tmp_path) == tmp_path / "earlier-2"


def test_accept_refuses_a_tree_and_the_one_before_is_taken(tmp_path):
    two(tmp_path)

    def accept(read: Any) -> None:
        if read.tree["n"] == 2:
            raise DamagedError("it is the second")

    kept = load_latest(tmp_path, accept=accept)
    assert kept and kept.step == 1 and "step-00000002: it is the second" in kept.skipped[0]


def test_the_schema_names_every_field_of_a_manifest(tmp_path):
    fields = {name.removesuffix("?") for name in manifests._SCHEMA}
    assert fields == set(manifests.Manifest._fields)
