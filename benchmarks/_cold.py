"""A case in a process of its own, with an empty cache of Inductor, and again with a filled one."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any


def cold_and_warm(file: str, case: Mapping[str, object], *, warm: bool) -> list[dict[str, Any]]:
    """What `python FILE --case JSON` prints last, in one process, or in two after each other."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": "1",
                       "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # fmt: skip
        command = [sys.executable, file, "--case", json.dumps(case)]
        return [
            json.loads(
                subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
                .stdout.decode()
                .splitlines()[-1]
            )
            for _ in range(2 if warm else 1)
        ]


def processor() -> float:
    """Seconds of this process and of those that it started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
