"""A model that is grown computes what the smaller one does; copies of a unit learn apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fkd.interop.transformers import grow

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
    with pytest.raises(ValueError, match="norms come after its branches"):
        grow(bert(num_hidden_layers=4), bert(), layers=[0, None, 1, 2])
    with pytest.raises(ValueError, match="a multiple is expected"):
        grow(bert(hidden_size=24, num_attention_heads=6), bert())
    with pytest.raises(ValueError, match="tie_word_embeddings=False"):
        grow(llama(hidden_size=32, num_attention_heads=8, num_key_value_heads=4,
                   tie_word_embeddings=True), llama(tie_word_embeddings=True))  # fmt: skip
    with pytest.raises(ValueError, match="40 entries for 30"):
        grow(untied(vocab_size=40), untied())
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    with pytest.raises(ValueError, match="applied twice"):
        grow(nn.Sequential(one, nn.Tanh(), two, nn.Tanh()), nn.Sequential(one, nn.Tanh()),
             layers=[0, 1, None, None])  # fmt: skip
