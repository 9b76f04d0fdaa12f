"""`head_divergence` and `head_metrics`: the public functions of the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..._base.arguments import called_with
from ..._base.mean import Mean
from ..._base.sparse import sparse_instead
from .._shared.counted import counted_where
from ._arguments import HeadArguments
from ._divergence import Divergence
from ._evaluate import evaluate, evaluate_parts
from ._inputs import counted

_OF_THE_TEACHER = ("teacher_weight", "teacher_bias", "teacher_logit_scale", "teacher_softcap")

F = TypeVar("F", bound=Callable[..., Any])


def _measured(function: F) -> F:
    """Says to objectives what gives the parts of a sum, too, and to evaluations what compares the
    first choices of the two models."""
    function.in_parts = called_with(HeadArguments)(evaluate_parts)  # pyright: ignore[reportFunctionMemberAccess]
    function.part_names = _part_names  # pyright: ignore[reportFunctionMemberAccess]
    function.agreement = head_agreement  # pyright: ignore[reportFunctionMemberAccess]
    return function


def _part_names(divergence: object = None, **_: object) -> tuple[str, ...]:
    """What is logged beside the sum, from the options of a term."""
    names = divergence.labels if isinstance(divergence, Divergence) else ()
    return names if len(names) > 1 else ()


@sparse_instead("teacher_hidden", *_OF_THE_TEACHER)
@counted_where(counted)
@called_with(HeadArguments)
def head_agreement(arguments: HeadArguments) -> Float[Tensor, "*batch"]:
    """Whether both models would say the same token, for every token; no gradient.

        [argmax q_t = argmax p_t]

    `evaluate` measures it beside every objective that has a head term, as "agreement".

    Args:
      student_hidden: `[*batch, student_features]`.
      student_weight: `[student_vocab, student_features]`.
      teacher_hidden: `[*batch, teacher_features]`, or a teacher that is known on some classes.
      teacher_weight: `[teacher_vocab, teacher_features]`.
      others: as in `head_divergence`.

    Returns:
      `[*batch]`, 0 or 1; positions that do not count are 0.

    Example:
      >>> from fkd.losses import head, head_agreement
      >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> head_agreement(x, w, x, -w, divergence=head.kl())
      tensor([0.])
    """
    with torch.no_grad():
        return evaluate(arguments, metrics=True)[1]["agreement"]


@sparse_instead("teacher_hidden", *_OF_THE_TEACHER)
@_measured
@counted_where(counted)
@called_with(HeadArguments)
def head_divergence(arguments: HeadArguments) -> Mean:
    """Divergence between two language models from their hidden states, logits never stored.

        total = sum_t sum_i w_i D_i(p_t, q_t),   p = softmax(z_teacher / T), q of the student
        z = softcap tanh(scale (hidden weight^T + bias) / softcap)

    Divergences between p and q carry the factor T^2, as in `fkd.losses.kl`; cross-entropy and
    z-loss are taken at temperature 1 without it. One pass computes all of them.

    The gradient is computed with the values, one chunk of tokens at a time, which is possible
    because the total is a sum: dividing by the count afterwards is a factor of all gradients.
    This is why a `Mean` is returned and not one value per token. `head_metrics` has those.

    A weight may be a `DTensor` of which several ranks have some rows each (`Shard(0)`, as
    `ColwiseParallel` cuts an `lm_head`), and so may its bias: the ranks, which are given the same
    hidden states, tell each other two numbers a token and model, and what each divergence and its
    slope sum up to. All get the same result; a gradient is whole, or cut as its weight is. Of
    another weight that is whole, each uses the same rows.

    Args:
      student_hidden: `[*batch, student_features]`.
      student_weight: `[student_vocab, student_features]`. No work is done for the gradient of
        an input that requires none (a frozen head, a frozen body, `torch.no_grad`).
      teacher_hidden: `[*batch, teacher_features]`; None if the divergence reads no teacher. Or, for
        `kl` and `soft_cross_entropy`, a teacher that is known on some classes at T
        (`fkd.sources.top_k`, `fkd.sources.sampled`), whose weight, bias, scale and softcap have
        done their work.
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
      token_weights: `[*batch]`, or its leading axes: the factor of each position in the sum (an
        advantage, an importance ratio), of any sign; they have a gradient if they require one.
        The count stays that of the positions. In an objective, `term(weight=ref)` is this one.
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
      operand_dtype: to which hidden states and weights are rounded before they are multiplied;
        None leaves them. Products are summed in float32 or wider in any case. A step with
        `precision="bf16"` passes bfloat16, as it does for all products of its models.
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
    return evaluate(arguments)[0]


@sparse_instead("teacher_hidden", *_OF_THE_TEACHER)
@counted_where(counted)
@called_with(HeadArguments)
def head_divergence_and_metrics(
    arguments: HeadArguments,
) -> tuple[Mean, dict[str, Float[Tensor, "*batch"]]]:
    """`head_divergence` and `head_metrics` from one pass over the logits.

        (head_divergence(...), head_metrics(...))

    Args:
      student_hidden: `[*batch, student_features]`.
      student_weight: `[student_vocab, student_features]`.
      teacher_hidden: `[*batch, teacher_features]`.
      teacher_weight: `[teacher_vocab, teacher_features]`.
      others: as in `head_divergence`.

    Returns:
      The `Mean`, and the values of every token by name.

    Example:
      >>> from fkd.losses import head, head_divergence_and_metrics
      >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> mean, metrics = head_divergence_and_metrics(x, w, x, w, divergence=head.kl())
      >>> mean.value, metrics["agreement"]
      (tensor(0.), tensor([1.]))
    """
    return evaluate(arguments, metrics=True)


@sparse_instead("teacher_hidden", *_OF_THE_TEACHER)
@counted_where(counted)
@called_with(HeadArguments)
def head_metrics(arguments: HeadArguments) -> dict[str, Float[Tensor, "*batch"]]:
    """The values of every token: each divergence, both entropies, agreement; no gradient.

        D_i(p_t, q_t),   H(q_t),   H(p_t),   [argmax q_t = argmax p_t]

    Args:
      student_hidden: `[*batch, student_features]`.
      student_weight: `[student_vocab, student_features]`.
      teacher_hidden: `[*batch, teacher_features]`.
      teacher_weight: `[teacher_vocab, teacher_features]`.
      others: as in `head_divergence`.

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
        return evaluate(arguments, metrics=True)[1]
