"""Metrics: functions of tensors like losses, measured and not minimised. See `fkd.metric`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ._base.sparse import SparseDistribution


def accuracy(
    logits: Float[Tensor, "*batch classes"],
    labels: Int[Tensor, "*batch"],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """1 where the greatest logit is that of the label, else 0.

    Args:
      logits: `[*batch, classes]`.
      labels: `[*batch]`, class numbers; a negative one (-100) does not count.
      where: `[*batch]`, True where a position counts; also where the label is negative, it does
        not.

    Example:
      >>> accuracy(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([1, 1]))
      tensor([1., 0.])
    """
    _expect_labels("accuracy", logits, labels)
    return _kept((logits.argmax(-1) == labels).float(), where)


setattr(accuracy, "counted_where", lambda labels: labels >= 0)  # noqa: B010  has no such field


def agreement(
    student_logits: Float[Tensor, "*batch classes"],
    teacher_logits: Float[Tensor, "*batch classes"] | SparseDistribution,
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """1 where student and teacher have the same first choice, else 0.

    Args:
      student_logits: `[*batch, classes]`.
      teacher_logits: `[*batch, classes]`; or a teacher that is known on some classes.
      where: `[*batch]`, True where a position counts.

    Example:
      >>> agreement(torch.tensor([[0.0, 1.0]]), torch.tensor([[-3.0, 5.0]]))
      tensor([1.])
    """
    known = isinstance(teacher_logits, SparseDistribution)
    if not known and student_logits.shape[:-1] != teacher_logits.shape[:-1]:
        raise ValueError(
            f"agreement: student_logits {tuple(student_logits.shape)} and teacher_logits "
            f"{tuple(teacher_logits.shape)} must have the same positions: all axes but the last."
        )
    first = teacher_logits.first() if known else teacher_logits.argmax(-1)
    return _kept((student_logits.argmax(-1) == first).float(), where)


def perplexity(
    logits: Float[Tensor, "*batch classes"],
    labels: Int[Tensor, "*batch"],
    *,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """`exp` of the mean over all positions of the negative log-likelihood of the label.

    A function of the mean, so that `evaluate` takes it where all positions are counted; by itself
    this gives the negative log-likelihood of each position, in nats, which is what a step logs.

    Args:
      logits: `[*batch, classes]`.
      labels: `[*batch]`, class numbers; for a causal model the next tokens.
      where: `[*batch]`, True where a position counts; also where the label is negative, it does
        not.

    Example:
      >>> perplexity(torch.zeros(1, 4), torch.tensor([1])).exp()
      tensor([4.])
    """
    _expect_labels("perplexity", logits, labels)
    where = labels >= 0 if where is None else where.bool() & (labels >= 0)
    wide = logits.masked_fill(~where.unsqueeze(-1), 0.0).float()
    likelihood = wide.gather(-1, labels.clamp(min=0).long().unsqueeze(-1)).squeeze(-1)
    return _kept(wide.logsumexp(-1) - likelihood, where)


setattr(perplexity, "of_mean", math.exp)  # noqa: B010  a function has no such field
setattr(perplexity, "counted_where", lambda labels: labels >= 0)  # noqa: B010


def higher_is_better(name: str) -> bool | None:
    """Whether a value of this name is better the higher it is; None where the name does not say.

    The one rule of the package, for `fit(best=...)` and for the report. The last word that says
    something decides, as in "error_recall" and "dice_loss"; a "neg" or "negative" in front turns
    it round, as in "neg_log_likelihood". Of a path the last part that says something counts.
    What stands under `loss/` is a loss, whatever its name.

    Args:
      name: such as "accuracy", "eval/perplexity" or "loss/kd".

    Example:
      >>> higher_is_better("macro_f1"), higher_is_better("perplexity"), higher_is_better("width")
      (True, False, None)
    """
    if re.match(r"(eval/)?loss(/|$)", name):
        return False
    parts = reversed(name.split("/"))
    return next((says for says in map(_says, parts) if says is not None), None)


def refuse_reserved(where: str, names: Iterable[str]) -> None:
    """Refuse names of metrics that a log uses for something else.

    Args:
      where: the function that was given them, for the message.
      names: of the metrics.

    Raises:
      ValueError: a metric would take the place of a loss, or of the step.

    Example:
      >>> refuse_reserved("evaluate", ["accuracy", "f1/macro"])
    """
    for name in names:
        if name.split("/")[0] == "loss" or name in ("", "step", "time", "kind", "epoch"):
            raise ValueError(
                f"{where}: a metric is named {name!r}, and the logs use this name: losses are "
                "loss/total and loss/<term>, and every line has a step, time, kind and epoch. "
                "Rename the metric."
            )


_LOWER = frozenset(
    "loss losses error errors err mistakes perplexity ppl pppl ce bce xent nll mse rmse "
    "rmsle mae mape smape msle kl kld kldiv jsd jsdiv js divergence distance mmd fid kid fad "
    "wer cer der eer tder hter far frr fpr fnr ece mce ace brier deviance "
    "regret cost risk hinge bpc bpb bits latency seconds time memory false miss misses drop gap "
    "degradation chamfer hausdorff emd wasserstein lpips violations hallucinations toxicity".split()
)
_HIGHER = frozenset(
    "accuracy acc accuracies precision recall f1 f2 fbeta fscore auc auroc aucroc auprc auc roc "
    "prc aupr ap map mar bleu sacrebleu rouge rougel rougelsum meteor chrf chrfpp comet bertscore "
    "bleurt spearman spearmanr pearson pearsonr kendall kendalltau correlation corr matthews mcc "
    "kappa r2 ndcg dcg mrr iou miou giou dice jaccard psnr ssim em exact match matches hit hits "
    "pass success successes win wins won sensitivity specificity tpr tnr tp tn agreement "
    "similarity cka reward return returns throughput likelihood logprob elbo evidence fidelity "
    "inception purity nmi ari silhouette improvement gain reduction speedup correct pck sts "
    "plcc srcc".split()
)
_WEAK_HIGHER = frozenset("score scores top quality".split())
_TURNED = frozenset(("neg", "negative", "minus", "inverse"))


def _says(part: str) -> bool | None:
    """What one part of a path says."""
    part = re.sub(r"cross[ _-]?entropy", "ce", part, flags=re.IGNORECASE)
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", part).lower()  # valLoss
    words = [word for text in (apart, part.lower()) for word in re.findall(r"[a-z]+\d*", text)]
    turned = bool(_TURNED.intersection(words)) or _is_subtracted(part)
    for known, weak in ((_HIGHER, False), (_WEAK_HIGHER, True)):
        for word in reversed(words):
            direction = _direction(word, known, frozenset[str]() if weak else _LOWER)
            if direction is not None:
                return direction is not turned
    return None


def _is_subtracted(part: str) -> bool:
    """Whether a name is that of "1 - accuracy" or "-loss"; "1-shot accuracy" is not."""
    minus = re.match(r"\s*1?\s*-\s*([a-z]+\d*)", part.lower())
    return minus is not None and _direction(minus[1], _HIGHER | _WEAK_HIGHER, _LOWER) is not None


def _direction(word: str, higher: frozenset[str], lower: frozenset[str]) -> bool | None:
    """What a word says: itself, without its number ("rouge2"), or by its end ("testloss")."""
    for form in (word, word.rstrip("0123456789")):
        if form in higher or form in lower:
            return form in higher
    ends = {len(k): k in higher for k in higher | lower if len(k) > 3 and word.endswith(k)}
    return ends[max(ends)] if ends else None


def _expect_labels(metric: str, logits: Tensor, labels: Tensor) -> None:
    """Refuse what would be compared with something else than the labels of the positions."""
    if labels.is_floating_point() or labels.dtype is torch.bool:
        raise ValueError(
            f"{metric}: labels {tuple(labels.shape)} have dtype {labels.dtype}; class numbers, "
            f"integers of the shape {tuple(logits.shape[:-1])}, are expected. The order is "
            f"{metric}(logits, labels); of class numbers in floating point use labels.long(), of "
            "one-hot rows labels.argmax(-1)."
        )
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{metric}: labels {tuple(labels.shape)} must have the shape "
            f"{tuple(logits.shape[:-1])}, one for each position of logits {tuple(logits.shape)}."
        )


def _kept(values: Tensor, where: Tensor | None) -> Tensor:
    return values if where is None else values.masked_fill(~where.bool(), 0.0)
