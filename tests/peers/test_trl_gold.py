"""TRL's loss between two tokenizers (GOLD) and its losses on a few entries: equal values."""

from __future__ import annotations

import types
import warnings

import pytest
import torch

from fkd.losses import gold, merged_log_probs, uld

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        from trl.experimental.gold.gold_trainer import ULDLoss
    except Exception as error:  # it loads its parts late, and wraps what is missing
        pytest.skip(f"trl: {error}", allow_module_level=True)

LENGTH, OURS, THEIRS, SHARED = 6, 9, 12, 5
IDS = torch.tensor([0, 3, 4, 7, 8]), torch.tensor([11, 2, 0, 5, 6])


class Words:
    """A vocabulary in which some words are those of another."""

    def __init__(self, size: int, shared: torch.Tensor, name: str) -> None:
        words = {f"{name} {i}": i for i in range(size) if i not in shared.tolist()}
        self.words = words | {f"both {k}": i for k, i in enumerate(shared.tolist())}

    def get_vocab(self) -> dict[str, int]:
        return self.words


def peer(**options) -> ULDLoss:
    config = dict(
        uld_crossentropy_weight=0.0, uld_distillation_weight=1.0, uld_student_temperature=1.0,
        uld_teacher_temperature=1.0, uld_skip_student_eos=False, uld_skip_teacher_eos=False,
        use_extended_uld=True, uld_token_merge_strategy="observed", uld_use_hybrid_loss=True,
        beta=0.5,
    ) | options  # fmt: skip
    tokenizers = Words(OURS, IDS[0], "ours"), Words(THEIRS, IDS[1], "theirs")
    return ULDLoss(types.SimpleNamespace(**config), *tokenizers)


def probabilities(size: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(LENGTH, size, generator=g).mul(2).softmax(-1)


@pytest.mark.parametrize("weights", [(None, None), (1.0, 0.0), (0.25, 0.75)])
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_gold(beta, weights):
    theirs = peer(beta=beta, uld_hybrid_matched_weight=weights[0],
                  uld_hybrid_unmatched_weight=weights[1])  # fmt: skip
    q, p = probabilities(OURS, 0).requires_grad_(), probabilities(THEIRS, 1)
    expected = theirs._compute_hybrid_uld_loss(q, p)
    value = gold(q.log(), p.log(), *IDS, beta=beta, matched=weights[0]).mean()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(x, q, retain_graph=True)[0] for x in (value, expected)),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_uld(temperature):
    """By rank alone; there every text weighs alike, here every position does."""
    theirs = peer(
        uld_use_hybrid_loss=False, use_extended_uld=False,
        uld_student_temperature=temperature, uld_teacher_temperature=temperature,
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    q, p = (torch.randn(2, LENGTH, size, generator=g) for size in (OURS, THEIRS))
    labels = torch.tensor([[-100, -100, 3, 4, 5, 6], [-100, 1, 2, -100, -100, -100]])
    expected = theirs._compute_distillation_loss(q, p, labels, labels, labels, labels)
    counts = labels != -100
    value = uld(q / temperature, p / temperature, where=counts)
    texts = (value.sum(-1) / counts.sum(-1)).mean()
    torch.testing.assert_close(texts, expected)
    by_text = 1 / counts.sum(-1, keepdim=True)  # a weight by position
    torch.testing.assert_close((value * by_text).sum() / len(labels), expected)


def test_merged_tokens():
    """TRL merges the probabilities of the tokens of a group, as `merged_log_probs` does."""
    theirs, q = peer(), probabilities(OURS, 0)
    groups, ids = [[0], [1, 2, 3], [4, 5]], torch.tensor([1, 0, 3, 2, 8, 7])
    expected = theirs._merge_probabilities_with_alignment_groups(q, groups, ids.tolist())
    spans = torch.tensor([[0, 1, 1, 1, 2, 2]])
    kept = torch.ones(1, 3, dtype=torch.bool)
    value = merged_log_probs(q.log()[None], ids[None], spans, kept)
    torch.testing.assert_close(value.exp()[0], expected)
