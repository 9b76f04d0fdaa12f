"""Losses between two tokenizers: SmolLM2 teaches a student that reads other tokens.

    python benchmarks/two_tokenizers.py --teacher FOLDER --data FOLDER
    python benchmarks/two_tokenizers.py ... --only GOLD       # what has this in its name
    python benchmarks/two_tokenizers.py --table               # only write the table again

The student has 12 of the teacher's 30 layers (the first 4 and the last 8), and a tokenizer of 4,096
entries of its own: byte-pair merges of SentencePiece's form with byte fallback, trained on the
training text. An entry begins with the mean of the teacher's word embeddings of the tokens into
which the teacher's tokenizer cuts it. Each way adds one loss to that of the labels, both with
weight 1. Texts are stretches of 400 characters of WikiText-2 (`--data` has its test.txt, to train
on, and valid.txt, held out), without the few of more than 143 tokens. What is compared is bits per
byte of the held-out text, in which the tokenizers do not matter. What has a line in the results is
not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from smollm2 import chosen_layers, load
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import fkd
from fkd import batch, call, student, teacher, term
from fkd.interop.transformers import fewer_layers
from fkd.loops import language as lm
from fkd.losses import (
    alm,
    cross_entropy,
    gold,
    merged_log_probs,
    multi_level_ot,
    shared_kl,
    span_log_probs,
    token_log_probs,
    uld,
)

RESULTS = Path(__file__).parent / "results" / "two_tokenizers.jsonl"
ENTRIES, CHARACTERS, LENGTH, SIZE = 4096, 400, 144, 4
WAYS = ("labels", "shared_kl", "ALM", "shared_kl + ALM", "GOLD", "ULD", "MultiLevelOT")
END = "<|endoftext|>"


def own_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Merges of letters, a mark for a space, and bytes for what is left."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token=END, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = [END, *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES, special_tokens=special, show_progress=False, limit_alphabet=200
    )
    words = [word for line in text.splitlines() for word in line.split()]
    made.train_from_iterator(words, trainer)
    state = json.loads(made.to_str())  # bytes are no special tokens, as the trainer says
    state["added_tokens"] = state["added_tokens"][:1]
    made = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=END)


def student_of(big: Any, tables: Sequence[Sequence[bytes]], cut: Any) -> Any:
    """Layers of the teacher, and embeddings of other tokens: means of the teacher's."""
    small = fewer_layers(big, chosen_layers(12, big.config.num_hidden_layers))
    theirs = big.get_input_embeddings().weight.detach()
    small.resize_token_embeddings(len(tables[0]))
    rows: list[Tensor] = []
    for entry in tables[0]:
        ids = cut(entry.decode(errors="replace"))["input_ids"] or [0]
        rows.append(theirs[ids].mean(0))
    with torch.no_grad():
        small.get_input_embeddings().weight.copy_(torch.stack(rows))
    return small


class Texts:
    """Rows of both tokenizers, with what the teacher has read of them."""

    def __init__(self, file: Path, count: int, both: Sequence[Any], big: Any) -> None:
        text = " ".join(file.read_text(encoding="utf-8").split())
        texts = textwrap.wrap(text[: 3 * count * CHARACTERS], CHARACTERS)
        rows = zip(texts, *(t(texts)["input_ids"] for t in both), strict=True)
        fitting = [row for row in rows if max(map(len, row[1:])) < LENGTH][:count]
        self.texts = [row[0] for row in fitting]
        self.ours, self.theirs = (
            [lm.Tokens([0, *row[side]], [-100, *row[side]]) for row in fitting] for side in (1, 2)
        )
        self.hidden: list[Tensor] = []
        for row in self.theirs:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                ids = torch.tensor([row.ids])
                self.hidden.append(big.model(ids, use_cache=False)[0][0].bfloat16())

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> int:
        return i

    def collate(self, tables: Sequence[Sequence[bytes]], chosen: Sequence[int]) -> dict[str, Any]:
        rows = [self.ours[i] for i in chosen]
        others = [self.theirs[i] for i in chosen]
        made = lm.token_batch(rows, length=LENGTH)
        made |= lm.token_batch(others, length=LENGTH, prefix="teacher_")
        hidden = torch.zeros(len(rows), LENGTH, self.hidden[0].shape[-1], dtype=torch.bfloat16)
        for k, i in enumerate(chosen):
            hidden[k, : len(self.hidden[i])] = self.hidden[i]
        places = torch.arange(LENGTH)[None]
        said = [made[n].bool() & (places > 0) for n in ("attention_mask", "teacher_attention_mask")]
        ids = made["input_ids"], made["teacher_input_ids"]
        both, spans = lm.align(*ids, *tables, *said, multiple=64)
        return {**made, "teacher_hidden": hidden, "both": both, "spans": spans}


def terms_of(way: str, tables: Sequence[Sequence[bytes]]) -> dict[str, Any]:
    """The labels, and what a way adds."""
    shared, spans = lm.shared_vocabulary(*tables), batch.spans
    mine = call(fkd.loops.take, student.logits, batch.both.student)
    theirs = call(fkd.loops.take, teacher.logits, batch.both.teacher)
    kept = {"where": batch.both.student.kept}
    terms = {"labels": term(cross_entropy, student.logits, batch.targets)}
    if "shared_kl" in way:
        terms["shared_kl"] = term(shared_kl, mine, theirs, *shared, **kept)
    if "ALM" in way:
        log_q = call(token_log_probs, student.logits, batch.targets)
        log_p = call(token_log_probs, teacher.logits, batch.teacher_targets)
        pair = (
            call(span_log_probs, log_q, spans.student, spans.kept),
            call(span_log_probs, log_p, spans.teacher, spans.kept),
        )
        terms["alm"] = term(alm, *pair, where=spans.kept, temperature=10.0)
    if way == "GOLD":
        ours = (student.logits, batch.targets, spans.student, spans.kept)
        others = (teacher.logits, batch.teacher_targets, spans.teacher, spans.kept)
        merged = call(merged_log_probs, *ours), call(merged_log_probs, *others)
        terms["gold"] = term(gold, *merged, *shared, where=spans.kept)
    if way == "ULD":
        terms["uld"] = term(uld, mine, theirs, **kept)
    if way == "MultiLevelOT":
        terms["ot"] = term(multi_level_ot, mine, theirs, **kept)
    return terms


@torch.no_grad()
def bits_per_byte(module: Any, rows: Sequence[lm.Tokens], texts: Sequence[str]) -> float:
    """What a model needs to write the texts, by its own tokens."""
    nats = 0.0
    for start in range(0, len(rows), 8):
        data = lm.token_batch(rows[start : start + 8], length=LENGTH)
        with torch.autocast("cpu", torch.bfloat16):
            z = module(data["input_ids"], attention_mask=data["attention_mask"]).logits
        nats += float(nn.functional.cross_entropy(
            z.float().flatten(0, 1), data["targets"].flatten(), reduction="sum"
        ))  # fmt: skip
    return nats / math.log(2) / sum(len(t.encode()) for t in texts)


def train(way: str, options: argparse.Namespace, shown: Mapping[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    tables, train_texts, dev = shown["tables"], shown["train"], shown["dev"]
    small = student_of(shown["big"], tables, shown["cut"])
    before = bits_per_byte(small, dev.ours, dev.texts)
    models = {"student": fkd.trainable(small)}
    if way != "labels":
        models["teacher"] = fkd.frozen(
            shown["big"].lm_head, inputs=lambda fields: fields["teacher_hidden"]
        )
    objective = fkd.Objective(terms_of(way, tables), **models)
    collate = lambda chosen: train_texts.collate(tables, chosen)
    loader: Any = DataLoader(train_texts, SIZE, shuffle=True, collate_fn=collate)
    steps = options.epochs * len(loader)
    schedule = fkd.schedules.warmup(steps // 20 + 1, fkd.schedules.cosine(1.0, 0.1, steps))
    step = fkd.loops.train_step(
        objective,
        lambda params: torch.optim.AdamW(params, lr=options.lr, weight_decay=0.01, fused=True),
        compile=False,
        precision="bf16",
        clip=1.0,
        lr=schedule,
    )
    begun, values = time.process_time(), list[float]()

    def after(event: fkd.loops.Event) -> None:
        if event.kind == "epoch":
            module = fkd.loops.export(objective, event.state, "student")
            values.append(round(bits_per_byte(module, dev.ours, dev.texts), 4))
            print(way, event.epoch, values, flush=True)

    fkd.loops.run(
        step, step.init(0), loader, epochs=options.epochs, callbacks=[after], progress=False
    )
    return {
        "way": way,
        "lr": options.lr,
        "rows": len(train_texts),
        "before": round(before, 4),
        "values": values,
        "teacher": shown["teacher_bits"],
        "cpu_seconds": round(time.process_time() - begun, 1),
        "torch": torch.__version__,
    }


def lines() -> list[dict[str, Any]]:
    return [json.loads(x) for x in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(done: Sequence[Mapping[str, Any]]) -> str:
    """Bits per byte at the best epoch of each way."""
    rows = ["| loss beside the labels | bits per byte | epoch | CPU s |", "| --- " * 4 + "|"]
    for line in sorted(done, key=lambda x: WAYS.index(x["way"])):
        best = min(line["values"])
        name = "none" if line["way"] == "labels" else line["way"]
        epoch = line["values"].index(best) + 1
        rows.append(f"| {name} | {best:.3f} | {epoch} | {line['cpu_seconds']:.0f} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table(lines()))
        return
    if options.teacher is None or options.data is None:
        parser.error("--teacher and --data are needed, or --table")
    torch.set_num_threads(1)
    theirs = load(AutoTokenizer, options.teacher)
    big = load(AutoModelForCausalLM, options.teacher).eval()
    ours = own_tokenizer((options.data / "test.txt").read_text(encoding="utf-8"))
    sides = [lambda texts, t=t: t(texts, add_special_tokens=False) for t in (ours, theirs)]
    parts = (("test.txt", options.rows), ("valid.txt", options.held_out))
    texts = [Texts(options.data / file, count, sides, big) for file, count in parts]
    shown = {
        "big": big,
        "cut": sides[1],
        "tables": (lm.token_bytes(ours), lm.token_bytes(theirs)),
        "train": texts[0],
        "dev": texts[1],
        "teacher_bits": round(bits_per_byte(big, texts[1].theirs, texts[1].texts), 4),
    }
    done = {line["way"] for line in lines()}
    for way in WAYS:
        if options.only in way and way not in done:
            line = train(way, options, shown)
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
