"""The config with its adaptors, as the loss that a distiller takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fkd._refs.refs import ref

from ._adapt import OutputAdaptor, adapted_by, form_of, picked
from ._config import Config, check_outputs, parse, terms_from_config, wanted_of
from ._losses import NAMED
from ._plain import PlainTerms

Adaptors = OutputAdaptor | Mapping[str, OutputAdaptor] | Sequence[OutputAdaptor]


class MultiLayerBasedDistillationLoss(nn.Module):
    """The weighted sum of losses between layers of teacher and student.

    Args:
      distill_config: the list of dicts.
      teacher_output_adaptor: output of the teacher -> `{layer: {output: tensor}}`; with several
        teachers one for all, or a list or dict with one for each.
      student_output_adaptor: the same for the student.

    Attributes:
      loss_functions: losses by name. A function of the user that is put here,
        `loss(teacher_output, student_output, teacher_input, student_input, **args)`, can be
        named in the config (as it can be put in the config itself).
    """

    def __init__(
        self,
        distill_config: Config | None = None,
        teacher_output_adaptor: Adaptors | None = None,
        student_output_adaptor: OutputAdaptor | None = None,
    ) -> None:
        super().__init__()
        self.distill_config: Config = distill_config or []
        self.teacher_output_adaptor = teacher_output_adaptor
        self.student_output_adaptor = student_output_adaptor
        self.loss_functions: dict[str, Callable[..., Any]] = dict(NAMED)

    @property
    def own_losses(self) -> dict[str, Callable[..., Any]]:
        """The losses that the user has put into `loss_functions`."""
        return {n: fn for n, fn in self.loss_functions.items() if NAMED.get(n) is not fn}

    def forward(
        self,
        teacher_output: Any,
        student_output: Any,
        teacher_input_data: Any = None,
        student_input_data: Any = None,
    ) -> Tensor:
        """The loss of one batch, eagerly, for a loop of the user's own (one teacher).

        Args:
          teacher_output: what the teacher returned.
          student_output: what the student returned.
          teacher_input_data: what the teacher was called with; masks are read from it.
          student_input_data: what the student was called with; labels are read from it.
        """
        inputs = {"student": student_input_data, "teacher": teacher_input_data}
        raw = {"student": student_output, "teacher": teacher_output}
        adaptors = {
            "student": _one(self.student_output_adaptor),
            "teacher": _one(self.teacher_output_adaptor),
        }
        items = parse(self.distill_config, losses=self.own_losses)
        adapted = {
            n: adapted_by(a, raw[n], as_tuple=form_of(a, raw[n], whose=n))
            for n, a in adaptors.items()
        }
        check_outputs(items, adapted)
        outputs = {n: picked(lambda x: x, wanted_of(items, n))(adapted[n]) for n in adapted}
        batch = ref("batch")
        terms = terms_from_config(
            self.distill_config,
            losses=self.own_losses,
            inputs={name: batch[name] for name in inputs},
            whole_batch=batch["student"],
        )
        return PlainTerms(terms).total(outputs, inputs)


def _one(adaptor: Any) -> OutputAdaptor:
    if not callable(adaptor):
        raise ValueError(
            f"an output adaptor is {adaptor!r}; a function of the model's output that gives "
            "{layer: {output: tensor}} is expected."
        )
    return adaptor
