"""Padding, packing and the shift change nothing of what a model says of a text."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf

import fkd
from fkd import batch, call, student, teacher, term
from fkd.loops import take
from fkd.loops.language import (
    Tokens,
    align_responses,
    chat_tokens,
    document_mask,
    fields_of,
    pack_documents,
    token_batch,
)
from fkd.losses import cross_entropy, kl

from .tokenizers import CHATML, byte_level

VOCAB = 400


def llama(seed: int = 0, layers: int = 2) -> torch.nn.Module:
    torch.manual_seed(seed)
    sizes = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16, pad_token_id=0)
    config = hf.LlamaConfig(vocab_size=VOCAB, num_hidden_layers=layers, **sizes)
    model = hf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.ndim > 1 else 1)  # so that words matter
    return model


def texts() -> list[Tokens]:
    g = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, VOCAB, (n,), generator=g).tolist() for n in (5, 3, 7, 2)]
    return [Tokens(ids, [-100, *ids[1:]]) for ids in rows]


def loss(data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The mean over all tokens that count, and its gradient."""
    counts = call(torch.ne, batch.targets, -100)
    objective = fkd.Objective(
        {
            "ce": term(cross_entropy, student.logits, batch.targets, where=counts),
            "kd": term(kl, student.logits, teacher.logits, where=counts),
        },
        student=fkd.trainable(llama()),
        teacher=fkd.frozen(llama(1)),
    )
    parts = objective.init()
    leaves = list(parts.trainable["student"].values())
    for leaf in leaves:
        leaf.requires_grad_()
    value, aux = objective(parts, data)
    assert int(aux.terms["ce"].count) == sum(len(t.ids) - 1 for t in texts())
    return value, list(torch.autograd.grad(value, leaves))


def test_padded_left_right_and_packed_are_one_loss():
    rows = texts()
    forms = [
        token_batch(rows, length=8),
        token_batch(rows, length=[4, 10], side="left", pad=3),
        token_batch(rows, length=9, size=6, pad=7),
        token_batch(list(pack_documents(rows, 11)), length=12),
    ]
    assert forms[3]["input_ids"].shape[0] == 2 and "attention_mask" not in forms[3]
    want, want_grads = loss(forms[0])
    for form in forms[1:]:
        got, grads = loss(form)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        for a, b in zip(grads, want_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_mask_of_documents_says_the_same_to_other_models():
    rows = list(pack_documents(texts(), 11))
    data = token_batch(rows, length=12)
    model = llama()
    ids, positions = data["input_ids"], data["position_ids"]
    with torch.no_grad():
        by_positions = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        mask = document_mask(data["document_ids"])
        by_mask = model(input_ids=ids, position_ids=positions, attention_mask=mask).logits
    kept = data["document_ids"] >= 0
    torch.testing.assert_close(by_mask[kept], by_positions[kept], rtol=1e-4, atol=1e-5)


def test_the_first_token_of_a_document_is_predicted_by_nothing():
    rows = [[Tokens([5, 6], [5, 6]), Tokens([7, 8], [7, 8])]]
    assert token_batch(rows, length=5)["targets"].tolist() == [[6, -100, 8, -100, -100]]
    assert token_batch(rows, length=5)["position_ids"].tolist() == [[0, 1, 0, 1, 0]]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "0 rows"),
        ([Tokens([], [])], {}, "row 0 has no token"),
        (texts(), {"size": 2}, "4 rows; 1 to 2"),
        (texts(), {"length": 4}, "7"),
        ([texts()], {"side": "left"}, "padded right"),
    ],
)
def test_what_does_not_fit_is_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        token_batch(rows, **{"length": 32, **options})


def test_a_teacher_that_is_told_more_is_aligned_by_the_response():
    tokenizer = copy.deepcopy(byte_level())
    tokenizer.chat_template = CHATML
    asked = [{"role": "user", "content": "Who reads?"}, {"role": "assistant", "content": "All."}]
    told = [{"role": "system", "content": "All of them read."}, *asked]
    other = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
    ours = [chat_tokens(tokenizer, c) for c in (asked, other)]
    theirs = [chat_tokens(tokenizer, c) for c in (told, other)]
    data = token_batch(ours, length=48, side="left")
    data |= token_batch(theirs, length=72, prefix="teacher_")
    aligned = align_responses(data["targets"], data["teacher_targets"], multiple=8)
    data["both"] = aligned
    for row in (
        take(data["targets"], aligned.student),
        take(data["teacher_targets"], aligned.teacher),
    ):
        found = row[aligned.student.kept].tolist()
        assert tokenizer.decode(found) == "All.<|im_end|>It is 4.<|im_end|>"
    model = llama()
    objective = fkd.Objective(
        {
            "kd": term(
                kl,
                call(take, student.logits, batch.both.student),
                call(take, teacher.logits, batch.both.teacher),
                where=batch.both.student.kept,
            )
        },
        student=fkd.trainable(model, training=False),
        teacher=fkd.frozen(llama(), inputs=fields_of("teacher_")),
    )
    fkd.check(objective, data)
    _, aux = objective(objective.init(), data)
    assert float(aux.terms["kd"].value) > 1e-4  # the first row has other words before it
    same = token_batch(ours, length=72, prefix="teacher_")
    data |= same | {"both": align_responses(data["targets"], same["teacher_targets"])}
    _, aux = objective(objective.init(), data)
    assert abs(float(aux.terms["kd"].value)) < 1e-6
    with pytest.raises(ValueError, match="row 0 has"):
        align_responses(data["targets"], data["teacher_targets"].flip(0))
