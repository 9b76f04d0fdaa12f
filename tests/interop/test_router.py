"""The router of a mixture of experts, which models return only if they are asked to."""

from __future__ import annotations

import torch
import transformers as hf

import fkd
from fkd import student, teacher, term
from fkd.losses import kl


def mixture(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=20)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, num_local_experts=3)
    config = hf.MixtralConfig(**sizes, **heads, pad_token_id=0)
    config._experts_implementation = "batched_mm"
    return hf.MixtralForCausalLM(config)


def test_router_logits_are_an_output():
    objective = fkd.Objective(
        {
            "router": term(kl, student.router_logits[1], teacher.router_logits[1]),
            "kd": term(kl, student.logits, teacher.logits),
        },
        student=fkd.trainable(mixture(0)),
        teacher=fkd.frozen(mixture(1)),
    )
    data = {"input_ids": torch.arange(10).reshape(2, 5)}
    _, aux = objective(objective.init(), data)
    assert aux.terms["router"].value > 0 and int(aux.terms["router"].count) == 10
