"""Evaluators: called after every update, with both models."""

from __future__ import annotations

import abc
import logging
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn

logger = logging.getLogger(__name__)


class Evaluator(abc.ABC):
    """What a distiller calls after every update. Any object with this method will do."""

    @abc.abstractmethod
    def evaluate(
        self,
        teacher_model: Any,
        student_model: Any,
        dev_data: Any,
        dev_data_adaptor: Any,
        epoch: int,
        step: int,
        loss_value: Any,
    ) -> None:
        """Look at the models as they are after a step.

        Args:
          teacher_model: the `teacher_model` of the distiller: one teacher, or several.
          student_model: the student, updated. Whatever mode it is left in, training goes on
            in train mode.
          dev_data: the `dev_dataloader` of the distiller.
          dev_data_adaptor: the distiller's.
          epoch: from 0.
          step: the number of the batch in its epoch, from 0.
          loss_value: `[]`, the loss of the batch before the update, on the device.
        """


IEvaluator = Evaluator
"""The name it has in that package."""


class MultiLayerBasedDistillationEvaluator(Evaluator):
    """Logs the loss, and saves the student.

    Both happen when the number of the batch in its epoch is a positive multiple of a step.
    The student is saved in `save_dir/<epoch>-<step>`: by its `save_pretrained` where it has
    one, else as `model.safetensors`. The losses that are logged are also written to
    `save_dir/LossValue.txt`.

    Args:
      save_dir: folder to save in; None saves nothing.
      save_step: how often to save; None never.
      print_loss_step: how often to log; None never.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str] | None = None,
        save_step: int | None = None,
        print_loss_step: int | None = 20,
    ) -> None:
        self.save_dir = None if save_dir is None else Path(save_dir).absolute()
        self.save_step = save_step
        self.print_loss_step = print_loss_step
        self._losses: Path | None = None
        if self.save_dir is not None:
            self.save_dir.mkdir(parents=True, exist_ok=True)
            if save_step:
                self._losses = self.save_dir / "LossValue.txt"
                self._losses.write_text("", encoding="utf8")

    def evaluate(
        self,
        teacher_model: Any,
        student_model: Any,
        dev_data: Any,
        dev_data_adaptor: Any,
        epoch: int,
        step: int,
        loss_value: Any,
    ) -> None:
        """Log and save, if this step is one of those."""
        if _due(step, self.print_loss_step):
            line = f"epoch:{epoch},\tstep:{step},\tloss value:{float(loss_value)}"
            logger.info(line)
            if self._losses is not None:
                with self._losses.open("a", encoding="utf8") as file:
                    file.write(line + "\n")
        if self.save_dir is not None and _due(step, self.save_step):
            _save(student_model, self.save_dir / f"{epoch}-{step}")


def _due(step: int, every: int | None) -> bool:
    return bool(every) and step > 0 and step % (every or 1) == 0


def _save(model: nn.Module, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(directory)  # pyright: ignore[reportCallIssue]
    else:
        save_model(model, str(directory / "model.safetensors"))
