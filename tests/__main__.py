"""All tests, in two processes: with shapes and types checked at run time, and compiled.

    python -m tests              everything
    python -m tests -k resume    arguments are passed to pytest

torch.compile cannot trace through the run-time check, so what compiles runs without it.
"""

from __future__ import annotations

import os
import subprocess
import sys

CHECKED = ["--jaxtyping-packages=fkd,tests.typecheck.checker", "-m", "not compile and not plain"]
COMPILED = ["-m", "compile or plain"]
# A worker has neighbours of a file, which share what is set up for the file.
WORKERS = ["-n", "auto", "--dist", "worksteal"]
NO_TESTS = 5


def main(arguments: list[str]) -> int:
    """The worst exit code of the two."""
    # The same order of tests in every worker, also where a test is named after a set.
    environment = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", **os.environ}
    codes: list[int] = []
    for selection in (CHECKED, COMPILED):
        command = [sys.executable, "-m", "pytest", *WORKERS, *selection, *arguments]
        print("+", " ".join(command), flush=True)
        codes.append(subprocess.run(command, env=environment, check=False).returncode)
    # A selection (-k) may leave one of the two without a test, but not both.
    found = [code for code in codes if code != NO_TESTS] or [NO_TESTS]
    return max(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
