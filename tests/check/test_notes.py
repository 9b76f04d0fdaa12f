"""What runs and is seldom meant: the notes of a check."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fkd
from fkd import batch, call, frozen, student, teacher, term, trainable
from fkd.loops import next_tokens, train_step
from fkd.losses import cross_entropy, head, head_divergence, in_batch_kl, infonce, kl, mse

from ..models import FEATURES, MLP

ROW = {"input": torch.randn(4, 8), "labels": torch.tensor([0, 1, 2, 0])}
KD = term(kl, student.logits, teacher.logits)
SWAPPED = term(kl, teacher.logits, student.logits)


def net(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 5), *more)


def notes(terms: Any, row: Any = ROW, **models: Any) -> str:
    pair = {"student": trainable(net()), "teacher": frozen(net())}
    return "\n".join(fkd.check(fkd.Objective(terms, **{**pair, **models}), row).notes)


def unlike(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return (ours.argmax(-1) != theirs.argmax(-1)).float()


SAID: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a teacher first": (
        {"kd": SWAPPED}, {},
        "term 'kd': teacher.logits stands where kl expects the student"),
    "a teacher first, of features": (
        {"h": term(infonce, teacher.logits, student.logits)}, {},
        "term 'h': teacher.logits stands where infonce expects the student"),
    "pairs by model, and not by text": (
        {"h": term(in_batch_kl, student.logits, student.logits, teacher.logits, teacher.logits)},
        {}, "in_batch_kl expects student_documents, and has no gradient; student.logits stands "
        "where it expects teacher_queries, and is trained. Their order is "
        "in_batch_kl(student_queries, teacher_queries, student_documents, teacher_documents)"),
    "a loss of torch that takes the mean": (
        {"ce": term(F.cross_entropy, student.logits, batch.labels)}, {},
        "term 'ce': cross_entropy of torch gives one number for all positions"),
    "a module of torch that takes the mean": (
        {"ce": term(nn.CrossEntropyLoss(), student.logits, batch.labels)}, {},
        "of torch gives one number for all positions"),
    "a share of the total without a gradient": (
        {"kd": KD, "e": term(unlike, student.logits, teacher.logits)}, {},
        "term 'e': it has no gradient"),
    "probabilities by a method": (
        {"kd": term(kl, student.logits.softmax(-1), teacher.logits)}, {},
        "student.logits.softmax(-1) are probabilities already"),
    "probabilities by a call": (
        {"kd": term(kl, student.logits, call(torch.softmax, teacher.logits, -1))}, {},
        "call(softmax, teacher.logits, -1) are probabilities already"),
    "probabilities of a function without a name": (
        {"kd": term(kl, call(lambda x: x.softmax(-1), student.logits), teacher.logits)}, {},
        "call(<lambda>, student.logits) are probabilities already"),
    "probabilities, detached": (
        {"kd": term(kl, student.logits, fkd.stop_gradient(teacher.logits.softmax(-1)))}, {},
        "are probabilities already"),
    "a student that ends in a softmax": (
        {"kd": KD}, {"student": trainable(net(nn.Softmax(-1)))},
        "student.logits are probabilities already"),
    "a teacher that ends in a softmax": (
        {"kd": KD}, {"teacher": frozen(net(nn.Softmax(-1)))},
        "teacher.logits are probabilities already"),
    "no weight": (
        {"kd": KD, "h": term(mse, student.logits, teacher.logits, weight=0)}, {},
        "term 'h': weight=0: it is computed, and no part of the total"),
    "a teacher that is trained": (
        {"kd": KD}, {"teacher": trainable(net())}, "model 'teacher' is trainable"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_it_is_noted(name: str) -> None:
    terms, models, words = SAID[name]
    assert words in notes(terms, **models)


def test_what_is_right_has_no_note():
    peer = term(kl, teacher.logits, fkd.stop_gradient(student.logits), to="teacher")
    right = {
        "kd": KD,
        "log": term(kl, student.logits.log_softmax(-1), teacher.logits.softmax(-1).log()),
        "ce": term(cross_entropy, student.logits, teacher.logits.softmax(-1)),
        "h": term(mse, student.logits.softmax(-1), teacher.logits.softmax(-1)),
        "reverse": term(fkd.losses.reverse_kl, student.logits, teacher.logits, weight=0.0001),
        "m": fkd.metric(kl, teacher.logits, student.logits),
        "e": fkd.metric(unlike, student.logits, teacher.logits),
        "sized": term(unlike, student.logits, teacher.logits, weight=student.logits.mean()),
        "each": term(F.cross_entropy, student.logits, batch.labels, reduction="none"),
        "pairs": term(in_batch_kl, student.logits, teacher.logits, student.logits, teacher.logits),
        "frozen documents": term(in_batch_kl, student.logits, *[teacher.logits] * 3),
    }
    assert notes(right) == ""
    assert notes({"kd": KD, "peer": peer}, teacher=trainable(net())) == ""


def test_notes_are_in_the_report_and_in_the_log(caplog: pytest.LogCaptureFixture):
    objective = fkd.Objective({"kd": SWAPPED}, student=trainable(net()), teacher=frozen(net()))
    report = fkd.check(objective, ROW)
    assert str(report).endswith(f"\n\nnote: {report.notes[0]}")
    assert "note: term" in report._repr_html_()
    step = train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    with caplog.at_level(logging.WARNING, "fkd"):
        state, _ = step(step.init(), ROW)
        step(state, ROW)
    assert [r.getMessage() for r in caplog.records] == list(report.notes)


LENGTH = 6


def padded(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two sequences; the second has four tokens, and two that are padding."""
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, 4:] = 0
    ids = torch.randint(1, 11, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    return {"x": torch.randn(2, LENGTH, FEATURES), "input_ids": ids, "attention_mask": mask, **more}


def encoders() -> dict[str, Any]:
    return {"student": trainable(MLP(8, 2)), "teacher": frozen(MLP(8, 2))}


HIDDEN = term(mse, student.hidden_states[1], teacher.hidden_states[1])
MINE = term(
    lambda x, t, mask: ((x - t) ** 2).mean(-1) * mask,
    *(student.hidden_states[1], teacher.hidden_states[1], batch.attention_mask),
)


def test_padding_that_counts_is_noted():
    said = notes({"kd": KD, "h": HIDDEN}, padded(), **encoders())
    assert said.splitlines() == [
        "term 'kd': 2 of 12 positions are padding: where=batch.attention_mask.",
        "term 'h': 2 of 12 positions are padding: where=batch.attention_mask.",
    ]
    cut = term(kl, student.logits[:, :-1], teacher.logits[:, :-1])
    said = notes({"kd": cut}, padded(), **encoders())
    assert said == "term 'kd': 2 of 10 positions are padding: where=batch.attention_mask[:, 1:]."


def test_labels_at_padding_are_noted():
    ce = {"ce": term(cross_entropy, student.logits, batch.labels)}
    labels = torch.ones(2, LENGTH, dtype=torch.long)
    assert "2 of 12 positions are padding" in notes(ce, padded(labels=labels), **encoders())
    labels = labels.masked_fill(padded()["attention_mask"] == 0, -100)
    assert notes(ce, padded(labels=labels), **encoders()) == ""


def test_padding_that_does_not_count_has_no_note():
    masked = term(kl, student.logits, teacher.logits, where=batch.attention_mask)
    first = term(kl, student.logits[:, 0], teacher.logits[:, 0])
    right = {"kd": masked, "mine": MINE, "first": first}
    assert notes(right, padded(), **encoders()) == ""
    whole = padded()
    whole["attention_mask"] = torch.ones_like(whole["attention_mask"])
    assert notes({"kd": KD}, whole, **encoders()) == ""


def causal() -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=LENGTH,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return {
        "student": trainable(transformers.GPT2LMHeadModel(config)),
        "teacher": frozen(transformers.GPT2LMHeadModel(config)),
    }


def of_a_prompt() -> dict[str, torch.Tensor]:
    """Labels of the tokens behind a prompt of two."""
    row = padded()
    counts = row["attention_mask"].bool() & (torch.arange(LENGTH) > 1)
    return {**row, "labels": row["input_ids"].masked_fill(~counts, -100)}


def shifted_ones() -> dict[str, torch.Tensor]:
    row = of_a_prompt()
    return {**row, "labels": next_tokens(row["labels"])}


def headed(**options: Any) -> fkd.Term:
    sides = [[x.hidden_states[-1], x.param("lm_head.weight")] for x in (student, teacher)]
    return term(head_divergence, *sides[0], *sides[1], divergence=head.kl(), **options)


NEXT = call(next_tokens, batch.labels)


def test_a_mask_of_labels_that_are_not_shifted_is_noted():
    for where in (batch.labels != -100, batch.labels >= 0, ~(batch.labels < 0)):
        kd = term(kl, student.logits, teacher.logits, where=where)
        said = notes({"kd": kd}, of_a_prompt(), **causal())
        assert said == (
            f"term 'kd': where={where!r} are the positions of the labels themselves, and student, "
            "teacher predict the next token at each position: the mask is one position off. Shift "
            "the labels: where=fkd.call(fkd.loops.next_tokens, batch.labels) != -100."
        )
    headed_ = {"kd": headed(where=batch.labels != -100)}
    assert "one position off" in notes(headed_, of_a_prompt(), **causal())


def test_a_mask_of_predictions_has_no_note():
    def masked(where: Any, *refs: Any) -> fkd.Term:
        return term(kl, *(refs or (student.logits, teacher.logits)), where=where)

    cut = student.logits[:, :-1], teacher.logits[:, :-1]
    states = student.hidden_states[0], teacher.hidden_states[0]
    right = {
        "next": masked(NEXT != -100),
        "cut": masked((batch.labels != -100)[:, 1:], *cut),
        "all": masked(batch.attention_mask),
        "ids": masked(batch.input_ids != 0),
        "states": term(mse, *states, where=batch.labels != -100),
        "head": headed(labels=batch.labels, shift=True),
        "head of next": headed(labels=NEXT),
    }
    assert notes(right, of_a_prompt(), **causal()) == ""
    kd = {"kd": masked(batch.labels != -100)}
    assert notes(kd, shifted_ones(), **causal()) == ""
    assert notes(kd, {**of_a_prompt(), "input_ids": padded()["input_ids"]}, **encoders()) == ""
