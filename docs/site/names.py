"""Names in prose that do not exist: `similarity` for `similarity_preserving`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import fkd

from .objects import CODE
from .reference import members
from .shown import public

ROOT = Path(__file__).parent.parent.parent
WORD = re.compile(r"(?<!`)`([a-z_]\w+)(?:\(\))?`(?!`)")
DOTTED = re.compile(r"\bfkd(?:\.[a-zA-Z_]\w*)+")
GENERATED = ("reference/", "recipes/", "benchmarks.md", "changelog.md", "contributing.md")
OF_OTHERS = {
    *("torchrun", "onnxscript", "init_process_group", "fsdp", "dp", "dp_shard", "tp"),
    *("state_dict", "named_modules", "train", "num_workers"),  # torch.nn, DataLoader
    *("mm", "bmm", "addmm", "copy_", "batchmean", "reorder_for_peak_memory"),  # of torch
    *("input_ids", "attention_mask"),  # fields of transformers, and its methods
    *("gradient_checkpointing_enable", "_init_weights"),
    "lora_dropout",  # of peft
    "hard_label_weight_scheduler",  # of KnowledgeDistillation
    *("env", "compile_s"),  # a command; a column of the benchmarks
}
"""Words of other libraries, which the pages may name."""


def unknown(pages: Mapping[str, str]) -> Iterator[str]:
    """One line for each word in backticks that is neither fkd's, nor of a program on the page, nor
    of a library; for each path `fkd....`, and each file of `examples/`, that is not there.

    Args:
      pages: Markdown by path.
    """
    known = _known() | OF_OTHERS
    for name, text in pages.items():
        if name.startswith(GENERATED):
            continue
        programs = "\n".join(CODE.findall(text))
        here = {*re.findall(r"\w+", programs)}
        words = {*WORD.findall(CODE.sub("", text))}
        yield from (f"{name}: there is no `{word}`" for word in sorted(words - known - here))
        paths = {*DOTTED.findall(text)}
        yield from (f"{name}: there is no {path}" for path in sorted(paths) if not _exists(path))
        files = {*re.findall(r"\b(?:examples|benchmarks)/[\w/]+\.py\b", text)}
        yield from (f"{name}: there is no {x}" for x in sorted(files) if not (ROOT / x).exists())


@functools.cache
def _known() -> set[str]:
    """Every part of a public path, every member and every argument."""
    names: set[str] = set()
    for path, value in public().items():
        names |= {*path.split("."), *members(value)}
        with contextlib.suppress(TypeError, ValueError):  # of errors, and of what is not called
            names |= {*inspect.signature(cast("Callable[..., object]", value)).parameters}
    return names


def _exists(path: str) -> bool:
    try:
        functools.reduce(getattr, path.split(".")[1:], fkd)
    except AttributeError:
        return False
    return True
