"""Language models from where they are, their texts as batches, and a student beside its teacher."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import language as lm
from fkd.losses import cross_entropy, kl
from fkd.metrics import agreement, perplexity

COUNTS = batch.targets != -100
PERPLEXITY = fkd.metric(perplexity, student.logits, batch.targets, where=COUNTS)


def load(cls: Any, name: str) -> Any:
    """A model or tokenizer from the hub or a folder; from a GGUF file, if that is what is there."""
    folder = Path(name)
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    options: dict[str, Any] = {"dtype": torch.float32} if cls is AutoModelForCausalLM else {}
    if not files:
        return cls.from_pretrained(name, **options)
    loaded = cls.from_pretrained(name, gguf_file=files[0].name, **options)
    if cls is AutoModelForCausalLM:  # its weights are plain numbers by now
        loaded.hf_quantizer, loaded.is_quantized = None, False
        vars(loaded.config).pop("quantization_config", None)
    return loaded


def records(files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the files hold: {"text"}, {"prompt", "completion"} or {"messages"} each."""
    for name in files:
        if name.startswith("datasets:"):
            import datasets

            path, _, split = name.removeprefix("datasets:").rpartition(":")
            yield from datasets.load_dataset(path, split=split)
            continue
        for number, line in enumerate(Path(name).read_text(encoding="utf-8").split("\n"), 1):
            if not name.endswith((".jsonl", ".json")):
                yield {"text": line + "\n"}
            elif line.strip():
                try:
                    yield dict(json.loads(line))
                except ValueError as error:
                    raise SystemExit(f"error: {name}, line {number}: {error}") from error


def rows_of(files: Sequence[str], tokenizer: Any, length: int) -> list[lm.Tokens]:
    """Conversations and completions as they are, plain text in blocks."""
    rows: list[lm.Tokens] = []
    plain: list[str] = []
    for record in records(files):
        if "messages" in record:
            rows.append(lm.chat_tokens(tokenizer, record["messages"], turns="last"))
        elif "completion" in record:
            rows.append(lm.completion_tokens(tokenizer, record["prompt"], record["completion"]))
        elif "text" in record:
            plain.append(record["text"])
        else:
            raise SystemExit(
                f"error: {', '.join(files)}: a record with {', '.join(record)}; messages, prompt "
                "and completion, or text are expected."
            )
    if plain:
        ids = tokenizer("".join(plain), add_special_tokens=False, verbose=False)["input_ids"]
        rows += lm.token_blocks([ids], length)
    cut = [lm.Tokens(row.ids[:length], row.labels[:length]) for row in rows]
    kept = [row for row in cut if any(label != -100 for label in row.labels[1:])]
    if len(kept) < len(cut):
        print(f"{len(cut) - len(kept)} of {len(cut)} rows left out: no answer in {length} tokens")
    if not kept:
        raise SystemExit(f"error: {', '.join(files)}: not one row of {length} tokens.")
    return kept


def with_prompt(row: lm.Tokens, prompt: int) -> lm.Tokens:
    """Plain text whose first tokens are the prompt for the others."""
    plain = row.labels[0] != -100
    return lm.Tokens(row.ids, [-100] * prompt + row.ids[prompt:]) if plain else row


def loader(
    files: Sequence[str], tokenizer: Any, length: int, size: int, *, prompt: int = 0, shuffle: bool
) -> DataLoader[Any]:
    """Batches of one shape; with a prompt, whose prompts end at one column, for on-policy text."""
    rows, pad = rows_of(files, tokenizer, length), tokenizer.pad_token_id or 0
    collate: Any = functools.partial(lm.token_batch, length=length, pad=pad)
    if prompt:
        rows = [with_prompt(row, prompt) for row in rows]
        new = length - prompt
        collate = functools.partial(lm.prompt_batch, prompt=prompt, new_tokens=new, pad=pad)
    size = min(size, len(rows))
    return DataLoader(rows, size, shuffle=shuffle, drop_last=shuffle, collate_fn=collate)  # type: ignore[arg-type]


def compared(trained: Any, big: Any, entries: int, dev: Any) -> dict[str, float]:
    """A student beside its teacher: perplexities, KL, and how often their first choices agree; or
    alone, if `big` is None."""
    ours, theirs = (model.logits[..., :entries] for model in (student, teacher))
    targets, metrics = batch.targets, {"perplexity": PERPLEXITY}
    terms = {"labels": term(cross_entropy, student.logits, targets, where=COUNTS)}
    models = {"student": fkd.trainable(trained, training=False)}
    if big is not None:
        terms = {"kl": term(kl, ours, theirs, where=COUNTS)}
        models["teacher"] = fkd.frozen(big)
        metrics["teacher_perplexity"] = fkd.metric(perplexity, theirs, targets, where=COUNTS)
        metrics["agreement"] = fkd.metric(agreement, ours, theirs, where=COUNTS)
    objective = fkd.Objective(terms, **models)
    state = fkd.loops.train_step(objective, torch.optim.SGD).init()
    return fkd.loops.evaluate(objective, state, dev, metrics=metrics)
