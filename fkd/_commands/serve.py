"""`python -m fkd serve`: the frozen models of an objective, over HTTP."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

from .._objective.objective import Objective
from ..sources import serve as serve_objective
from .command import Command
from .target import named

TOKEN = "FKD_TOKEN"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "objective", help="module:name or file.py:name of an Objective, or of a function that "
        "gives one",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="to bind to (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8400, help="0 takes a free one (default: 8400)")
    parser.add_argument(
        "--token-file", type=Path, help=f"a file with the token that requests have to carry; else "
        f"it is taken from the environment ({TOKEN}). Needed for a host that others reach",
    )  # fmt: skip
    parser.add_argument("--device", help="where the teacher runs, such as cuda:1")
    parser.add_argument("--compile", action="store_true", help="compile its forward pass")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument(
        "--max-bytes", type=int, default=1 << 28, help="greatest size of a request (default: 2^28)"
    )


def _run(options: argparse.Namespace) -> int:
    objective = _objective(options.objective)
    server = serve_objective(
        objective,
        host=options.host,
        port=options.port,
        token=_token(options.token_file),
        device=options.device,
        compile=options.compile,
        precision=options.precision,
        max_bytes=options.max_bytes,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    refs = ", ".join(ref["code"] for ref in server.about["refs"])
    print(f"serving {refs} as {server.about['name']} at {server.url}", flush=True)
    server.wait()
    return 0


def _objective(target: str) -> Objective:
    value = named(target)
    if callable(value) and not isinstance(value, Objective):
        value = value()
    if not isinstance(value, Objective):
        raise ValueError(
            f"{target} is a {type(value).__name__}; an Objective is expected, or a function "
            "without arguments that gives one."
        )
    return value


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN) or None
    return file.read_text(encoding="utf-8").strip()


COMMAND = Command(
    "serve the teacher of an objective; fkd.sources.served(url) reads it",
    _add_arguments,
    _run,
)
