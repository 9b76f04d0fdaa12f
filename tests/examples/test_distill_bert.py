"""`examples/distill_bert.py` as a newcomer runs it: on files of their own, a teacher first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf

from .text import FAST, base, scripts, write

__all__ = ["base", "scripts"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore")

GOOD, BAD = ("good", "great", "fine"), ("bad", "poor", "dull")


def sentences(count: int) -> list[tuple[str, str]]:
    """Texts of different lengths, whose label is in one of their words."""
    made = []
    for i in range(count):
        word = (GOOD if i % 2 else BAD)[i % 3]
        made.append((" ".join(["the story of", *["a film"] * (i % 5), word]), str(i % 2)))
    return made


def tsv(path: Path, count: int) -> str:
    return write(path, [f"{text}\t{label}" for text, label in sentences(count)])


@pytest.fixture(scope="module")
def teacher(scripts, base, tmp_path_factory) -> str:
    """A classifier that was trained by the script."""
    folder = tmp_path_factory.mktemp("teacher")
    train = tsv(folder / "train.tsv", 48)
    done = scripts.distill_bert.main([
        "--finetune", "--teacher", base, "--train", train, "--dev", train, "--columns",
        "text,label", "--out", str(folder / "run"), "--epochs", "8", "--lr", "5e-3", *FAST,
    ])  # fmt: skip
    assert done["dev"]["accuracy"] > 0.9
    return str(folder / "run" / "student")


def distil(scripts, teacher: str, out: Path, *more: str):
    columns = ["--columns", "text,label"] if any(m.endswith(".tsv") for m in more) else []
    argv = ["--teacher", teacher, "--out", str(out), "--student-layers", "2", *columns, *FAST]
    return scripts.distill_bert.main([*argv, *more])


def test_a_student_learns_from_its_teacher_without_labels(scripts, teacher, tmp_path):
    train, dev = tsv(tmp_path / "train.tsv", 48), tsv(tmp_path / "dev.tsv", 16)
    done = distil(
        scripts, teacher, tmp_path / "run", "--train", train, "--dev", dev, "--test", dev,
        "--labels", "0", "--epochs", "8", "--lr", "3e-3", "--mask-words", "0.05",
    )  # fmt: skip
    assert done["test"]["accuracy"] > 0.9 and done["dev"] == done["test"]
    exported = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "student")
    assert exported.config.num_hidden_layers == 2
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == done


def test_a_run_that_ended_is_not_run_again(scripts, teacher, tmp_path):
    flags = ("--train", tsv(tmp_path / "t.tsv", 16), "--epochs", "1", "--mask-words", "0.2")
    distil(scripts, teacher, tmp_path / "a", *flags)
    first = hf.AutoModel.from_pretrained(tmp_path / "a" / "student").state_dict()
    distil(scripts, teacher, tmp_path / "a", *flags)
    distil(scripts, teacher, tmp_path / "b", *flags)
    for name in ("a", "b"):
        again = hf.AutoModel.from_pretrained(tmp_path / name / "student").state_dict()
        assert all(torch.equal(again[n], first[n]) for n in first)


def test_a_cached_teacher_is_the_live_one(scripts, teacher, tmp_path):
    train, dev = tsv(tmp_path / "t.tsv", 16), tsv(tmp_path / "d.tsv", 9)
    flags = ("--train", train, "--dev", dev, "--epochs", "2", "--lr", "1e-3")
    for source in ("live", "cache"):
        distil(scripts, teacher, tmp_path / source, *flags, "--source", source)
    live, cached = (
        hf.AutoModel.from_pretrained(tmp_path / name / "student").state_dict()
        for name in ("live", "cache")
    )
    assert all(torch.allclose(live[n], cached[n], atol=1e-6) for n in live)
    with pytest.raises(SystemExit, match="--mask-words hides other words"):
        distil(scripts, teacher, tmp_path / "x", *flags, "--source", "cache", "--mask-words", "0.1")


def test_frozen_embeddings_stay_those_of_the_teacher(scripts, teacher, tmp_path):
    flags = ("--freeze-embeddings", "--lr", "1e-2", "--epochs", "1", "--labels-only")
    distil(scripts, teacher, tmp_path, "--train", tsv(tmp_path / "t.tsv", 16), *flags)
    words = [
        hf.AutoModel.from_pretrained(folder).embeddings.word_embeddings.weight
        for folder in (teacher, tmp_path / "student")
    ]
    assert torch.equal(*words)


def test_forms_of_files(scripts, tmp_path):
    rows = [(f'{text}, "{text[:3]}"', label) for text, label in sentences(6)]
    expected = ([text for text, _ in rows], [label for _, label in rows])
    read = scripts.texts.read
    plain = write(tmp_path / "a.tsv", [f"{t}\t{y}" for t, y in rows])
    assert read(plain, ["text", "label"]) == expected
    named = write(tmp_path / "b.tsv", ["sentence\tlabel", *(f"{t}\t{y}" for t, y in rows)])
    assert read(named, None) == expected
    quoted = [t.replace('"', '""') for t, _ in rows]
    lines = [f'{y},"{t}"' for t, (_, y) in zip(quoted, rows, strict=True)]
    assert read(write(tmp_path / "c.csv", ["label,text", *lines]), None) == expected
    made = [json.dumps({"text": t, "label": int(y)}) for t, y in rows]
    assert read(write(tmp_path / "d.jsonl", made), None) == expected


def test_a_split_of_the_hub(scripts, monkeypatch):
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    data = datasets.Dataset.from_dict({"sentence": ["a film"], "label": [1]}, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: (name, split, data)[2])
    assert scripts.texts.read("owner/films:train", None) == (["a film"], ["good"])


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


def test_a_tagger_and_its_student(scripts, base, tmp_path):
    train, dev = columns(tmp_path / "eng.train", 40), columns(tmp_path / "eng.dev", 5)
    data = ["--train", train, "--dev", dev, *FAST]
    large = scripts.distill_bert.main([
        "--finetune", "--teacher", base, "--epochs", "12", "--lr", "5e-3",
        "--out", str(tmp_path / "large"), *data,
    ])  # fmt: skip
    assert large["dev"]["entities/f1"] == 1.0
    folder = str(tmp_path / "large/student")
    small = distil(
        scripts, folder, tmp_path / "small", *data, "--epochs", "12", "--lr", "3e-3",
        "--test", dev, "--init-layers", "0,2",
    )  # fmt: skip
    assert small["test"]["entities/f1"] > 0.9
    names = hf.AutoConfig.from_pretrained(tmp_path / "small/student").id2label
    assert set(names.values()) == {"O", "B-PER", "B-LOC"}


def test_labels_are_at_the_first_token_of_a_word(scripts, base):
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    data = [["films", "paris"]], [["O", "B-LOC"]]
    (row,), places = scripts.texts.rows_of(*data, ["O", "B-LOC"], tokenizer, 16)
    assert tokenizer.convert_ids_to_tokens(row["input_ids"])[1:4] == ["film", "##s", "paris"]
    assert row["labels"] == [-100, 0, -100, 1, -100] and places == [[1, 3]]
