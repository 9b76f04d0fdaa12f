"""A student cut from its teacher is the teacher, where what was cut away did nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fkd.interop.transformers import cut

transformers = pytest.importorskip("transformers")


def bert(**sizes: Any) -> nn.Module:
    defaults: dict[str, Any] = dict(
        hidden_size=16, num_attention_heads=4, num_hidden_layers=3, intermediate_size=24,
        vocab_size=30, head_dim=4, max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertModel(transformers.BertConfig(**{**defaults, **sizes})).eval()


def llama(**sizes: Any) -> nn.Module:
    defaults: dict[str, Any] = dict(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
        intermediate_size=24, vocab_size=30, head_dim=4, max_position_embeddings=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**defaults, **sizes})).eval()


IDS = torch.tensor([[3, 4, 5, 6]])


@torch.no_grad()
def test_units_of_a_bert_that_do_nothing_are_cut_away():
    torch.manual_seed(0)
    teacher, student = bert(), bert(intermediate_size=20)
    for i, layer in enumerate(teacher.encoder.layer):
        for unit in (i, i + 5, i + 9, 23):
            layer.intermediate.dense.weight[unit] = 0
            layer.intermediate.dense.bias[unit] = 0
            layer.output.dense.weight[:, unit] = 0
    small = cut(student, teacher)
    torch.testing.assert_close(small(IDS)[0], teacher(IDS)[0])
    assert small.encoder.layer[0].intermediate.dense.weight.shape == (20, 16)


@torch.no_grad()
def test_query_heads_stay_with_the_keys_that_they_read():
    torch.manual_seed(0)
    teacher = llama()
    student = llama(num_attention_heads=2, num_key_value_heads=1, intermediate_size=23)
    for i, layer in enumerate(teacher.model.layers):
        attention, gone = layer.self_attn, i % 2  # another pair of heads in every layer
        attention.o_proj.weight[:, gone * 8 : gone * 8 + 8] = 0
        attention.v_proj.weight[gone * 4 : gone * 4 + 4] = 0
        attention.k_proj.weight[gone * 4 : gone * 4 + 4] = 0
        layer.mlp.up_proj.weight[7] = 0
        layer.mlp.gate_proj.weight[7] = 0
        layer.mlp.down_proj.weight[:, 7] = 0
    small = cut(student, teacher)
    torch.testing.assert_close(small(IDS).logits, teacher(IDS).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_layers_and_the_hidden_size():
    torch.manual_seed(0)
    teacher = bert()
    student = bert(hidden_size=8, num_attention_heads=2, num_hidden_layers=2)
    small = cut(student, teacher, layers=[0, 2])
    words = teacher.embeddings.word_embeddings.weight
    mine = small.embeddings.word_embeddings.weight
    kept = [next(i for i in range(16) if torch.equal(mine[:, j], words[:, i])) for j in range(8)]
    assert kept == sorted(kept)
    source = teacher.encoder.layer[2].intermediate.dense.weight
    torch.testing.assert_close(small.encoder.layer[1].intermediate.dense.weight, source[:, kept])
    assert bool(small(IDS)[0].isfinite().all())


@torch.no_grad()
def test_a_sequential_of_convolutions():
    torch.manual_seed(0)

    def net(channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
        ).eval()  # fmt: skip

    teacher = net(6)
    for unit in (1, 4):
        teacher[0].weight[unit] = 0
        teacher[0].bias[unit] = 0
        teacher[1].weight[unit] = 0
        teacher[3].weight[:, unit] = 0
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(cut(net(4), teacher)(image), teacher(image))


def test_scores_decide():
    teacher, student = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 1))
    scores = {"0.weight": torch.tensor([[0.0] * 2, [5.0] * 2, [1.0] * 2]), "0.bias": torch.zeros(3)}
    small = cut(student, teacher, scores=scores)
    assert torch.equal(small[0].weight[0], teacher[0].weight[1])


def test_mistakes_are_said():
    with pytest.raises(ValueError, match="2 layers and the teacher 3; say which"):
        cut(bert(num_hidden_layers=2), bert())
    with pytest.raises(
        ValueError, match=r"cut: layers \[0\] has 1 entries; the student has 2 layers"
    ):
        cut(bert(num_hidden_layers=2), bert(), layers=[0])
    with pytest.raises(ValueError, match="none of them larger"):
        cut(bert(intermediate_size=32), bert())
    with pytest.raises(ValueError, match="is missing"):
        cut(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)))


@torch.no_grad()
def test_fused_projections_keep_the_units_of_the_hidden_size():
    """Of a GPT-2 whose hidden size shrinks, q, k and v keep the heads whose outputs are kept."""
    torch.manual_seed(0)

    def gpt2(width: int) -> nn.Module:
        config = transformers.GPT2Config(
            n_embd=width, n_layer=1, n_head=width // 4, vocab_size=30, n_positions=8,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return transformers.GPT2Model(config)

    teacher = gpt2(12)
    small = cut(gpt2(8), teacher)
    ours, theirs = (m.h[0].attn for m in (small, teacher))
    embedded, all_of_them = small.wte.weight, teacher.wte.weight
    units = [int((all_of_them - column[:, None]).abs().sum(0).argmin()) for column in embedded.T]
    for part in range(3):
        expected = theirs.c_attn.weight[units][:, [part * 12 + u for u in units]]
        assert torch.equal(ours.c_attn.weight[:, part * 8 : part * 8 + 8], expected)


def test_what_only_the_first_layer_has_is_kept():
    """T5's bias by position, which its other layers use."""
    sizes = dict(vocab_size=30, d_model=16, d_kv=8, d_ff=16, num_heads=2)
    big, small = (
        transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, num_layers=n))
        for n in (3, 1)
    )
    begun = cut(small, big, layers=[2])
    ours, theirs = begun.encoder.block[0].layer[0], big.encoder.block[0].layer[0]
    bias = "SelfAttention.relative_attention_bias"
    assert torch.equal(ours.get_submodule(bias).weight, theirs.get_submodule(bias).weight)
    last = big.encoder.block[2].layer[0].SelfAttention.q.weight
    assert torch.equal(ours.SelfAttention.q.weight, last)
