"""Inputs, outputs, layer start and export of transformers models."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from fkd._objective.models import skeleton
from fkd.interop.transformers import (
    Capture,
    default_inputs,
    init_from_layers,
    is_transformers,
    outputs,
    prepare,
    save_pretrained,
)

from .tiny import MAKERS, PARTS, VOCAB, batch_for, tiny

TEXT: dict[str, Any] = dict(
    hidden_size=16, num_attention_heads=2, intermediate_size=16, vocab_size=VOCAB
)


def test_is_transformers() -> None:
    assert is_transformers(tiny("bert"))
    assert not is_transformers(torch.nn.Linear(2, 2))


def test_transformers_is_not_imported_for_other_modules() -> None:
    code = (
        "import sys, torch; from fkd.interop.transformers import is_transformers; "
        "assert not is_transformers(torch.nn.Linear(2, 2)); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("bert", {"input_ids", "attention_mask", "token_type_ids", "use_cache"}),
        ("distilbert", {"input_ids", "attention_mask"}),
        ("gpt2", {"input_ids", "attention_mask", "token_type_ids", "use_cache"}),
        ("llama", {"input_ids", "attention_mask", "use_cache"}),
        ("vit", {"pixel_values", "attention_mask"}),
        ("t5", {"input_ids", "attention_mask", "decoder_input_ids", "use_cache"}),
    ],
)
def test_inputs_are_the_fields_that_the_forward_takes(name: str, fields: set[str]) -> None:
    ids = torch.ones(2, 4, dtype=torch.long)
    names = "input_ids attention_mask token_type_ids pixel_values labels start_positions id".split()
    found = default_inputs(tiny(name), dict.fromkeys(names, ids))
    assert found.keys() == fields
    assert not found.get("use_cache", False)


def test_decoder_inputs_are_made_from_labels_as_the_model_does() -> None:
    for name in ("t5", "bart"):
        model, batch = tiny(name), batch_for(name)
        labels = torch.tensor([[4, 5, 2], [6, 2, -100]])
        del batch["decoder_input_ids"]
        ours = model(**default_inputs(model, {**batch, "labels": labels}))
        assert "loss" not in ours
        torch.testing.assert_close(ours.logits, model(**batch, labels=labels).logits)


def test_outputs_are_plain() -> None:
    found = outputs(tiny("t5")(**batch_for("t5"), output_hidden_states=True))
    assert type(found) is dict
    assert "past_key_values" not in found
    assert None not in found.values()
    assert [type(found[k]) for k in ("logits", "decoder_hidden_states")] == [torch.Tensor, tuple]
    nested = outputs(hf.modeling_outputs.ModelOutput(a=hf.modeling_outputs.ModelOutput(b=1)))
    assert nested == {"a": {"b": 1}}
    assert type(nested["a"]) is dict


def test_flags_are_what_the_paths_need() -> None:
    model = tiny("bert")
    assert prepare(model, [], [("logits",)]).flags == {"return_dict": True}
    hidden = prepare(model, [], [("hidden_states", 1)]).flags
    assert hidden == {"output_hidden_states": True, "return_dict": True}
    model.config.output_hidden_states = True
    assert prepare(model, [], [("logits",)]).flags["output_hidden_states"] is False


def test_a_model_that_has_run_before_gives_each_hidden_state_once() -> None:
    model, batch = tiny("bert"), batch_for("bert")
    expected = model.bert(**batch, output_hidden_states=True).hidden_states
    copied = skeleton(model, training=False)
    prepared = prepare(copied, [], [("hidden_states", 0)])
    found = prepared.outputs(copied(**batch, **prepared.flags))["hidden_states"]
    assert len(found) == 4
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def _shallow(name: str) -> Any:
    """The model of `tiny(name)` with two layers (and as many decoder layers as before)."""
    config = copy.deepcopy(tiny(name).config)
    config.num_hidden_layers = 2
    if hasattr(config, "encoder_layers"):
        config.encoder_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    torch.manual_seed(9)
    return type(tiny(name))(config).eval()


STACKS = {
    "bert": "bert.encoder.layer", "roberta": "encoder.layer", "distilbert": "transformer.layer",
    "vit": "vit.layers", "gpt2": "transformer.h", "llama": "model.layers", "t5": "encoder.block",
    "electra": "encoder.layer", "qwen3": "model.layers", "deberta": "encoder.layer",
    "mpnet": "encoder.layer", "gptj": "transformer.h", "bloom": "h", "falcon": "h",
    "xlnet": "layer", "bart": "model.encoder.layers", "whisper": "model.encoder.layers",
}  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
def test_a_student_of_all_layers_but_one(name: str) -> None:
    """Dropping layer 1 of the teacher by hand gives what init_from_layers gives."""
    teacher, student = tiny(name), _shallow(name)
    layers: Any = {"encoder": [0, 2], "decoder": [0, 1]} if name in PARTS else [0, 2]
    before = copy.deepcopy(student.state_dict())
    started = init_from_layers(student, teacher, layers)
    by_hand = copy.deepcopy(teacher)
    del by_hand.get_submodule(STACKS[name])[1]
    assert type(started) is type(student)
    torch.testing.assert_close(started.state_dict(), by_hand.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(student.state_dict(), before, rtol=0, atol=0)
    batch = default_inputs(started, batch_for(name))
    torch.testing.assert_close(started(**batch)[0], by_hand(**batch)[0])
    shared = {p.data_ptr() for p in teacher.parameters()}
    assert not shared & {p.data_ptr() for p in started.parameters()}


def test_distilbert_from_bert() -> None:
    teacher = hf.BertModel(hf.BertConfig(**TEXT, num_hidden_layers=4), add_pooling_layer=False)
    with torch.no_grad():
        teacher.embeddings.token_type_embeddings.weight.zero_()
    config = hf.DistilBertConfig(vocab_size=VOCAB, dim=16, n_heads=2, n_layers=2, hidden_dim=16)
    head = hf.DistilBertForSequenceClassification(config)
    started = init_from_layers(head, teacher, [1, -1]).eval()
    by_hand = copy.deepcopy(teacher).eval()
    del by_hand.encoder.layer[0], by_hand.encoder.layer[1]
    ids = torch.randint(3, VOCAB, (2, 5))
    expected = by_hand(input_ids=ids).last_hidden_state
    found = started.distilbert(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, expected)


def test_what_does_not_fit_stays_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    teacher = hf.BertForSequenceClassification(hf.BertConfig(**TEXT, num_hidden_layers=2))
    config = hf.BertConfig(**TEXT | {"vocab_size": 40}, num_hidden_layers=1, num_labels=5)
    student = hf.BertForSequenceClassification(config)
    with caplog.at_level(logging.WARNING):
        started = init_from_layers(student, teacher, [1])
    assert torch.equal(started.classifier.weight, student.classifier.weight)
    assert torch.equal(started.bert.pooler.dense.weight, teacher.bert.pooler.dense.weight)
    assert "embeddings.word_embeddings.weight, classifier.weight" in caplog.text


def test_a_layer_of_another_type_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Gemma 2 alternates between a window and full attention; weights do not show it."""
    teacher, student = tiny("gemma2"), _shallow("gemma2")
    with caplog.at_level(logging.WARNING):
        init_from_layers(student, teacher, [0, 1])
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        init_from_layers(student, teacher, [0, 2])
    assert "layer 1 is full_attention, teacher layer 2 is sliding_attention" in caplog.text


@pytest.mark.parametrize(
    ("sizes", "layers", "message"),
    [
        ({}, [0], "1 entries; the student has 2 layers"),
        ({}, [0, 4], r"layers \[4\] are not layers of the teacher; 0 to 3"),
        ({"num_hidden_layers": 6}, [0, 1, 2, 3, 4, 5], "0 to 3 are expected"),
        ({"hidden_size": 8}, [0, 2], r"query.weight \(8, 8\), teacher's \(16, 16\)"),
        ({"intermediate_size": 8}, [0, 2], "Layers of the same names and sizes"),
    ],
)
def test_a_start_that_is_impossible_is_an_error(
    sizes: dict[str, int], layers: list[int], message: str
) -> None:
    teacher = hf.BertModel(hf.BertConfig(**TEXT, num_hidden_layers=4))
    student = hf.BertModel(hf.BertConfig(**{**TEXT, "num_hidden_layers": 2, **sizes}))
    with pytest.raises(ValueError, match=message):
        init_from_layers(student, teacher, layers)


def test_another_family_is_an_error() -> None:
    with pytest.raises(ValueError, match="is not in teacher layer 0"):
        init_from_layers(tiny("llama"), tiny("gpt2"), [0, 1, 2])
    with pytest.raises(ValueError, match="the same stacks of layers are expected"):
        init_from_layers(tiny("bert"), tiny("t5"), [0, 1, 2])


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit", "bart"])
def test_a_saved_student_loads_back(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    config = model.config.to_dict()
    copied = skeleton(model, training=True)
    part = "decoder" if name in ("t5", "bart") else None
    prepare(copied, [Capture("attention", 0, part)], [("hidden_states", 0)])
    trained = {n: p.detach() + 0.1 for n, p in copied.named_parameters()}
    save_pretrained(copied, {**trained, **dict(copied.named_buffers())}, tmp_path / "student")
    loaded = type(model).from_pretrained(tmp_path / "student").eval()
    batch = default_inputs(loaded, batch_for(name))
    reference = copy.deepcopy(model)
    reference.load_state_dict(trained, strict=False)
    torch.testing.assert_close(loaded(**batch)[0], reference(**batch)[0])
    assert loaded.config._attn_implementation == model.config._attn_implementation
    assert "fkd" not in (tmp_path / "student" / "config.json").read_text()
    assert config == model.config.to_dict()


def test_saving_says_what_does_not_fit(tmp_path: Path) -> None:
    model = tiny("gpt2")
    with pytest.raises(ValueError, match=r"tensors has \['nothing'\]"):
        save_pretrained(model, {"nothing": torch.ones(1)}, tmp_path)
    weight = model.lm_head.weight.detach()
    tied = {"lm_head.weight": weight, "transformer.wte.weight": weight + 1}
    with pytest.raises(ValueError, match="no longer equal"):
        save_pretrained(model, tied, tmp_path)
    with pytest.raises(ValueError, match="a Linear; a model of transformers"):
        save_pretrained(torch.nn.Linear(1, 1), {}, tmp_path)


def test_every_class_of_the_table_is_made() -> None:
    assert set(STACKS) <= set(MAKERS)
