"""Language models of few bits: students that train as they will be used, 4- and 8-bit teachers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fkd
from fkd import student, teacher, term
from fkd.interop.torchao import converted, fake_quantized, quantized
from fkd.losses import kl

from ..loops.text.test_batches import llama

ao: Any = pytest.importorskip("torchao.quantization", reason="pip install fkd[torchao]")
granularity: Any = pytest.importorskip("torchao.quantization.granularity")

FEW = ao.IntxWeightOnlyConfig(torch.int4, granularity.PerGroup(8))
DATA = {"input_ids": torch.randint(5, 400, (2, 8), generator=torch.Generator().manual_seed(0))}


def trained(small: Any, compile: Any = False, steps: int = 12) -> tuple[Any, list[float], Any]:
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=fkd.trainable(small),
        teacher=fkd.frozen(llama(1)),
    )
    step = fkd.loops.train_step(objective, lambda p: torch.optim.AdamW(p, lr=1e-2), compile=compile)
    state, losses = step.init(0), []
    for _ in range(steps):
        state, measured = step(state, DATA)
        losses.append(float(measured["loss/total"]))
    return objective, losses, state


def test_the_student_that_was_trained_is_the_one_that_is_converted(tmp_path):
    small = llama(0)
    before = {n: p.clone() for n, p in small.named_parameters()}
    aware = fake_quantized(small, FEW)
    assert {n for n, _ in aware.named_parameters()} == before.keys()
    assert all(torch.equal(p, before[n]) for n, p in small.named_parameters())
    objective, losses, state = trained(aware)
    assert losses[-1] < 0.5 * losses[0]
    made = fkd.loops.export(objective, state, "student").eval()
    few = converted(made, FEW)
    with torch.no_grad():
        rounded, plain = few(**DATA).logits, llama(0)
        plain.load_state_dict(state.trainable["student"], strict=False)
        torch.testing.assert_close(rounded, made(**DATA).logits, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(rounded, plain(**DATA).logits, atol=1e-3)
    weight = few.get_submodule("model.layers.0.mlp.gate_proj").weight
    assert "Int" in type(weight).__name__


@pytest.mark.filterwarnings("ignore")  # torchao's own, about torch
@pytest.mark.compile
def test_compiled_fake_quantization_is_eager():
    _, eager, _ = trained(fake_quantized(llama(0), FEW), steps=3)
    _, compiled, _ = trained(fake_quantized(llama(0), FEW), {"backend": "aot_eager"}, steps=3)
    assert compiled == pytest.approx(eager, rel=1e-4)


def test_tied_embeddings_stay_tied():
    small: Any = llama(0)
    small.lm_head.weight = small.model.embed_tokens.weight
    aware: Any = fake_quantized(small, FEW)
    assert aware.lm_head.weight is aware.model.embed_tokens.weight
    _, losses, state = trained(aware, steps=6)
    assert losses[-1] < losses[0]
    assert "lm_head.weight" not in state.trainable["student"]


def test_what_cannot_be_quantized_is_refused():
    with pytest.raises(ValueError, match=r"no submodule \['head'\]; the linear layers are model"):
        fake_quantized(llama(0), FEW, skip=["head"])
    with pytest.raises(ValueError, match="no linear layer that is not in skip"):
        fake_quantized(llama(0), FEW, skip=["model", "lm_head"])
    with pytest.raises(ValueError, match="no layer of the student is fake-quantized"):
        converted(llama(0), FEW)


@pytest.mark.parametrize(
    ("config", "near"), [(ao.Int8WeightOnlyConfig(), 0.05), (FEW, 0.4)], ids=["8 bits", "4 bits"]
)
def test_frozen_teachers_of_few_bits(config, near):
    """The same objective beside a rounded teacher: near in value, and its state is not trained."""
    whole, few = llama(1), quantized(llama(1), config)
    values = []
    for big in (whole, few):
        objective = fkd.Objective(
            {"kd": term(kl, student.logits, teacher.logits)},
            student=fkd.trainable(llama(0)),
            teacher=fkd.frozen(big),
        )
        fkd.check(objective, DATA)
        step = fkd.loops.train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
        _, measured = step(step.init(0), DATA)
        values.append(float(measured["loss/total"]))
    assert values[1] == pytest.approx(values[0], rel=near)
    assert values[1] != values[0]
