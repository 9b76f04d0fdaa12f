"""What a command of `python -m fkd` is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      help: one line for the list of commands.
      arguments: adds its arguments to a parser.
      run: does it; returns the exit code. A `ValueError` or `OSError` is printed as one line.
    """

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
