"""Entities and files of tagged words, as conlleval has them."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

conll = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "examples" / "conll.py")))


def test_entities_as_conlleval_finds_them():
    find = conll.entities
    assert find("B-PER I-PER O I-LOC I-LOC".split()) == {("PER", 0, 1), ("LOC", 3, 4)}
    assert find("I-LOC B-LOC I-LOC".split()) == {("LOC", 0, 0), ("LOC", 1, 2)}
    assert find("I-LOC I-PER".split()) == {("LOC", 0, 0), ("PER", 1, 1)}
    assert find("B-LOC E-LOC S-LOC I-LOC".split()) == {("LOC", 0, 1), ("LOC", 2, 2), ("LOC", 3, 3)}
    assert find(["O"]) == set() and find([]) == set()
    assert conll.iob2("I-LOC B-LOC I-LOC O I-PER".split()) == "B-LOC B-LOC I-LOC O B-PER".split()


def test_a_file_of_sentences(tmp_path: Path):
    path = tmp_path / "eng.train"
    path.write_text("-DOCSTART- O\n\nanna I-PER\nin O\n\n\nrome I-LOC")
    assert conll.read(path) == {
        "tokens": [["anna", "in"], ["rome"]],
        "tags": [["B-PER", "O"], ["B-LOC"]],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anna NN B-PER\nin O\n", r"x\.txt:2: 2 columns; 3 are expected"),
        ("anna\n", r"x\.txt:1: 1 columns; 2 are expected"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "x.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        conll.read(tmp_path / "x.txt")


def test_where_words_begin():
    assert conll.first_tokens([None, 0, 0, 2, None], 4) == [1, -1, 3, -1]


def test_a_word_without_tokens_shifts_no_other_word():
    """By hand: 3 entities, 2 guessed, 1 of them right."""
    names = ["O", "B-PER", "B-LOC"]
    gold = [["O", "B-PER", "B-LOC", "B-LOC"]]
    predicted, places = torch.tensor([[0, 1, 0, 1]]), [[-1, 1, -1, 3]]
    scores = conll.entity_scores(gold, places, names, [predicted], [torch.tensor([0])])
    assert scores == {"precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5}


def test_empty_rows_count_nowhere():
    none = conll.entity_scores([], [], ["O"], [torch.zeros(1, 3)], [torch.tensor([-1])])
    assert none == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
