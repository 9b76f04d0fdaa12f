"""Samples of several lengths in one batch: two tokenizers, an encoder and a decoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fkd
from fkd import batch, frozen, student, teacher, term, trainable
from fkd.losses import cosine, kl
from fkd.sources import SourceError, bind, cache, sampled, top_k
from tests.interop.tiny import tiny

from .test_bind import assert_same
from .test_cache import assert_close


class Reader(nn.Module):
    """Tokens of one kind, with hidden states for each."""

    def __init__(self, tokens: str, mask: str) -> None:
        super().__init__()
        self.tokens, self.mask = tokens, mask
        self.embed, self.head = nn.Embedding(30, 8), nn.Linear(8, 6)

    def forward(self, **fields: Tensor) -> dict[str, Tensor]:
        mask = fields[self.mask].unsqueeze(-1)
        hidden = torch.tanh(self.embed(fields[self.tokens]))
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
        return {"hidden": hidden, "logits": self.head(mean)}


def reads(tokens: str, mask: str):
    return lambda b: {tokens: b[tokens], mask: b[mask]}


def near(logits: Tensor, hidden: Tensor) -> Tensor:
    """One value for each token of the teacher."""
    return (hidden.mean(-1) - logits.mean(-1, keepdim=True)).square()


def two_tokenizers():
    torch.manual_seed(0)
    ids, other = ("input_ids", "attention_mask"), ("teacher_ids", "teacher_attention_mask")
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits),
            "hidden": term(near, student.logits, teacher.hidden,
                           where=batch.teacher_attention_mask),
        },
        student=trainable(Reader(*ids), inputs=reads(*ids)),
        teacher=frozen(Reader(*other), inputs=reads(*other)),
    )  # fmt: skip


def texts(count=8, lengths=(6, 9)):
    draw = torch.Generator().manual_seed(3)
    made = {}
    for length, (ids, mask) in zip(
        lengths,
        (("input_ids", "attention_mask"), ("teacher_ids", "teacher_attention_mask")),
        strict=True,
    ):
        sizes = torch.randint(1, length + 1, (count, 1), generator=draw)
        sizes[0] = length
        made[ids] = torch.randint(1, 30, (count, length), generator=draw)
        made[mask] = (torch.arange(length) < sizes).long()
        made[ids] *= made[mask]
    return made


def rows_of(made, rows, cut=False):
    some = {name: x[rows] for name, x in made.items()}
    if cut:  # as a loader pads: to the longest of these
        for ids, mask in (("input_ids", "attention_mask"),
                          ("teacher_ids", "teacher_attention_mask")):  # fmt: skip
            longest = int(some[mask].sum(1).max())
            some[ids], some[mask] = some[ids][:, :longest], some[mask][:, :longest]
    return some


@pytest.mark.parametrize("lengths", [(6, 9), (9, 6), (7, 7)])
@pytest.mark.parametrize("mask", ["attention_mask", "teacher_attention_mask"])
def test_student_and_teacher_have_lengths_of_their_own(tmp_path, lengths, mask):
    objective, made = two_tokenizers(), texts(lengths=lengths)
    loader = [rows_of(made, slice(i, i + 4)) for i in (0, 4)]
    kept = cache(objective, loader, tmp_path, mask=mask, progress=False)
    assert kept.header.reading.masks == ("teacher_attention_mask",)
    assert [form["shape"] for form in kept.header.forms] == [[6], [-1, 8]]
    cheap = bind(objective, kept, compare=loader[0])
    [attached] = kept.attach(loader[:1])
    assert_same(objective, cheap, loader[0], attached)
    for rows in ([5, 2, 7], [1], [6, 6, 0, 3]):
        one = rows_of(made, rows, cut=True)
        assert_close(objective, cheap, one, kept)


def seq2seq(count=6, lengths=(7, 5)):
    draw = torch.Generator().manual_seed(1)
    made = {}
    for length, prefix in zip(lengths, ("", "decoder_"), strict=True):
        sizes = torch.randint(2, length + 1, (count, 1), generator=draw)
        sizes[-1] = length
        mask = (torch.arange(length) < sizes).long()
        made[f"{prefix}input_ids"] = torch.randint(1, 30, (count, length), generator=draw) * mask
        made[f"{prefix}attention_mask"] = mask
    return made


def shorter(made, rows):
    some = {name: x[rows] for name, x in made.items()}
    for prefix in ("", "decoder_"):
        longest = int(some[f"{prefix}attention_mask"].sum(1).max())
        for name in ("input_ids", "attention_mask"):
            some[f"{prefix}{name}"] = some[f"{prefix}{name}"][:, :longest]
    return some


@pytest.mark.parametrize("lengths", [(7, 5), (6, 6)])
def test_an_encoder_and_its_decoder(tmp_path, lengths):
    torch.manual_seed(0)
    objective = fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, where=batch.decoder_attention_mask),
            "encoder": term(cosine, student.encoder_last_hidden_state,
                            teacher.encoder_last_hidden_state, where=batch.attention_mask),
        },
        student=trainable(tiny("t5"), training=False), teacher=frozen(tiny("t5")),
    )  # fmt: skip
    made = seq2seq(lengths=lengths)
    kept = cache(objective, [made], tmp_path / "a", progress=False)
    assert kept.header.reading.masks == ("attention_mask", "decoder_attention_mask")
    assert [form["shape"] for form in kept.header.forms] == [[-2, 30], [-1, 16]]
    cheap = bind(objective, kept, compare=made)
    [attached] = kept.attach([made])
    assert_same(objective, cheap, made, attached)
    for rows in ([4, 1], [0, 5, 3]):
        assert_close(objective, cheap, shorter(made, rows), kept)
    named = cache(objective, [made], tmp_path / "b", progress=False,
                  mask=["attention_mask", "decoder_attention_mask"])  # fmt: skip
    assert named.name == kept.name
    few = cache(objective, [made], tmp_path / "c", progress=False,
                keep={teacher.logits: sampled(5)})  # fmt: skip
    whole, part = few.values(made)["v0"], few.values(shorter(made, [4, 1]))["v0"]
    length = part.ids.shape[1]
    counts = shorter(made, [4, 1])["decoder_attention_mask"].bool()
    assert torch.equal(whole.ids[[4, 1], :length][counts], part.ids[counts])
    cache(objective, [made], tmp_path / "d", progress=False, keep={teacher.logits: top_k(3)})


def test_a_miss_by_another_length_of_the_decoder_says_so(tmp_path):
    torch.manual_seed(0)
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits, where=batch.decoder_attention_mask)},
        student=trainable(tiny("t5"), training=False),
        teacher=frozen(tiny("t5")),
    )
    made = {**seq2seq(), "index": torch.arange(6)}
    kept = cache(objective, [made], tmp_path, key="index", progress=False)
    changed = {**made, "decoder_attention_mask": made["decoder_attention_mask"].clone()}
    changed["decoder_attention_mask"][5, -1] = 0
    with pytest.raises(SourceError, match="sample 5 has other inputs"):
        kept.values(changed)


class Subsamples(nn.Module):
    """Half as many frames as the sound has."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Conv1d(3, 4, 3, stride=2, padding=1)

    def forward(self, sound: Tensor, attention_mask: Tensor) -> Tensor:
        return self.frames((sound * attention_mask.unsqueeze(-1)).mT).mT


def test_another_frame_rate_says_what_to_do_and_does_it_padded_to_one_length(tmp_path):
    torch.manual_seed(0)
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=trainable(Subsamples()),
        teacher=frozen(Subsamples()),
    )
    sizes = torch.tensor([[9], [5], [7], [3]])
    mask = (torch.arange(9) < sizes).long()
    whole = {"sound": torch.randn(4, 9, 3) * mask.unsqueeze(-1), "attention_mask": mask}
    with pytest.raises(SourceError, match=r"frame rate.*one length.*mask=None"):
        cache(objective, [whole], tmp_path / "masked", progress=False)
    kept = cache(objective, [whole], tmp_path / "whole", mask=None, progress=False)
    mixed = {name: x[torch.tensor([2, 0])] for name, x in whole.items()}
    cheap = bind(objective, kept)
    expected, _ = objective(objective.init(), mixed)
    value, _ = cheap(cheap.init(), next(iter(kept.attach([mixed]))))
    torch.testing.assert_close(value, expected)
