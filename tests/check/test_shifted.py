"""Causal models and labels that are not shifted."""

from __future__ import annotations

import copy

import pytest
import torch

import fkd
from fkd import Objective, batch, call, student, teacher, term, trainable
from fkd.losses import cross_entropy, head, head_divergence, kl

transformers = pytest.importorskip("transformers")

LENGTH = 6


def causal(kind: str = "gpt2") -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=LENGTH
        )
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=LENGTH,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def masked() -> torch.nn.Module:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=LENGTH,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def data(*, pad: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(20, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    if pad:
        labels[:, -pad:] = -100
    return {"input_ids": ids, "labels": labels}


def said(term_: fkd.Term, net: torch.nn.Module, fields: dict[str, torch.Tensor]) -> str:
    try:
        fkd.check(Objective({"lm": term_}, student=trainable(net)), fields)
    except fkd.ObjectiveError as error:
        return "\n".join(error.problems)
    return ""


@pytest.mark.plain
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("pad", [0, 2])
def test_labels_that_are_the_inputs_are_refused(kind, pad):
    text = said(term(cross_entropy, student.logits, batch.labels), causal(kind), data(pad=pad))
    assert "term 'lm': batch.labels are the tokens of input_ids" in text
    assert "fkd.call(fkd.loops.next_tokens, batch.labels)" in text


@pytest.mark.plain
def test_so_are_those_of_a_head_and_of_a_loss_that_is_called():
    weight = student.param("lm_head.weight")
    one = term(
        head_divergence, *[student.hidden_states[-1], weight] * 2,
        divergence=head.cross_entropy(), labels=batch.labels,
    )  # fmt: skip
    assert "shift=True" in said(one, causal("llama"), data())
    inside = term(torch.neg, call(cross_entropy, student.logits, batch.labels))
    assert "next_tokens" in said(inside, causal("llama"), data())


@pytest.mark.plain
def test_what_is_shifted_is_fine():
    labels = call(fkd.loops.next_tokens, batch.labels)
    assert said(term(cross_entropy, student.logits, labels), causal(), data()) == ""
    weight = student.param("lm_head.weight")
    one = term(
        head_divergence, *[student.hidden_states[-1], weight] * 2,
        divergence=head.cross_entropy(), labels=batch.labels, shift=True,
    )  # fmt: skip
    assert "copy its input" not in said(one, causal("llama"), data())
    shifted = data()
    shifted["labels"] = torch.cat([shifted["labels"][:, 1:], shifted["labels"][:, :1]], 1)
    assert said(term(cross_entropy, student.logits, batch.labels), causal(), shifted) == ""


@pytest.mark.plain
def test_what_is_no_causal_model_or_no_loss_of_fkd_is_left_alone():
    ce = term(cross_entropy, student.logits, batch.labels)
    unused = "no term reaches"
    assert "copy its input" not in said(ce, masked(), data())

    def own(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits[:, :-1], labels[:, 1:])

    assert said(term(own, student.logits, batch.labels), causal(), data()) == ""
    assert unused not in said(term(own, student.logits, batch.labels), causal(), data())


@pytest.mark.plain
def test_two_models_say_which_one():
    net = causal()
    objective = Objective(
        {
            "lm": term(cross_entropy, student.logits, batch.labels),
            "kd": term(kl, student.logits, teacher.logits),
        },
        student=trainable(net),
        teacher=fkd.frozen(copy.deepcopy(net)),
    )
    with pytest.raises(fkd.ObjectiveError, match="student predicts the next one"):
        fkd.check(objective, data())
