"""Teachers quantized by torchao: values, memory, steps, and what compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fkd
from fkd import student, teacher, term
from fkd.interop.torchao import quantized
from fkd.losses import kl, mse
from tests.interop.tiny import batch_for, tiny

UNREAD = ["bert.pooler", "classifier", "cls"]
ao: Any = pytest.importorskip("torchao.quantization", reason="pip install fkd[torchao]")
CONFIGS = {"int8": ao.Int8WeightOnlyConfig, "float8": ao.Float8WeightOnlyConfig}


def wide(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.Linear(64, 7)
    return nn.Sequential(*layers)


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3)


@pytest.mark.parametrize("make", CONFIGS.values(), ids=CONFIGS)
def test_a_quantized_teacher_is_near_and_smaller(make: Callable[[], Any]) -> None:
    large = wide()
    before = {n: p.clone() for n, p in large.named_parameters()}
    small = quantized(large, make())
    x = torch.randn(5, 64)
    expected = large(x)
    got = small(x.bfloat16()).float()
    assert (got - expected).abs().max() < 0.1 * expected.abs().max()
    assert all(torch.equal(p, before[n]) and p.requires_grad for n, p in large.named_parameters())
    assert [type(m.weight) is nn.Parameter for m in small if isinstance(m, nn.Linear)] == [
        False, False, True,  # 7 classes are no multiple of 16
    ]  # fmt: skip


def test_what_is_skipped_stays_in_bfloat16() -> None:
    small: Any = quantized(wide(), ao.Int8WeightOnlyConfig(), skip=["2"])
    assert type(small[0].weight) is not nn.Parameter
    assert type(small[2].weight) is nn.Parameter
    assert small[2].weight.dtype is torch.bfloat16
    with pytest.raises(ValueError, match=r"no submodule \['head'\]; the linear layers are 0, 2, 3"):
        quantized(wide(), ao.Int8WeightOnlyConfig(), skip=["head"])


def test_shared_weights_stay_shared() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(32, 16), "b": nn.Embedding(32, 16)})
    model["b"].weight = model["a"].weight
    small: Any = quantized(model, ao.Int8WeightOnlyConfig())
    assert small["a"].weight is small["b"].weight
    half = wide().bfloat16()
    kept: Any = quantized(half, ao.Int8WeightOnlyConfig())
    assert kept[3].weight.data_ptr() == half[3].weight.data_ptr()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_with_a_quantized_teacher(precision: Any) -> None:
    step = fkd.loops.train_step(
        fkd.Objective(
            {"kd": term(kl, student.logits, teacher.logits)},
            student=fkd.trainable(wide(1)),
            teacher=fkd.frozen(quantized(wide(), ao.Int8WeightOnlyConfig()), inputs=_half),
        ),
        adamw,
        compile=False,
        precision=precision,
    )
    state, losses = step.init(0), []
    for _ in range(8):
        state, metrics = step(state, torch.ones(4, 64))
        losses.append(float(metrics["loss/total"]))
    assert losses[0] > 2 * losses[-1] > 0


def _half(batch: Tensor) -> Tensor:
    return batch.bfloat16()


@pytest.mark.compile
def test_a_quantized_transformer_compiles_into_the_step() -> None:
    large, batch = tiny("bert"), batch_for("bert")
    terms = {"hidden": term(mse, student.hidden_states[3], teacher.hidden_states[2])}

    def totals(compile: Any) -> list[float]:
        models = {
            "student": fkd.trainable(tiny("bert"), unused=UNREAD),
            "teacher": fkd.frozen(quantized(large, ao.Int8WeightOnlyConfig())),
        }
        step = fkd.loops.train_step(fkd.Objective(terms, **models), adamw, compile=compile)
        state, found = step.init(0), []
        for _ in range(2):
            state, metrics = step(state, batch)
            found.append(float(metrics["loss/total"]))
        return found

    assert totals({"backend": "aot_eager"}) == pytest.approx(totals(False), rel=1e-3)
