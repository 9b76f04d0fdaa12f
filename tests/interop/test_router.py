"""The router of a mixture of experts, which models return only if they are asked to."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import fkd
from fkd import student, teacher, term
from fkd.loops import train_step
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


def qwen(seed: int) -> torch.nn.Module:
    """Many small experts, by the products in groups that transformers takes unless it is told."""
    torch.manual_seed(seed)
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=20)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, head_dim=4)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
    return hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**sizes, **heads, **experts, pad_token_id=0))


@pytest.mark.compile
def test_a_compiled_mixture_of_experts_trains_as_an_eager_one():
    small, big = qwen(0), qwen(1)
    small.activation_checkpointing_enable()
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=fkd.trainable(small),
        teacher=fkd.frozen(big),
    )
    ends = []
    for compiled in (False, {"backend": "aot_eager"}):
        step = train_step(objective, lambda p: torch.optim.SGD(p, lr=0.5), compile=compiled)
        state = step.init(0)
        for i in range(2):
            state, _ = step(state, {"input_ids": (torch.arange(10) + i).reshape(2, 5)})
        ends.append(state.trainable["student"])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)
