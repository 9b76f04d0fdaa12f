r"""Distil a language model into a smaller one.

    python examples/distill_lm.py --teacher HuggingFaceTB/SmolLM2-135M-Instruct --layers 12 \
        --train train.txt --dev dev.txt --out runs/small

The student has some layers of the teacher (--layers), or is a model of its own (--student).
How it is supervised is one flag:

    labels      the next token alone, without a teacher
    live        KL to the teacher, which runs beside the student
    cached      the same; the teacher runs once, and what it says is kept in OUT/cache
    top-k       the same; kept are its most probable tokens (--keep) and the rest
    sampled     the same; kept are tokens drawn from it (--keep), unbiased
    served      the teacher runs elsewhere: the same command there with --serve PORT, here --url
    on-policy   JSD on what the student itself writes after the prompts (--share of the batches)

Data: text files; JSON lines with "text", with "prompt" and "completion", or with "messages"; or
datasets:NAME:SPLIT. Plain text is cut into blocks of --length tokens. The same command goes on with
a run that was interrupted. OUT/student loads with transformers, and needs no fkd.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from language import COUNTS, PERPLEXITY, compared, load, loader
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

import fkd
from fkd import batch, student, teacher, term
from fkd.interop.transformers import fewer_layers, heads
from fkd.loops import language as lm
from fkd.losses import cross_entropy, head, head_divergence

WAYS = ("labels", "live", "cached", "top-k", "sampled", "served", "on-policy")


def arguments() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--teacher", required=True, metavar="MODEL", help="a hub id, or a folder (GGUF, too)")
    smaller = parser.add_mutually_exclusive_group(required=True)
    smaller.add_argument("--student", metavar="MODEL", help="likewise")
    smaller.add_argument("--layers", type=int, help="so many of the teacher's first and last ones")
    add("--train", nargs="+", metavar="FILE", default=[])
    add("--dev", nargs="+", metavar="FILE", default=[], help="held out")
    add("--out", type=Path, required=True, metavar="FOLDER")
    add("--supervision", choices=WAYS, default="live")
    add("--labels", type=float, default=0.1, help="weight of the labels beside the teacher (0.1)")
    add("--keep", type=int, default=64, help="tokens of a position for top-k and sampled (64)")
    add("--url", help="of a teacher that is served")
    add("--serve", type=int, metavar="PORT", help="serve the teacher here")
    add("--share", type=float, default=0.5, help="of batches that the student writes (0.5)")
    add("--length", type=int, default=512, help="tokens of a row; on-policy, 1/4 is prompt (512)")
    add("--batch-size", type=int, default=8, help="rows (8)")
    add("--steps", type=int, default=1000)
    add("--lr", type=float, default=1e-4)
    add("--precision", choices=["fp32", "bf16"], default="fp32")
    add("--no-compile", dest="compile", action="store_false")
    add("--seed", type=int, default=0)
    return parser


def objective_of(args: argparse.Namespace, small: Any, big: Any, entries: int) -> fkd.Objective:
    """Labels; or what the teacher says, in one pass over the vocabulary that stores no logits."""
    if args.supervision == "labels":
        labels = term(cross_entropy, student.logits, batch.targets, where=COUNTS)
        return fkd.Objective({"labels": labels}, student=fkd.trainable(small))
    both = head.kl() + args.labels * head.cross_entropy().named("labels")
    divergence = head.jsd(0.5) if args.supervision == "on-policy" else both
    sides = heads(student=small, teacher=big, vocabulary=entries)
    said = term(head_divergence, **sides, labels=batch.targets, divergence=divergence)
    return fkd.Objective({"kd": said}, student=fkd.trainable(small), teacher=fkd.frozen(big))


def sourced(args: argparse.Namespace, objective: fkd.Objective, train: Any, dev: Any) -> Any:
    """The objective without its teacher, and loaders with what it said: before, or elsewhere."""
    few = {"top-k": fkd.sources.top_k, "sampled": fkd.sources.sampled}.get(args.supervision)
    if args.supervision == "served":
        source: Any = fkd.sources.served(args.url)
    elif args.supervision in ("cached", "top-k", "sampled"):
        rows = DataLoader(train.dataset + dev.dataset, train.batch_size, collate_fn=dev.collate_fn)
        hidden = objective.terms["kd"].kwargs["teacher_hidden"]
        keep = few and {hidden: few(args.keep, of=teacher.logits)}
        options = {"precision": args.precision, "device": args.device}
        source = fkd.sources.cache(objective, rows, args.out / "cache", keep=keep, **options)
    else:
        return objective, train, dev
    return fkd.sources.bind(objective, source), source.attach(train), source.attach(dev)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments().parse_args(argv)
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    tokenizer = load(AutoTokenizer, args.teacher)
    big = load(AutoModelForCausalLM, args.teacher).eval()
    tokenizers = {"teacher": tokenizer}
    if args.student:
        small, tokenizer = (load(c, args.student) for c in (AutoModelForCausalLM, AutoTokenizer))
    else:
        small = fewer_layers(big, args.layers)
    entries = min(len(tokenizer), len(tokenizers["teacher"]))
    objective = objective_of(args, small, big, entries)
    if args.serve is not None:
        with fkd.sources.serve(objective, port=args.serve, precision=args.precision) as server:
            print(f"the teacher is at {server.url}", flush=True)
            server.wait()
            return {}
    prompt = args.length // 4 if args.supervision == "on-policy" else 0
    sizes = (tokenizer, args.length, args.batch_size)
    train = loader(args.train, *sizes, prompt=prompt, shuffle=True)
    dev = loader(args.dev, *sizes, prompt=prompt, shuffle=False)
    read = {"student": tokenizer} | (tokenizers if "teacher" in objective.models else {})
    print(fkd.check(objective, next(iter(dev)), tokenizers=read))
    end, prepare = tokenizer.eos_token_id, None
    if prompt:
        write = lm.generator(objective, new_tokens=args.length - prompt, end=end)
        prepare = lm.on_policy(write, prompt=prompt, share=args.share)
    bound, train, held_out = sourced(args, objective, train, dev)
    rate = fkd.schedules.warmup(args.steps // 20 + 1, fkd.schedules.cosine(1.0, 0.1, args.steps))
    step = fkd.loops.train_step(
        bound, lambda params: torch.optim.AdamW(params, lr=args.lr), lr=rate, clip=1.0,
        compile=args.compile, precision=args.precision,
    )  # fmt: skip
    write = lm.generator(objective, new_tokens=32, end=end)
    result = fkd.loops.run(
        step, step.init(args.seed, device=args.device), train, steps=args.steps, prepare=prepare,
        dev=held_out, metrics={"perplexity": PERPLEXITY}, evaluate_every=max(args.steps // 5, 1),
        log_dir=args.out / "log", checkpoint_dir=args.out / "checkpoints", keep_last=1,
        callbacks=[lm.text_samples(write, dev.dataset[:2], tokenizer, args.out / "log")],
    )  # fmt: skip
    trained = fkd.loops.export(bound, result.state, "student", args.out / "student")
    tokenizer.save_pretrained(args.out / "student")
    same = lm.compare_tokenizers(tokenizer, tokenizers["teacher"]).same_ids
    values = compared(trained, big if same else None, entries, dev)
    (args.out / "report.json").write_text(json.dumps(values, indent=1))
    print({name: round(value, 4) for name, value in values.items()})
    return values


if __name__ == "__main__":
    main()
