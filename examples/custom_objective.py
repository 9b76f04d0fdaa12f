"""An objective with parts of your own: a loss, a selector, an adapter, schedules, two teachers.

    python examples/custom_objective.py

A loss is a function of tensors, with one value for each position. A selector is a function of
the context. An adapter is any module. A schedule is a function of the step. Nothing is
registered and nothing is subclassed.
"""

import torch
from torch import Tensor, nn

import fkd
from fkd import Context, batch, call, module, ref, student, term
from fkd.losses import cross_entropy, kl


def margin(student_logits: Tensor, teacher_logits: Tensor, *, power: float = 1.0) -> Tensor:
    """The student's lead of its first class over its second, against the teacher's: `[batch]`."""

    def lead(logits: Tensor) -> Tensor:
        first, second = logits.topk(2, dim=-1).values.unbind(-1)
        return first - second

    return (lead(student_logits) - lead(teacher_logits)).abs() ** power


def unit_mse(student_x: Tensor, teacher_x: Tensor) -> Tensor:
    """Squared distance of directions: `[batch]`."""
    return 2 - 2 * nn.functional.cosine_similarity(student_x, teacher_x, dim=-1)


def confident(ctx: Context) -> Tensor:
    """A selector: True where the two teachers agree on the class."""
    return ctx["wide"].argmax(-1) == ctx["other"].argmax(-1)


def warm_up(step: int) -> float:
    """A schedule: any function of the step."""
    return min(1.0, step / 20)


def make_model(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 3))


def main() -> list[float]:
    torch.manual_seed(0)
    wide, other, project = ref("wide"), ref("other"), module("project")
    ensemble = call(lambda a, b: (a + b) / 2, wide.logits, other.logits)
    terms = {
        "labels": term(cross_entropy, student.logits, batch[1]),
        "kd": term(
            kl, student.logits, ensemble, where=confident, weight=0.5,
            temperature=fkd.schedules.linear(4.0, 1.0, 40),
        ),
        "margin": term(margin, student.logits, wide.logits, weight=warm_up, power=2.0),
        "hidden": term(unit_mse, project(student.tap("0")), other.tap("0"), weight=0.1),
    }  # fmt: skip
    objective = fkd.Objective(
        terms,
        student=fkd.trainable(make_model(8)),
        wide=fkd.frozen(make_model(64)),
        other=fkd.frozen(make_model(32)),
        project=fkd.trainable(nn.Linear(8, 32)),
    )
    pair = (x := torch.randn(64, 8), x[:, :3].argmax(-1))
    print(fkd.check(objective, pair))
    step = fkd.loops.train_step(objective, lambda p: torch.optim.Adam(p, lr=1e-2), compile=False)
    state, losses = step.init(seed=0), []
    for _ in range(60):
        state, metrics = step(state, pair)
        losses.append(metrics["loss/labels"].item())
    print({name: round(value.item(), 3) for name, value in metrics.items()})
    return losses


if __name__ == "__main__":
    main()
