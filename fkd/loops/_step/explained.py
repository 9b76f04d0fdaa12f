"""What the dry run says of a batch: notes at the first one, and the cause where a step fails."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch

from fkd._base.errors import ObjectiveError
from fkd._check.table import CheckReport
from fkd._refs.paths import describe
from fkd.parallel._objective import Share

_log = logging.getLogger("fkd")
_OF_A_BATCH = (IndexError, KeyError, RuntimeError, TypeError, ValueError)


@runtime_checkable
class Checked(Protocol):
    """A dry run, on fake tensors or on the values of the batch."""

    def __call__(self, batch: Any, *, on_values: bool = False) -> CheckReport:
        """Raise an `ObjectiveError` that lists every mistake."""
        ...


def tell(report: CheckReport) -> None:
    """Log what runs and is seldom meant."""
    for note in report.notes:
        _log.warning("%s", note)


@contextlib.contextmanager
def fields_told(batch: Any, tensors: Any) -> Generator[None]:
    """Around the first step: a mistake that names a field of the loader's batch says why a step
    does not see it, if it holds no tensor.

    Args:
      batch: the loader's.
      tensors: what a step sees of it.
    """
    try:
        yield
    except ObjectiveError as error:
        fields = batch if isinstance(batch, Mapping) and isinstance(tensors, dict) else {}
        unseen = {repr(k): describe(v) for k, v in fields.items() if k not in tensors}
        told = [_with_unseen(problem, unseen) for problem in error.problems]
        if told == list(error.problems):
            raise
        raise ObjectiveError(told) from error


def _with_unseen(problem: str, unseen: Mapping[str, str]) -> str:
    for name, what in unseen.items():
        if name in problem:
            problem = (
                f"{problem.rstrip('.')}. The loader's batch has {name}, {what}, which holds no "
                "numbers, so that a step does not see it. Make a tensor of it in the collate "
                "function."
            )
    return problem


@contextlib.contextmanager
def explained(checked: Checked, batch: Any) -> Generator[None]:
    """Around a step: an error of a kernel also says which term or field it comes from."""
    try:
        yield
    except Exception as error:
        explain(error, checked, batch)
        raise


def explain(error: Exception, checked: Checked, batch: Any) -> None:
    """Add to an error what the dry run says of the batch, or a run on its values, which kernels
    refuse where fake tensors do not.

    Args:
      error: of a step.
      checked: the dry run.
      batch: on which the step failed. Nothing is said of the shares of several processes.
    """
    wrong = isinstance(error, _OF_A_BATCH) and not isinstance(
        error, ObjectiveError | torch.OutOfMemoryError
    )
    divided = isinstance(batch, list) and any(isinstance(x, Share) for x in batch)
    if not wrong or divided or hasattr(error, "__notes__"):
        return
    try:
        checked(batch)
        checked(batch, on_values=True)
    except ObjectiveError as mistake:
        error.add_note("By the dry run of this batch: " + " ".join(mistake.problems))
    except Exception:  # where the device itself has failed
        return
