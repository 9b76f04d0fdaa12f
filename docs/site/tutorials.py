"""Tutorials: what is written by hand, with the script and the output of a recorded run."""

from __future__ import annotations

from pathlib import Path

SCRIPTS = (Path(__file__).parent.parent.parent / "examples" / "tutorials").resolve()
PAGES = Path(__file__).parent.parent / "tutorials"


def pages() -> dict[str, str]:
    """Every page of `docs/tutorials`, with `{{ script NAME }}` and `{{ output NAME }}` filled in."""
    return {
        f"tutorials/{path.name}": _filled(path.read_text(encoding="utf-8"))
        for path in sorted(PAGES.glob("*.md"))
    }


def _filled(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        words = line.strip("{} ").split() if line.startswith("{{") else []
        if words[:1] == ["script"]:
            path = (SCRIPTS / words[1]).resolve()
            title = path.relative_to(SCRIPTS.parent.parent)
            lines += [f'```python title="{title}"', path.read_text("utf-8").rstrip(), "```"]
        elif words[:1] == ["output"]:
            output = (SCRIPTS / "results" / words[1]).read_text(encoding="utf-8")
            lines += [
                f'```text title="examples/tutorials/results/{words[1]}"',
                output.rstrip(),
                "```",
            ]
        elif words:
            raise ValueError(f"{line}: script or output is expected")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"
