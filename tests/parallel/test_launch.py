"""Scripts under `torchrun`: how processes meet, and meet again after one was killed."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

import fkd
from fkd.parallel import _world
from tests.parallel.processes import in_processes, mesh_of

SCRIPT = """
import os, signal, sys
import torch.distributed as dist
import fkd

mesh = fkd.parallel.torchrun_mesh(timeout=60)
assert fkd.parallel.torchrun_mesh(timeout=60) is not None  # asked for twice
start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
if start == 0 and mesh.get_rank() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
dist.barrier()
open(f"{sys.argv[1]}/{mesh.get_rank()}", "w").write(str(start))
"""


def test_processes_that_are_started_again_meet_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", "1", str(script), str(tmp_path)]
    paths = {"PYTHONPATH": str(Path(fkd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, timeout=240)
    assert ended.returncode == 0, ended.stderr.decode()[-3000:]
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["1", "1"]


def test_so_do_those_of_a_script_that_joins_by_itself(monkeypatch):
    """Without torchrun, but with the store that it keeps: the second start would call where the
    first has listened."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    for late in (0, 1, 0):
        assert in_processes(2, joined_by_hand, late, join=False) == [[0, 1], [0, 1]]


def joined_by_hand(_: None, late: int) -> list[int]:
    rank = int(os.environ["RANK"])
    time.sleep(0.5 * (rank == late))  # the other one finds what is there
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
    world = _world.world_of(mesh_of(2))
    return world.exchanged(rank)


@pytest.mark.plain
def test_a_time_out_is_seconds():
    with pytest.raises(ValueError, match="timeout is 0; seconds above 0 are expected"):
        fkd.parallel.torchrun_mesh(timeout=0)
