"""Scripts under `torchrun`: how processes meet, and meet again after one was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fkd

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


@pytest.mark.plain
def test_a_time_out_is_seconds():
    with pytest.raises(ValueError, match="timeout is 0; seconds above 0 are expected"):
        fkd.parallel.torchrun_mesh(timeout=0)
