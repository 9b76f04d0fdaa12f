"""`python -m fkd report DIR`: the page about a run."""

from __future__ import annotations

import argparse

from ..loops import report
from .command import Command


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the log_dir of a run, finished or not")
    parser.add_argument("--out", metavar="FILE", help="the page; DIR/report.html if not given")
    parser.add_argument("--metric", help="what 'best' goes by, such as eval/accuracy")
    better = parser.add_mutually_exclusive_group()
    better.add_argument("--higher", action="store_true", default=None, help="higher is better")
    better.add_argument("--lower", action="store_false", dest="higher", help="lower is better")


def _run(arguments: argparse.Namespace) -> int:
    better = arguments.higher
    page = report(
        arguments.folder, out=arguments.out, metric=arguments.metric, higher_is_better=better
    )
    print(page)
    return 0


COMMAND = Command("one HTML page about a run", _arguments, _run)
