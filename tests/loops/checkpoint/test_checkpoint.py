"""Laws of checkpoints: what is read is what was saved, bit for bit, or it is refused."""

from __future__ import annotations

import builtins
import errno
import json
import logging
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import time
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fkd.loops._base import files as _files
from fkd.loops._base.errors import CheckpointError, DamagedError, MismatchError
from fkd.loops._checkpoint.checkpoint import load, load_latest, save
from fkd.loops._checkpoint.folder import best
from fkd.loops._checkpoint.manifest import differences
from fkd.loops._checkpoint.tensors import NAMES
from fkd.loops._checkpoint.tree import DTYPES

fork = multiprocessing.get_context("fork")


def bits(x: Tensor) -> bytes:
    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert (a.dtype, a.shape, bits(a)) == (b.dtype, b.shape, bits(b))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert [type(k) for k in a] == [type(k) for k in b]
        for x, y in zip(a.values(), b.values(), strict=True):
            assert_same(x, y)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b if isinstance(a, int) else repr(a) == repr(b)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# -- round trip -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 0, 3), (5, 4)])
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, name: str, shape: tuple[int, ...]):
    dtype = DTYPES[name]
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, dtype.itemsize))
    x = raw.to(torch.uint8).view(dtype).reshape(shape)
    tree = {"x": x, "y": [x.clone()]}
    assert_same(load(save(tmp_path, tree, step=1)).tree, tree)


def test_the_file_is_a_plain_safetensors_file(tmp_path: Path):
    tree = {str(dtype): torch.ones(3).to(dtype) for dtype in NAMES}
    path = save(tmp_path, tree, step=1)
    found = load_file(path / "state.safetensors")
    assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in tree.items()}
    assert all(bits(found[k]) == bits(v) for k, v in tree.items())


def test_scalars_and_containers_come_back_exactly(tmp_path: Path):
    nan, inf = float("nan"), float("inf")
    tree = {
        "floats": [0.1, -0.0, 5e-324, 1.7976931348623157e308, nan, inf, -inf, 1.0],
        "ints": (0, -1, 2**63 - 1, 2**64 + 3, -(10**5000)),
        "others": [True, False, None, "", 'quote " and \u00e9 \ud800 \n', (), [], {}],
        3: {True: 1, None: 2, 0.5: 3, -1: 4, "": 5},
        "ordered": OrderedDict(b=1, a=(2, [3])),
        "tagged": {"tensor": "x", "float": ["nan"]},
    }
    assert_same(load(save(tmp_path, tree, step=1)).tree, tree)


@pytest.mark.parametrize("leaf", [3, 2.5, None, "x", (), torch.ones(2)])
def test_a_tree_may_be_a_leaf(tmp_path: Path, leaf: Any):
    assert_same(load(save(tmp_path, leaf, step=1)).tree, leaf)


def test_strides_come_back(tmp_path: Path):
    x = torch.randn(2, 3, 4, 5)
    tree = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 4).t(),
        "sliced": x[:, ::2, 1],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "parameter": nn.Parameter(torch.randn(3)),
    }
    found = load(save(tmp_path, tree, step=1)).tree
    for name, y in tree.items():
        assert torch.equal(found[name], y.detach())
    assert found["channels_last"].stride() == tree["channels_last"].stride()
    assert found["transposed"].stride() == (1, 4)
    assert not found["parameter"].requires_grad


def test_tied_tensors_stay_tied_and_are_stored_once(tmp_path: Path):
    weight = torch.randn(100, 10)
    tree = {"embed": weight, "head": weight, "same": weight[:], "row": weight[0]}
    path = save(tmp_path, tree, step=1)
    found = load(path).tree
    assert found["embed"] is found["head"] is found["same"]
    assert torch.equal(found["row"], weight[0])
    assert (path / "state.safetensors").stat().st_size < 4 * weight.numel() + 1000


def test_loaded_tensors_have_memory_of_their_own(tmp_path: Path):
    path = save(tmp_path, {"a": torch.zeros(4), "b": torch.zeros(4)}, step=1)
    first = load(path).tree
    first["a"].add_(1)
    shutil.rmtree(path)
    assert first["a"].sum() == 4 and first["b"].sum() == 0


def test_colliding_names_are_kept_apart(tmp_path: Path):
    tree = {
        "a/b": torch.tensor(1),
        "a": {"b": torch.tensor(2)},
        1: torch.tensor(3),
        "1": torch.tensor(4),
        "__metadata__": torch.tensor(5),
        "": torch.tensor(6),
    }
    assert_same(load(save(tmp_path, tree, step=1)).tree, tree)


class Unknown:
    pass


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (Unknown(), "a/0 is a .*Unknown; a checkpoint holds"),
        (namedtuple("Pair", "x")(1), "a/0 is a .*Pair"),
        (torch.ones(2).to_sparse(), "a/0 is a tensor of layout torch.sparse_coo"),
        (torch.ones(2, device="meta"), "a/0 is a meta tensor"),
        ({Unknown(): 1}, "a/0 is a .*Unknown"),
    ],
)
def test_other_leaves_are_refused_by_path(tmp_path: Path, leaf: Any, message: str):
    with pytest.raises(TypeError, match=message):
        save(tmp_path, {"a": [leaf]}, step=1)
    assert names(tmp_path) == []


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    for module, attribute in [(pickle, n) for n in ("load", "loads", "dump", "dumps")] + [
        (torch, "load"),
        (torch, "save"),
        (pickle, "Unpickler"),
        (pickle, "Pickler"),
    ]:
        monkeypatch.setattr(module, attribute, refuse)
    tree = {"x": torch.ones(2, dtype=torch.bfloat16), "y": (1, None)}
    path = save(tmp_path, tree, step=1, fingerprint={"lr": 0.1})
    assert_same(load(path, fingerprint={"lr": 0.1}).tree, tree)


def test_a_pickle_in_the_place_of_a_file_is_not_run(tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    for victim in ("state.safetensors", "manifest.json"):
        path = save(tmp_path, {"x": torch.ones(2)}, step=1)
        (path / victim).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(DamagedError):
            load(path)
    assert "exploded" not in names(tmp_path)


# -- damage ---------------------------------------------------------------------------------


def _two(folder: Path) -> Path:
    save(folder, {"w": torch.full((7,), 1.0), "n": 1}, step=1)
    return save(folder, {"w": torch.full((7,), 2.0), "n": 2}, step=2)


def _assert_falls_back(folder: Path, caplog: pytest.LogCaptureFixture, message: str = "") -> None:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fkd"):
        found = load_latest(folder)
    assert found and found.step == 1 and found.tree["n"] == 1
    assert len(found.skipped) == 1 and "step-00000002" in found.skipped[0]
    assert message in found.skipped[0] and found.skipped[0] in caplog.text


@pytest.mark.parametrize("victim", ["state.safetensors", "manifest.json"])
def test_each_flipped_byte_is_recognised(tmp_path: Path, victim: str):
    path = _two(tmp_path) / victim
    whole = path.read_bytes()
    for offset in range(len(whole)):
        for mask in (0x01, 0x20, 0xFF):
            damaged = bytearray(whole)
            damaged[offset] ^= mask
            path.write_bytes(damaged)
            with pytest.raises(DamagedError, match=f"{path.parent.name}: .* is damaged"):
                load(path.parent)
    path.write_bytes(whole)
    assert load(path.parent).step == 2


@pytest.mark.parametrize("victim", ["state.safetensors", "manifest.json"])
def test_each_truncation_falls_back(tmp_path: Path, caplog: pytest.LogCaptureFixture, victim: str):
    path = _two(tmp_path) / victim
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            load(path.parent)
    _assert_falls_back(tmp_path, caplog)
    path.write_bytes(whole + b"\0")
    _assert_falls_back(tmp_path, caplog)
    assert load_latest(tmp_path).step == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("victim", ["state.safetensors", "manifest.json"])
def test_missing_and_replaced_files_fall_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, victim: str
):
    path = _two(tmp_path) / victim
    path.unlink()
    _assert_falls_back(tmp_path, caplog, f"{victim} is missing")
    path.mkdir()
    _assert_falls_back(tmp_path, caplog)
    path.rmdir()
    shutil.copy(tmp_path / "step-00000001" / victim, path)
    if victim == "state.safetensors":  # the same size, other values
        _assert_falls_back(tmp_path, caplog, "the checksum does not match")


def test_an_empty_folder_in_the_place_of_a_checkpoint_falls_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    shutil.rmtree(_two(tmp_path))
    (tmp_path / "step-00000002").mkdir()
    _assert_falls_back(tmp_path, caplog, "manifest.json is missing")


def test_nothing_whole_is_an_error_and_nothing_at_all_is_none(tmp_path: Path):
    assert load_latest(tmp_path / "absent") is None
    assert load_latest(tmp_path) is None
    assert best(tmp_path) is None
    _two(tmp_path)
    for path in tmp_path.glob("*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError, match=r"no checkpoint in .* is whole.\n .*0002.*\n .*0001"):
        load_latest(tmp_path)


def test_another_format_version_is_refused_not_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path, 1, step=1)
    monkeypatch.setattr("fkd.loops._checkpoint.manifest.VERSION", 2)
    with pytest.raises(
        CheckpointError, match=r"step-00000001: it has format version 1, .* reads 2"
    ):
        load_latest(tmp_path)


# -- which are kept -------------------------------------------------------------------------


def _steps(folder: Path) -> list[int]:
    return [int(name[5:13]) for name in names(folder)]


def test_the_last_and_the_best_are_kept(tmp_path: Path):
    for step, metric in enumerate([0.1, 0.9, 0.3, float("nan"), None, 0.2, 0.0]):
        save(tmp_path, step, step=step, metric=metric, keep_last=2, keep_best=2)
    assert _steps(tmp_path) == [1, 2, 5, 6]
    assert best(tmp_path) == tmp_path / "step-00000001"
    assert best(tmp_path, higher_is_better=False) == tmp_path / "step-00000006"


def test_of_equals_the_first_is_the_best(tmp_path: Path):
    for step, metric in enumerate([0.1, 0.9, 0.9, 0.3]):
        save(tmp_path, step, step=step, metric=metric, keep_last=1)
    assert _steps(tmp_path) == [1, 3] and best(tmp_path) == tmp_path / "step-00000001"


def test_lower_may_be_better_and_none_may_be_best(tmp_path: Path):
    for step, metric in enumerate([3.0, 1.0, 2.0, 4.0]):
        save(tmp_path, step, step=step, metric=metric, keep_last=1, higher_is_better=False)
    assert _steps(tmp_path) == [1, 3]
    save(tmp_path, 4, step=4, keep_last=1, keep_best=0)
    assert _steps(tmp_path) == [4]


def test_saving_a_step_again_replaces_it_and_keeps_its_metric(tmp_path: Path):
    first = save(tmp_path, "a", step=5, metric=0.0)
    second = save(tmp_path, "b", step=5)
    assert first != second and not first.exists()
    found = load_latest(tmp_path)
    assert found and (found.tree, found.metric, found.path) == ("b", 0.0, second)
    assert save(tmp_path, "c", step=5) == first
    assert names(tmp_path) == ["step-00000005"]


def test_newest_is_the_one_saved_last_also_after_going_back(tmp_path: Path):
    for step in (10, 20, 30):
        save(tmp_path, step, step=step)
    save(tmp_path, 15, step=15)  # a run that went on from step 10
    assert load_latest(tmp_path).tree == 15  # type: ignore[union-attr]
    assert _steps(tmp_path) == [15, 20, 30]


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path: Path):
    for step in (1, 2, 3):
        save(tmp_path, step, step=step)
    for step in (2, 3):
        (tmp_path / f"step-0000000{step}" / "state.safetensors").write_bytes(b"")
    save(tmp_path, 4, step=4, keep_last=2)
    assert _steps(tmp_path) == [1, 2, 3, 4]
    save(tmp_path, 3, step=3, keep_last=2)  # the run comes to the damaged one again
    assert _steps(tmp_path) == [2, 3, 4]


@pytest.mark.parametrize("bad", [{"step": -1}, {"keep_last": 0}, {"keep_best": -1}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, bad: dict[str, int]):
    with pytest.raises(ValueError, match="keep_last >= 1"):
        save(tmp_path, 1, **{"step": 1, **bad})


# -- whose it is ----------------------------------------------------------------------------


def test_another_fingerprint_is_refused_and_the_differences_named(tmp_path: Path):
    saved = {"terms": {"kd": {"loss": "kl", "weight": 0.9}, "old": 1}, "layers": (3, 6), "nan": nan}
    here = {"terms": {"kd": {"loss": "kl", "weight": 0.5}, "new": 2}, "layers": (3, 7), "nan": nan}
    save(tmp_path, 0, step=0, fingerprint=here)
    path = save(tmp_path, 1, step=1, fingerprint=saved)
    assert load(path, fingerprint=saved).fingerprint["layers"] == [3, 6]
    with pytest.raises(MismatchError) as caught:
        load_latest(tmp_path, fingerprint=here)  # and the older one, which fits, is not taken
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [
        "terms/kd/weight: 0.9 in the checkpoint, 0.5 here",
        "terms/old: 1 in the checkpoint, nothing here",
        "terms/new: nothing in the checkpoint, 2 here",
        "layers/1: 6 in the checkpoint, 7 here",
    ]


nan = float("nan")


def test_differences_are_by_value_and_by_kind():
    assert list(differences({"a": 1}, {"a": 1.0})) == []
    assert list(differences({"a": 1}, {"a": True})) == ["a: 1 in the checkpoint, true here"]
    assert list(differences([1], [1, 2])) == ["1: nothing in the checkpoint, 2 here"]
    assert list(differences(1, {"a": 1})) == ['all: 1 in the checkpoint, {"a": 1} here']
    assert list(differences({"a": None}, {})) == ["a: null in the checkpoint, nothing here"]


def test_many_differences_are_cut(tmp_path: Path):
    path = save(tmp_path, 1, step=1, fingerprint={str(i): i for i in range(50)})
    with pytest.raises(MismatchError, match=r"\.\.\. and 30 more"):
        load(path, fingerprint={})


def test_a_fingerprint_of_something_else_is_refused(tmp_path: Path):
    with pytest.raises(TypeError, match="fingerprint/a/0 is a Tensor"):
        save(tmp_path, 1, step=1, fingerprint={"a": [torch.ones(1)]})


# -- disks that do not take it --------------------------------------------------------------


def test_a_full_disk_leaves_the_previous_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path, {"w": torch.zeros(100)}, step=1)
    real, room = os.write, 0

    def write(descriptor: int, data: Any) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = real(descriptor, data[: min(room, 64)])  # short writes, too
        room -= taken
        return taken

    for limit in (0, 1, 7, 100, 500, 800):
        room = limit
        with monkeypatch.context() as patch:
            patch.setattr(_files.os, "write", write)
            with pytest.raises(
                CheckpointError, match=r"No space left.*newest whole.*step-00000001"
            ):
                save(tmp_path, {"w": torch.ones(100)}, step=2)
        assert names(tmp_path) == ["step-00000001"]
        assert load_latest(tmp_path).step == 1  # type: ignore[union-attr]
    room = 10**6
    with monkeypatch.context() as patch:
        patch.setattr(_files.os, "write", write)
        save(tmp_path, {"w": torch.ones(100)}, step=2)
    assert load_latest(tmp_path).tree["w"].sum() == 100  # type: ignore[union-attr]


@pytest.mark.parametrize("call", ["fsync", "mkdir", "rename"])
def test_a_disk_that_fails_later_leaves_nothing_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    save(tmp_path, 1, step=1)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(*((_files.os, call) if call == "fsync" else (Path, call)), fail)
        with pytest.raises(CheckpointError, match="Input/output error"):
            save(tmp_path, 2, step=2)
    assert names(tmp_path) == ["step-00000001"]


def _child(function: Any, *args: Any) -> Any:
    """The value of a function in a forked process, or the message of what it raised."""
    receive, send = fork.Pipe(duplex=False)

    def run() -> None:
        try:
            send.send(function(*args))
        except BaseException as error:
            send.send(f"{type(error).__name__}: {error}")
        os._exit(0)

    process = fork.Process(target=run)
    process.start()
    answer = receive.recv()
    process.join()
    return answer


def test_a_limit_of_the_system_leaves_nothing_partial(tmp_path: Path):
    save(tmp_path, 1, step=1)

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        save(tmp_path, {"w": torch.ones(10000)}, step=2)

    assert _child(limited).startswith("CheckpointError: save: ")
    assert names(tmp_path) == ["step-00000001"]


def test_a_read_only_folder_is_named(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    save(folder, 1, step=1)
    folder.chmod(0o555)
    for parent in folder.parents:
        if not parent.stat().st_mode & 0o001:  # the temporary folders above are private
            parent.chmod(0o755)

    def unprivileged() -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        save(folder, 2, step=2)

    message = _child(unprivileged)
    folder.chmod(0o755)
    assert message.startswith(f"CheckpointError: save: {folder}/step-00000002 cannot be written: ")
    assert "Permission denied" in message and "step-00000001" in message
    assert names(folder) == ["step-00000001"] and load_latest(folder)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be listed: Not a directory"):
        save(tmp_path / "file", 1, step=1)


def test_a_checkpoint_that_cannot_be_deleted_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    save(tmp_path, 1, step=1)

    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("fkd.loops._checkpoint.checkpoint.remove_folder", fail)
    save(tmp_path, 2, step=2, keep_last=1)
    assert "checkpoint not deleted" in caplog.text
    assert load_latest(tmp_path).tree == 2  # type: ignore[union-attr]


def test_interrupts_leave_nothing_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 1, step=1)
    assert names(tmp_path) == []


# -- kill -9 --------------------------------------------------------------------------------


def _write_for_ever(folder: Path, first: int, done: Any) -> None:
    for step in range(first, 10**9):
        tree = {"w": torch.full((50_000,), float(step)), "step": step}
        save(folder, tree, step=step, metric=-abs(step - 5.0), keep_last=2)
        done.send(step)


def test_kill_at_any_moment_leaves_the_newest_checkpoint(tmp_path: Path):
    rng, acknowledged, step = random.Random(0), 0, 1
    for turn in range(40):
        receive, send = fork.Pipe(duplex=False)
        process = fork.Process(target=_write_for_ever, args=(tmp_path, step, send))
        process.start()
        send.close()
        if turn % 2:
            acknowledged = receive.recv()
        time.sleep(rng.uniform(0.0, 0.08))
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        try:
            while receive.poll():
                acknowledged = receive.recv()
        except EOFError:
            pass
        found = load_latest(tmp_path)
        if acknowledged == 0 and found is None:
            continue
        assert found and not found.skipped
        assert acknowledged <= found.step <= acknowledged + 1
        assert found.tree["step"] == found.step
        assert torch.equal(found.tree["w"], torch.full((50_000,), float(found.step)))
        acknowledged, step = found.step, found.step + 1
    assert acknowledged >= 20
    save(tmp_path, 0, step=step, keep_last=2)
    assert names(tmp_path) == [f"step-{s:08d}" for s in (5, step - 1, step)]


@pytest.mark.parametrize("again", [False, True])
def test_kill_between_any_two_system_calls(tmp_path: Path, again: bool):
    """Every prefix of the calls of a save leaves a folder that loads, and that can be saved to."""
    step = 2 if again else 3

    def killed(folder: Path, after: int) -> bool:
        left = after

        def counted(function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                if left == 0:
                    os._exit(9)
                left -= 1
                return function(*args, **kwargs)

            return call

        for name in ("mkdir", "write", "fsync", "rename", "unlink", "rmdir", "open"):
            setattr(os, name, counted(getattr(os, name)))
        builtins.open = counted(builtins.open)
        save(folder, {"w": torch.full((9,), 3.0)}, step=step, keep_last=1, keep_best=0)
        os._exit(0)

    for after in range(200):
        folder = tmp_path / str(after)
        for old in (1, 2):
            save(folder, {"w": torch.full((9,), float(old))}, step=old)
        process = fork.Process(target=killed, args=(folder, after))
        process.start()
        process.join()
        found = load_latest(folder)
        assert found and found.tree["w"][0] in (2.0, 3.0) and not found.skipped
        save(folder, {}, step=4, keep_last=1, keep_best=0)
        assert names(folder) == ["step-00000004"]
        if process.exitcode == 0:
            assert after > 10
            return
    raise AssertionError("save makes more calls than this test follows")


def test_the_manifest_is_json_that_a_person_can_read(tmp_path: Path):
    path = save(tmp_path, {"w": torch.ones(2), "n": 3}, step=7, metric=0.5, fingerprint={"a": 1})
    manifest = json.loads((path / "manifest.json").read_text())["manifest"]
    assert manifest["step"] == 7 and manifest["metric"] == 0.5
    assert manifest["fingerprint"] == {"a": 1}
    assert manifest["tensors"] == {"w": {"dtype": "float32", "shape": [2]}}
