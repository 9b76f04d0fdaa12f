"""Tiny models of transformers with random weights, and inputs with padding for them."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from fkd.interop.transformers._sites import uses_interface

VOCAB = 30
_SIZES = dict(hidden_size=16, num_attention_heads=2, num_hidden_layers=3, intermediate_size=16)
_TEXT: dict[str, Any] = dict(_SIZES, vocab_size=VOCAB, max_position_embeddings=40)
_IMAGE: dict[str, Any] = dict(_SIZES, image_size=16, patch_size=8)
_IDS: dict[str, Any] = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
_GROUPED: dict[str, Any] = _TEXT | _IDS | dict(num_attention_heads=4, num_key_value_heads=2)
_GPT: dict[str, Any] = _IDS | dict(
    vocab_size=VOCAB, n_embd=16, n_head=2, n_layer=3, n_positions=40, max_position_embeddings=40
)
_XLNET: dict[str, Any] = _IDS | dict(vocab_size=VOCAB, d_model=16, n_head=2, n_layer=3, d_inner=16)
_SEQ2SEQ: dict[str, Any] = _IDS | dict(
    vocab_size=VOCAB,
    d_model=16,
    encoder_layers=3,
    decoder_layers=2,
    decoder_start_token_id=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
)

MAKERS: dict[str, Any] = {
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**_TEXT)),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**_TEXT)),
    "distilbert": lambda: hf.DistilBertModel(
        hf.DistilBertConfig(vocab_size=VOCAB, dim=16, n_heads=2, n_layers=3, hidden_dim=16)
    ),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**_IMAGE)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(n_embd=16, n_head=2, n_layer=3, vocab_size=VOCAB, **_IDS)
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_GROUPED)),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=VOCAB,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
    ),
    "albert": lambda: hf.AlbertModel(hf.AlbertConfig(**_TEXT, embedding_size=8)),
    "electra": lambda: hf.ElectraModel(hf.ElectraConfig(**_TEXT, embedding_size=8)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**_SEQ2SEQ)),
    "whisper": lambda: hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            **_SEQ2SEQ, num_mel_bins=8, max_source_positions=10, max_target_positions=10
        )
    ),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_GROUPED)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_GROUPED, head_dim=8)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**_GROUPED, sliding_window=3)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**_GROUPED, head_dim=8, sliding_window=3, attn_logit_softcapping=0.5)
    ),
    "modernbert": lambda: hf.ModernBertModel(
        hf.ModernBertConfig(**_TEXT, **_IDS, cls_token_id=1, sep_token_id=2, local_attention=4)
    ),
    "deit": lambda: hf.DeiTModel(hf.DeiTConfig(**_IMAGE)),
    "clip_vision": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**_IMAGE)),
    "deberta": lambda: hf.DebertaV2Model(
        hf.DebertaV2Config(
            **_TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"], share_att_key=True
        )
    ),
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**_GPT, rotary_dim=4)),
    "codegen": lambda: hf.CodeGenModel(hf.CodeGenConfig(**_GPT | dict(n_head=4), rotary_dim=4)),
    "bloom": lambda: hf.BloomModel(hf.BloomConfig(**_GPT, hidden_size=16)),
    "falcon": lambda: hf.FalconModel(hf.FalconConfig(**_TEXT, **_IDS)),
    "xlnet": lambda: hf.XLNetModel(hf.XLNetConfig(**_XLNET)),
    "mpnet": lambda: hf.MPNetModel(hf.MPNetConfig(**_TEXT, pad_token_id=0)),
    "convbert": lambda: hf.ConvBertModel(
        hf.ConvBertConfig(**_TEXT | dict(num_attention_heads=4), embedding_size=16)
    ),
    "trocr": lambda: hf.TrOCRForCausalLM(
        hf.TrOCRConfig(**_SEQ2SEQ | dict(decoder_layers=3), max_position_embeddings=40)
    ),
}
OWN = "deberta gptj codegen bloom falcon xlnet mpnet convbert trocr".split()
"""Classes that compute attention in their own code."""

PARTS = {"t5": ("encoder", "decoder", "cross"), "bart": ("encoder", "decoder", "cross")}
PARTS["whisper"] = PARTS["t5"]
CLASSES = tuple(MAKERS)
INTERFACE = tuple(n for n in CLASSES if n not in OWN)
"""Classes whose attention can be replaced."""


def tiny(name: str) -> Any:
    """A tiny model in eval mode, with weights large enough that attention is not uniform."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MAKERS[name]().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape) * 0.3)
    return model


def batch_for(name: str) -> dict[str, Tensor]:
    """A batch for a tiny model; the texts are padded on the right."""
    torch.manual_seed(1)
    ids, mask = torch.randint(3, VOCAB, (2, 6)), torch.tensor([[1] * 4 + [0] * 2, [1] * 6])
    text = {"input_ids": ids * mask, "attention_mask": mask}
    if name in ("vit", "deit", "clip_vision"):
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    if name == "whisper":
        return {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": ids[:, :4]}
    return text | ({"decoder_input_ids": ids[:, :4]} if name in PARTS else {})


def eager(model: nn.Module) -> Any:
    """A copy on transformers' own eager path, the reference."""
    copied: Any = copy.deepcopy(model)
    if not any(uses_interface(m) for m in model.modules()):  # it is set when the model is made
        copied = type(copied)._from_config(copied.config, attn_implementation="eager").eval()
        copied.load_state_dict(model.state_dict())
    else:
        copied.set_attn_implementation("eager")
    return copied


def maps(output: Any, part: str | None) -> Any:
    """The maps that `output_attentions=True` gives for one part."""
    fields = {None: "attentions", "cross": "cross_attentions"}
    return output[fields.get(part, f"{part}_attentions")]


def counted(name: str, batch: dict[str, Tensor], part: str | None) -> Tensor:
    """`[batch, query]`, True for the queries that are not padding."""
    mask = batch.get("attention_mask")
    if mask is not None and part in (None, "encoder"):
        return mask.bool()
    some = next(iter(batch.values()))
    return torch.ones(some.shape[0], 1, dtype=torch.bool)
