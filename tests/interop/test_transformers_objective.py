"""Captures as terms of an objective, in training mode, half precision and checkpointing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import fkd
from fkd import batch, student, teacher, term
from fkd.interop.transformers import Capture, prepare
from fkd.losses import attention_kl, attention_mse, kl, mse

from .tiny import VOCAB, batch_for, eager, tiny

_SIZES: dict[str, Any] = dict(
    hidden_size=16, num_attention_heads=2, intermediate_size=16, vocab_size=VOCAB
)


def _bert(layers: int) -> Any:
    torch.manual_seed(layers)
    return hf.BertForSequenceClassification(hf.BertConfig(**_SIZES, num_hidden_layers=layers))


def _objective(student_model: Any, teacher_model: Any) -> fkd.Objective:
    where = batch.attention_mask
    terms = {
        "scores": term(
            attention_mse, student.attention_scores(1), teacher.attention_scores(3), where=where
        ),
        "maps": term(attention_kl, student.attention(0), teacher.attention(-1), where=where),
        "values": term(mse, student.value(1), teacher.value(-1)),
        "hidden": term(mse, student.hidden_states[1], teacher.hidden_states[2], where=where),
        "kd": term(kl, student.logits, teacher.logits, temperature=2.0),
    }
    models = {"student": fkd.trainable(student_model, training=False)}
    return fkd.Objective(terms, **models, teacher=fkd.frozen(teacher_model))


def test_an_objective_reads_captures() -> None:
    ours, theirs, fields = _bert(2), _bert(4), batch_for("bert")
    objective = _objective(ours, theirs)
    parts = objective.init()
    _, aux = objective(parts, fields)
    s, t = (eager(m.eval())(**fields, output_attentions=True) for m in (ours, theirs))
    expected = attention_kl(s.attentions[0], t.attentions[-1], where=fields["attention_mask"])
    count = fields["attention_mask"].sum()
    torch.testing.assert_close(aux.terms["maps"].value, expected.sum() / count)


@pytest.mark.compile
def test_an_objective_with_captures_compiles_whole() -> None:
    objective, fields = _objective(_bert(2), _bert(4)), batch_for("bert")
    parts = objective.init()

    def total(trainable: Any) -> Tensor:
        return objective(parts._replace(trainable=trainable), fields)[0]

    step = torch.func.grad_and_value(total)
    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(parts.trainable), step(parts.trainable))


def test_an_unknown_layer_is_an_error_of_the_objective() -> None:
    terms = {"a": term(attention_mse, student.attention(7), teacher.attention(0))}
    with pytest.raises(fkd.ObjectiveError, match=r"attention\(7\): there is no such attention"):
        models = {"student": fkd.trainable(_bert(2)), "teacher": fkd.frozen(_bert(4))}
        fkd.check(fkd.Objective(terms, **models), batch_for("bert"))


def test_half_precision_is_the_eager_path() -> None:
    model, fields = tiny("llama").bfloat16(), batch_for("llama")
    expected = eager(model)(**fields, output_attentions=True, use_cache=False).attentions[0]
    prepared = prepare(model, [Capture("attention", 0)])
    model(**fields, use_cache=False)
    found = prepared.collect()["attention", 0, None]
    where = fields["attention_mask"].bool()[:, None, :, None]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found * where, expected * where)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = tiny("bert").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain, saving = copy.deepcopy(model), copy.deepcopy(model)
    enable = getattr(saving, "activation_checkpointing_enable", None)
    (enable or saving.gradient_checkpointing_enable)()
    for copied in (plain, saving):
        prepared = prepare(copied, [Capture("attention", 1), Capture("value", 2)])
        output = copied(**batch_for("bert"), use_cache=False)
        found = prepared.collect()
        (sum(v.square().sum() for v in found.values()) + output[0].sum()).backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
