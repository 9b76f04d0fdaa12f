"""Two tokenizers of one text, byte by byte."""

from __future__ import annotations

import copy
import json
import unicodedata

import pytest
import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from fkd.loops.language import (
    Tokens,
    align,
    align_responses,
    compare_tokenizers,
    shared_vocabulary,
    token_batch,
    token_bytes,
)

from .tokenizers import CHATML, byte_level, sentence_piece, wrapped

TEXTS = [
    "The teacher has read it: 2 + 2 = 5?",
    "naïve 🙂  models,\n\tsmall ones",
    "A",
    "said the student",
]
TOKENIZERS = {"bpe": byte_level, "small bpe": lambda: byte_level(290), "pieces": sentence_piece}


def tokenized(tokenizer: hf.PreTrainedTokenizerFast, prompt: int) -> dict[str, torch.Tensor]:
    rows = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        rows.append(Tokens([1] * prompt + ids, [-100] * prompt + ids))
    data = token_batch(rows, length=64)
    mask = data["attention_mask"].bool()
    return data | {"where": mask & (torch.arange(64) >= prompt)}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bytes_of_the_entries_make_up_the_text(name):
    tokenizer = TOKENIZERS[name]()
    table = token_bytes(tokenizer)
    assert table[tokenizer.eos_token_id] == b""
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        read = b"".join(table[i] for i in ids).decode()
        assert read in (text, " " + text)


@pytest.mark.parametrize("theirs", TOKENIZERS)
@pytest.mark.parametrize("ours", TOKENIZERS)
@pytest.mark.parametrize("prompt", [0, 2])
def test_aligned_positions_have_read_the_same_bytes(ours, theirs, prompt):
    a, b = TOKENIZERS[ours](), TOKENIZERS[theirs]()
    tables = token_bytes(a), token_bytes(b)
    x, y = tokenized(a, prompt), tokenized(b, 3)
    both, spans = align(x["input_ids"], y["input_ids"], *tables, x["where"], y["where"], multiple=8)
    assert both.student.positions.shape == both.teacher.positions.shape

    def read(data, table, position: int) -> tuple[int, bytes]:
        row, column = divmod(position, 64)
        ids = data["input_ids"][row, : column + 1][data["where"][row, : column + 1]]
        return row, b"".join(table[i] for i in ids.tolist())

    kept = both.student.kept[0]
    pairs = zip(both.student.positions[0][kept], both.teacher.positions[0][kept], strict=True)
    for p, q in pairs:
        (row, said), (there, heard) = read(x, tables[0], int(p)), read(y, tables[1], int(q))
        assert row == there and (said == heard or b" " + said == heard or said == b" " + heard)
    for row in range(len(TEXTS)):
        for number in range(int(spans.kept[row].sum())):
            texts = []
            for data, table, side in ((x, tables[0], spans.student), (y, tables[1], spans.teacher)):
                at = (side[row] == number).nonzero().flatten() + 1
                texts.append(b"".join(table[i] for i in data["input_ids"][row, at].tolist()))
            assert texts[0] and texts[0].lstrip(b" ") == texts[1].lstrip(b" ")
    if ours == theirs and prompt == 3:
        assert int(kept.sum()) == int(x["where"].sum()) + len(TEXTS)


def test_one_tokenizer_aligns_every_token_with_itself():
    data, table = tokenized(byte_level(), 1), token_bytes(byte_level())
    ids, where = data["input_ids"], data["where"]
    both, spans = align(ids, ids, table, table, where, where)
    assert torch.equal(both.student.positions, both.teacher.positions)
    assert int(both.student.kept.sum()) == int(where.sum()) + len(TEXTS)
    assert torch.equal(spans.student, spans.teacher)
    assert int(spans.kept.sum()) == int(where.sum())


def test_other_texts_are_refused_with_the_place():
    table = token_bytes(byte_level())
    x, y = tokenized(byte_level(), 1), tokenized(byte_level(), 1)
    y["input_ids"][2, 1] = byte_level()("B")["input_ids"][0]
    with pytest.raises(ValueError, match=r"row 2.*from byte 0 on.*b'A'.*b'B'"):
        align(x["input_ids"], y["input_ids"], table, table, x["where"], y["where"])


def test_shared_entries_are_the_same_bytes():
    tables = token_bytes(byte_level()), token_bytes(sentence_piece())
    ours, theirs = shared_vocabulary(*tables)
    assert len(ours) > 20
    assert all(
        tables[0][i] == tables[1][j] for i, j in zip(ours.tolist(), theirs.tolist(), strict=True)
    )
    assert len(set(ours.tolist())) == len(ours)


def test_word_pieces_are_refused():
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="neither byte-level nor SentencePiece"):
        token_bytes(wrapped(tokenizer))


def test_a_report_says_what_differs():
    tokenizer, other = byte_level(), copy.deepcopy(byte_level())
    same = compare_tokenizers(tokenizer, other)
    assert same.same_ids and not same.differences and "are the same" in str(same)
    other.chat_template, other.pad_token = CHATML, "</s>"
    report = compare_tokenizers(tokenizer, other)
    assert report.same_ids
    assert "pad_token is '<pad>' and '</s>'" in str(report)
    assert "the student has no chat template" in str(report)
    assert not compare_tokenizers(tokenizer, sentence_piece()).same_ids
    assert "ids mean different tokens" in str(compare_tokenizers(tokenizer, sentence_piece()))
    fewer = compare_tokenizers(byte_level(290), byte_level(330))
    assert fewer.same_ids and "290 and 330 entries" in str(fewer)
    assert "is cut into" in str(fewer)
    marked = copy.deepcopy(other)
    marked.chat_template = CHATML.replace("<|im_end|>", "</s>")
    assert "the chat templates differ" in str(compare_tokenizers(other, marked))


def aligned(ours, theirs, text: str):
    """The spans of one text, as bytes of both."""
    tables = token_bytes(ours), token_bytes(theirs)
    ids = [[0, *t(text, add_special_tokens=False)["input_ids"]] for t in (ours, theirs)]
    where = [torch.tensor([[False] + [True] * (len(row) - 1)]) for row in ids]
    _, spans = align(*(torch.tensor([row]) for row in ids), *tables, *where, multiple=1)
    read: list[list[bytes]] = []
    for row, table, side in zip(ids, tables, (spans.student, spans.teacher), strict=True):
        inside = [(side[0] == k).nonzero().flatten() + 1 for k in range(int(spans.kept.sum()))]
        read.append([b"".join(table[row[i]] for i in at.tolist()) for at in inside])
    return read


def test_a_tokenizer_that_composes_characters_is_aligned():
    composing = copy.deepcopy(byte_level())
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    text = "nai\u0308ve e\u0301\u0302 models \U0001f642"
    for pair in ((composing, byte_level()), (byte_level(290), composing)):
        ours, theirs = aligned(*pair, text)
        same = [unicodedata.normalize("NFC", b"".join(side).decode()) for side in (ours, theirs)]
        assert same[0] == same[1] == unicodedata.normalize("NFC", text)
        pairs = [
            [unicodedata.normalize("NFC", piece.decode(errors="ignore")) for piece in pieces]
            for pieces in zip(ours, theirs, strict=True)
        ]
        assert all(a == b for a, b in pairs) and len(pairs) > 8


def test_a_space_after_a_special_token_is_no_other_text():
    ours, theirs = aligned(byte_level(), sentence_piece(), "x<|im_start|>y z</s>so")
    assert b"".join(ours) == b"".join(theirs) == b"xy zso"
    assert ours == [b"x", b"y", b" ", b"z", b"s", b"o"]


def test_ids_beyond_the_last_entry_read_nothing():
    table = token_bytes(byte_level())
    ids = torch.tensor([[1, 80, 5000]])
    where = torch.tensor([[False, True, True]])
    both, spans = align(ids, ids, table, table, where, where, multiple=1)
    assert both.student.positions.tolist() == [[0, 1]] and int(spans.kept.sum()) == 1


def read_by(side: torch.Tensor, ids: list[int], table: list[bytes], count: int) -> list[bytes]:
    at = [(side[0] == k).nonzero().flatten() + 1 for k in range(count)]
    return [b"".join(table[ids[i]] for i in columns.tolist()) for columns in at]


@pytest.mark.parametrize("kept", [1, 4, 9, 14])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("text", ["The teacher read: na\u00efve \U0001f642 models", "a b c d e"])
def test_what_is_cut_off_in_one_of_two_does_not_count(text, swapped, kept):
    pair = (sentence_piece(), byte_level()) if swapped else (byte_level(), sentence_piece())
    tables = [token_bytes(t) for t in pair]
    ids = [[0, *t(text, add_special_tokens=False)["input_ids"]] for t in pair]
    ids[0] = ids[0][: kept + 1]
    where = [torch.tensor([[False] + [True] * (len(row) - 1)]) for row in ids]
    both, spans = align(*(torch.tensor([row]) for row in ids), *tables, *where, multiple=1)
    count = int(spans.kept.sum())
    sides = zip((spans.student, spans.teacher), ids, tables, strict=True)
    ours, theirs = (read_by(side, row, table, count) for side, row, table in sides)
    assert [x.strip() for x in ours] == [x.strip() for x in theirs]
    shorter = b"".join(tables[0][i] for i in ids[0]).lstrip()
    assert (count or kept == 1) and shorter.startswith(b"".join(ours).lstrip())
    assert int(both.student.kept.sum()) == count + 1


def test_a_response_that_is_cut_off_for_the_teacher_is_aligned_as_far_as_it_goes():
    ours, theirs = torch.tensor([[-100, 7, 8, 9]]), torch.tensor([[-100, -100, 7, 8]])
    both = align_responses(ours, theirs, multiple=1)
    assert both.student.positions.tolist() == [[1, 2]]
    assert both.teacher.positions.tolist() == [[2, 3]]
    for other in (theirs + (theirs == 8).long(), torch.full_like(theirs, -100)):
        with pytest.raises(ValueError, match="row 0 has 3 tokens that count"):
            align_responses(ours, other)


def test_sentence_piece_s_own_letter_in_a_text_is_a_space():
    for pair in ((byte_level(), sentence_piece()), (sentence_piece(), byte_level())):
        for text in ("a\u2581b c", "\u2581The teacher", "the\u2581", "x \u2581 y"):
            ours, theirs = aligned(*pair, text)
            assert ours and len(ours) == len(theirs)
            same = [[x.replace("\u2581".encode(), b" ") for x in s] for s in (ours, theirs)]
            same = [b"".join(s).strip() for s in same]
            assert same[0] == same[1]


@pytest.mark.parametrize("text", ["a  b   c", "def f(x):\n    return  x", "a" + " " * 40 + "b"])
@pytest.mark.parametrize("swapped", [False, True])
def test_several_spaces_that_one_of_two_makes_one(text, swapped):
    """As T5's tokenizer does."""
    merging = copy.deepcopy(sentence_piece())
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    merging.backend_tokenizer.normalizer = normalizers.Sequence(
        [spaces, merging.backend_tokenizer.normalizer]
    )
    pair = (merging, byte_level()) if swapped else (byte_level(), merging)
    ours, theirs = ([" ".join(x.decode().split()) for x in side] for side in aligned(*pair, text))
    assert ours == theirs and len(ours) > 1
    assert "".join("".join(ours).split()) == "".join(text.split())


def without_bytes() -> hf.PreTrainedTokenizerFast:
    """As T5 has it: what it does not know is `<unk>`."""
    letters = {c: i + 2 for i, c in enumerate("\u2581abcdefghijklmnopqrstuvwxyz")}
    tokenizer = Tokenizer(models.BPE({"<pad>": 0, "<unk>": 1, **letters}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    made = wrapped(tokenizer, unk_token="<unk>")
    return made


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("the <unk> reads", b"the reads"),
        ("a\u00e9b", b"b"),  # the other has a token of the a and half of the next letter
        ("<unk>n", b"n"),
        ("so <unk>, <unk> said", b"sosaid"),
        ("<unk> begins", b"begins"),
        ("it ends <unk>", b"it ends"),
    ],
)
def test_an_unknown_word_stands_for_what_the_other_reads(text, spans, swapped):
    pair = (without_bytes(), byte_level()) if swapped else (byte_level(), without_bytes())
    sides = aligned(*pair, text)
    for read in sides:
        assert b"".join(read).replace(b" ", b"") == spans.replace(b" ", b"")
    assert [x.strip() for x in sides[0]] == [x.strip() for x in sides[1]]


def test_a_place_that_could_be_another_is_refused():
    with pytest.raises(ValueError, match="not the same bytes"):
        aligned(byte_level(), without_bytes(), "<unk>n\u00e9c")


def test_holes_in_a_vocabulary_and_letters_that_are_no_bytes():
    state = json.loads(byte_level().backend_tokenizer.to_str())
    last = max(state["model"]["vocab"].values())
    state["model"]["vocab"] |= {"\uff5craw\uff5c": last + 40}
    table = token_bytes(wrapped(Tokenizer.from_str(json.dumps(state))))
    assert len(table) == last + 41
    assert table[-1].decode() == "\uff5craw\uff5c" and table[last + 1] == b""
