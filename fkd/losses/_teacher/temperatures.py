"""Temperatures computed from a batch, to be passed to a loss as `temperature`."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import classes_last, covers, floating, positive
from .._shared.geometry import unit
from .._shared.masks import fill, keep, upcast
from .._shared.softmax import softened


def flsw_temperature(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    base: float | Tensor = 4.0,
    beta: float | Tensor = 1.0,
    gamma: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch 1"]:
    """Lower temperature where student and teacher differ more (focal-loss style weights).

        T_b = base + beta (mean(w) - w_b),   w_b = (1 - cos(student_b, teacher_b))^gamma

    Relational: the mean is over the positions that count. The paper holds T constant: stop its
    gradient.

    Args:
      student_logits: `[*batch, vocab]`, finite.
      teacher_logits: `[*batch, vocab]`, finite.
      base: > 0, the mean of the temperatures.
      beta: their spread.
      gamma: gamma > 0, the exponent.
      where: `[*batch]`, True where a position counts. Others yield `base`.

    Returns:
      `[*batch, 1]`; positive for a small enough beta.

    Example:
      >>> flsw_temperature(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])).squeeze(-1)
      tensor([4.5000, 3.5000])

    Reference:
      Wen et al., Preparing Lessons: Improve Knowledge Distillation with Better Supervision,
      arXiv:1911.07471.
    """
    positive("flsw_temperature", base=base, gamma=gamma)
    pair = {"student_logits": student_logits, "teacher_logits": teacher_logits}
    s, t = softened("flsw_temperature", where, **pair)
    w = (1 - (unit(s) * unit(t)).sum(-1)).clamp(min=1e-12) ** gamma
    return _spread(w, base, beta, where)


def cwsm_temperature(
    student_logits: Float[Tensor, "*batch vocab"],
    *,
    base: float | Tensor = 4.0,
    beta: float | Tensor = 1.0,
    eps: float = 1e-3,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch 1"]:
    """Lower temperature where the student is less certain (confidence weights).

        T_b = base + beta (mean(w) - w_b),   w_b = 1 / (max_v softmax(student_b)_v + eps)

    Relational: the mean is over the positions that count. The paper holds T constant: stop its
    gradient.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      base: > 0, the mean of the temperatures.
      beta: their spread.
      eps: added to the confidence.
      where: `[*batch]`, True where a position counts. Others yield `base`.

    Returns:
      `[*batch, 1]`; positive for a small enough beta.

    Example:
      >>> cwsm_temperature(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])).squeeze(-1)
      tensor([3.5015, 4.4985])

    Reference:
      Wen et al., arXiv:1911.07471.
    """
    floating("cwsm_temperature", student_logits=student_logits)
    classes_last("cwsm_temperature", where, student_logits=student_logits)
    positive("cwsm_temperature", base=base)
    covers("cwsm_temperature", where, student_logits.shape[:-1])
    (s,) = fill(student_logits, where=where)
    return _spread(1 / (s.softmax(-1).amax(-1) + eps), base, beta, where)


def ctkd_temperature(
    g: Float[Tensor, "*shape"],
    *,
    start: float | Tensor = 1.0,
    span: float | Tensor = 20.0,
    adversary: float | Tensor = 1.0,
) -> Float[Tensor, "*shape"]:
    """Learned temperature that is trained against the student (CTKD).

        T = start + span * sigmoid(g)

    The gradient for g is multiplied by -adversary, so that descent on the loss raises it. The
    paper lets the adversary grow from 0 to 1, by a cosine, over the first epochs.

    Args:
      g: any shape: a trainable scalar, or the output `[*batch, 1]` of a small network.
      start: the lowest temperature, > 0.
      span: the highest temperature is start + span.
      adversary: how strongly the gradient is reversed.

    Returns:
      The shape of g, between start and start + span.

    Example:
      >>> ctkd_temperature(torch.tensor(0.0))
      tensor(11.)

    Reference:
      Li et al., Curriculum Temperature for Knowledge Distillation, arXiv:2211.16231.
    """
    positive("ctkd_temperature", start=start)
    return start + span * reverse_gradient(upcast(g), scale=adversary).sigmoid()


def reverse_gradient(
    x: Float[Tensor, "*shape"], *, scale: float | Tensor = 1.0
) -> Float[Tensor, "*shape"]:
    """Identity, whose gradient is multiplied by -scale (gradient reversal).

        y = x,   dL/dx = -scale dL/dy

    Args:
      x: any shape, finite.
      scale: a number, or a 0-d tensor.

    Returns:
      x, the same values.

    Example:
      >>> x = torch.tensor(2.0, requires_grad=True)
      >>> reverse_gradient(x, scale=0.5).square().backward()
      >>> x.grad
      tensor(-2.)

    Reference:
      Ganin and Lempitsky, Unsupervised Domain Adaptation by Backpropagation, arXiv:1409.7495.
    """
    # The one place that stops a gradient, since the reversed rule is the derivative of no
    # function. An autograd.Function would say it more directly, but torch.func.grad inside
    # torch.compile (torch 2.13) differentiates its forward and ignores its backward.
    constant = x.detach()
    return constant + scale * (constant - x)


def _spread(w: Tensor, base: float | Tensor, beta: float | Tensor, where: Tensor | None) -> Tensor:
    """base + beta (mean(w) - w), as `[*batch, 1]`; base where a position does not count."""
    if where is None:
        return (base + beta * (w.mean() - w)).unsqueeze(-1)
    mean = keep(w, where).sum() / where.bool().sum().clamp(min=1)
    return (base + keep(beta * (mean - w), where)).unsqueeze(-1)
