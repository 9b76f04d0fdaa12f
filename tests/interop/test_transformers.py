"""Attention capture against transformers' own eager path, values and gradients."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor

import fkd
from fkd._objective.models import skeleton
from fkd.interop.transformers import Capture, default_inputs, prepare

from .tiny import CLASSES, INTERFACE, OWN, PARTS, batch_for, counted, eager, maps, tiny

KINDS = ("attention", "attention_scores", "query", "key", "value")


def _parts(name: str) -> tuple[str | None, ...]:
    return PARTS.get(name, (None,))


def _run(name: str, captures: list[Capture], paths: Any = (), model: Any = None) -> Any:
    """Output and captures of a prepared copy, and the copy."""
    copied = skeleton(tiny(name) if model is None else model, training=False)
    prepared = prepare(copied, captures, paths)
    raw = copied(**default_inputs(copied, batch_for(name)), **prepared.flags)
    return prepared.outputs(raw), prepared.collect(), copied


def _reference(name: str) -> tuple[Any, Any]:
    model = eager(tiny(name))
    return model(**default_inputs(model, batch_for(name)), output_attentions=True), model


def _real(x: Tensor, where: Tensor) -> Tensor:
    """A map without the rows of padding, which SDPA and eager treat differently."""
    return x * where[:, None, :, None]


@pytest.mark.parametrize("name", CLASSES)
def test_maps_are_those_of_the_eager_path(name: str) -> None:
    parts = _parts(name)
    output, found, _ = _run(name, [Capture("attention", i, p) for p in parts for i in (0, -1)])
    expected, _ = _reference(name)
    for part in parts:
        where = counted(name, batch_for(name), part)
        for layer in (0, -1):
            ours, theirs = found["attention", layer, part], maps(expected, part)[layer]
            torch.testing.assert_close(_real(ours, where), _real(theirs, where))
            assert theirs.std() > 0.01, "a uniform map shows nothing"
    if name in PARTS:
        torch.testing.assert_close(output["logits"], expected["logits"])


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_of_maps_are_those_of_the_eager_path(name: str) -> None:
    part = _parts(name)[-1]
    _, found, ours = _run(name, [Capture("attention", 1, part)])
    expected, theirs = _reference(name)
    where = counted(name, batch_for(name), part)
    map_ = maps(expected, part)[1]
    direction = torch.randn(map_.shape, generator=torch.Generator().manual_seed(0))
    (_real(found["attention", 1, part], where) * direction).sum().backward()
    (_real(map_, where) * direction).sum().backward()
    reference = dict(theirs.named_parameters())
    reached = 0
    for parameter_name, p in ours.named_parameters():
        grad = reference[parameter_name].grad
        if grad is not None:
            assert p.grad is not None, parameter_name
            torch.testing.assert_close(p.grad, grad, atol=1e-5, rtol=1e-3)
            reached += bool((grad != 0).any())
    assert reached > 2


@pytest.mark.parametrize("name", CLASSES)
def test_scores_are_what_the_softmax_is_taken_of(name: str) -> None:
    parts = _parts(name)
    _, found, _ = _run(name, [Capture("attention_scores", 1, p) for p in parts])
    expected, _ = _reference(name)
    for part in parts:
        where = counted(name, batch_for(name), part)
        ours = found["attention_scores", 1, part].softmax(-1)
        torch.testing.assert_close(_real(ours, where), _real(maps(expected, part)[1], where))


@pytest.mark.parametrize("name", [n for n in INTERFACE if n not in PARTS])
def test_states_are_what_the_eager_function_is_given(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ("query", "key", "value")
    _, found, _ = _run(name, [Capture(kind, 1) for kind in kinds])
    model, calls = eager(tiny(name)), list[tuple[Tensor, ...]]()
    namespace: Any = inspect.getmodule(type(model))
    function = namespace.eager_attention_forward

    def spy(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Any:
        calls.append((query, key, value))
        return function(module, query, key, value, *args, **kw)

    monkeypatch.setattr(namespace, "eager_attention_forward", spy)
    model(**default_inputs(model, batch_for(name)))
    where = counted(name, batch_for(name), None)
    for kind, theirs in zip(kinds, calls[1], strict=True):
        ours = found[kind, 1, None]
        torch.testing.assert_close(_real(ours, where), _real(theirs, where))
        grouped = name in ("llama", "qwen2", "qwen3", "mistral", "gemma2") and kind != "query"
        assert ours.shape[1] == (2 if grouped else theirs.shape[1])


@pytest.mark.parametrize("name", ["deberta", "mpnet", "gptj"])
def test_projections_of_a_model_without_the_interface(name: str) -> None:
    layers = {"deberta": "encoder.layer", "mpnet": "encoder.layer", "gptj": "transformer.h"}
    modules = {"deberta": ("attention.self", "query_proj", "value_proj")}
    modules |= {"mpnet": ("attention.attn", "q", "v"), "gptj": ("attn", "", "v_proj")}
    inner, query, value = modules[name]
    module = f"{layers[name]}.1.{inner}"
    _, found, model = _run(name, [Capture(k, 1) for k in ("query", "value")])
    given = list[Tensor]()
    attention = model.get_submodule(module)
    attention.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((*args, *kwargs.values())[0]), with_kwargs=True
    )
    model(**default_inputs(model, batch_for(name)))
    for kind, projection in (("query", query), ("value", value)):
        if projection:  # GPT-J rotates its queries
            expected = getattr(attention, projection)(given[0]).view(2, 6, 2, 8).transpose(1, 2)
            torch.testing.assert_close(found[kind, 1, None], expected)


@pytest.mark.parametrize("name", OWN)
def test_states_make_the_map(name: str) -> None:
    """Where nothing is added to the scores but a mask, query and key give the map."""
    scale, kinds = 8**-0.5, ("query", "key", "value", "attention")
    _, found, _ = _run(name, [Capture(kind, 1) for kind in kinds])
    query, key, value, weights = (found[kind, 1, None] for kind in kinds)
    assert (query.shape[:3] == weights.shape[:3] and key.shape == query.shape == value.shape) or (
        name == "falcon" and key.shape == value.shape == (2, 1, 6, 8)
    )
    if name in ("gptj", "falcon"):
        scores = query @ key.mT * scale
        causal = (
            torch.ones(6, 6).tril().bool() & batch_for(name)["attention_mask"][:, None, None].bool()
        )
        expected = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        where = counted(name, batch_for(name), None)
        torch.testing.assert_close(_real(weights, where), _real(expected, where))


def test_a_sink_has_no_column() -> None:
    sizes = dict(hidden_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8)
    model = hf.GptOssModel(
        hf.GptOssConfig(**sizes, num_hidden_layers=2, intermediate_size=16, vocab_size=30,
                        num_local_experts=2, num_experts_per_tok=1, pad_token_id=0)
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    prepared = prepare(model, [Capture(k, 0) for k in ("attention", "attention_scores")])
    model(**batch_for("bert"), use_cache=False)
    weights, scores = prepared.collect().values()
    assert weights.shape == scores.shape == (2, 2, 6, 6)
    shares = weights / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(scores.softmax(-1)[1], shares[1])
    assert (weights.sum(-1) < 0.99).any()


def test_the_language_model_is_meant_where_no_part_is_named() -> None:
    sizes = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16)
    vision = hf.CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=16, patch_size=8)
    text = hf.LlamaConfig(**sizes, num_hidden_layers=3, vocab_size=30, pad_token_id=0)
    model = hf.LlavaModel(hf.LlavaConfig(vision_config=vision, text_config=text)).eval()
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    prepared = prepare(model, [Capture("attention", 2)])
    model(**batch_for("bert"))
    expected = plain(**batch_for("bert"), output_attentions=True).attentions[2]
    where = batch_for("bert")["attention_mask"]
    found = prepared.collect()["attention", 2, None]
    torch.testing.assert_close(_real(found, where), _real(expected, where))
    with pytest.raises(ValueError, match=r"part 'audio'; one of \['vision', 'text'\]"):
        prepare(plain, [Capture("attention", 0, "audio")])


def test_two_attention_modules_of_a_layer_are_two_parts() -> None:
    sizes = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=2)
    config = hf.TimesformerConfig(**sizes, image_size=16, patch_size=8, num_frames=3)
    model = hf.TimesformerModel(config).eval()
    with pytest.raises(ValueError, match=r"encoder.attention.attention', 'encoder.temporal_"):
        prepare(model, [Capture("attention", 1)])
    prepared = prepare(model, [Capture("attention", 1, "encoder.attention.attention")])
    raw = model(torch.randn(2, 3, 3, 16, 16), output_attentions=True)
    (found,) = prepared.collect().values()
    torch.testing.assert_close(found, raw.attentions[1])


def test_a_window_is_refused_and_its_own_maps_can_be_read() -> None:
    """Longformer has no map of all pairs."""
    sizes = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16, vocab_size=30)
    config = hf.LongformerConfig(**sizes, num_hidden_layers=2, attention_window=4, pad_token_id=0)
    model = hf.LongformerModel(config)
    unused = ["pooler", *(n for n, _ in model.named_parameters() if "_global" in n)]

    def check(ref: Any) -> Any:
        term = fkd.term(lambda s: s.square().sum((1, 3)).mean(-1), ref)
        last = fkd.term(lambda s: s.square().mean(-1), fkd.student.last_hidden_state)
        student = fkd.trainable(model, unused=unused)
        return fkd.check(fkd.Objective({"map": term, "last": last}, student=student), batch)

    batch = batch_for("bert") | {"input_ids": torch.ones(2, 8).long()}
    batch["attention_mask"] = torch.ones(2, 8).long()
    with pytest.raises(fkd.ObjectiveError, match=r"attention\(1\): .* Use \.attentions\[layer\]"):
        check(fkd.student.attention(1))
    assert check(fkd.student.attentions[1]).rows


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit"])
@pytest.mark.parametrize(("kind", "calls"), [("attention", 2), ("attention_scores", 3), ("key", 3)])
def test_other_layers_stay_on_sdpa(
    name: str, kind: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[None]()
    sdpa = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: (seen.append(None), sdpa(*a, **k))[1]
    )
    _run(name, [Capture(kind, 1)])
    assert len(seen) == calls


@pytest.mark.parametrize("name", ["bert", "t5", "albert", "deberta", "falcon", "clip_vision"])
def test_the_users_model_is_unchanged(name: str) -> None:
    model = tiny(name)
    batch = default_inputs(model, batch_for(name))
    before = copy.deepcopy(model.state_dict()), model.config.to_dict(), model(**batch)[0]
    configs = [getattr(m, "config", None) for m in model.modules()]
    names = [getattr(c, "_attn_implementation", None) for c in configs]
    _run(name, [Capture("attention", 1, _parts(name)[0])], [("hidden_states", 1)], model)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before[0].values(), model.state_dict().values(), strict=True)
    )
    assert before[1] == model.config.to_dict()
    assert torch.equal(before[2], model(**batch)[0])
    assert configs == [getattr(m, "config", None) for m in model.modules()]
    assert names == [getattr(c, "_attn_implementation", None) for c in configs]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "albert", "gptj", "falcon"])
@pytest.mark.compile
def test_compiled_is_eager_value_and_gradient(name: str) -> None:
    part = _parts(name)[-1]
    captures = [Capture(kind, 1, part) for kind in KINDS]
    copied = skeleton(tiny(name), training=False)
    prefix = "decoder_" if name in PARTS else ""
    prepared = prepare(copied, captures, [(f"{prefix}hidden_states", 1)])
    inputs = {**default_inputs(copied, batch_for(name)), **prepared.flags}
    buffers = dict(copied.named_buffers())

    def total(params: dict[str, Tensor]) -> Tensor:
        raw = torch.func.functional_call(copied, {**params, **buffers}, (), inputs)
        output, found = prepared.outputs(raw), prepared.collect()
        scores = [v.clamp(min=-1e3) for v in found.values()]
        return sum(
            (v * v.detach().cos()).sum() for v in [*scores, output[f"{prefix}hidden_states"][1]]
        )

    step = torch.func.grad_and_value(total)
    params = {n: p.detach() for n, p in copied.named_parameters()}
    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    grads, value = step(params)
    for _ in range(2):
        compiled_grads, compiled_value = compiled(params)
        torch.testing.assert_close(compiled_value, value)
        torch.testing.assert_close(compiled_grads, grads, atol=1e-4, rtol=1e-3)
    assert sum(bool((g != 0).any()) for g in grads.values()) > 4


@pytest.mark.parametrize("part", PARTS["t5"])
def test_paths_of_an_encoder_decoder_are_its_captures(part: str) -> None:
    field = f"{part}_attentions"
    output, found, _ = _run("bart", [Capture("attention", 1, part)], [(field, 1)])
    assert torch.equal(output[field][1], found["attention", 1, part])
    torch.testing.assert_close(output[field][0], _reference("bart")[0][field][0])


def test_the_map_is_captured_before_dropout() -> None:
    copied = skeleton(tiny("bert"), training=True)
    attention = copied.bert.encoder.layer[1].attention.self
    for module in copied.modules():
        if isinstance(module, torch.nn.Dropout) and module is not attention.dropout:
            module.p = 0.0
    prepared, batch = prepare(copied, [Capture("attention", 1)]), batch_for("bert")
    outputs, found = zip(
        *((copied(**batch)[0], prepared.collect()["attention", 1, None]) for _ in range(2)),
        strict=True,
    )
    torch.testing.assert_close(found[0].sum(-1), torch.ones(2, 2, 6))
    assert torch.equal(*found)
    assert not torch.equal(*outputs), "dropout acts on the captured layer"


def test_all_maps_by_output_path() -> None:
    output, found, _ = _run("llama", [Capture("attention", 1)], [("attentions", 0)])
    expected, _ = _reference("llama")
    where = counted("llama", batch_for("llama"), None)
    for ours, theirs in zip(output["attentions"], expected.attentions, strict=True):
        torch.testing.assert_close(_real(ours, where), _real(theirs, where))
    assert torch.equal(found["attention", 1, None], output["attentions"][1])


@pytest.mark.parametrize(
    ("name", "capture", "message"),
    [
        ("bert", Capture("attention", 3), "layers 0 to 2 are expected"),
        ("bert", Capture("attention", -4), "layers 0 to 2 are expected"),
        ("bert", Capture("attention", 0, "cross"), "part 'cross'; the model has one stack"),
        ("bert", Capture("maps", 0), "kind 'maps'; one of"),
        ("t5", Capture("key", 0), r"part None; one of \['encoder', 'decoder', 'cross'\]"),
        ("t5", Capture("key", 2, "cross"), "of part 'cross'; layers 0 to 1"),
        ("deberta", Capture("attention_scores", 7), "layers 0 to 2 are expected"),
        ("deberta", Capture("attention", 7), "layers 0 to 2 are expected"),
        ("deberta", Capture("query", 7), "layers 0 to 2 are expected"),
    ],
)
def test_an_unknown_layer_is_an_error(name: str, capture: Capture, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(tiny(name), [capture])
