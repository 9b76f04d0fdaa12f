"""`heads`: the head of any language model gives its logits."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import nn

import fkd
from fkd import student, teacher, term
from fkd.interop.transformers import head, heads
from fkd.losses import head_divergence, kl
from fkd.losses.head import cross_entropy
from fkd.losses.head import kl as head_kl

VOCAB = 60
IDS = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, pad_token_id=0)
BASE = dict(IDS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
GROUPED = BASE | dict(num_key_value_heads=1)
GPT = dict(IDS, n_embd=16, n_layer=1, n_head=2)
T5 = dict(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)

ZOO = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, GROUPED),
    "tied": (hf.Qwen3ForCausalLM, hf.Qwen3Config, GROUPED | dict(tie_word_embeddings=True)),
    "bound": (
        hf.Gemma2ForCausalLM,
        hf.Gemma2Config,
        GROUPED | dict(final_logit_softcapping=2.0, head_dim=8),
    ),
    "scaled": (hf.CohereForCausalLM, hf.CohereConfig, GROUPED | dict(logit_scale=0.25)),
    "divided": (hf.GraniteForCausalLM, hf.GraniteConfig, GROUPED | dict(logits_scaling=8.0)),
    "bias": (hf.GPTJForCausalLM, hf.GPTJConfig, GPT | dict(rotary_dim=4)),
    "transform": (hf.BertForMaskedLM, hf.BertConfig, BASE),
    "projection": (
        hf.OPTForCausalLM,
        hf.OPTConfig,
        IDS
        | dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16)
        | dict(word_embed_proj_dim=8),
    ),
    "t5": (hf.T5ForConditionalGeneration, hf.T5Config, T5 | dict(vocab_size=VOCAB)),
}


BART = dict(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16)
BART |= dict(decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=16)
ZOO |= {
    "decoder": (hf.BartForCausalLM, hf.BartConfig, IDS | BART),
    "scaled decoder": (hf.PegasusForCausalLM, hf.PegasusConfig, IDS | BART),
    "bart": (hf.BartForConditionalGeneration, hf.BartConfig, IDS | BART),
}


def make(kind: str) -> nn.Module:
    model, config, sizes = ZOO[kind]
    torch.manual_seed(len(kind))
    made = model(config(**sizes))
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.mul_(4) if p.ndim > 1 else p.normal_(0, 0.5) if "bias" in name else None
    return made


def fields() -> dict[str, torch.Tensor]:
    ids = torch.arange(14).reshape(2, 7) * 5 % VOCAB
    return {"input_ids": ids, "decoder_input_ids": ids}


@pytest.mark.parametrize("kind", ["decoder", "bart", "t5"])
def test_the_head_of_a_decoder_is_tried(kind, caplog):
    """The config of a decoder alone counts the layers of an encoder that it does not have."""
    head(make(kind))
    assert not caplog.records


@pytest.mark.parametrize("kind", ZOO)
def test_the_head_is_that_of_the_logits(kind):
    small, big = make("llama"), make(kind)
    given = heads(student=small, teacher=big)
    objective = fkd.Objective(
        {
            "logits": term(kl, student.logits, teacher.logits),
            "head": term(head_divergence, **given, divergence=head_kl()),
            "swapped": term(
                head_divergence, **heads(teacher=big, student=small), divergence=head_kl()
            ),
        },
        student=fkd.trainable(small),
        teacher=fkd.frozen(big),
    )
    _, aux = objective(objective.init(), fields())
    values = {name: mean.value for name, mean in aux.terms.items()}
    torch.testing.assert_close(values["head"], values["logits"], rtol=1e-4, atol=1e-6)
    if kind != "llama":
        assert not torch.isclose(values["swapped"], values["logits"], rtol=1e-4)


def test_the_user_s_model_is_not_touched():
    model = make("bound").train()
    before = {n: x.clone() for n, x in model.state_dict().items()}
    head(model)
    assert model.training and not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())


def test_labels_need_no_teacher_and_none_is_written_in_its_place():
    small = make("llama")
    parts = head(fkd.trainable(small), "pupil")
    pupil = fkd.ref("pupil")
    assert repr(parts.weight) == repr(pupil.param("lm_head.weight"))
    labels = torch.zeros(2, 7, dtype=torch.long)
    by_name = term(head_divergence, **heads(pupil=small), labels=labels, divergence=cross_entropy())
    by_place = term(
        head_divergence,
        *(parts.hidden, parts.weight, None, None),
        labels=labels,
        divergence=cross_entropy(),
    )
    objective = fkd.Objective({"a": by_name, "b": by_place}, pupil=fkd.trainable(small))
    _, aux = objective(objective.init(), fields())
    assert torch.equal(aux.terms["a"].value, aux.terms["b"].value)


class Odd(hf.LlamaForCausalLM):
    """A model whose logits are not those of its output layer."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.square()
        return output


def test_what_a_head_cannot_say_is_refused():
    with pytest.raises(ValueError, match="with any scale and bound"):
        head(Odd(hf.LlamaConfig(**GROUPED)))
    with pytest.raises(ValueError, match="no output layer over a vocabulary"):
        head(hf.BertModel(hf.BertConfig(**BASE)))
    with pytest.raises(ValueError, match="heads: 3 models"):
        heads(a=make("llama"), b=make("llama"), c=make("llama"))
    with pytest.raises(ValueError, match="an EMA"):
        head(fkd.ema("student"))


def test_a_model_that_does_not_run_on_tokens_says_so(monkeypatch, caplog):
    model = make("divided")
    monkeypatch.setattr(type(model), "forward", lambda self, **_: 1 / 0)
    assert head(model).logit_scale == 0.125
    assert "could not be tried" in caplog.text
    assert head(make("divided"), probe=False).logit_scale == 0.125


def test_rows_beyond_the_tokenizer_are_left_out():
    small, big = make("llama"), make("bound")
    more = hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED | dict(vocab_size=VOCAB + 64)))
    assert "student_vocabulary" not in heads(student=small, teacher=big, vocabulary=VOCAB - 2)
    n = VOCAB - 2
    objective = fkd.Objective(
        {
            "logits": term(kl, student.logits[..., :n], teacher.logits[..., :n]),
            "head": term(
                head_divergence,
                **heads(student=more, teacher=big, vocabulary=n),
                divergence=head_kl(),
            ),
        },
        student=fkd.trainable(more),
        teacher=fkd.frozen(big),
    )
    _, aux = objective(objective.init(), fields())
    torch.testing.assert_close(aux.terms["head"].value, aux.terms["logits"].value)
    with pytest.raises(ValueError, match=r"vocabulary is 100.*'student': 124, 'teacher': 60"):
        heads(student=more, teacher=big, vocabulary=100)
