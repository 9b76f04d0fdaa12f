"""The command line: finds the command and runs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .._base.version import __version__
from . import env, losses, report, serve
from .command import Command

COMMANDS: dict[str, Command] = {
    "env": env.COMMAND,
    "losses": losses.COMMAND,
    "report": report.COMMAND,
    "serve": serve.COMMAND,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      arguments: what follows `python -m fkd`; that of this process if None.

    Returns:
      The exit code: 0, 1 where something was not there, 2 for a wrong call.
    """
    parser = argparse.ArgumentParser("python -m fkd", description="Knowledge distillation.")
    parser.add_argument("--version", action="version", version=f"fkd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.help, description=command.help)
        command.arguments(one)
        one.set_defaults(run=command.run)
    words = sys.argv[1:] if arguments is None else arguments
    if not words:
        parser.print_help(sys.stderr)
        return 2
    parsed = parser.parse_args(words)
    try:
        return parsed.run(parsed)
    except BrokenPipeError:  # `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
