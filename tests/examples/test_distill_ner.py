"""Distilling a tagger: entities, files in columns, and the batches of both text examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf

from .text import FAST, base, scripts, write

__all__ = ["base", "scripts"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore")


# Batches.


def test_batches_have_few_shapes_and_every_row_once(scripts):
    rows = [{"input_ids": [1 + i] * (1 + i % 37), "labels": i % 2} for i in range(101)]
    data = scripts._batches.Batches(rows, size=8, buckets=3, pad=0)
    first, again, other = (list(data.train(seed)) for seed in (5, 5, 6))
    assert len(first) == data.count and len({b["input_ids"].shape for b in first}) <= 3
    assert all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True)
    )
    order = [[int(b["input_ids"][0, 0]) for b in batches] for batches in (first, other)]
    assert order[0] != order[1]
    seen = [int(r[0]) for b in first for r, v in zip(b["input_ids"], b["valid"], strict=True) if v]
    assert sorted(seen) == list(range(1, 102))


def test_hidden_tokens_are_some_but_never_special_ones(scripts):
    rows = [{"input_ids": [2, *range(10, 30), 3], "labels": 0}] * 40
    hide = scripts._batches.Hide(0.25, 4, [0, 2, 3])
    data = scripts._batches.Batches(rows, size=8, buckets=1, pad=0, hide=hide)
    first, again = (torch.stack([b["input_ids"] for b in data.train(seed)]) for seed in (1, 1))
    assert torch.equal(first, again)
    assert 0.2 < (first[..., 1:21] == 4).float().mean() < 0.3
    assert (
        (first[..., 0] == 2).all() and (first[..., 21] == 3).all() and (first[..., 22:] == 0).all()
    )
    assert not any((b["input_ids"] == 4).any() for b in data.all())


def test_bucket_lengths_leave_the_least_padding(scripts):
    lengths = [3, 5, 7, 9, 12, 16, 33, 34, 60]

    def padded(edges):
        return sum(min(e for e in edges if e >= n) for n in lengths)

    found = scripts._batches.bucket_lengths(lengths, 3)
    others = [(a, b, 64) for a in range(8, 64, 8) for b in range(a, 64, 8)]
    assert padded(found) == min(map(padded, others))


# Entities.


TAGGED = [
    ("anna lives in paris", "I-PER O O I-LOC"),
    ("the story of rome", "O O O I-LOC"),
    ("anna went to rome", "I-PER O O I-LOC"),
    ("a film", "O O"),
    ("paris anna", "I-LOC I-PER"),
]


def columns(path: Path, count: int) -> str:
    lines = ["-DOCSTART- -X- O O", ""]
    for i in range(count):
        words, tags = (part.split() for part in TAGGED[i % len(TAGGED)])
        lines += [f"{w} NN I-NP {t}" for w, t in zip(words, tags, strict=True)] + [""]
    return write(path, lines)


def test_entities_as_conlleval_finds_them(scripts):
    find = scripts.distill_ner.entities
    assert find("B-PER I-PER O I-LOC I-LOC".split()) == {("PER", 0, 1), ("LOC", 3, 4)}
    assert find("I-LOC B-LOC I-LOC".split()) == {("LOC", 0, 0), ("LOC", 1, 2)}
    assert find("I-LOC I-PER".split()) == {("LOC", 0, 0), ("PER", 1, 1)}
    assert find("B-LOC E-LOC S-LOC I-LOC".split()) == {("LOC", 0, 1), ("LOC", 2, 2), ("LOC", 3, 3)}
    assert find(["O", None]) == set()
    made = scripts.distill_ner.iob2("I-LOC B-LOC I-LOC O I-PER".split())
    assert made == "B-LOC B-LOC I-LOC O B-PER".split()


def test_a_tagger_and_its_student(scripts, base, tmp_path):
    train, dev = columns(tmp_path / "train.txt", 40), columns(tmp_path / "dev.txt", 5)
    main = scripts.distill_ner.main
    argv = ["--train", train, "--dev", dev, "--dropout", "0", *FAST]
    large = main([
        "--finetune", "--teacher", base, "--epochs", "12", "--lr", "5e-3", *argv,
        "--out", str(tmp_path / "large"),
    ])  # fmt: skip
    assert large["dev"]["entities/f1"] == 1.0
    small = main([
        "--teacher", str(tmp_path / "large/student"), "--epochs", "12", "--lr", "3e-3", *argv,
        "--student-layers", "2", "--out", str(tmp_path / "small"), "--test", dev,
    ])  # fmt: skip
    assert small["test"]["entities/f1"] > 0.9
    names = hf.AutoConfig.from_pretrained(tmp_path / "small/student").id2label
    assert set(names.values()) == {"O", "B-PER", "B-LOC"}


def test_labels_are_at_the_first_token_of_a_word(scripts, base):
    example = scripts._text.Example(["films", "paris"], ["O", "B-LOC"], "x:1")
    args = scripts.distill_ner.arguments().parse_args(["--teacher", "x"])
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    (row,) = scripts.distill_ner.rows([example], tokenizer, ["O", "B-LOC"], args)
    assert tokenizer.convert_ids_to_tokens(row["input_ids"])[1:4] == ["film", "##s", "paris"]
    assert row["labels"] == [-100, 0, -100, 1, -100] and row["words"] == [0, 1, 0, 2, 0]


def test_words_beyond_the_length_are_missed(scripts):
    example = scripts._text.Example(["anna", "rome"], ["B-PER", "B-LOC"], "x:1")
    one = [torch.tensor([[0, 1, 0]])], [torch.tensor([[0, 1, 0]])], [torch.tensor([0])]
    scores = scripts.distill_ner.entity_scores([example], ["O", "B-PER", "B-LOC"], *one)
    assert scores["precision"] == 1.0 and scores["recall"] == 0.5


def test_a_broken_line_of_a_tagged_file(scripts, base, tmp_path):
    path = columns(tmp_path / "train.txt", 5)
    lines = Path(path).read_text().splitlines()
    lines[4] = "in"
    write(tmp_path / "train.txt", lines)
    args = scripts.distill_ner.arguments().parse_args(["--teacher", "x"])
    with pytest.raises(
        scripts._text.DataError, match=r"train.txt:5: 1 columns, where most lines have 4"
    ):
        scripts.distill_ner.read_sentences(path, args)
    args.skip_broken = True
    assert len(scripts.distill_ner.read_sentences(path, args)) == 4


def test_words_in_json_lines_without_tags(scripts, tmp_path):
    rows = [{"tokens": ["anna", "went"], "tags": ["B-PER", "O"]}, {"tokens": ["a", "film"]}]
    path = write(tmp_path / "x.jsonl", [json.dumps(row) for row in rows])
    args = scripts.distill_ner.arguments().parse_args(["--teacher", "x"])
    found = scripts.distill_ner.read_sentences(path, args)
    assert [e.label for e in found] == [["B-PER", "O"], [None, None]]


def test_a_word_without_tokens_shifts_no_other_word(scripts):
    """Entity scores by hand: 3 entities, 2 guessed, 1 of them right."""
    names = ["O", "B-PER", "B-LOC"]
    example = scripts._text.Example(["x", "anna", "rome", "paris"], ["O", *names[1:], "B-LOC"], "x")
    tags, words = torch.tensor([[0, 1, 0, 1]]), torch.tensor([[0, 2, 0, 3]])
    scores = scripts.distill_ner.entity_scores(
        [example], names, [tags], [words], [torch.tensor([0])]
    )
    assert scores == {"precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5}


def sentences_of(scripts, path: Path, content: str, *flags: str):
    path.write_text(content)
    args = scripts.distill_ner.arguments().parse_args(["--teacher", "x", *flags])
    return scripts.distill_ner.read_sentences(str(path), args)


def test_tags_as_numbers_stand_for_the_classes(scripts, tmp_path):
    names = ["O", "B-PER", "I-PER"]
    row = '{"tokens": ["anna", "maria", "went"], "ner_tags": [1, 2, 0]}'
    (example,) = sentences_of(scripts, tmp_path / "x.jsonl", row)
    assert scripts.distill_ner.named(example, names) == ["B-PER", "I-PER", "O"]
    with pytest.raises(
        scripts._text.DataError, match=r"x.jsonl:1: the tags are numbers.*--label-n"
    ):
        scripts.distill_ner.named(example, ["0", "1", "2"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "anna\nin O\nrome B-LOC\n", r"a.txt:1: 1 columns, where most lines have 2"),
        ("a.csv", "anna,B-PER\nin,O\n", "no CSV"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": "O O"}', "the tags are 'O O'; a list"),
        ("a.jsonl", '{"tokens": ["a", 5], "tags": ["O", "O"]}', "a list of words is expected"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O", "O"]}', "a.jsonl:1: 1 words and 2 tags"),
        ("a.jsonl", '{"w": ["a"], "t": ["O"]}', "It has w, t; say --tokens-field"),
    ],
)
def test_tagged_files_that_are_wrong(scripts, tmp_path, name, content, message):
    with pytest.raises(scripts._text.DataError, match=message):
        sentences_of(scripts, tmp_path / name, content)


def test_comments_and_the_end_without_an_empty_line(scripts, tmp_path):
    content = "# sent_id = 1\nanna B-PER\nin O\n\n# sent_id = 2\n# B-PER\nrome B-LOC"
    found = sentences_of(scripts, tmp_path / "x.txt", content)
    assert [e.text for e in found] == [["anna", "in"], ["#", "rome"]]
    assert found[1].place.endswith("x.txt:6")
