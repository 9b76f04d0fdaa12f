"""What a student writes while it learns, for the eye: texts in TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from fkd._check.tokenizers import Tokenizer

from .._base.state import State
from .._log.tensorboard import TensorBoard
from .._text.tokens import IGNORE, Tokens
from .generator import Generator, Prompts


@runtime_checkable
class Told(Protocol):
    """What an `Event` of a run says."""

    @property
    def kind(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def state(self) -> State: ...


class TextSamples:
    """See `text_samples`, which makes it."""

    def __init__(
        self, generator: Generator, prompts: Prompts, tokenizer: Tokenizer, folder: Path, kind: str
    ) -> None:
        self._generator, self._prompts, self._tokenizer = generator, prompts, tokenizer
        self._folder, self._kind = folder, kind
        self._log: TensorBoard | None = None

    def __call__(self, event: Told) -> None:
        """Write, if this is an event of the chosen kind."""
        if event.kind != self._kind:
            return
        batch = self._generator(event.state, self._prompts, event.state.seed)
        if self._log is None:
            self._log = TensorBoard(self._folder, first_step=None)
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        rows = [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
        texts = [self._tokenizer.decode(row) for row in rows]
        self._log.text("samples", "\n\n-----\n\n".join(texts), event.step)


def text_samples(
    generator: Generator,
    rows: Sequence[Tokens],
    tokenizer: Tokenizer,
    folder: str | os.PathLike[str],
    *,
    prompt: int = 64,
    plain: int = 16,
    kind: str = "evaluate",
) -> TextSamples:
    """A callback of `run`: how the student goes on after a few prompts, beside the curves.

    Args:
      generator: who writes; see `fkd.loops.language.generator`.
      rows: the texts whose prompts are taken: what stands before the first token that counts, and
        of plain text the first tokens.
      tokenizer: of these.
      folder: of the TensorBoard events, such as the `log_dir` of the run.
      prompt: how many tokens of a prompt at most, from its end.
      plain: how many tokens of plain text are its prompt.
      kind: of the events after which it writes.

    Raises:
      ValueError: no row.
    """
    if not rows:
        raise ValueError("text_samples: 0 rows; at least one text with a prompt is expected.")
    starts: list[list[int]] = []
    for row in rows:
        first = next((i for i, label in enumerate(row.labels) if label != IGNORE), len(row.ids))
        starts.append(row.ids[: first or plain][-prompt:])
    width = max(map(len, starts))
    ids = torch.zeros(len(starts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, start in enumerate(starts):
        ids[i, width - len(start) :] = torch.tensor(start)
        mask[i, width - len(start) :] = 1
    prompts = {"input_ids": ids, "attention_mask": mask}
    return TextSamples(generator, prompts, tokenizer, Path(folder), kind)
