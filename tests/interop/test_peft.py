"""Students with adapters of PEFT: only these are trained, kept and written."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers as hf
from safetensors import safe_open
from torch import nn

import fkd
from fkd import student, teacher, term
from fkd.interop.transformers import heads
from fkd.loops import MismatchError, export, run, train_step
from fkd.losses import head_divergence, kl, mse
from fkd.losses.head import kl as head_kl

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what peft imports
    peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

SIZES = dict(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=16,
    pad_token_id=0,
)


def llama(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES))


def adapted(seed: int = 1, **options) -> nn.Module:
    config = dict(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") | options
    return peft.get_peft_model(llama(seed), peft.LoraConfig(**config))


def fields() -> dict[str, torch.Tensor]:
    ids = torch.arange(14).reshape(2, 7) * 5 % 60
    return {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]] * 2)}


def step_of(model: nn.Module, **options):
    big = llama(3)
    objective = fkd.Objective(
        {
            "head": term(
                head_divergence, **heads(student=model, teacher=big), divergence=head_kl()
            ),
            "hidden": term(mse, student.hidden_states[-1], teacher.hidden_states[-1]),
        },
        student=fkd.trainable(model),
        teacher=fkd.frozen(big),
    )
    make = lambda params: torch.optim.AdamW(params, lr=1e-2)
    return train_step(objective, make, compile=False, **options)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**fields()).logits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_base_is_neither_copied_nor_trained_nor_saved(tmp_path, precision):
    model = adapted()
    step = step_of(model, precision=precision)
    state = step.init()
    assert all("lora" in name for name in state.trainable["student"])
    own = dict(model.named_parameters())
    assert all(x.data_ptr() == own[n].data_ptr() for n, x in state.frozen["student"].items())
    result = run(step, state, [fields()] * 3, epochs=1, checkpoint_dir=tmp_path, progress=False)
    with safe_open(next(tmp_path.rglob("state.safetensors")), "pt") as file:
        kept = [file.get_tensor(n) for n in file.keys()]
    adapters = sum(p.numel() for p in result.state.trainable["student"].values())
    assert sum(x.numel() for x in kept) < 3.2 * adapters  # with the two moments of AdamW
    options = dict(epochs=2, progress=False)
    again = run(step, step.init(), [fields()] * 3, checkpoint_dir=tmp_path, **options)
    straight = run(step, step.init(), [fields()] * 3, **options)
    for name, x in straight.state.trainable["student"].items():
        assert torch.equal(again.state.trainable["student"][name], x)


def test_a_checkpoint_is_not_resumed_on_another_base(tmp_path):
    options = dict(checkpoint_dir=tmp_path, progress=False)
    step = step_of(adapted(1))
    run(step, step.init(), [fields()], epochs=1, **options)
    other = step_of(adapted(2))
    with pytest.raises(MismatchError, match="student/frozen values"):
        run(other, other.init(), [fields()], epochs=2, **options)


def test_positions_reach_the_model_inside():
    model = adapted()
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=fkd.trainable(model),
        teacher=fkd.frozen(llama(1)),
    )
    with_positions = objective(objective.init(), fields())[1].terms["kd"].value
    assert float(with_positions) < 1e-6  # an untrained adapter changes nothing


def test_adapters_are_written_alone_or_merged(tmp_path):
    model = adapted(init_lora_weights=False)
    step = step_of(model)
    state, _ = step(step.init(), fields())
    trained = export(step.objective, state, "student", tmp_path / "adapters")
    size = (tmp_path / "adapters" / "adapter_model.safetensors").stat().st_size
    assert size < 8000
    loaded = peft.PeftModel.from_pretrained(llama(1), tmp_path / "adapters")
    assert torch.equal(logits(loaded), logits(trained))
    whole = export(step.objective, state, "student", tmp_path / "whole", merge=True)
    assert type(whole) is hf.LlamaForCausalLM
    plain = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(logits(plain), logits(trained), rtol=1e-5, atol=1e-5)


def test_the_inside_of_a_peft_model_is_merged_or_refused(tmp_path):
    inside = adapted(init_lora_weights=False).get_base_model()
    step = step_of(inside)
    state, _ = step(step.init(), fields())
    with pytest.raises(ValueError, match="PeftModel itself"):
        export(step.objective, state, "student", tmp_path)
    whole = export(step.objective, state, "student", tmp_path, merge=True)
    plain = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(plain), logits(whole))
    with pytest.raises(ValueError, match="no adapters"):
        export(step.objective, state, "teacher", merge=True)


def test_a_head_that_is_trained_beside_adapters_is_the_head(tmp_path):
    model = adapted(modules_to_save=["lm_head"])
    step = step_of(model)
    state = step.init(0)
    objective, parts = step.objective, step.objective.init()
    by_head, aux = objective(parts, fields())
    by_logits = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=fkd.trainable(model),
        teacher=objective.models["teacher"],
    )
    whole, _ = by_logits(by_logits.init(), fields())
    torch.testing.assert_close(aux.terms["head"].value, whole)
    assert torch.isfinite(by_head)
    state, _ = step(state, fields())
    made = export(objective, state, "student", tmp_path)
    again = peft.PeftModel.from_pretrained(llama(1), tmp_path)
    assert torch.equal(logits(made), logits(again))
    weights = (m.get_output_embeddings() for m in (made.get_base_model(), llama(1)))
    moved, first = (getattr(w, "modules_to_save", {"default": w})["default"] for w in weights)
    assert not torch.equal(moved.weight, first.weight)
