"""Families of transformers by their class, their config and small sizes."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

_IDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
_TEXT = dict(
    vocab_size=30, hidden_size=16, num_attention_heads=2, num_hidden_layers=2,
    intermediate_size=24, max_position_embeddings=40,
)  # fmt: skip
_GROUPED = _TEXT | _IDS | dict(num_attention_heads=4, num_key_value_heads=2)
_GPT = _IDS | dict(vocab_size=30, n_embd=16, n_head=2, n_layer=2, n_positions=40)
_SEQ2SEQ = _IDS | dict(
    vocab_size=30, d_model=16, encoder_layers=2, decoder_layers=2, decoder_start_token_id=1,
    encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
)  # fmt: skip

FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (hf.BertForMaskedLM, hf.BertConfig, _TEXT),
    "deberta": (
        hf.DebertaV2ForMaskedLM, hf.DebertaV2Config,
        _TEXT | dict(relative_attention=True, pos_att_type=["c2p", "p2c"]),
    ),
    "modernbert": (
        hf.ModernBertForMaskedLM, hf.ModernBertConfig,
        _TEXT | _IDS | dict(cls_token_id=1, sep_token_id=2, local_attention=4),
    ),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, _GPT),
    "neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, _TEXT | _IDS),
    "bloom": (
        hf.BloomForCausalLM, hf.BloomConfig,
        _IDS | dict(vocab_size=30, hidden_size=16, n_head=2, n_layer=2),
    ),
    "falcon": (
        hf.FalconForCausalLM, hf.FalconConfig,
        _IDS | dict(vocab_size=30, hidden_size=16, num_attention_heads=4, num_kv_heads=2,
                    num_hidden_layers=2, new_decoder_architecture=True),
    ),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, _GROUPED | dict(head_dim=8)),
    "gemma2": (
        hf.Gemma2ForCausalLM, hf.Gemma2Config, _GROUPED | dict(head_dim=8, sliding_window=3)
    ),
    "phi3": (hf.Phi3ForCausalLM, hf.Phi3Config, _GROUPED),
    "mixtral": (hf.MixtralForCausalLM, hf.MixtralConfig, _GROUPED | dict(num_local_experts=2)),
    "t5": (
        hf.T5ForConditionalGeneration, hf.T5Config,
        dict(vocab_size=30, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2,
             num_heads=2, decoder_start_token_id=0, pad_token_id=0),
    ),
    "bart": (hf.BartForConditionalGeneration, hf.BartConfig, _SEQ2SEQ),
    "vit": (
        hf.ViTForImageClassification, hf.ViTConfig,
        dict(hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24,
             image_size=16, patch_size=8),
    ),
    "swin": (
        hf.SwinForImageClassification, hf.SwinConfig,
        dict(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2],
             window_size=2),
    ),
    "resnet": (
        hf.ResNetForImageClassification, hf.ResNetConfig,
        dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    ),
}  # fmt: skip
_WIDTHS = (
    "hidden_size num_attention_heads num_key_value_heads num_kv_heads intermediate_size n_embd "
    "n_head d_model d_ff num_heads encoder_attention_heads decoder_attention_heads "
    "encoder_ffn_dim decoder_ffn_dim embed_dim embedding_size hidden_sizes"
).split()
_DEPTHS = "num_hidden_layers n_layer num_layers num_decoder_layers encoder_layers decoder_layers"


def model(name: str, **sizes: Any) -> Any:
    """A model of a family, none of whose biases is 0 and no scale 1, as after training."""
    cls, config, small = FAMILIES[name]
    torch.manual_seed(1)
    made = cls(config(**{**small, **sizes}))
    for p in made.parameters():
        nn.init.normal_(p, mean=0.1, std=0.3)
    return made.eval()


def twice(name: str) -> dict[str, Any]:
    """The sizes of the model of a family that is twice as wide, with twice as many heads."""
    sizes = {n: x for n, x in FAMILIES[name][2].items() if n in _WIDTHS}
    return {n: [2 * y for y in x] if isinstance(x, list) else 2 * x for n, x in sizes.items()}


def deeper(name: str) -> dict[str, Any]:
    """The sizes of the model of a family with three layers."""
    return {n: 3 for n in FAMILIES[name][2] if n in _DEPTHS.split()}


def output(of: Any) -> Tensor:
    """What a model computes of some inputs."""
    g = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 30, (2, 6), generator=g)
    if of.main_input_name == "pixel_values":
        size = getattr(of.config, "image_size", 32)
        inputs = {"pixel_values": torch.randn(2, 3, size, size, generator=g)}
    elif of.config.is_encoder_decoder:
        inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :4]}
    else:
        inputs = {"input_ids": ids}
    with torch.no_grad():
        return of(**inputs)[0]
