"""Texts with a label, or words with tags each, as batches: `datasets` reads, transformers pads.

And what is measured on them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import conll
import datasets
import torch
import transformers as hf
from torch.utils.data import DataLoader

import fkd
from fkd import batch, call, student, term
from fkd.losses import cross_entropy


def read(source: str, columns: list[str] | None) -> tuple[list[Any], list[Any]]:
    """Texts (or lists of words), and their labels (or lists of tags) by name."""
    path = Path(source)
    if path.suffix in (".csv", ".tsv"):  # in .tsv files a quote is a letter
        form: Any = {"sep": "\t", "quoting": 3} if path.suffix == ".tsv" else {}
        data = datasets.Dataset.from_csv(source, keep_in_memory=True, names=columns, **form)
    elif path.suffix == ".jsonl":
        data = datasets.Dataset.from_json(source, keep_in_memory=True)
    elif path.exists():
        data = datasets.Dataset.from_dict(conll.read(source))
    else:
        name, _, split = source.partition(":")
        data = datasets.load_dataset(name, split=split)
    text = next(n for n in ("text", "sentence", "tokens") if n in data.column_names)
    label = next(n for n in ("label", "labels", "ner_tags", "tags") if n in data.column_names)
    kind = getattr(data.features[label], "feature", data.features[label])
    name_of = getattr(kind, "int2str", str)
    named = lambda y: [name_of(tag) for tag in y] if isinstance(y, list) else name_of(y)
    return list(data[text]), [named(y) for y in data[label]]


def rows_of(
    texts: list[Any], labels: list[Any], names: list[str], tokenizer: Any, most: int
) -> tuple[list[Any], list[Any]]:
    """Token numbers and classes; of words at their first token. And where each word begins."""
    words = isinstance(texts[0], list)
    tokens = tokenizer(texts, truncation=True, max_length=most, is_split_into_words=words)
    rows, places = [], []
    for i, label in enumerate(labels):
        row = {name: values[i] for name, values in tokens.items()}
        if words:
            places.append(conll.first_tokens(tokens.word_ids(i), len(label)))
            classes = conll.at_tokens(label, places[i], names, len(row["input_ids"]))
        else:
            classes = names.index(label)
        rows.append({**row, "labels": classes, "index": i})
    return rows, places


def loader(rows: list[Any], tokenizer: Any, size: int, *, shuffle: bool) -> DataLoader[Any]:
    """Batches of like lengths, padded by transformers' collator."""
    words = isinstance(rows[0]["labels"], list)
    kind = hf.DataCollatorForTokenClassification if words else hf.DataCollatorWithPadding
    collate = kind(tokenizer, pad_to_multiple_of=8)
    lengths = [len(row["input_ids"]) for row in rows]
    sampler = fkd.loops.BucketBatchSampler(lengths, size, buckets=8, shuffle=shuffle)
    return DataLoader(rows, batch_sampler=sampler, collate_fn=lambda some: dict(collate(some)))  # type: ignore[arg-type]


def metrics_of(gold: list[Any], places: list[Any], names: list[str]) -> dict[str, Any]:
    """Accuracy of texts; precision, recall and F1 of the entities in words."""
    if not places:
        return {"accuracy": fkd.metric(fkd.metrics.accuracy, student.logits, batch.labels)}
    scores = lambda *columns: conll.entity_scores(gold, places, names, *columns)
    choice = call(torch.argmax, student.logits, -1)
    return {"entities": fkd.loops.collect(scores, choice, batch.index)}


def prepared(
    splits: dict[str, Any], names: list[str], tokenizer: Any, *, size: int, most: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of every split a loader, and the metrics."""
    encoded = {n: rows_of(*part, names, tokenizer, most) for n, part in splits.items()}
    loaders = {n: loader(rows, tokenizer, size, shuffle=n == "train")
               for n, (rows, _) in encoded.items()}  # fmt: skip
    return loaders, {
        n: metrics_of(splits[n][1], places, names) for n, (_, places) in encoded.items()
    }


def measured(model: Any, data: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """A model by itself, on every split."""
    labels = {"labels": term(cross_entropy, student.logits, batch.labels)}
    alone = fkd.Objective(labels, student=fkd.trainable(model))
    state = fkd.loops.train_step(alone, torch.optim.SGD, compile=False).init()
    return {n: fkd.loops.evaluate(alone, state, x, metrics=metrics[n]) for n, x in data.items()}


def hiding(tokenizer: Any, fraction: float) -> Any:
    """Tokens hidden at random, so that a teacher is asked about more texts than there are."""
    special = torch.tensor(tokenizer.all_special_ids)

    def prepare(state: fkd.loops.State, one: dict[str, Any]) -> dict[str, Any]:
        ids = one["input_ids"]
        drawn = (torch.rand(ids.shape) < fraction).to(ids.device)
        drawn &= ~torch.isin(ids, special.to(ids.device))
        return {**one, "input_ids": ids.masked_fill(drawn, tokenizer.mask_token_id)}

    return prepare if fraction else None
