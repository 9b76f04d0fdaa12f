"""`head_divergence` and `head_metrics`: the public functions of the head."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..._mean import Mean
from .._shared.counted import counted_where
from ._divergence import Divergence, Phi
from ._evaluate import Strategy, evaluate
from ._inputs import counted
from ._problem import Number, Vocabulary


@counted_where(counted)
def head_divergence(
    student_hidden: Float[Tensor, "*batch student_features"],
    student_weight: Float[Tensor, "student_vocab student_features"],
    teacher_hidden: Float[Tensor, "*batch teacher_features"] | None,
    teacher_weight: Float[Tensor, "teacher_vocab teacher_features"] | None,
    *,
    divergence: Divergence | Phi,
    student_bias: Float[Tensor, " student_vocab"] | None = None,
    teacher_bias: Float[Tensor, " teacher_vocab"] | None = None,
    labels: Int[Tensor, "*batch"] | None = None,
    temperature: Number = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
    ignore_index: int = -100,
    shift: bool = False,
    student_logit_scale: Number | None = None,
    teacher_logit_scale: Number | None = None,
    student_softcap: Number | None = None,
    teacher_softcap: Number | None = None,
    student_vocabulary: Vocabulary | None = None,
    teacher_vocabulary: Vocabulary | None = None,
    logits_dtype: torch.dtype | None = None,
    strategy: Strategy = "auto",
    chunk_size: int | None = None,
) -> Mean:
    """Divergence between two language models from their hidden states, logits never stored.

        total = sum_t sum_i w_i D_i(p_t, q_t),   p = softmax(z_teacher / T), q of the student
        z = softcap tanh(scale (hidden weight^T + bias) / softcap)

    Divergences between p and q carry the factor T^2, as in `fkd.losses.kl`; cross-entropy and
    z-loss are taken at temperature 1 without it. One pass computes all of them.

    The gradient is computed with the values, one chunk of tokens at a time, which is possible
    because the total is a sum: dividing by the count afterwards is a factor of all gradients.
    This is why a `Mean` is returned and not one value per token. `head_metrics` has those.

    Args:
      student_hidden: `[*batch, student_features]`.
      student_weight: `[student_vocab, student_features]`. No work is done for the gradient of
        an input that requires none (a frozen head, a frozen body, `torch.no_grad`).
      teacher_hidden: `[*batch, teacher_features]`; None if the divergence reads no teacher.
      teacher_weight: `[teacher_vocab, teacher_features]`. The teacher must not require grad,
        except with `strategy="materialized"`.
      divergence: a value such as `head.kl()` or `0.9 * head.jsd(0.5) + 0.1 * head.cross_entropy()`,
        or your own pure elementwise `phi(log_p, log_q)`.
      student_bias: `[student_vocab]`.
      teacher_bias: `[teacher_vocab]`.
      labels: `[*batch]`, ids of the student's vocabulary, for `cross_entropy` and for the mask.
      temperature: T > 0, a number or a 0-d tensor. One that requires grad is refused, except with
        `strategy="materialized"`.
      where: `[*batch]`, True where a position counts. Others add 0 and no gradient.
      ignore_index: positions with this label do not count, in any of the divergences.
      shift: position t predicts `labels[t + 1]`; the last position does not count. `where` is
        about positions, and is not shifted.
      student_logit_scale: factor of the student's logits, a number or a 0-d tensor; it may be
        learned, and so may the weights of the divergences.
      teacher_logit_scale: the same of the teacher's.
      student_softcap: bound of the student's logits, a number or a 0-d tensor. A learned one
        needs `strategy="materialized"`.
      teacher_softcap: the same of the teacher's.
      student_vocabulary: `[shared]`, the student's ids of the shared vocabulary, or a slice such
        as `slice(0, 151_643)`. Both distributions are over the shared entries; a position whose
        label is not among them does not count.
      teacher_vocabulary: `[shared]`, the teacher's ids of the same entries in the same order.
      logits_dtype: of the stored logits; by default float32 for half-precision inputs. bfloat16
        halves their memory, and rounds away the gradient of nearly converged students.
      strategy: "materialized" is the definition; "chunked" runs on every device; "fused" uses
        Triton kernels; "auto" is "fused" where it runs, else "chunked". Inside `torch.vmap` all
        of them are "materialized".
      chunk_size: tokens at a time; see `head.chunk_tokens` for the default.

    Returns:
      `Mean(total, count)`: the sum over the positions that count, in float32 or wider, and
      their number. `.value` is the mean, in nats.

    Raises:
      ValueError: shapes that do not fit, a missing label or teacher, or a gradient that the
        strategy does not compute (by the teacher, a temperature, a softcap).

    Example:
      >>> from fkd.losses import head, head_divergence
      >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> head_divergence(x, w, x, w, divergence=head.kl()).value
      tensor(0.)

    Reference:
      Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531;
      Hsu et al., Liger Kernel: Efficient Triton Kernels for LLM Training, arXiv:2410.10989.
    """
    mean, _ = evaluate(
        student_hidden,
        student_weight,
        teacher_hidden,
        teacher_weight,
        divergence=divergence,
        student_bias=student_bias,
        teacher_bias=teacher_bias,
        labels=labels,
        temperature=temperature,
        where=where,
        ignore_index=ignore_index,
        shift=shift,
        student_logit_scale=student_logit_scale,
        teacher_logit_scale=teacher_logit_scale,
        student_softcap=student_softcap,
        teacher_softcap=teacher_softcap,
        student_vocabulary=student_vocabulary,
        teacher_vocabulary=teacher_vocabulary,
        logits_dtype=logits_dtype,
        strategy=strategy,
        chunk_size=chunk_size,
    )
    return mean


def head_divergence_and_metrics(
    student_hidden: Float[Tensor, "*batch student_features"],
    student_weight: Float[Tensor, "student_vocab student_features"],
    teacher_hidden: Float[Tensor, "*batch teacher_features"] | None,
    teacher_weight: Float[Tensor, "teacher_vocab teacher_features"] | None,
    **options: Any,
) -> tuple[Mean, dict[str, Float[Tensor, "*batch"]]]:
    """`head_divergence` and `head_metrics` from one pass over the logits.

        (head_divergence(...), head_metrics(...))

    Args:
      student_hidden: `[*batch, student_features]`.
      student_weight: `[student_vocab, student_features]`.
      teacher_hidden: `[*batch, teacher_features]`.
      teacher_weight: `[teacher_vocab, teacher_features]`.
      options: the keyword arguments of `head_divergence`.

    Returns:
      The `Mean`, and the values of every token by name.

    Example:
      >>> from fkd.losses import head, head_divergence_and_metrics
      >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> mean, metrics = head_divergence_and_metrics(x, w, x, w, divergence=head.kl())
      >>> mean.value, metrics["agreement"]
      (tensor(0.), tensor([1.]))
    """
    return evaluate(
        student_hidden, student_weight, teacher_hidden, teacher_weight, metrics=True, **options
    )


def head_metrics(
    student_hidden: Float[Tensor, "*batch student_features"],
    student_weight: Float[Tensor, "student_vocab student_features"],
    teacher_hidden: Float[Tensor, "*batch teacher_features"] | None,
    teacher_weight: Float[Tensor, "teacher_vocab teacher_features"] | None,
    **options: Any,
) -> dict[str, Float[Tensor, "*batch"]]:
    """The values of every token: each divergence, both entropies, agreement; no gradient.

        D_i(p_t, q_t),   H(q_t),   H(p_t),   [argmax q_t = argmax p_t]

    Args:
      student_hidden: `[*batch, student_features]`.
      student_weight: `[student_vocab, student_features]`.
      teacher_hidden: `[*batch, teacher_features]`.
      teacher_weight: `[teacher_vocab, teacher_features]`.
      options: the keyword arguments of `head_divergence`.

    Returns:
      `[*batch]` each, by name: the divergences as they print, without their weights,
      "student_entropy", "teacher_entropy" and "agreement" (0 or 1), entropies in nats at the
      temperature of the divergence. Positions that do not count are 0.

    Example:
      >>> from fkd.losses import head, head_metrics
      >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> sorted(head_metrics(x, w, x, w, divergence=head.kl()))
      ['agreement', 'kl()', 'student_entropy', 'teacher_entropy']
    """
    with torch.no_grad():
        return evaluate(
            student_hidden, student_weight, teacher_hidden, teacher_weight, metrics=True, **options
        )[1]
