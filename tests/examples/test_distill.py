"""The two text examples as a newcomer runs them: on files of their own, also on wrong ones."""

from __future__ import annotations

import gzip
import json
import sys
import types
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


@pytest.fixture(scope="module")
def teacher(scripts, base, tmp_path_factory) -> str:
    """A fine-tuned classifier, with its training file beside it."""
    folder = tmp_path_factory.mktemp("teacher")
    train = write(folder / "train.tsv", [f"{text}\t{label}" for text, label in sentences(48)])
    done = scripts.distill_bert.main([
        "--finetune", "--teacher", base, "--train", train, "--dev", train,
        "--out", str(folder / "run"),
        "--epochs", "8", "--lr", "5e-3", "--dropout", "0", *FAST,
    ])  # fmt: skip
    assert done["dev"]["accuracy"] > 0.9
    return str(folder / "run" / "student")


@pytest.fixture
def train(tmp_path) -> str:
    return write(tmp_path / "train.tsv", [f"{text}\t{label}" for text, label in sentences(24)])


def distil(scripts, teacher: str, out: Path, *more: str):
    """A short distillation."""
    argv = ["--teacher", teacher, "--out", str(out), "--max-steps", "2", *FAST, *more]
    return scripts.distill_bert.main(argv)


def refused(scripts, teacher: str, out: Path, *more: str) -> str:
    with pytest.raises(SystemExit) as caught:
        distil(scripts, teacher, out, *more)
    assert isinstance(caught.value.code, str), "a message is expected, not a usage"
    return caught.value.code


def test_a_student_learns_from_its_teacher_without_labels(scripts, teacher, tmp_path, capsys):
    texts = write(tmp_path / "texts.tsv", [text for text, _ in sentences(48)])
    dev = write(tmp_path / "dev.tsv", [f"{text}\t{label}" for text, label in sentences(16)])
    done = scripts.distill_bert.main([
        "--teacher", teacher, "--train", texts, "--dev", dev, "--test", dev,
        "--student-layers", "2",
        "--epochs", "8", "--lr", "3e-3", "--dropout", "0", "--out", str(tmp_path / "run"), *FAST,
    ])  # fmt: skip
    assert done["test"]["accuracy"] > 0.9
    assert "no labels" in capsys.readouterr().out
    exported = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "student")
    assert exported.config.num_hidden_layers == 2
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == done


@pytest.mark.parametrize("loss", ["mse", "scores", "kl", "minilm"])
def test_every_term_with_another_size(scripts, teacher, train, tmp_path, loss):
    done = distil(
        scripts, teacher, tmp_path / "run", "--train", train, "--student-layers", "3",
        "--student-hidden", "8", "--embedding", "1", "--attention", "1", "--attention-loss", loss,
    )  # fmt: skip
    rows = [json.loads(x) for x in (tmp_path / "run/log/metrics.jsonl").read_text().splitlines()]
    terms = {n.split("/")[1] for row in rows for n in row if n.startswith("loss/")}
    assert terms == {"total", "embedding", "hidden", "attention", "logits", "labels"}
    assert done["steps"] == 2


def test_hidden_states_alone_leave_the_head_as_it_is(scripts, teacher, train, tmp_path):
    distil(scripts, teacher, tmp_path, "--train", train, "--logits", "0", "--labels", "0")
    start = hf.AutoModelForSequenceClassification.from_pretrained(teacher)
    trained = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert torch.equal(trained.classifier.weight, start.classifier.weight)
    layers = trained.bert.encoder.layer, start.bert.encoder.layer
    assert not torch.equal(layers[0][0].output.dense.weight, layers[1][1].output.dense.weight)


def test_frozen_embeddings_stay_those_of_the_teacher(scripts, teacher, train, tmp_path):
    distil(scripts, teacher, tmp_path, "--train", train, "--freeze-embeddings", "--lr", "1e-2")
    words = [
        hf.AutoModel.from_pretrained(folder).embeddings.word_embeddings.weight
        for folder in (teacher, tmp_path / "student")
    ]
    assert torch.equal(*words)


def test_an_interrupted_run_goes_on_and_ends_the_same(scripts, teacher, train, tmp_path):
    argv = ["--train", train, "--epochs", "2", "--dropout", "0.1", "--max-steps", "6"]
    distil(scripts, teacher, tmp_path / "whole", *argv)
    fit = scripts.distill_bert.fkd.loops.fit

    def stopping(*args, **options):
        for event in fit(*args, **options):
            yield event
            if event.kind == "save" and event.step == 3:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts.distill_bert.fkd.loops, "fit", stopping)
        with pytest.raises(KeyboardInterrupt):
            distil(scripts, teacher, tmp_path / "cut", *argv)
    done = distil(scripts, teacher, tmp_path / "cut", *argv)
    assert done["resumed_at"] == 3
    weights = [
        hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / n / "student").state_dict()
        for n in ("whole", "cut")
    ]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])


def test_evaluate_only_writes_no_model(scripts, teacher, train, tmp_path):
    done = scripts.distill_bert.main([
        "--evaluate-only", "--teacher", teacher, "--dev", train,
        "--out", str(tmp_path / "run"), *FAST,
    ])  # fmt: skip
    assert done["dev"]["accuracy"] > 0.9
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["evaluation.json"]


# Files, as people have them.


def forms(folder: Path) -> dict[str, tuple[str, list[str]]]:
    rows = [(f'{text}, "{text[:3]}"', label) for text, label in sentences(16)]
    quoted = [text.replace('"', '""') for text, _ in rows]
    labels = [label for _, label in rows]
    return {
        "header": (
            write(folder / "a.tsv", ["id\tsentence\tlabel", *(f"1\t{t}\t{y}" for t, y in rows)]),
            [],
        ),
        "named": (
            write(folder / "b.tsv", ["stars\treview_body", *(f"{y}\t{t}" for t, y in rows)]),
            ["--text-column", "review_body", "--label-column", "stars"],
        ),
        "csv": (
            write(folder / "c.csv", [f'{y},"{t}"' for t, y in zip(quoted, labels, strict=True)]),
            ["--text-column", "1", "--label-column", "0"],
        ),
        "json": (
            write(
                folder / "d.jsonl",
                [json.dumps({"label": int(y), "text": t}) for t, y in rows],
            ),
            [],
        ),
        "windows": (
            write(folder / "e.tsv", ["\ufefftext\tclass\r", *(f"{t}\t{y}\r" for t, y in rows)]),
            [],
        ),
    }


@pytest.mark.parametrize("form", ["header", "named", "csv", "json", "windows"])
def test_forms_of_files(scripts, tmp_path, form):
    path, flags = forms(tmp_path)[form]
    args = scripts.distill_bert.arguments().parse_args(["--teacher", "x", *flags])
    found = scripts.distill_bert.read_texts(path, args)
    assert [(e.text, e.label) for e in found] == [
        (f'{text}, "{text[:3]}"', label) for text, label in sentences(16)
    ]


def test_a_split_of_the_datasets_package(scripts, monkeypatch):
    class Names:
        def int2str(self, number):
            return ["bad", "good"][number]

    class Split(list):
        features = {"text": object(), "label": Names()}  # noqa: RUF012

    def load_dataset(name, *config, split):
        assert (name, config, split) == ("owner/films", ("small",), "train")
        return Split([{"text": "a film", "label": 1}, {"text": "the story", "label": -1}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = scripts._text.read("datasets:owner/films:train:small", scripts._text.Columns())
    assert [(e.text, e.label) for e in found] == [("a film", "good"), ("the story", None)]


# What is wrong, and what is said.


def test_a_broken_row_is_named_or_left_out(scripts, teacher, tmp_path, capsys):
    lines = [f"{text}\t{label}" for text, label in sentences(10)]
    lines[3] = "no label and no tab"
    lines[6] = "\t1"
    path = write(tmp_path / "broken.tsv", lines)
    said = refused(scripts, teacher, tmp_path / "run", "--train", path)
    assert "broken.tsv:4: 1 column, where most rows have 2" in said and "2 broken" in said
    distil(scripts, teacher, tmp_path / "run", "--train", path, "--skip-broken")
    shown = capsys.readouterr().out
    assert "left out 2 broken rows" in shown and "train: 8 examples" in shown


def test_broken_json_is_named(scripts, teacher, tmp_path):
    path = write(tmp_path / "x.jsonl", ['{"text": "a film", "label": 1}', '{"text": "a film"'])
    assert "x.jsonl:2: not JSON" in refused(scripts, teacher, tmp_path / "run", "--train", path)


@pytest.mark.parametrize("content", ["", "\n\n", "sentence\tlabel\n"])
def test_an_empty_file(scripts, teacher, tmp_path, content):
    path = tmp_path / "empty.tsv"
    path.write_text(content)
    said = refused(scripts, teacher, tmp_path / "run", "--train", str(path))
    assert "empty.tsv: there is not one row" in said


def test_a_file_that_is_not_there_or_not_text(scripts, teacher, tmp_path):
    assert "no such file" in refused(scripts, teacher, tmp_path, "--train", str(tmp_path / "x.tsv"))
    (tmp_path / "latin.tsv").write_bytes("a film\t1\ncaf\xe9\t0\n".encode("latin-1"))
    said = refused(scripts, teacher, tmp_path, "--train", str(tmp_path / "latin.tsv"))
    assert "latin.tsv:2: not UTF-8" in said


def test_an_unknown_column_lists_those_there_are(scripts, teacher, tmp_path):
    path, _ = forms(tmp_path)["named"]
    said = refused(scripts, teacher, tmp_path, "--train", path, "--text-column", "review")
    assert "no column 'review'; it has stars, review_body" in said
    said = refused(scripts, teacher, tmp_path, "--train", path)
    assert "is ['stars', 'review_body'] a header?" in said


def test_an_unknown_label_in_dev(scripts, teacher, train, tmp_path):
    dev = write(tmp_path / "dev.tsv", ["a film\t1", "a story\tmaybe"])
    said = refused(scripts, teacher, tmp_path / "run", "--train", train, "--dev", dev)
    assert "dev.tsv:2: label 'maybe' is none of the classes, 0, 1" in said


def test_labels_that_are_missing_where_they_are_needed(scripts, teacher, train, tmp_path):
    texts = write(tmp_path / "texts.tsv", [text for text, _ in sentences(8)])
    said = refused(scripts, teacher, tmp_path / "run", "--train", texts, "--labels-only")
    assert "texts.tsv: not one row has a label" in said
    said = refused(scripts, teacher, tmp_path / "run", "--train", train, "--dev", texts)
    assert "texts.tsv: not one row has a label" in said


def test_rows_without_a_label_count_only_for_the_teacher(scripts, teacher, tmp_path):
    lines = [f"{t}\t{y if i < 3 else ''}" for i, (t, y) in enumerate(sentences(16))]
    path = write(tmp_path / "few.tsv", lines)
    args = scripts.distill_bert.arguments().parse_args(["--teacher", "x"])
    found = scripts.distill_bert.read_texts(path, args)
    assert [e.label for e in found][:4] == ["0", "1", "0", None]
    assert distil(scripts, teacher, tmp_path / "run", "--train", path)["steps"] == 2


def test_a_student_deeper_than_its_teacher(scripts, teacher, train, tmp_path):
    said = refused(scripts, teacher, tmp_path, "--train", train, "--student-layers", "6")
    assert "--student-layers 6: the teacher has 4 layers" in said and "--fresh" in said
    more = ("--student-layers", "6", "--fresh")
    said = refused(scripts, teacher, tmp_path, "--train", train, *more)
    assert "layer_map: 6 student layers and 4 teacher layers" in said
    maps = ("--layer-map", "1,1,2,2,3,4")
    assert distil(scripts, teacher, tmp_path / "run", "--train", train, *more, *maps)["steps"] == 2


def test_other_wrong_sizes(scripts, teacher, train, tmp_path):
    flags = ("--train", train, "--init-layers", "0,9")
    assert "[9] are not layers of the teacher" in refused(scripts, teacher, tmp_path, *flags)
    flags = ("--train", train, "--student-hidden", "12")
    assert "a multiple of 8" in refused(scripts, teacher, tmp_path, *flags)


def test_a_teacher_that_is_not_trained(scripts, base, train, tmp_path):
    said = refused(scripts, base, tmp_path, "--train", train)
    assert "no trained classifier" in said and "--finetune" in said
    said = refused(scripts, str(tmp_path / "nowhere"), tmp_path, "--train", train)
    assert "nowhere" in said


def test_another_objective_in_the_same_folder(scripts, teacher, train, tmp_path):
    distil(scripts, teacher, tmp_path, "--train", train)
    said = refused(scripts, teacher, tmp_path, "--train", train, "--temperature", "2")
    assert "temperature" in said and "--no-resume" in said


def texts_of(scripts, path: Path, content: str | bytes, *flags: str):
    """Text, second text and label of every row."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    args = scripts.distill_bert.arguments().parse_args(["--teacher", "x", *flags])
    return [(e.text, e.pair, e.label) for e in scripts.distill_bert.read_texts(str(path), args)]


@pytest.mark.parametrize(
    ("name", "content", "flags", "expected"),
    [
        ("a.tsv.gz", gzip.compress(b"a\t1\nb\t0\n"), "", [("a", None, "1"), ("b", None, "0")]),
        ("a.csv", "review,stars\na,4.0\nb,-1\n", "", [("a", None, "4"), ("b", None, "-1")]),
        ("a.tsv", "premise\thypothesis\tlabel\na\tb\tyes\n", "", [("a", "b", "yes")]),
        ("a.tsv", "premise\thypothesis\tlabel\na\tb\t1", "--pair-column=", [("a", None, "1")]),
        ("a.jsonl", '{"x": {"y": "a"}, "label": true}', "--text-column=x.y", [("a", None, "True")]),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "b", "label": NaN}\n{"text": "c", "label": 1}',
            "",
            [("a", None, None), ("b", None, None), ("c", None, "1")],
        ),
        ("a.csv", "text\tlabel\na\t1\n", "--delimiter=tab", [("a", None, "1")]),
        ("a.tsv", "x\na\t1\nb\t0\n", "--skip-broken", [("a", None, "1"), ("b", None, "0")]),
    ],
    ids=["gz", "floats", "pair", "no pair", "nested", "label later", "delimiter", "first broken"],
)
def test_other_forms_of_rows(scripts, tmp_path, name, content, flags, expected):
    assert texts_of(scripts, tmp_path / name, content, *flags.split()) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'text,label\na,1\n"b,0\nc,1\n', r"a.csv:3: a quote .* is never closed"),
        ("a.csv", 'text,label\na,1\n"b" c,0\n', r'a.csv:3: .* written twice: ""'),
        ("a.csv", "text;label\na, b;1\nc;0\n", r"separated by ';'.*--delimiter ';'"),
        ("a.tsv", "a film,1\nbad,0\n", r"separated by ','.*--delimiter ','"),
        ("a.tsv", "text\ttext\na\tb\n", r"has 'text' twice"),
        ("a.tsv", "text\na\t1\nb\t0\n", r"a.tsv:1: 1 column in the header, and 2 in most"),
        ("a.tsv", "only\na film\t1\nbad\t0\n", r"a.tsv:1: 1 column, where most rows have 2"),
        ("a.tsv.gz", b"plain", r"not a gzip file"),
        ("a.tsv", "a film\t1\n".encode("utf-16"), r"iconv -f utf-16"),
        ("a.json", '["a film", "b"]', r"item 0: no object: 'a film' \(2 broken"),
        ("a.jsonl", '{"text": 5}', r"a.jsonl:1: 'text' is 5; a text is expected"),
        ("a.jsonl", '{"text": "a"}\n{"label": 1}', r"a.jsonl:2: 'text' is missing"),
        ("a.jsonl", '{"text": ["a"]}\n{"text": "b"}', r"a.jsonl:2: .* a list of words is expected"),
    ],
)
def test_files_that_are_wrong(scripts, tmp_path, name, content, message):
    with pytest.raises(scripts._text.DataError, match=message):
        texts_of(scripts, tmp_path / name, content)


def test_a_column_of_labels_that_is_not_known_is_told(scripts, tmp_path, capsys):
    texts_of(scripts, tmp_path / "a.tsv", "text\tmood\na\t1\n")
    assert "no column of labels is known among text, mood" in capsys.readouterr().out


def test_labels_and_the_names_of_classes(scripts):
    number, order = scripts._text.label_id, scripts._text.label_names
    assert order(["1", "-1", "b", "10", "a", None, "2"]) == ["-1", "1", "2", "10", "a", "b"]
    assert [number(x, ["0", "1"], "x:1") for x in ("1", "True", "false")] == [1, 1, 0]
    assert number("NEGATIVE", ["positive", "negative"], "x:1") == 1
    assert number("1", ["positive", "negative"], "x:1") == 1
    assert number("true", ["True", "False"], "x:1") == 0
    assert number(None, ["0", "1"], "x:1") == -100
    for label in ("2", "-1", "x", ["1", "0"]):
        with pytest.raises(scripts._text.DataError, match="x:1"):
            number(label, ["0", "1"], "x:1")


@pytest.mark.parametrize(
    "flags",
    [
        ["--lr", "-1"], ["--lr", "nan"], ["--clip", "0"], ["--temperature", "0"],
        ["--device", "gpu"], ["--delimiter", "||"], ["--label-names", "0,0"],
        ["--layer-map", "unifrom"], ["--weight-decay", "-1"], ["--student-layers", "0"],
    ],
)  # fmt: skip
def test_wrong_values_of_flags_are_two_lines(scripts, flags, capsys):
    with pytest.raises(SystemExit):
        scripts.distill_bert.main(["--teacher", "x", *flags])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and flags[0] in lines[0] and flags[1] in lines[0]


def test_folders_and_columns_that_are_wrong(scripts, teacher, train, tmp_path):
    said = refused(scripts, teacher, tmp_path, "--train", str(tmp_path))
    assert "is a folder; a file is expected" in said
    said = refused(scripts, teacher, Path(train), "--train", train)
    assert "is a file; a folder is expected" in said
    said = refused(scripts, str(tmp_path / "nowhere"), tmp_path, "--train", train)
    assert "there is no such folder" in said and "\n" not in said
    more = ("--student", teacher, "--student-layers", "2")
    said = refused(scripts, teacher, tmp_path, "--train", train, *more)
    assert "--student and --student-layers do not go together" in said
    many = write(tmp_path / "many.tsv", [f"{t}\tid{i}" for i, (t, _) in enumerate(sentences(48))])
    said = refused(scripts, teacher, tmp_path, "--train", many, "--finetune")
    assert "id0" in said


def test_a_text_in_words(scripts, teacher, tmp_path):
    rows = [{"tokens": t.split(), "label": int(y)} for t, y in sentences(12)]
    path = write(tmp_path / "x.jsonl", [json.dumps(row) for row in rows])
    assert distil(scripts, teacher, tmp_path / "run", "--train", path)["steps"] == 2


@pytest.fixture(scope="module")
def without_padding(base, tmp_path_factory) -> str:
    """A GPT-2, which has no token to pad with."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]", eos_token="[SEP]"
    ).save_pretrained(folder)
    config = hf.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_head=2, n_layer=2, n_positions=32,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    hf.GPT2ForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("flags", [(), ("--student-hidden", "8")])
def test_a_teacher_without_a_padding_token(scripts, without_padding, train, tmp_path, flags):
    done = distil(scripts, without_padding, tmp_path, "--train", train, "--dev", train, *flags)
    assert done["steps"] == 2 and 0 <= done["dev"]["accuracy"] <= 1
    student = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert student.config.pad_token_id == 3


def test_a_limit_that_counts_from_behind_the_padding(scripts):
    longest = scripts._models.longest
    assert longest(hf.RobertaConfig(max_position_embeddings=514, pad_token_id=1), 128) == 512
    assert longest(hf.BertConfig(max_position_embeddings=512), 128) == 512
    assert longest(hf.XLNetConfig(), 128) == 128
