"""A student cut from its teacher is the teacher, where what was cut away did nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fkd.interop.transformers import cut
from fkd.interop.transformers._sizes.deeper import ends_of

from .families import model, output, twice

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
def test_fused_projections_keep_whole_heads():
    """Of a GPT-2 whose hidden size shrinks, q, k and v keep the same heads, and read the units
    that the embeddings keep."""
    teacher = model("gpt2", n_embd=24, n_head=3)
    small = cut(model("gpt2"), teacher)
    ours, theirs = (m.transformer.h[0].attn for m in (small, teacher))
    columns = zip(small.transformer.wte.weight.T, strict=True)
    table = teacher.transformer.wte.weight
    units = [int((table - column[:, None]).abs().sum(0).argmin()) for (column,) in columns]
    rows = [int((theirs.c_proj.weight[:, units] - row).abs().sum(1).argmin())
            for row in ours.c_proj.weight]  # fmt: skip
    assert [r // 8 for r in rows[::8]] == sorted({r // 8 for r in rows}) and len(set(rows)) == 16
    expected = theirs.c_attn.weight[units][:, [24 * part + r for part in range(3) for r in rows]]
    assert torch.equal(ours.c_attn.weight, expected)


def ends_without(student: nn.Module, teacher: nn.Module) -> nn.Module:
    """The teacher, in which the units that the student does not have add nothing."""
    masked = copy.deepcopy(teacher)
    ours, found = dict(student.named_parameters()), 0
    for name, p in masked.named_parameters():
        differing = [i for i in range(p.ndim) if p.shape[i] != ours[name].shape[i]]
        if name not in ends_of(teacher) or not differing:
            continue
        (axis,) = differing
        found += 1
        units = p.movedim(axis, 0).flatten(1)
        kept = [next(k for k, u in enumerate(units) if torch.equal(u, x))
                for x in ours[name].movedim(axis, 0).flatten(1)]  # fmt: skip
        gone = [k for k in range(len(units)) if k not in kept]
        p.data.index_fill_(axis, torch.tensor(gone), 0.0)
    assert found
    return masked


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("qwen3", dict(num_attention_heads=2, num_key_value_heads=1)),
        ("qwen3", dict(num_attention_heads=2)),
        ("gemma2", dict(num_attention_heads=2, num_key_value_heads=1, intermediate_size=20)),
        ("t5", dict(num_heads=1)),
        ("t5", dict(d_ff=20)),
        ("phi3", dict(intermediate_size=20)),
        ("modernbert", dict(intermediate_size=20)),
        ("mixtral", dict(intermediate_size=20)),
        ("bart", dict(encoder_ffn_dim=20, decoder_ffn_dim=20)),
        ("vit", dict(intermediate_size=20)),
    ],
)
def test_what_is_cut_is_what_is_missing(family, sizes):
    teacher = model(family)
    student = cut(model(family, **sizes), teacher)
    masked = ends_without(student, teacher)
    torch.testing.assert_close(output(student), output(masked), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(output(student), output(teacher), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["neox", "bart", "deberta", "vit", "qwen3", "resnet"])
def test_the_units_of_the_greatest_scores_are_kept_everywhere(family):
    teacher, student = model(family, **twice(family)), model(family)
    state = student.state_dict()
    scores = {
        name: torch.zeros_like(x).index_put([torch.arange(n).reshape([-1, *[1] * (x.ndim - 1 - i)])
              for i, n in enumerate(state[name].shape)], torch.ones(()))
        for name, x in teacher.state_dict().items() if x.ndim
    }  # fmt: skip
    for name, x in cut(student, teacher, scores=scores).state_dict().items():
        leading = tuple(slice(0, n) for n in x.shape)
        assert torch.equal(x, teacher.state_dict()[name][leading]), name


@torch.no_grad()
def test_every_layer_of_a_sequential_keeps_its_own_units():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    student = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    for layer, after, gone in ((0, 2, [0, 1]), (2, 4, [2, 3])):
        teacher[layer].weight[gone] = 0
        teacher[layer].bias[gone] = 0
        teacher[after].weight[:, gone] = 0
    x = torch.randn(3, 2)
    torch.testing.assert_close(cut(student, teacher)(x), teacher(x))


@torch.no_grad()
def test_a_layer_after_flatten_reads_all_places_of_the_channels_that_are_kept():
    torch.manual_seed(0)

    def net(channels: int) -> nn.Sequential:
        body = nn.Sequential(nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU())
        return nn.Sequential(body, nn.Flatten(), nn.Linear(9 * channels, 2)).eval()

    teacher = net(4)
    for unit in (0, 2):
        teacher[0][0].weight[unit] = 0
        teacher[0][1].bias[unit] = 0
        teacher[0][0].bias[unit] = 0
    x = torch.randn(2, 1, 5, 5)
    torch.testing.assert_close(cut(net(2), teacher)(x), teacher(x))


def test_layers_of_a_sequential():
    teacher = nn.Sequential(*[nn.Linear(3, 3) for _ in range(4)])
    student = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    small = cut(student, teacher, layers=[1, -1])
    kept = [i for i in range(3) if (teacher[1].weight[i] == small[0].weight[:, None]).all(-1).any()]
    assert torch.equal(small[0].weight, teacher[1].weight[kept])
    assert torch.equal(small[1].weight, teacher[3].weight[:, kept])
    with pytest.raises(ValueError, match="2 layers and the teacher 4; say which"):
        cut(student, teacher)


@torch.no_grad()
def test_smaller_heads_keep_the_same_units_of_queries_and_keys():
    teacher, student = bert(), bert(hidden_size=8)
    del student.config.head_dim, teacher.config.head_dim
    theirs = teacher.encoder.layer[0].attention.self
    for layer in (theirs.query, theirs.key):  # by which their units are known
        layer.bias.copy_(layer.bias + torch.arange(16.0))
    ours = cut(student, teacher).encoder.layer[0].attention.self
    assert ours.query.weight.shape == ours.key.weight.shape == (8, 8)
    units = [[int((b.bias - x).abs().argmin()) for x in a.bias]
             for a, b in ((ours.query, theirs.query), (ours.key, theirs.key))]  # fmt: skip
    assert units[0] == units[1] and [u // 4 for u in units[0]] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_tables():
    teacher = bert(max_position_embeddings=20)
    small = cut(bert(), teacher)
    positions = small.embeddings.position_embeddings.weight
    assert torch.equal(positions, teacher.embeddings.position_embeddings.weight[:16])
    with pytest.raises(ValueError, match=r"20 entries for 30.*What an entry means"):
        cut(bert(vocab_size=20), bert())
    with pytest.raises(ValueError, match=r"classifier.weight has 2 labels for 4"):
        cut(model("vit"), model("vit", num_labels=4))


def test_heads_that_cannot_be_those_of_the_teacher_are_refused():
    with pytest.raises(ValueError, match="1 heads of size 16, in the other model 2 of size 8"):
        cut(model("bert", num_attention_heads=1), model("bert"))
    with pytest.raises(ValueError, match="Positions rotate all of a head together"):
        cut(model("qwen3", head_dim=4), model("qwen3"))
    with pytest.raises(ValueError, match=r"slope \(ALiBi\)"):
        cut(model("bloom"), model("bloom", **twice("bloom")))
    with pytest.raises(ValueError, match="4 query heads on 1 key-value heads, 4 on each"):
        cut(model("qwen3", num_key_value_heads=1), model("qwen3"))
    with pytest.raises(ValueError, match=r"scores of encoder.nothing \(2,\)"):
        cut(bert(intermediate_size=20), bert(), scores={"encoder.nothing": torch.zeros(2)})


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
