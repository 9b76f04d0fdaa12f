r"""Distil a language model into a smaller one.

    python examples/distill_lm.py --teacher HuggingFaceTB/SmolLM2-135M-Instruct --layers 12 \
        --train train.txt --dev dev.txt --out runs/small

The student has some layers of the teacher (`--layers`), or is a model of its own (`--student`).
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
import copy
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

import fkd
from fkd import batch, student, teacher, term
from fkd.interop.transformers import heads, init_from_layers
from fkd.loops import language as lm
from fkd.losses import cross_entropy, head, head_divergence, kl
from fkd.metrics import agreement, perplexity

WAYS = ("labels", "live", "cached", "top-k", "sampled", "served", "on-policy")
counts = batch.targets != -100


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--teacher", required=True, metavar="MODEL", help="a hub id, or a folder (GGUF, too)")
    add("--student", metavar="MODEL", help="likewise; or --layers of the teacher")
    add("--layers", type=int, help="so many layers of the teacher, from the first to the last")
    add("--train", nargs="+", metavar="FILE", default=[])
    add("--dev", nargs="+", metavar="FILE", default=[], help="held out")
    add("--out", type=Path, required=True, metavar="FOLDER")
    add("--supervision", choices=WAYS, default="live")
    add("--labels", type=float, default=0.1, help="weight of the labels beside the teacher (0.1)")
    add("--keep", type=int, default=64, help="tokens of a position for top-k and sampled (64)")
    add("--url", help="of a teacher that is served")
    add("--serve", type=int, metavar="PORT", help="serve the teacher here")
    add("--share", type=float, default=0.5, help="of batches that the student writes (0.5)")
    add("--prompt", type=int, default=32, help="tokens of a prompt, on-policy (32)")
    add("--length", type=int, default=512, help="tokens of a row (512)")
    add("--batch-size", type=int, default=8, help="rows (8)")
    add("--steps", type=int, default=1000)
    add("--lr", type=float, default=1e-4)
    add("--evaluate-every", type=int, default=200)
    add("--precision", choices=["fp32", "bf16"], default="fp32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--no-compile", dest="compile", action="store_false")
    add("--seed", type=int, default=0)
    return parser


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


def student_of(big: Any, args: argparse.Namespace) -> Any:
    """A model of its own, or layers of the teacher, spread from the first to the last."""
    if args.student:
        return load(AutoModelForCausalLM, args.student)
    if not args.layers:
        raise SystemExit("error: give --student MODEL, or --layers of the teacher.")
    config, depth = copy.deepcopy(big.config), big.config.num_hidden_layers
    chosen = [round(i * (depth - 1) / max(args.layers - 1, 1)) for i in range(args.layers)]
    config.num_hidden_layers = args.layers
    if getattr(config, "layer_types", None):
        config.layer_types = [big.config.layer_types[i] for i in chosen]
    return init_from_layers(AutoModelForCausalLM.from_config(config), big, chosen)


def records(files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the files hold: {"text"}, {"prompt", "completion"} or {"messages"} each."""
    for name in files:
        if name.startswith("datasets:"):
            import datasets

            yield from datasets.load_dataset(*name.split(":")[1:2], split=name.split(":")[2])
            continue
        for number, line in enumerate(Path(name).read_text(encoding="utf-8").splitlines(), 1):
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
        else:
            plain.append(record["text"])
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


def collate(args: argparse.Namespace, pad: int) -> Any:
    """Rows to batches of one shape; on-policy, with a column at which all prompts end."""
    if args.supervision != "on-policy":
        return functools.partial(lm.token_batch, length=args.length, pad=pad)
    new = args.length - args.prompt
    return functools.partial(lm.prompt_batch, prompt=args.prompt, new_tokens=new, pad=pad)


def with_prompt(row: lm.Tokens, prompt: int) -> lm.Tokens:
    """Plain text whose first tokens are the prompt for the others."""
    plain = row.labels[0] != -100
    return lm.Tokens(row.ids, [-100] * prompt + row.ids[prompt:]) if plain else row


def terms_of(small: Any, big: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The objective: labels, and what the teacher says."""
    if args.supervision == "labels":
        return {"labels": term(cross_entropy, student.logits, batch.targets, where=counts)}
    # In one pass, logits never stored; the log has kd/kl and kd/labels.
    both = head.kl() + args.labels * head.cross_entropy().named("labels")
    divergence = head.jsd(0.5) if args.supervision == "on-policy" else both
    sides = heads(student=small, teacher=big)
    return {"kd": term(head_divergence, **sides, labels=batch.targets, divergence=divergence)}


def sourced(objective: fkd.Objective, loaders: Sequence[Any], args: argparse.Namespace) -> Any:
    """The objective without its teacher, and loaders with what the teacher says: from the disk,
    or from another process."""
    few = {"top-k": fkd.sources.top_k, "sampled": fkd.sources.sampled}.get(args.supervision)
    if args.supervision == "served":
        source: Any = fkd.sources.served(args.url)
    elif args.supervision not in ("cached", "top-k", "sampled"):
        return objective, loaders
    else:
        rows = [row for loader in loaders for row in loader.dataset]
        every = DataLoader(rows, args.batch_size, collate_fn=loaders[0].collate_fn)
        options = {"precision": args.precision, "device": args.device}
        hidden = objective.terms["kd"].kwargs["teacher_hidden"]
        keep = None if few is None else {hidden: few(args.keep, of=teacher.logits)}
        source = fkd.sources.cache(objective, every, args.out / "cache", keep=keep, **options)
    return fkd.sources.bind(objective, source), [source.attach(loader) for loader in loaders]


def report(made: Any, big: Any, dev: Any) -> dict[str, float]:
    """The trained student beside its teacher."""
    objective = fkd.Objective(
        {"kl": term(kl, student.logits, teacher.logits, where=counts)},
        student=fkd.trainable(made, training=False),
        teacher=fkd.frozen(big),
    )
    metrics = {
        "perplexity": fkd.metric(perplexity, student.logits, batch.targets, where=counts),
        "teacher_perplexity": fkd.metric(perplexity, teacher.logits, batch.targets, where=counts),
        "agreement": fkd.metric(agreement, student.logits, teacher.logits, where=counts),
    }
    state = fkd.loops.train_step(objective, torch.optim.SGD).init()
    return fkd.loops.evaluate(objective, state, dev, metrics=metrics)


class Samples:
    """After each checkpoint, how the student goes on after a few prompts: for TensorBoard."""

    def __init__(self, objective: fkd.Objective, dev: Any, tokenizer: Any, out: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        first = next(iter(dev))
        self.prompts = {n: first[n][:2, :16] for n in ("input_ids", "attention_mask")}
        self.write = lm.generator(objective, new_tokens=32, end=tokenizer.eos_token_id)
        self.tokenizer, self.log = tokenizer, SummaryWriter(out / "log")

    def __call__(self, event: fkd.loops.Event) -> None:
        if event.kind != "save":
            return
        texts = self.write(event.state, self.prompts, 0)["input_ids"].tolist()
        said = "\n\n".join(self.tokenizer.decode(row) for row in texts)
        self.log.add_text("samples", said, event.step)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments().parse_args(argv)
    tokenizer = load(AutoTokenizer, args.teacher)
    big = load(AutoModelForCausalLM, args.teacher).eval()
    torch.manual_seed(args.seed)
    small = student_of(big, args)
    if args.student:
        print(lm.compare_tokenizers(load(AutoTokenizer, args.student), tokenizer))
    models = {"student": fkd.trainable(small)}
    models |= {} if args.supervision == "labels" else {"teacher": fkd.frozen(big)}
    objective = fkd.Objective(terms_of(small, big, args), **models)
    if args.serve is not None:
        with fkd.sources.serve(objective, port=args.serve, precision=args.precision) as server:
            print(f"the teacher is at {server.url}", flush=True)
            server.wait()
            return {}

    rows = [rows_of(files, tokenizer, args.length) for files in (args.train, args.dev)]
    if args.supervision == "on-policy":
        rows = [[with_prompt(row, args.prompt) for row in part] for part in rows]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    size, make = min(args.batch_size, len(rows[0])), collate(args, pad)
    train = DataLoader(rows[0], size, shuffle=True, drop_last=True, collate_fn=make)  # type: ignore[arg-type]
    dev = DataLoader(rows[1], size, collate_fn=make)  # type: ignore[arg-type]
    objective, loaders = sourced(objective, [train, dev], args)
    prepare = None
    if args.supervision == "on-policy":
        new = args.length - args.prompt
        write = lm.generator(objective, new_tokens=new, end=tokenizer.eos_token_id)
        prepare = lm.on_policy(write, prompt=args.prompt, share=args.share)

    warmup = fkd.schedules.warmup(args.steps // 20 + 1, fkd.schedules.cosine(1.0, 0.1, args.steps))
    step = fkd.loops.train_step(
        objective,
        lambda params: torch.optim.AdamW(params, lr=args.lr),
        compile=args.compile,
        precision=args.precision,
        clip=1.0,
        lr=warmup,
    )
    ppl = fkd.metric(perplexity, student.logits, batch.targets, where=counts)
    result = fkd.loops.run(
        step,
        step.init(args.seed, device=args.device),
        loaders[0],
        steps=args.steps,
        prepare=prepare,
        dev=loaders[1],
        metrics={"perplexity": ppl},
        evaluate_every=args.evaluate_every,
        log_dir=args.out / "log",
        log_every=10,
        checkpoint_dir=args.out / "checkpoints",
        keep_last=1,
        callbacks=[Samples(objective, dev, tokenizer, args.out)],
    )
    made = fkd.loops.export(objective, result.state, "student", args.out / "student")
    tokenizer.save_pretrained(args.out / "student")
    values = report(made, big, dev)
    (args.out / "report.json").write_text(json.dumps(values, indent=1) + "\n")
    print({name: round(value, 4) for name, value in values.items()})
    return values


if __name__ == "__main__":
    main()
