"""The run of the two text examples: prepare, train, measure.

A `Task` is what differs between classifying texts and classifying words.
"""

from __future__ import annotations

import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _batches import Batches, Hide
from _models import adjust, is_classifier, load, longest, make_student, names_of, size
from _terms import labels_objective, objective
from _text import UNLABELLED, DataError, Example, label_names
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

import fkd


class Task(NamedTuple):
    """A kind of classification.

    Attributes:
      auto: the class of transformers that loads a model for it.
      read: `(source, args) -> examples`.
      rows: `(examples, tokenizer, names, args) -> rows` for `Batches`.
      metrics: `examples -> metrics` of `fkd.loops.fit`.
      best: the metric that counts.
      positions: ref to the mask of the logits that count.
      flag: what says where the labels are.
    """

    auto: Any
    read: Callable[[str, Namespace], list[Example]]
    rows: Callable[[Sequence[Example], Any, Sequence[str], Namespace], list[dict[str, Any]]]
    metrics: Callable[[Sequence[Example], Sequence[str]], dict[str, Any]]
    best: str
    positions: fkd.Ref
    flag: str = "--label-column"


class Prepared(NamedTuple):
    """A split, ready to use."""

    batches: Batches
    metrics: dict[str, Any]


def train(
    args: Namespace,
    goal: fkd.Objective,
    data: Batches,
    dev: Prepared | None,
    best: str,
    tokenizer: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train, keep the best student in `out/student`, and say what was measured."""
    steps = min(args.max_steps or math.inf, args.epochs * data.count)
    ramp = min(round(args.warmup * steps), steps - 1)
    rate = fkd.schedules.linear(1.0, 0.0, steps=steps - ramp)
    if ramp:
        rate = fkd.schedules.warmup(ramp, rate)
    rates = {name: args.adapter_lr for name in goal.models if name.startswith("fit_")}

    def optimizer(params: Any) -> torch.optim.Optimizer:
        groups = fkd.loops.param_groups(params, weight_decay=args.weight_decay, lr=rates)
        return torch.optim.AdamW(groups, lr=args.lr)

    step = fkd.loops.train_step(
        goal,
        optimizer,
        compile=args.compile,
        precision=args.precision,
        clip=args.clip,
        lr=rate,
        mesh=fkd.parallel.torchrun_mesh(),
    )
    kept, checkpoints = args.out / "student", args.out / "checkpoints"
    events = fkd.loops.fit(
        step, step.init(args.seed, device=args.device), data.train, epochs=args.epochs, steps=steps,
        dev=None if dev is None else dev.batches.all(), metrics={} if dev is None else dev.metrics,
        best="loss/total" if dev is None else best,
        evaluate_every=None if dev is None else args.evaluate_every,
        log_dir=args.out / "log", log_every=args.log_every, tensorboard=args.tensorboard,
        checkpoint_dir=checkpoints, keep_last=1, resume=args.resume,
        progress=sys.stderr.isatty(), config=_plain(args),
    )  # fmt: skip
    start = time.perf_counter()
    for event in events:
        if event.kind == "start":
            print(event.message)
            begun = event.step
        if event.kind == "log":
            print(f"step {event.step}/{steps}  loss {event.values['loss/total']:.4f}", flush=True)
        if event.kind == "evaluate":
            print(f"step {event.step}  dev {best} {event.values[best]:.4f}", flush=True)
        if event.kind != "end":
            seconds = time.perf_counter() - start
    # From the checkpoint, so that a run that was killed at any moment hands over the same one.
    found = fkd.loops.best(checkpoints) if dev is not None and args.keep == "best" else None
    state = event.state if found is None else fkd.loops.restore(step, found)
    fkd.loops.export(goal, state, "student", kept)
    tokenizer.save_pretrained(kept)
    done = {
        "steps": event.step,
        "seconds": round(seconds, 1),
        "best_step": None if found is None else state.step,
    }
    if begun:
        done["resumed_at"] = begun
    return kept, done


def measure(model: nn.Module, split: Prepared, device: str | None) -> dict[str, float]:
    """Loss and metrics of a model by itself."""
    goal = labels_objective(model)
    state = fkd.loops.train_step(goal, lambda p: torch.optim.SGD(p, lr=0.0), compile=False).init(
        device=device
    )
    return fkd.loops.evaluate(goal, state, split.batches.all(), metrics=split.metrics)


def prepared(args: Namespace, task: Task, large: nn.Module) -> tuple[nn.Module, fkd.Objective]:
    """What is trained, and on what."""
    if args.student:
        _config(args.student)
        shaping = ("student_layers", "student_hidden", "init_layers", "fresh")
        both = next((flag for flag in shaping if getattr(args, flag)), None)
        if both:
            raise DataError(
                f"--student and --{both.replace('_', '-')} do not go together: a student from a "
                "folder stays as it is. Leave one of them out."
            )
    try:
        if args.finetune:
            return adjust(large, args), labels_objective(large)
        small = adjust(make_student(args, task.auto, large), args)
        if args.labels_only:
            return small, labels_objective(small)
        return small, objective(args, task.positions, small, large)
    except ValueError as error:  # flags that do not go together
        raise DataError(str(error)) from error


def command(args: Namespace, task: Task) -> dict[str, Any]:
    """`run`, with what a user can fix as a message."""
    try:
        return run(args, task)
    except fkd.loops.CheckpointError as error:
        raise SystemExit(f"error: {error}\nTo start again in this folder: --no-resume.") from None
    except fkd.loops.LoopError as error:
        raise SystemExit(f"error: {error}") from error
    except (DataError, OSError, fkd.ObjectiveError) as error:
        raise SystemExit(f"error: {error}") from None


def run(args: Namespace, task: Task) -> dict[str, Any]:
    """What the flags ask for. Returns, prints and writes what was measured."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.compile = args.device != "cpu" if args.compile is None else args.compile
    if args.train is None and not args.evaluate_only:
        raise DataError("--train is missing: the file to learn from.")
    if args.evaluate_only and not (args.dev or args.test):
        raise DataError("--evaluate-only: --dev or --test is missing.")
    if args.out.exists() and not args.out.is_dir():
        raise DataError(f"--out {args.out}: is a file; a folder is expected.")
    torch.manual_seed(args.seed)
    source = args.student if args.evaluate_only and args.student else args.teacher
    sources = {s: getattr(args, s) for s in ("train", "dev", "test") if getattr(args, s)}
    if args.evaluate_only:
        sources.pop("train", None)
    found = {split: task.read(path, args) for split, path in sources.items()}
    config = _config(source)
    trained = is_classifier(config, task.auto)
    if not trained and not (args.finetune or args.labels_only):
        raise DataError(
            f"{source} is no trained classifier of this kind (it is "
            f"{', '.join(config.architectures or ['of unknown kind'])}). "
            "Train it first: --finetune."
        )
    names = args.label_names or (names_of(config) if trained else _names(found["train"], task.flag))
    if trained and config.num_labels < 2:
        raise DataError(f"{source} has {config.num_labels} class (it predicts a number).")
    if trained and len(names) != config.num_labels:
        raise DataError(
            f"--label-names: {len(names)} names; {source} has {config.num_labels} classes."
        )
    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token_id is None:  # GPT-2
        tokenizer.pad_token = tokenizer.eos_token
    limit = longest(config, args.max_length)
    if args.max_length > limit:
        raise DataError(f"--max-length {args.max_length}: the model takes at most {limit} tokens.")
    splits = {
        split: Prepared(
            Batches(
                task.rows(examples, tokenizer, names, args),
                size=args.batch_size,
                buckets=args.buckets or (4 if args.compile else 16),
                multiple=8 if args.compile else 4,
                pad=tokenizer.pad_token_id or 0,
                hide=hidden_words(tokenizer, args.mask_words),
            ),
            task.metrics(examples, names),
        )
        for split, examples in found.items()
    }
    _check_labels(args, splits, task.flag)
    for split, data in splits.items():
        edges = ", ".join(map(str, data.batches.edges))
        print(f"{split}: {len(found[split])} examples, padded to {edges} tokens")

    large = load(task.auto, source, names, tokenizer.pad_token_id)
    done: dict[str, Any] = {"command": " ".join(sys.argv[1:]), "seed": args.seed}
    if not args.evaluate_only:
        small, goal = prepared(args, task, large)
        print(f"{size(small):,} parameters (teacher {size(large):,}), classes {', '.join(names)}")
        kept, more = train(
            args, goal, splits["train"].batches, splits.get("dev"), task.best, tokenizer
        )
        done |= more | {"parameters": size(small)}
        large = load(task.auto, str(kept))
    for split in ("dev", "test"):
        if split in splits:
            values = measure(large, splits[split], args.device)
            done[split] = {n: v for n, v in values.items() if n != "loss/total"}
            print(f"{split}: " + ", ".join(f"{n} {v:.4f}" for n, v in done[split].items()))
    args.out.mkdir(parents=True, exist_ok=True)
    name = "evaluation.json" if args.evaluate_only else "result.json"
    (args.out / name).write_text(json.dumps(done, indent=2) + "\n")
    if not args.evaluate_only:
        print(f"the student is in {kept}, and what was measured in {args.out / name}")
    return done


def hidden_words(tokenizer: Any, fraction: float) -> Hide | None:
    if not fraction:
        return None
    if tokenizer.mask_token_id is None:
        raise DataError("--mask-words: this tokenizer has no mask token.")
    return Hide(fraction, tokenizer.mask_token_id, tokenizer.all_special_ids)


def _names(examples: Sequence[Example], flag: str) -> list[str]:
    flat = (e.label if isinstance(e.label, list) else [e.label] for e in examples)
    names = label_names([label for labels in flat for label in labels])
    file = examples[0].place.rpartition(":")[0]
    if not names:
        raise DataError(f"{file}: not one row has a label. Which column has them? ({flag})")
    if len(names) < 2:
        raise DataError(
            f"{file}: the labels are {names}; at least two classes are expected. Is it the right "
            f"column ({flag})?"
        )
    if len(names) > max(20, len(examples) // 2):
        raise DataError(
            f"{file}: {len(names)} different labels in {len(examples)} rows, such as "
            f"{', '.join(map(repr, names[:3]))}. Is it the right column ({flag})?"
        )
    return names


def _config(source: str) -> Any:
    """The configuration of a saved model; or what is wrong with the place, in one line."""
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        folder = Path(source)
        said = str(error).strip().splitlines()[0]
        if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
            missing = not folder.exists()
            said = "there is no such folder" if missing else f"no model is saved in it ({said})"
        raise DataError(f"{source}: {said}. A folder of save_pretrained is expected.") from None


def _check_labels(args: Namespace, splits: Mapping[str, Prepared], flag: str) -> None:
    """Every split that needs labels has some; without any, the term of the labels is left out."""
    for split, data in splits.items():
        if any(_labelled(row["labels"]) for row in data.batches.rows):
            continue
        if split != "train" or args.finetune or args.labels_only:
            raise DataError(
                f"{getattr(args, split)}: not one row has a label. Which column has them? ({flag})"
            )
        print(f"{args.train}: no labels; the student learns from its teacher alone")
        args.labels = 0.0


def _labelled(labels: int | list[int]) -> bool:
    return (
        any(n != UNLABELLED for n in labels) if isinstance(labels, list) else labels != UNLABELLED
    )


def _plain(args: Namespace) -> dict[str, Any]:
    return {n: v for n, v in vars(args).items() if isinstance(v, int | float | str)}
