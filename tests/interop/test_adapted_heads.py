"""A head with adapters of PEFT: the loss and the gradients are those of the plain logits."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers as hf
from torch import nn

import fkd
from fkd import student, teacher, term
from fkd.interop.transformers import head, heads
from fkd.loops import train_step
from fkd.losses import head_divergence, kl
from fkd.losses.head import kl as head_kl
from fkd.sources import bind, cache

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what peft imports
    peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning"),
]

IDS = dict(vocab_size=60, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA = IDS | dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
LLAMA |= dict(num_key_value_heads=1, intermediate_size=16)
GPTJ = IDS | dict(n_embd=16, n_layer=1, n_head=2, rotary_dim=4)


def llama(seed: int, **sizes) -> nn.Module:
    torch.manual_seed(seed)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA | sizes))


def with_bias() -> nn.Module:
    torch.manual_seed(2)
    model = hf.GPTJForCausalLM(hf.GPTJConfig(**GPTJ))
    nn.init.normal_(model.lm_head.bias)
    return model


def adapted(base: nn.Module | None = None, **options) -> nn.Module:
    config = dict(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM") | options
    config.setdefault("init_lora_weights", False)
    model = peft.get_peft_model(base if base is not None else llama(1), peft.LoraConfig(**config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "magnitude" in name:  # else it is the length of the row
                p.mul_(0.5 + torch.rand(p.shape, generator=generator))
    return model


def two_adapters() -> nn.Module:
    model = adapted()
    more = dict(r=3, target_modules=["lm_head"], lora_alpha=7, init_lora_weights=False)
    model.add_adapter("more", peft.LoraConfig(**more))
    model.base_model.set_adapter(["default", "more"])
    return model


def the_other_adapter() -> nn.Module:
    model = two_adapters()
    model.set_adapter("more")
    return model


KINDS = {
    "lora": adapted,
    "as it begins": lambda: adapted(init_lora_weights=True),
    "rank stabilised": lambda: adapted(use_rslora=True, lora_alpha=5),
    "dora": lambda: adapted(use_dora=True),
    "tied": lambda: adapted(llama(1, tie_word_embeddings=True)),
    "tied, embeddings too": lambda: adapted(
        llama(1, tie_word_embeddings=True), target_modules=["embed_tokens", "lm_head"]
    ),
    "bias": lambda: adapted(with_bias()),
    "bias of the adapter": lambda: adapted(with_bias(), lora_bias=True, target_modules=["lm_head"]),
    "bias and dora": lambda: adapted(with_bias(), use_dora=True),
    "two": two_adapters,
    "the other": the_other_adapter,
    "without peft around it": lambda: adapted().get_base_model(),
}


def fields() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(14).reshape(2, 7) * 5 % 60}


def objective_of(small: nn.Module, big: nn.Module, *, by_head: bool) -> fkd.Objective:
    frozen = fkd.frozen(big)
    by_logits = term(kl, student.logits, teacher.logits)
    if by_head:
        both = heads(student=small, teacher=frozen)
        by_logits = term(head_divergence, **both, divergence=head_kl())
    return fkd.Objective({"kd": by_logits}, student=fkd.trainable(small), teacher=frozen)


def one_step(objective: fkd.Objective, **options) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and what SGD of rate 1 subtracts."""
    step = train_step(objective, lambda params: torch.optim.SGD(params, lr=1.0), **options)
    state = step.init()
    before = {n: x.clone() for n, x in state.trainable["student"].items()}
    state, logs = step(state, fields())
    return logs["loss/kd"], {n: before[n] - x for n, x in state.trainable["student"].items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_adapters_are_those_of_the_logits(kind):
    small = KINDS[kind]()
    (ours, gradients), (plain, expected) = (
        one_step(objective_of(small, llama(3), by_head=by_head), compile=False)
        for by_head in (True, False)
    )
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys() and any("lora_B" in name for name in expected)
    for name, gradient in gradients.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4 * scale + 1e-9)


@pytest.mark.compile
def test_an_adapted_head_compiles():
    objective = objective_of(adapted(use_dora=True), llama(3), by_head=True)
    ours, gradients = one_step(objective, compile={"backend": "aot_eager"})
    eager, expected = one_step(objective, compile=False)
    torch.testing.assert_close((ours, gradients), (eager, expected))


def test_a_teacher_s_adapted_head_is_applied_to_what_a_cache_holds(tmp_path):
    objective = objective_of(llama(1), adapted(llama(3), lora_dropout=0.5), by_head=True)
    live, _ = objective(objective.init(), fields())
    kept = cache(objective, [fields()], tmp_path / "cache")
    cheap = bind(objective, kept)
    cached, _ = cheap(cheap.init(), next(iter(kept.attach([fields()]))))
    torch.testing.assert_close(cached, live)


def test_half_precision_keeps_a_small_adapter():
    """One that is added to the weights would be rounded away."""
    model = adapted(llama(1).bfloat16())
    with torch.no_grad():
        model.base_model.model.lm_head.lora_B["default"].weight.mul_(1e-3)
    ours, gradients = one_step(objective_of(model, llama(3), by_head=True), compile=False)
    name = next(n for n in gradients if "lm_head.lora_A" in n)
    _, expected = one_step(objective_of(model.float(), llama(3), by_head=False), compile=False)
    close = nn.functional.cosine_similarity(gradients[name].flatten(), expected[name].flatten(), 0)
    assert torch.isfinite(ours) and float(close) > 0.99


def test_other_adapters_are_refused_in_words():
    with pytest.raises(ValueError, match=r"lora_dropout=0\.1, which a head term does not draw"):
        head(adapted(lora_dropout=0.1))
    loha = peft.LoHaConfig(target_modules=["lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"loha\.layer\.Linear.*adapters that are not LoRA"):
        head(peft.get_peft_model(llama(1), loha))
    two = adapted(use_dora=True)
    two.add_adapter("more", peft.LoraConfig(target_modules=["lm_head"]))
    two.base_model.set_adapter(["default", "more"])
    with pytest.raises(ValueError, match="a DoraLinearVariant, of 2 that are active"):
        head(two)


def test_parameters_that_share_their_memory_are_refused():
    """PEFT ties two adapters by their memory; a step would part them."""
    tied = adapted(llama(1, tie_word_embeddings=True), ensure_weight_tying=True)
    expected = r"'.*embed_tokens.*' and '.*lm_head.*', two parameters with one memory.*PEFT"
    with pytest.raises(ValueError, match=expected):
        head(tied)
    with pytest.raises(ValueError, match=expected):
        fkd.Objective(
            {"kd": term(kl, student.logits, teacher.logits)},
            student=fkd.trainable(tied),
            teacher=fkd.frozen(llama(3)),
        ).init()


def test_a_head_written_without_its_adapters_is_noted():
    small, big = adapted(), llama(3)
    place = "base_model.model.lm_head"
    written = term(
        head_divergence,
        *(student.tap(place, "input"), student.param(f"{place}.base_layer.weight")),
        *(teacher.tap("lm_head", "input"), teacher.param("lm_head.weight")),
        divergence=head_kl(),
    )
    both = term(kl, student.logits, teacher.logits)
    models = dict(student=fkd.trainable(small), teacher=fkd.frozen(big))
    said = fkd.check(fkd.Objective({"head": written, "kd": both}, **models), fields()).notes
    assert len(said) == 1 and "without the adapters of its layer" in said[0]
    assert not fkd.check(objective_of(small, big, by_head=True), fields()).notes
