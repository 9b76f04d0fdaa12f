"""Trained models as programs, with sizes that are free."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import fkd
from examples.recipes._small import bert, gpt
from fkd import student, term
from fkd.interop import onnx

from ..loops.training import Net


def trained(module):
    objective = fkd.Objective(
        {"a": term(lambda x: x.square().mean(-1), student.logits)},
        student=fkd.trainable(module),
    )
    step = fkd.loops.train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    return objective, step.init()


IDS = torch.arange(3, 13).reshape(2, 5)
TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


@pytest.mark.parametrize("make", [lambda: bert(8, 2), lambda: gpt(8, 1)], ids=["bert", "gpt2"])
def test_a_program_takes_other_batches_and_lengths(make):
    objective, state = trained(make())
    exported = onnx.program(objective, state, TEXT).module()
    model = fkd.loops.export(objective, state)
    ids = torch.arange(3, 15).reshape(3, 4)
    mask = torch.ones_like(ids)
    mask[1, 2:] = 0
    ours = exported(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(ours, model(input_ids=ids, attention_mask=mask).logits)


def test_a_program_of_ones_own_module_and_of_one_example():
    net = Net(6)
    objective, state = trained(net)
    exported = onnx.program(objective, state, {"x": torch.randn(1, 5)}).module()
    x = torch.randn(4, 5)
    made = exported(x=x)
    assert set(made) == {"hidden", "logits"}
    torch.testing.assert_close(made["logits"], net.eval()(x)["logits"])
    with pytest.raises(ValueError, match="no model 'studnet'"):
        onnx.program(objective, state, {"x": x}, "studnet")


class Decides(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) if bool(input.sum() > 0) else input


def test_what_cannot_be_exported_is_said():
    objective, state = trained(Decides(4, 4))
    with pytest.raises(ValueError, match="cannot export model 'student'"):
        onnx.program(objective, state, torch.randn(2, 4))


def test_without_onnx_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    objective, state = trained(torch.nn.Linear(4, 3))
    with pytest.raises(ModuleNotFoundError, match="pip install onnx onnxscript"):
        onnx.save(objective, state, tmp_path / "a.onnx", torch.randn(2, 4))


def test_onnx_computes_the_same(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    objective, state = trained(bert(8, 2))
    path = onnx.save(objective, state, tmp_path / "student.onnx", TEXT)
    session = runtime.InferenceSession(path)
    ids = torch.arange(3, 15).reshape(3, 4)
    fields = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
    (logits,) = session.run(["logits"], fields)
    model = fkd.loops.export(objective, state)
    want = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(torch.tensor(logits), want, rtol=1e-4, atol=1e-5)
