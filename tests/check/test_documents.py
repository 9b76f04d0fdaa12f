"""Documents in one row, and models that keep them apart or do not."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import fkd
from fkd import batch, student, term
from fkd.loops.language import Tokens, document_mask, fields_of, token_batch
from fkd.losses import cross_entropy

SIZES = dict(vocab_size=40, hidden_size=16)
LLAMA = dict(SIZES, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


def bloom() -> torch.nn.Module:
    return hf.BloomForCausalLM(hf.BloomConfig(n_layer=1, n_head=2, **SIZES))


def opt() -> torch.nn.Module:
    return hf.OPTForCausalLM(
        hf.OPTConfig(
            ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16, **SIZES
        )
    )


def mamba() -> torch.nn.Module:
    return hf.MambaForCausalLM(hf.MambaConfig(num_hidden_layers=1, state_size=4, **SIZES))


def packed(prefix: str = "") -> dict[str, torch.Tensor]:
    documents = [Tokens([5, 6, 7, 8], [5, 6, 7, 8]), Tokens([9], [9]), Tokens([4, 3], [4, 3])]
    return token_batch([documents, documents[:1]], length=9, prefix=prefix)


def objective_of(module: torch.nn.Module, **options) -> fkd.Objective:
    torch.manual_seed(0)
    loss = term(cross_entropy, student.logits, batch.targets, where=batch.targets != -100)
    return fkd.Objective({"labels": loss}, student=fkd.trainable(module, **options))


@pytest.mark.parametrize("make", [bloom, opt, mamba])
def test_a_model_that_reads_across_documents_is_refused(make):
    objective = objective_of(make())
    with pytest.raises(fkd.ObjectiveError, match=r"several documents.*does not keep them apart"):
        fkd.check(objective, packed())
    data = packed()
    del data["document_ids"]  # meant so
    fkd.check(objective, data)
    rows = [Tokens([5, 6, 7, 8], [5, 6, 7, 8]), Tokens([9, 4], [9, 4])]
    fkd.check(objective, token_batch(rows, length=9))


def test_a_model_that_keeps_them_apart_passes():
    llama = hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA))
    fkd.check(objective_of(llama), packed())
    fkd.check(objective_of(llama.bfloat16()), packed())


def test_a_mask_of_documents_keeps_them_apart():
    def inputs(fields):
        mask = document_mask(fields["document_ids"])
        return {"input_ids": fields["input_ids"], "attention_mask": mask}

    llama = hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA))
    fkd.check(objective_of(llama, inputs=inputs), packed())
    hidden = lambda fields: {"input_ids": fields["input_ids"]}
    with pytest.raises(fkd.ObjectiveError, match="LlamaForCausalLM does not keep them apart"):
        fkd.check(objective_of(llama, inputs=hidden), packed())


def test_the_documents_of_a_second_model_are_its_own():
    llama, big = hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)), bloom()
    loss = term(cross_entropy, student.logits, batch.targets, where=batch.targets != -100)
    other = term(cross_entropy, fkd.teacher.logits, batch.targets, where=batch.targets != -100)
    objective = fkd.Objective(
        {"labels": loss, "other": other},
        student=fkd.trainable(llama),
        teacher=fkd.frozen(big, inputs=fields_of("teacher_")),
    )
    with pytest.raises(fkd.ObjectiveError, match=r"model 'teacher'.*teacher_document_ids") as error:
        fkd.check(objective, packed() | packed("teacher_"))
    assert len(error.value.problems) == 1
