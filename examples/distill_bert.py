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

import json
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from texts import hiding, measured, prepared, read

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import cross_entropy, kl, mse


def arguments() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--teacher", required=True, help="a folder or hub id")
    add("--finetune", action="store_true", help="train the teacher itself on the labels")
    add("--labels-only", action="store_true", help="train the student without its teacher")
    for split in ("train", "dev", "test"):
        add(f"--{split}", required=split == "train", help="see above")
    add("--columns", type=lambda text: text.split(","), help="their names, without a header")
    add("--init-layers", type=lambda text: [int(n) for n in text.split(",")], help="such as 0,2,4")
    add("--dropout", type=float, help="of what is trained (default: as configured)")
    add("--freeze-embeddings", action="store_true", help="do not train the word embeddings")
    for name in ("hidden", "logits", "labels"):
        add(f"--{name}", type=float, default=1.0, help="weight of this term; 0: none")
    numbers = {"student-layers": 3, "temperature": 4.0, "epochs": 3, "lr": 5e-5, "batch-size": 32,
               "max-length": 128, "seed": 0}  # fmt: skip
    for name, default in numbers.items():
        add(f"--{name}", type=type(default), default=default, help="(%(default)s)")
    add("--mask-words", type=float, default=0.0, help="hide this fraction of the tokens")
    add("--source", choices=["live", "cache"], default="live", help="cache: the teacher runs once")
    add("--precision", choices=["fp32", "bf16"], default="fp32")
    add("--no-compile", dest="compile", action="store_false")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--out", type=Path, default=Path("runs/distill"))
    return parser


def models(args: Namespace, labels: list[Any]) -> tuple[Any, Any]:
    """The teacher, and what is trained: itself with a fresh head, or some of its layers."""
    words, options = isinstance(labels[0], list), {"dtype": torch.float32}
    auto = hf.AutoModelForTokenClassification if words else hf.AutoModelForSequenceClassification
    if args.precision == "bf16" and args.device == "cpu":  # torch's fused attention is slow there
        options["attn_implementation"] = "eager"
    if args.finetune:
        names = sorted({tag for tags in labels for tag in tags} if words else set(labels))
        options |= {"id2label": dict(enumerate(names)), "ignore_mismatched_sizes": True,
                    "label2id": {name: i for i, name in enumerate(names)}}  # fmt: skip
    large = small = auto.from_pretrained(args.teacher, **options)
    if not args.finetune:
        depths = {"student": args.student_layers, "teacher": large.config.num_hidden_layers}
        chosen = args.init_layers or [t - 1 for _, t in fkd.layer_map(**depths)]
        small = fkd.interop.transformers.fewer_layers(large, chosen)
    for part in small.modules() if args.dropout is not None else ():
        if isinstance(part, torch.nn.Dropout):
            part.p = args.dropout
    small.get_input_embeddings().weight.requires_grad_(not args.freeze_embeddings)
    return large, small


def objective_of(args: Namespace, large: Any, small: Any) -> fkd.Objective:
    """Every term whose weight is not 0; the labels alone without a teacher."""
    labels = {"labels": term(cross_entropy, student.logits, batch.labels, weight=args.labels)}
    if args.finetune or args.labels_only:
        return fkd.Objective(labels, student=fkd.trainable(small))
    depths = {"student": small.config.num_hidden_layers, "teacher": large.config.num_hidden_layers}
    pairs = fkd.layer_map(**depths)
    terms: dict[str, Any] = {
        "hidden": [
            term(mse, student.hidden_states[s], teacher.hidden_states[t],
                 where=batch.attention_mask, weight=args.hidden / len(pairs))
            for s, t in pairs
        ],
        "logits": term(kl, student.logits, teacher.logits, temperature=args.temperature,
                       where=batch.labels != -100, weight=args.logits),
        **labels,
    }  # fmt: skip
    terms = {name: value for name, value in terms.items() if getattr(args, name)}
    return fkd.Objective(terms, student=fkd.trainable(small), teacher=fkd.frozen(large))


def cached(args: Namespace, objective: fkd.Objective, loaders: dict[str, Any]) -> Any:
    """The objective without its teacher, and loaders with what the teacher said of every row."""
    if args.mask_words:
        raise SystemExit("error: --mask-words hides other words in every epoch; a cache cannot.")
    every = [one for data in loaders.values() for one in data]
    options = {"precision": args.precision, "device": args.device}
    source = fkd.sources.cache(objective, every, args.out / "cache", **options)
    return fkd.sources.bind(objective, source), {n: source.attach(x) for n, x in loaders.items()}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = arguments().parse_args(argv)
    torch.manual_seed(args.seed)
    splits = {n: read(s, args.columns) for n in ("train", "dev", "test") if (s := getattr(args, n))}
    large, small = models(args, splits["train"][1])
    names = [name for _, name in sorted(small.config.id2label.items())]
    tokenizer = hf.AutoTokenizer.from_pretrained(args.teacher)
    data, metrics = prepared(splits, names, tokenizer, size=args.batch_size, most=args.max_length)
    objective, began = objective_of(args, large, small), time.perf_counter()
    read_by_run = {n: x for n, x in data.items() if n != "test"}
    if args.source == "cache":
        objective, read_by_run = cached(args, objective, read_by_run)
    kept, steps = time.perf_counter(), args.epochs * len(data["train"])
    step = fkd.loops.train_step(
        objective,
        lambda p: torch.optim.AdamW(fkd.loops.param_groups(p, weight_decay=0.01), lr=args.lr),
        compile=args.compile, precision=args.precision, clip=1.0,
        lr=fkd.schedules.warmup(steps // 10 + 1, fkd.schedules.linear(1.0, 0.0, steps=steps)),
        mesh=fkd.parallel.torchrun_mesh(),
    )  # fmt: skip
    result = fkd.loops.run(
        step, step.init(args.seed, device=args.device), read_by_run["train"], epochs=args.epochs,
        prepare=hiding(tokenizer, args.mask_words), dev=read_by_run.get("dev"),
        metrics=metrics.get("dev"), log_dir=args.out / "log", keep_last=1,
        checkpoint_dir=args.out / "checkpoints", config={n: str(v) for n, v in vars(args).items()},
    )  # fmt: skip
    done: dict[str, Any] = {"steps": steps, "cache_seconds": round(kept - began, 1),
                            "seconds": round(time.perf_counter() - kept, 1)}  # fmt: skip
    trained = fkd.loops.export(objective, result.state, "student", args.out / "student")
    tokenizer.save_pretrained(args.out / "student")
    done["parameters"] = sum(p.numel() for p in trained.parameters())
    done |= measured(trained, {n: x for n, x in data.items() if n != "train"}, metrics)
    (args.out / "result.json").write_text(json.dumps(done, indent=2) + "\n")
    print(json.dumps(done, indent=2))
    return done


if __name__ == "__main__":
    main()
