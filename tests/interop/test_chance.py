"""Models that leave out layers, draw masks or choose experts while they train."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

import fkd
from fkd import Objective, frozen, student, teacher, term, trainable
from fkd.loops import CompileError, train_step
from fkd.losses import kl, mse

AOT = {"backend": "aot_eager"}
SMALL: dict[str, Any] = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
)


def speech(**options: Any) -> hf.Wav2Vec2ForCTC:
    torch.manual_seed(0)
    ears: dict[str, Any] = dict(conv_dim=(8, 8), conv_kernel=(4, 3), conv_stride=(2, 2))
    ears |= dict(num_feat_extract_layers=2, num_conv_pos_embeddings=4)
    config = hf.Wav2Vec2Config(
        **SMALL, **ears, vocab_size=12, num_conv_pos_embedding_groups=2, **options
    )
    return hf.Wav2Vec2ForCTC(config)


def square(x: Tensor) -> Tensor:
    return x.square().mean(-1)


def objective(model: Any, **terms: Any) -> Objective:
    masked = ["wav2vec2.masked_spec_embed"]
    return Objective(
        {"logits": term(square, student.logits), **terms},
        student=trainable(model, unused=masked if isinstance(model, hf.Wav2Vec2ForCTC) else ()),
    )


def losses(chosen: Objective, batch: Any, compile: Any, seed: int = 0) -> list[float]:
    step = train_step(chosen, lambda p: torch.optim.SGD(p, lr=0.1), compile=compile)
    state, found = step.init(seed), []
    for _ in range(3):
        state, metrics = step(state, batch)
        found.append(metrics["loss/total"].item())
    return found


SOUND = {"input_values": torch.randn(2, 400, generator=torch.Generator().manual_seed(0))}


@pytest.mark.plain  # the type checker itself draws from `random`
def test_spec_augment_follows_the_seed():
    model = speech(layerdrop=0.0, mask_time_prob=0.3, mask_time_length=2)
    first = losses(objective(model), SOUND, False)
    np.random.rand(3)
    assert losses(objective(model), SOUND, False) == first
    assert losses(objective(model), SOUND, False, seed=1) != first


def test_what_cannot_be_compiled_is_said_before():
    cases = {
        r"leaves out whole layers at random \(config.layerdrop=0.1\)": speech(layerdrop=0.1),
        "apply_spec_augment = False": speech(layerdrop=0.0, mask_time_prob=0.3),
    }
    for message, model in cases.items():
        with pytest.raises(CompileError, match=message):
            train_step(objective(model), lambda p: torch.optim.SGD(p, lr=0.1))
        train_step(objective(model), lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    still = Objective(
        {"logits": term(square, student.logits)},
        student=trainable(speech(layerdrop=0.1), training=False),
    )
    train_step(still, lambda p: torch.optim.SGD(p, lr=0.1))


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:Dynamo detected a call")
def test_a_model_that_marks_its_input_is_compiled():
    model = speech(layerdrop=0.0, apply_spec_augment=False)
    expected = losses(objective(model), SOUND, False)
    assert losses(objective(model), SOUND, AOT) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "ref",
    [student.hidden_states[1], student.attention(0), student.tap("wav2vec2.encoder.layers.1")],
)
def test_a_layer_that_is_left_out_at_random_is_said(ref):
    chosen = objective(speech(layerdrop=0.1), layer=term(lambda x: x.mean(), ref))
    with pytest.raises(fkd.ObjectiveError, match=r"at random while it trains \(config.layerdrop"):
        fkd.check(chosen, SOUND)
    kept = objective(speech(layerdrop=0.1), last=term(square, student.logits))
    fkd.check(kept, SOUND)


def test_a_layer_that_is_left_out_in_the_dry_run_is_not_unreached():
    for _ in range(4):
        fkd.check(objective(speech(layerdrop=0.6, apply_spec_augment=False)), SOUND)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_encoder_decoders_say_so_too(part):
    torch.manual_seed(0)
    sizes = dict(d_model=16, encoder_layers=2, decoder_layers=2, vocab_size=20)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, f"{part}_layerdrop": 0.2}
    config = hf.BartConfig(**sizes, **heads, encoder_ffn_dim=16, decoder_ffn_dim=16)
    chosen = objective(
        hf.BartForConditionalGeneration(config),
        hidden=term(square, student.decoder_hidden_states[1]),
    )
    with pytest.raises(fkd.ObjectiveError, match=rf"\(Bart{part.title()}.layerdrop=0.2\)"):
        fkd.check(chosen, {"input_ids": torch.ones(1, 3, dtype=torch.long)})


def experts(seed: int) -> hf.MixtralForCausalLM:
    torch.manual_seed(seed)
    config = hf.MixtralConfig(
        **SMALL, vocab_size=20, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    )
    return hf.MixtralForCausalLM(config)


def test_a_mixture_of_experts_passes_the_check_and_trains():
    chosen = Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=trainable(experts(0)),
        teacher=frozen(experts(1)),
    )
    batch = {"input_ids": torch.randint(20, (2, 6), generator=torch.Generator().manual_seed(0))}
    before = torch.get_rng_state()
    fkd.check(chosen, batch)
    assert torch.equal(torch.get_rng_state(), before)
    first, *_, last = losses(chosen, batch, False)
    assert last < first


def test_a_forward_that_fails_is_still_a_mistake():
    class Wrong(torch.nn.Linear):
        def forward(self, x):
            raise KeyError("no such thing")

    chosen = Objective(
        {"m": term(mse, student.logits, teacher.logits)},
        student=trainable(torch.nn.Linear(3, 3)),
        teacher=frozen(Wrong(3, 3)),
    )
    with pytest.raises(fkd.ObjectiveError, match=r"'teacher': its forward failed .*no such thing"):
        fkd.check(chosen, {"input": torch.ones(2, 3), "x": torch.ones(2, 3)})


def test_an_adapter_that_was_not_given_is_one_to_train():
    for ref, kind in (
        (fkd.module("project")(student.logits), "trainable"),
        (fkd.ref("big").x, "frozen"),
    ):
        chosen = Objective({"m": term(square, ref)}, student=trainable(torch.nn.Linear(3, 3)))
        with pytest.raises(fkd.ObjectiveError, match=rf"=fkd.{kind}\(module\)"):
            fkd.check(chosen, {"input": torch.ones(2, 3)})
