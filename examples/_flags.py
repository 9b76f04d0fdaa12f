"""The flags that the text examples share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch


def flags(description: str, *, max_length: int = 128) -> argparse.ArgumentParser:
    """A parser with the flags for models, data, terms, training and output."""
    parser = _Parser(description=description, formatter_class=_Help)
    for add in (_modes, _models, _terms, _training, _output):
        add(parser)
    group = parser.add_argument_group("data")
    for split in ("train", "dev", "test"):
        group.add_argument(
            f"--{split}", metavar="FILE", help="a file, or datasets:NAME:SPLIT[:CONFIG]"
        )
    group.add_argument(
        "--skip-broken", action="store_true", help="leave broken rows out, and say how many"
    )
    group.add_argument(
        "--label-names", type=names, help="names of the classes, in the model's order"
    )
    group.add_argument(
        "--max-length", type=positive, default=max_length, help="tokens, longer texts are cut"
    )
    group.add_argument("--batch-size", type=positive, default=32, help="examples")
    group.add_argument(
        "--buckets",
        type=positive,
        help="how many lengths batches are padded to (default: 4 if compiled, otherwise 16)",
    )
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that answers a mistake with one line, not with all flags."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\nAll flags: {self.prog} --help\n")


class _Help(argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = (None, False, argparse.SUPPRESS)
        told = any(action.default is x for x in silent) or "default" in (action.help or "")
        return action.help if told else f"{action.help or ''} (default: %(default)s)"


def _modes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what to do (by default: distil)"
    ).add_mutually_exclusive_group()
    group.add_argument(
        "--finetune", action="store_true", help="train the teacher itself on the labels"
    )
    group.add_argument(
        "--labels-only", action="store_true", help="train the student without its teacher"
    )
    group.add_argument(
        "--evaluate-only", action="store_true", help="measure --student, or else --teacher"
    )


def _models(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models")
    group.add_argument("--teacher", required=True, help="a directory or hub id")
    group.add_argument(
        "--student", help="a directory or hub id to start from, instead of the teacher's layers"
    )
    group.add_argument(
        "--student-layers", type=positive, help="how many (default: half the teacher's)"
    )
    group.add_argument(
        "--student-hidden", type=positive, help="another hidden size; starts at random"
    )
    group.add_argument(
        "--init-layers", type=numbers, help="teacher layers to start from, such as 0,2,4"
    )
    group.add_argument("--fresh", action="store_true", help="start the student at random")
    group.add_argument(
        "--dropout", type=fraction, help="of what is trained (default: as configured)"
    )
    group.add_argument(
        "--freeze-embeddings", action="store_true", help="do not train the word embeddings"
    )


def _terms(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("terms (a weight of 0 switches one off)")
    for name, default in dict(
        embedding=0.0, hidden=1.0, attention=0.0, logits=1.0, labels=1.0
    ).items():
        group.add_argument(
            f"--{name}", type=weight, default=default, metavar="WEIGHT", help="of this term"
        )
    group.add_argument("--temperature", type=above_0, default=4.0, help="of the logits")
    group.add_argument("--hidden-loss", choices=["mse", "cosine"], default="mse", help="of states")
    group.add_argument(
        "--attention-loss",
        choices=["mse", "scores", "kl", "minilm"],
        default="minilm",
        help="maps, scores before the softmax, or relations in the last layer",
    )
    group.add_argument(
        "--layer-map",
        type=strategy,
        default="uniform",
        help="uniform, last, skip, or teacher layers counted from 1, such as 2,4,6",
    )


def _training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=positive, default=3, help="passes over the data")
    group.add_argument("--max-steps", type=positive, help="end after so many steps")
    group.add_argument("--lr", type=above_0, default=5e-5, help="highest learning rate")
    group.add_argument(
        "--adapter-lr", type=above_0, default=1e-3, help="of the maps between hidden sizes"
    )
    group.add_argument("--warmup", type=fraction, default=0.1, help="fraction of the steps")
    group.add_argument("--weight-decay", type=weight, default=0.01, help="of AdamW")
    group.add_argument("--clip", type=above_0, default=1.0, help="greatest norm of the gradient")
    group.add_argument(
        "--mask-words", type=fraction, default=0.0, help="hide this fraction of the tokens"
    )
    group.add_argument("--seed", type=int, default=0, help="of all randomness")
    group.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="the whole step (default: on a GPU; on a CPU few runs are long enough to gain)",
    )
    group.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of products")
    group.add_argument(
        "--device", type=device, help="cpu, cuda, ... (default: a GPU if there is one)"
    )


def _output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out", type=Path, default=Path("runs/distill"), help="folder of everything written"
    )
    group.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="go on with a run"
    )
    group.add_argument(
        "--keep", choices=["best", "last"], default="best", help="which student, by the dev metric"
    )
    group.add_argument("--evaluate-every", type=positive, help="steps (default: every epoch)")
    group.add_argument("--log-every", type=positive, default=20, help="steps")
    group.add_argument("--tensorboard", action=argparse.BooleanOptionalAction, default=None)


# Kinds of values.


def _checked(kind: Callable, fits: Callable, expected: str) -> Callable:
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"{text!r}; {expected} is expected")
        return value

    return parse


positive = _checked(int, lambda n: n > 0, "a whole number from 1")
weight = _checked(float, lambda x: 0 <= x < float("inf"), "a number from 0")
above_0 = _checked(float, lambda x: 0 < x < float("inf"), "a number above 0")
fraction = _checked(float, lambda x: 0 <= x < 1, "a number from 0 to below 1")


def names(text: str) -> list[str]:
    found = [word.strip() for word in text.split(",")]
    if len(found) < 2 or len(set(found)) < len(found) or "" in found:
        raise argparse.ArgumentTypeError(f"{text!r}; two or more different names are expected")
    return found


def device(text: str) -> str:
    """A device that this machine has."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(" at start of")[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here. {reason}") from None
    return text


def delimiter(text: str) -> str:
    made = {"\\t": "\t", "tab": "\t"}.get(text, text)
    if len(made) != 1:
        raise argparse.ArgumentTypeError(f"{text!r}; one character (or tab) is expected")
    return made


numbers = _checked(lambda text: [int(n) for n in text.split(",")], bool, "numbers such as 0,2,4")


def strategy(text: str) -> str | list[int]:
    if text in ("uniform", "last", "skip"):
        return text
    try:
        return numbers(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r}; uniform, last, skip, or numbers such as 2,4,6 are expected"
        ) from None
