r"""Distil a BERT-like classifier of texts, or of words (named entities), into one of fewer layers.

    pip install "fkd[text]"                         # transformers and datasets
    python examples/distill_bert.py --finetune --teacher bert-base-uncased --out runs/teacher \
        --train stanfordnlp/sst2:train --dev stanfordnlp/sst2:validation
    python examples/distill_bert.py --teacher runs/teacher/student --student-layers 3 \
        --train stanfordnlp/sst2:train --dev stanfordnlp/sst2:validation --out runs/small

Data: NAME:SPLIT of the hub; .tsv, .csv or .jsonl files (--columns text,label where there is no
header); or files in columns, a word and its tag a line, as CoNLL-2003 has them. The same command
goes on with a run that was interrupted. OUT/student loads with transformers, and needs no fkd.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import conll
import torch
import transformers as hf
from texts import loader, read, rows_of

import fkd
from fkd import batch, call, student, teacher, term
from fkd.losses import cross_entropy, kl, mse

LABELS = {"labels": term(cross_entropy, student.logits, batch.labels)}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--teacher", required=True, help="a folder or hub id")
    add("--finetune", action="store_true", help="train the teacher itself on the labels")
    add("--labels-only", action="store_true", help="train the student without its teacher")
    for split in ("train", "dev", "test"):
        add(f"--{split}", required=split == "train", help="see above")
    add("--columns", type=lambda text: text.split(","), help="their names, without a header")
    add("--student-layers", type=int, default=3)
    add("--init-layers", type=lambda text: [int(n) for n in text.split(",")], help="such as 0,2,4")
    add("--dropout", type=float, help="of what is trained (default: as configured)")
    add("--freeze-embeddings", action="store_true", help="do not train the word embeddings")
    for name in ("hidden", "logits", "labels"):
        add(f"--{name}", type=float, default=1.0, help="weight of this term; 0: none")
    add("--temperature", type=float, default=4.0)
    add("--mask-words", type=float, default=0.0, help="hide this fraction of the tokens")
    add("--source", choices=["live", "cache"], default="live", help="cache: the teacher runs once")
    add("--epochs", type=int, default=3)
    add("--lr", type=float, default=5e-5)
    add("--batch-size", type=int, default=32)
    add("--max-length", type=int, default=128)
    add("--precision", choices=["fp32", "bf16"], default="fp32")
    add("--no-compile", dest="compile", action="store_false")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("runs/distill"))
    return parser


def terms(args: argparse.Namespace, small: Any, large: Any) -> dict[str, Any]:
    """Every term whose weight is not 0."""
    depths = {"student": small.config.num_hidden_layers, "teacher": large.config.num_hidden_layers}
    pairs = fkd.layer_map(**depths)
    hidden = [
        term(mse, student.hidden_states[s], teacher.hidden_states[t], where=batch.attention_mask,
             weight=args.hidden / len(pairs))
        for s, t in pairs
    ]  # fmt: skip
    logits = term(kl, student.logits, teacher.logits, temperature=args.temperature,
                  where=batch.labels != -100, weight=args.logits)  # fmt: skip
    labels = term(cross_entropy, student.logits, batch.labels, weight=args.labels)
    every = {"hidden": hidden, "logits": logits, "labels": labels}
    return {name: value for name, value in every.items() if getattr(args, name)}


def hiding(tokenizer: Any, fraction: float) -> Any:
    """Tokens hidden at random, so that a teacher is asked about more texts than there are."""
    special = torch.tensor(tokenizer.all_special_ids)

    def prepare(state: fkd.loops.State, one: dict[str, Any]) -> dict[str, Any]:
        ids = one["input_ids"]
        drawn = (torch.rand(ids.shape) < fraction).to(ids.device)
        drawn &= ~torch.isin(ids, special.to(ids.device))
        return {**one, "input_ids": ids.masked_fill(drawn, tokenizer.mask_token_id)}

    return prepare if fraction else None


def metrics(gold: list[Any], places: list[Any], names: list[str]) -> dict[str, Any]:
    choice = call(torch.argmax, student.logits, -1)
    if not places:
        return {"accuracy": fkd.metric(fkd.metrics.accuracy, student.logits, batch.labels)}
    scores = lambda *columns: conll.entity_scores(gold, places, names, *columns)
    return {"entities": fkd.loops.collect(scores, choice, batch.index)}


def sourced(args: argparse.Namespace, objective: fkd.Objective, loaders: dict[str, Any]) -> Any:
    """The objective without its teacher, and loaders with what the teacher said of every row."""
    if args.source == "live":
        return objective, loaders
    if args.mask_words:
        raise SystemExit(
            "error: --mask-words hides other words in every epoch, and --source cache has one "
            "answer to each text. Leave one of the two out."
        )
    seen = {n: loader for n, loader in loaders.items() if n != "test"}
    every = [one for loader in seen.values() for one in loader]
    options = {"precision": args.precision, "device": args.device}
    source = fkd.sources.cache(objective, every, args.out / "cache", **options)
    return fkd.sources.bind(objective, source), {n: source.attach(x) for n, x in seen.items()}


def measured(model: Any, data: Any, metrics: dict[str, Any]) -> dict[str, float]:
    """A model by itself."""
    objective = fkd.Objective(LABELS, student=fkd.trainable(model))
    state = fkd.loops.train_step(objective, torch.optim.SGD, compile=False).init()
    values = fkd.loops.evaluate(objective, state, data, metrics=metrics)
    return {name: value for name, value in values.items() if not name.startswith("loss/")}


def models(args: argparse.Namespace, names: list[str], auto: Any) -> tuple[Any, Any]:
    """The teacher, and what is trained: itself, or some of its layers."""
    fresh = {"ignore_mismatched_sizes": True, "num_labels": len(names),
             "id2label": dict(enumerate(names)),
             "label2id": {n: i for i, n in enumerate(names)}} if args.finetune else {}  # fmt: skip
    large = small = auto.from_pretrained(args.teacher, dtype=torch.float32, **fresh)
    if not args.finetune:
        shape = {**large.config.to_dict(), "num_hidden_layers": args.student_layers}
        depths = {"student": args.student_layers, "teacher": large.config.num_hidden_layers}
        chosen = args.init_layers or [t - 1 for _, t in fkd.layer_map(**depths)]
        small = auto.from_config(type(large.config).from_dict(shape))
        small = fkd.interop.transformers.init_from_layers(small, large, chosen)
    if args.precision == "bf16" and args.device == "cpu":  # torch's fused one is slow there
        large.set_attn_implementation("eager")
        small.set_attn_implementation("eager")
    for part in small.modules() if args.dropout is not None else ():
        if isinstance(part, torch.nn.Dropout):
            part.p = args.dropout
    small.get_input_embeddings().weight.requires_grad_(not args.freeze_embeddings)
    return large, small


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = arguments().parse_args(argv)
    torch.manual_seed(args.seed)
    splits = {n: read(s, args.columns) for n in ("train", "dev", "test") if (s := getattr(args, n))}
    texts, labels = splits["train"]
    words = isinstance(texts[0], list)
    auto = hf.AutoModelForTokenClassification if words else hf.AutoModelForSequenceClassification
    known = hf.AutoConfig.from_pretrained(args.teacher).id2label
    names = [known[i] for i in sorted(known)]
    if args.finetune:
        names = sorted({tag for tags in labels for tag in tags} if words else set(labels))
    tokenizer = hf.AutoTokenizer.from_pretrained(args.teacher)
    large, small = models(args, names, auto)
    encoded = {n: rows_of(*part, names, tokenizer, args.max_length) for n, part in splits.items()}
    loaders = {n: loader(rows, tokenizer, args.batch_size, shuffle=n == "train")
               for n, (rows, _) in encoded.items()}  # fmt: skip
    measures = {n: metrics(splits[n][1], places, names) for n, (_, places) in encoded.items()}

    if args.finetune or args.labels_only:
        objective = fkd.Objective(LABELS, student=fkd.trainable(small))
    else:
        roles = {"student": fkd.trainable(small), "teacher": fkd.frozen(large)}
        objective = fkd.Objective(terms(args, small, large), **roles)
    began = time.perf_counter()
    goal, attached = sourced(args, objective, loaders)
    kept_s, steps = time.perf_counter() - began, args.epochs * len(loaders["train"])
    step = fkd.loops.train_step(
        goal,
        lambda params: torch.optim.AdamW(
            fkd.loops.param_groups(params, weight_decay=0.01), lr=args.lr
        ),
        compile=args.compile, precision=args.precision, clip=1.0,
        lr=fkd.schedules.warmup(steps // 10 + 1, fkd.schedules.linear(1.0, 0.0, steps=steps)),
        mesh=fkd.parallel.torchrun_mesh(),
    )  # fmt: skip
    result = fkd.loops.run(
        step, step.init(args.seed, device=args.device), attached["train"], epochs=args.epochs,
        prepare=hiding(tokenizer, args.mask_words), dev=attached.get("dev"),
        metrics=measures.get("dev"), log_dir=args.out / "log", keep_last=1,
        checkpoint_dir=args.out / "checkpoints", config={"command": " ".join(argv or sys.argv[1:])},
    )  # fmt: skip
    seconds = time.perf_counter() - began - kept_s
    trained = fkd.loops.export(objective, result.state, "student", args.out / "student")
    tokenizer.save_pretrained(args.out / "student")
    done = {"steps": steps, "parameters": sum(p.numel() for p in trained.parameters()),
            "seconds": round(seconds, 1), "cache_seconds": round(kept_s, 1)}  # fmt: skip
    for split in loaders.keys() - {"train"}:
        done[split] = measured(trained, loaders[split], measures[split])
    (args.out / "result.json").write_text(json.dumps(done, indent=2) + "\n")
    print(json.dumps(done, indent=2))
    return done


if __name__ == "__main__":
    main()
