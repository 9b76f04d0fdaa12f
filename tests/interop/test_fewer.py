"""Students of fewer layers than their teacher."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import nn

from fkd.interop.transformers import fewer_layers

SIZES = dict(vocab_size=30, hidden_size=16, num_attention_heads=2, intermediate_size=16)
GROUPED = SIZES | dict(num_key_value_heads=1, head_dim=8)


def gemma(layers: int = 6) -> nn.Module:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"] * 2
    torch.manual_seed(0)
    config = hf.Gemma2Config(num_hidden_layers=layers, layer_types=kinds[:layers], **GROUPED)
    return hf.Gemma2ForCausalLM(config)


def test_a_third_comes_from_the_beginning_and_the_others_from_the_end():
    big = gemma().bfloat16()
    big.generation_config.eos_token_id = [7, 8]
    small = fewer_layers(big, 3)
    kinds = big.config.layer_types
    assert small.config.layer_types == [kinds[0], kinds[4], kinds[5]]
    assert small.dtype == torch.bfloat16 and small.generation_config.eos_token_id == [7, 8]
    for mine, theirs in enumerate([0, 4, 5]):
        ours = small.model.layers[mine].mlp.up_proj.weight
        assert torch.equal(ours, big.model.layers[theirs].mlp.up_proj.weight)
    assert torch.equal(small.lm_head.weight, big.lm_head.weight)
    ours.data.zero_()  # tensors of its own
    assert big.model.layers[5].mlp.up_proj.weight.abs().sum() > 0
    assert big.config.num_hidden_layers == 6 and len(big.config.layer_types) == 6


def test_chosen_layers():
    big = gemma()
    small = fewer_layers(big, [1, -1])
    kinds = big.config.layer_types
    assert small.config.layer_types == [kinds[1], kinds[5]]
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(fewer_layers(big, 6).eval()(ids).logits, big.eval()(ids).logits)
    assert torch.equal(
        fewer_layers(big, 1).model.layers[0].mlp.up_proj.weight,
        big.model.layers[5].mlp.up_proj.weight,
    )


def test_a_decoder_alone_has_the_layers_of_a_decoder():
    """Its config counts those of an encoder, too."""
    sizes = dict(d_model=16, encoder_layers=1, decoder_layers=3, decoder_attention_heads=2)
    big = hf.BartForCausalLM(hf.BartConfig(vocab_size=30, decoder_ffn_dim=16, **sizes))
    small = fewer_layers(big, 2)
    assert small.config.decoder_layers == 2 and len(small.model.decoder.layers) == 2
    for mine, theirs in enumerate([1, 2]):
        pair = [m.model.decoder.layers[i] for m, i in ((small, mine), (big, theirs))]
        assert torch.equal(pair[0].fc1.weight, pair[1].fc1.weight)


@pytest.mark.parametrize("layers", [0, 7, -1, [6], []])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match="Gemma2ForCausalLM has 6 layers; from 1 to 6"):
        fewer_layers(gemma(), layers)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="no model of transformers"):
        fewer_layers(nn.Linear(2, 2), 1)
    sizes = dict(d_model=16, d_kv=8, d_ff=16, num_heads=2)
    t5 = hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=30, num_layers=2, **sizes))
    with pytest.raises(ValueError, match="not one stack of layers"):
        fewer_layers(t5, 1)
