"""A model that is grown computes what the smaller one does; copies of a unit learn apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fkd.interop.transformers import grow

from .families import deeper, model, output, twice
from .test_cut import IDS, bert, llama

transformers = pytest.importorskip("transformers")


def untied(**sizes: Any) -> nn.Module:
    return llama(tie_word_embeddings=False, **sizes)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        out = model.eval()(IDS)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def restless(model: nn.Module) -> nn.Module:
    """No bias is 0 and no scale 1, as after training."""
    for p in model.parameters():
        nn.init.normal_(p, mean=0.1, std=0.5)
    return model


@pytest.mark.parametrize(
    "sizes",
    [
        {"intermediate_size": 37},
        {"num_attention_heads": 8, "num_key_value_heads": 4},
        {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4,
         "intermediate_size": 48},
    ],
)  # fmt: skip
def test_a_wider_llama_computes_the_same(sizes):
    torch.manual_seed(0)
    small = restless(untied())
    large = grow(untied(**sizes), small)
    torch.testing.assert_close(logits(large), logits(small), rtol=1e-4, atol=1e-4)
    weight = large.model.layers[0].mlp.down_proj.weight
    if weight.shape[1] == 37:  # the copies of the first unit read with other weights
        assert not torch.allclose(weight[:, 0], weight[:, 24])


def test_new_layers_add_nothing():
    torch.manual_seed(0)
    small = restless(untied())
    large = grow(untied(num_hidden_layers=4), small, layers=[0, None, 1, None])
    torch.testing.assert_close(logits(large), logits(small))
    both = grow(untied(num_hidden_layers=3, intermediate_size=48), small, layers=[0, None, 1])
    torch.testing.assert_close(logits(both), logits(small), rtol=1e-4, atol=1e-4)
    same = large.model.layers[1].self_attn.q_proj.weight
    assert torch.equal(same, small.model.layers[0].self_attn.q_proj.weight)
    stacked = grow(untied(num_hidden_layers=4), small, layers=[0, 0, 1, 1])
    down = [layer.mlp.down_proj.weight for layer in stacked.model.layers]
    assert torch.equal(down[0], down[1]) and not torch.equal(down[1], down[2])


def test_a_wider_bert_and_gpt2_compute_the_same():
    torch.manual_seed(0)
    small = restless(bert())
    sizes = dict(hidden_size=32, num_attention_heads=8, intermediate_size=30)
    large = grow(bert(**sizes), small)
    ours, theirs = logits(large), logits(small)
    torch.testing.assert_close(ours[..., :16], theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[..., 16:], theirs, rtol=1e-4, atol=1e-4)

    def gpt2(width: int) -> nn.Module:
        config = transformers.GPT2Config(
            n_embd=width, n_layer=2, n_head=width // 4, vocab_size=30, n_positions=8,
            bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)

    small = restless(gpt2(8))
    torch.testing.assert_close(logits(grow(gpt2(16), small)), logits(small), rtol=1e-4, atol=1e-4)


def test_a_sequential_grows_wider_and_deeper():
    torch.manual_seed(0)

    def net(channels: int, more: int = 0) -> nn.Sequential:
        extra = [m for _ in range(more)
                 for m in (nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())]  # fmt: skip
        return nn.Sequential(
            nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), *extra,
            nn.Conv2d(channels, 5, 3),
        )  # fmt: skip

    small = net(4)
    small(torch.randn(8, 3, 8, 8))
    small.eval()
    x = torch.randn(2, 3, 8, 8)
    for large in (
        grow(net(7), small).eval(),
        grow(net(4, 2), small, layers=[0, 1, 2, None, None, None, None, 3]).eval(),
    ):
        torch.testing.assert_close(large(x), small(x), rtol=1e-4, atol=1e-5)
    again = [grow(net(7), small, seed=s)[3].weight for s in (0, 0, 1)]
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])
    assert small[0].weight.shape[0] == 4


def test_copies_of_a_unit_learn_apart():
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    large = grow(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)), small)
    large(torch.randn(4, 2)).sum().backward()
    grad = large[0].weight.grad
    assert grad is not None and not torch.allclose(grad[:3], grad[3:])


def test_mistakes_are_said():
    with pytest.raises(ValueError, match="has 4 layers and the trained one 2; say which"):
        grow(untied(num_hidden_layers=4), untied())
    with pytest.raises(
        ValueError, match=r"grow: layers \[0, 1\] has 2 entries; the larger model has 4"
    ):
        grow(untied(num_hidden_layers=4), untied(), layers=[0, 1])
    with pytest.raises(ValueError, match=r"grow: layers \[7\] are not layers of the trained model"):
        grow(untied(num_hidden_layers=4), untied(), layers=[0, 0, 1, 7])
    with pytest.raises(ValueError, match=r"grow: layers \['decoder'\]; an entry is expected"):
        grow(untied(num_hidden_layers=4), untied(), layers={"decoder": [0, 0, 1, 1]})
    with pytest.raises(ValueError, match="none of them smaller"):
        grow(untied(intermediate_size=8), untied())
    with pytest.raises(ValueError, match="no block before it ends in a norm"):
        grow(bert(num_hidden_layers=4), restless(bert()), layers=[None, 0, 1, 2])
    with pytest.raises(ValueError, match="a multiple is expected"):
        grow(bert(hidden_size=24, num_attention_heads=6), bert())
    with pytest.raises(ValueError, match="40 entries for 30"):
        grow(untied(vocab_size=40), untied())
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    with pytest.raises(ValueError, match="applied twice"):
        grow(nn.Sequential(one, nn.Tanh(), two, nn.Tanh()), nn.Sequential(one, nn.Tanh()),
             layers=[0, 1, None, None])  # fmt: skip
    with pytest.raises(ValueError, match=r"4 heads of size 8, in the other model 4 of size 4"):
        grow(untied(head_dim=8), untied())
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="Make it with config"):
        grow(model("gemma2", num_hidden_layers=3, layer_types=kinds), model("gemma2"),
             layers=[0, None, 1])  # fmt: skip
    with pytest.raises(ValueError, match=r"has 4 heads of size 8.*slope"):
        grow(model("bloom", **twice("bloom")), model("bloom"))
    scaled = dict(scale_embedding=True)
    with pytest.raises(ValueError, match="would not compute what the trained one does"):
        grow(model("bart", **twice("bart"), **scaled), model("bart", **scaled))


FUSED = ["gpt2", "neox", "falcon", "phi3", "modernbert", "mixtral"]


@pytest.mark.parametrize("family", [*FUSED, "qwen3", "gemma2", "t5", "bart", "deberta", "bert"])
def test_wider_models_with_tied_embeddings_compute_the_same(family):
    """Their last norm gives each copy of a unit its share of what the head reads."""
    small = model(family, tie_word_embeddings=True)
    large = grow(model(family, **twice(family), tie_word_embeddings=True), small)
    head, table = large.get_output_embeddings(), large.get_input_embeddings()
    assert head.weight is table.weight and head.weight.shape[1] == 32
    torch.testing.assert_close(output(large), output(small), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
def test_wider_models_of_images_compute_the_same(family):
    small = model(family)
    large = grow(model(family, **twice(family)), small)
    torch.testing.assert_close(output(large), output(small), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "deberta", "bart", "bloom", "mixtral", "t5", "falcon"])
def test_new_layers_add_nothing_where_norms_come_first_or_last(family):
    small = model(family)
    large = grow(model(family, **deeper(family)), small, layers=[0, None, 1])
    torch.testing.assert_close(output(large), output(small), rtol=1e-3, atol=1e-5)
    ids = torch.tensor([[3, 4]])
    more = {"decoder_input_ids": ids} if large.config.is_encoder_decoder else {}
    large(ids, **more)[0].sum().backward()
    without = {n for n, p in large.named_parameters() if p.grad is None}
    assert not [n for n in without if ".1." in n]


def test_several_new_layers_whose_norms_come_last():
    small = model("bert")
    large = grow(model("bert", num_hidden_layers=4, **twice("bert")), small,
                 layers=[0, None, None, 1])  # fmt: skip
    torch.testing.assert_close(output(large), output(small), rtol=1e-3, atol=1e-5)


def test_queries_are_grouped_otherwise():
    """A key serves more queries, or fewer; each query still reads the key that it read."""
    small = model("qwen3")
    for queries, keys in ((8, 2), (8, 8), (4, 4)):
        large = model("qwen3", num_attention_heads=queries, num_key_value_heads=keys)
        torch.testing.assert_close(output(grow(large, small)), output(small), rtol=1e-3, atol=1e-5)


def test_a_head_on_the_table_without_a_norm_is_refused():
    class Bare(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5, width), nn.Linear(width, 5, bias=False)
            self.head.weight = self.table.weight

        def get_input_embeddings(self) -> nn.Module:
            return self.table

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    with pytest.raises(ValueError, match="tie_word_embeddings=False"):
        grow(Bare(8), Bare(4))
