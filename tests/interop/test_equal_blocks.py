"""The layers of transformers models, compiled once, with what objectives read inside of them."""

from __future__ import annotations

import pytest
import torch

import fkd
from fkd import batch, student, teacher, term
from fkd._blocks import op
from fkd.losses import kl, mse

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 30,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
}


def llama() -> torch.nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def bert() -> torch.nn.Module:
    # Without dropout, whose blocks tests/objective/test_blocks compares.
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, **none))


def measured(make, compile, *, checkpointing: bool = False) -> tuple[torch.Tensor, int]:
    torch.manual_seed(0)
    small, big = make(), make()
    if checkpointing:
        enable = getattr(small, "activation_checkpointing_enable", None)
        (enable or small.gradient_checkpointing_enable)()
    objective = fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits),
            "hidden": term(
                mse, student.hidden_states[1], teacher.hidden_states[3], where=batch.attention_mask
            ),
            "attention": term(mse, student.attention(1), teacher.attention(2)),
        },
        student=fkd.trainable(small),
        teacher=fkd.frozen(big),
    )
    optimizer = lambda params: torch.optim.SGD(params, lr=0.1)
    step = fkd.loops.train_step(objective, optimizer, compile=compile)
    state = step.init(seed=3)
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    values: list[torch.Tensor] = []
    for _ in range(2):
        state, metrics = step(state, {"input_ids": ids, "attention_mask": mask})
        values += [v for k, v in sorted(metrics.items()) if k.startswith(("loss", "grad_norm"))]
    return torch.stack(values), len(op._REGIONS)


@pytest.mark.compile
@pytest.mark.parametrize(("make", "checkpointing"), [(llama, False), (llama, True), (bert, False)])
def test_layers_that_are_read_inside(make, checkpointing, monkeypatch):
    monkeypatch.setattr(op, "_REGIONS", {})
    options = {"backend": "aot_eager"}
    plain, none = measured(make, {**options, "blocks": False}, checkpointing=checkpointing)
    shared, regions = measured(make, {**options, "blocks": 2}, checkpointing=checkpointing)
    assert none == 0
    assert regions == 4  # with and without a captured map, with and without a gradient
    torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-6)
