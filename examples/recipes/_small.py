"""Models and batches on which a recipe runs in a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fkd

CLASSES = 5
Makers = Callable[[], dict[str, Any]]


@dataclass
class Maps:
    """What a `CNN` returns."""

    logits: Tensor
    maps: list[Tensor]


class CNN(nn.Module):
    """Two convolutions with BatchNorm: `[batch, 3, 8, 8]` to logits and two maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        )
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, image: Tensor) -> Maps:
        one = self.first(image)
        two = torch.relu(self.second(one))
        return Maps(self.head(two.mean((2, 3))), [one, two])


def bert(width: int, layers: int) -> Any:
    import transformers as hf

    sizes: dict[str, Any] = dict(num_attention_heads=2, intermediate_size=8, vocab_size=20)
    config = hf.BertConfig(
        hidden_size=width, num_hidden_layers=layers, max_position_embeddings=8, **sizes
    )
    return hf.BertForMaskedLM(config)


def gpt(width: int, layers: int, vocabulary: int = 20) -> Any:
    import transformers as hf

    config = hf.GPT2Config(
        n_embd=width,
        n_layer=layers,
        n_head=2,
        vocab_size=vocabulary,
        n_positions=8,
        bos_token_id=0,
        eos_token_id=0,
    )
    return hf.GPT2LMHeadModel(config)


LAST_LAYER = ["attention.output", "intermediate", "output"]
AFTER_VALUES = [f"bert.encoder.layer.1.{name}" for name in LAST_LAYER] + ["cls"]
"""What of a BERT of two layers comes after the attention of the last."""


def _made(more: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    return {name: make() for name, make in more.items()}


def texts(width: int = 8, unused: Sequence[str] = (), **more: Callable[[], Any]) -> Makers:
    """Makers of a BERT with two layers and its teacher with four."""
    return lambda: {
        "student": fkd.trainable(bert(width, 2), unused=unused),
        "teacher": fkd.frozen(bert(16, 4)),
        **_made(more),
    }


def causal(vocabulary: int = 20, **more: Callable[[], Any]) -> Makers:
    """Makers of a GPT-2 with one layer and its teacher with two, of another vocabulary maybe."""
    return lambda: {
        "student": fkd.trainable(gpt(8, 1)),
        "teacher": fkd.frozen(gpt(16, 2, vocabulary)),
        **_made(more),
    }


def pictures(unused: Sequence[str] = (), **more: Callable[[], Any]) -> Makers:
    """Makers of a small CNN and its teacher."""
    return lambda: {
        "student": fkd.trainable(CNN(4), unused=unused),
        "teacher": fkd.frozen(CNN(6)),
        **_made(more),
    }


def adapter(make: Callable[[], nn.Module]) -> Callable[[], Any]:
    """Learned with the student."""
    return lambda: fkd.trainable(make())


def images(examples: int = 4) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(examples, 3, 8, 8, generator=g),
        "labels": torch.randint(0, CLASSES, (examples,), generator=g),
    }


def words() -> dict[str, Tensor]:
    """Masked words."""
    ids = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 3, 0, 0]])
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": torch.tensor([[-100, 4, -100, -100, 7], [8, -100, -100, -100, -100]]),
    }


def prose() -> dict[str, Tensor]:
    """Text for a causal model; labels are the tokens themselves, as transformers has them."""
    ids = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 3, 2, 0]])
    mask = (ids > 0).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(ids == 0, -100)}


def written() -> dict[str, Tensor]:
    """Texts that the student has written, with what it and the teacher said of their tokens."""
    data = prose()
    targets = fkd.loops.next_tokens(data.pop("labels"))
    g = torch.Generator().manual_seed(0)
    log_probs = [-3 * torch.rand(targets.shape, generator=g) for _ in range(2)]
    fields = zip(("behaviour", "teacher_log_probs"), log_probs, strict=True)
    return {**data, "targets": targets, **dict(fields)}


def two_texts() -> dict[str, Any]:
    """A GPT-2 and a teacher with another tokenizer."""
    inputs = fkd.loops.language.fields_of("teacher_")
    return {
        "student": fkd.trainable(gpt(8, 1)),
        "teacher": fkd.frozen(gpt(16, 2, 24), inputs=inputs),
    }


def tokenized() -> dict[str, Any]:
    """One text in two tokenizations: "ab", "c", "d" and "a", "bc", "d"."""
    lm = fkd.loops.language
    tables = [b"", b"ab", b"c", b"d", b"a", b"bc"], [b"", b"a", b"bc", b"d", b"ab", b"c"]
    ours, theirs = ([lm.Tokens([0, 1, 2, 3], [-100, 1, 2, 3])] for _ in range(2))
    data = lm.token_batch(ours, length=5) | lm.token_batch(theirs, length=6, prefix="teacher_")
    ids = data["input_ids"], data["teacher_input_ids"]
    both, spans = lm.align(*ids, *tables, *(x > 0 for x in ids), multiple=2)
    return {**data, "both": both, "spans": spans}
