"""Write the pages into build/docs, check them, and build build/site with Zensical; then check that
its signatures are those of the functions.

python -m docs.site             needs the group: pip install --group docs
python -m docs.site --pages     the pages and the checks only, without Zensical
python -m docs.site --tools     what the group holds, for a pip that knows no groups
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

from .check import problems
from .pages import pages
from .programs import as_markdown, lists
from .shown import wrong_signatures

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build"
PAGES, SITE = BUILD / "docs", BUILD / "site"


def main(arguments: Sequence[str]) -> int:
    """The exit code: 1 if a page is wrong."""
    if "--tools" in arguments:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        print(*project["dependency-groups"]["docs"])
        return 0
    began = time.perf_counter()
    written = pages()
    shutil.rmtree(PAGES, ignore_errors=True)
    for name, content in written.items():
        path = (BUILD if name == "mkdocs.yml" else PAGES) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    found = problems(written)
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(written)} files in {PAGES} after {time.perf_counter() - began:.1f} s")
    if found or "--pages" in arguments:
        return int(bool(found))
    zensical = shutil.which("zensical", path=str(Path(sys.executable).parent)) or "zensical"
    command = [zensical, "build", "--clean", "--strict"]
    try:
        done = subprocess.run(command, cwd=BUILD, check=False)
    except FileNotFoundError:
        print("Zensical is missing: pip install --group docs", file=sys.stderr)
        return 1
    if done.returncode:
        return done.returncode
    for name, text in {**as_markdown(written), **lists(written)}.items():  # for programs that read
        (SITE / name).parent.mkdir(parents=True, exist_ok=True)
        (SITE / name).write_text(text, encoding="utf-8")
    wrong = [*wrong_signatures(SITE)]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"{SITE} after {time.perf_counter() - began:.1f} s")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
