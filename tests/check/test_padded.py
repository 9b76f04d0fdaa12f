"""Padding on the left, and models to which it makes a difference."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import fkd
from fkd import batch, student, term
from fkd.loops.language import Tokens, fields_of, token_batch
from fkd.losses import cross_entropy

IDS = dict(vocab_size=40, bos_token_id=1, eos_token_id=2, pad_token_id=0)
SIZES = IDS | dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
SIZES |= dict(intermediate_size=16, num_key_value_heads=1)


def llama() -> torch.nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES))


def gpt2() -> torch.nn.Module:
    return hf.GPT2LMHeadModel(hf.GPT2Config(**IDS, n_embd=16, n_layer=1, n_head=2))


def opt() -> torch.nn.Module:
    sizes = dict(hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2)
    return hf.OPTForCausalLM(hf.OPTConfig(**IDS, **sizes, word_embed_proj_dim=16))


def mamba() -> torch.nn.Module:
    sizes = dict(hidden_size=16, num_hidden_layers=1, state_size=4)
    return hf.MambaForCausalLM(hf.MambaConfig(**IDS, **sizes))


def bart() -> torch.nn.Module:
    sizes = dict(d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16)
    return hf.BartForCausalLM(hf.BartConfig(**IDS, **sizes, max_position_embeddings=20))


def recurrent() -> torch.nn.Module:
    sizes = dict(lru_width=16, attention_window_size=8)
    return hf.RecurrentGemmaForCausalLM(hf.RecurrentGemmaConfig(**SIZES, **sizes))


def padded(side: str, prefix: str = "") -> dict[str, torch.Tensor]:
    rows = [Tokens(ids, ids) for ids in ([5, 6, 7, 8, 9], [9, 4], [5, 4, 3, 8])]
    return token_batch(rows, length=12, side=side, prefix=prefix, size=4)


def notes_of(module: torch.nn.Module, data: dict[str, torch.Tensor], **options) -> tuple[str, ...]:
    torch.manual_seed(0)
    for name, p in module.named_parameters():
        torch.nn.init.normal_(p, std=0.3) if "norm" not in name else None
    targets = batch.targets if "targets" in data else batch.one_targets
    loss = term(cross_entropy, student.logits, targets, where=targets != -100)
    unused = {n.rpartition(".")[0] for n, _ in module.named_parameters() if "encoder_attn" in n}
    model = fkd.trainable(module, unused=sorted(unused), **options)
    return fkd.check(fkd.Objective({"labels": loss}, student=model), data).notes


@pytest.mark.parametrize("make", [bart, recurrent])
def test_a_model_that_padding_moves_is_noted(make):
    said = notes_of(make(), padded("left"))
    assert len(said) == 1 and "padding on the left changes what the" in said[0], said
    why = "pad on the right" if make is bart else "It reads the padding, as a recurrence"
    assert why in said[0]
    assert not notes_of(make(), padded("right"))


@pytest.mark.parametrize("make", [llama, gpt2, opt, mamba])
def test_one_that_it_does_not_move_is_not(make):
    assert not notes_of(make(), padded("left"))
    assert not notes_of(make().bfloat16(), padded("left"))


def test_positions_that_are_not_given_are_noted():
    data = padded("left")
    del data["position_ids"]
    assert "give those that count from the first token" in notes_of(gpt2(), data)[0]
    assert not notes_of(llama(), data)  # whose positions are relative
    one = padded("left", "one_")
    assert not notes_of(gpt2(), one, inputs=fields_of("one_"))
    del one["one_position_ids"]
    assert "give those" in notes_of(gpt2(), one, inputs=fields_of("one_"))[0]
