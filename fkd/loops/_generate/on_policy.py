"""`fit(prepare=on_policy(...))`: batches that are partly the student's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.random import fold_in
from .._base.state import State
from .._text.arguments import expect_pad, expect_tokens
from .._text.tokens import IGNORE, Tokens
from .generator import Generator, Starts, completions

_OF_THE_TEXT = frozenset(
    """input_ids attention_mask position_ids targets labels decoder_input_ids
    decoder_attention_mask""".split()
)


class OnPolicy:
    """See `on_policy`, which makes it. Its texts that are used again are part of checkpoints."""

    def __init__(
        self,
        generator: Generator,
        prompt: int,
        share: float,
        updates: int,
        samples: int,
        ahead: int,
    ) -> None:
        self._generator, self._prompt = generator, prompt
        self._share, self._updates, self._samples = share, updates, samples
        self._ahead = ahead
        self._kept: dict[str, Any] = {}
        self._pending: list[Callable[[], Any]] = []

    def __call__(self, state: State, batch: Any) -> Any:
        """The batch of a step: the student's, or that of the data."""
        if self._ahead:
            return self._one_behind(state, batch)
        begin = state.step - state.step % self._updates
        if self._updates > 1 and self._kept.get("begin") == begin and begin < state.step:
            return self._kept["batch"]
        texts = self._started(state, batch)()
        if self._updates > 1:
            self._kept = {"begin": begin, "batch": texts}
        return texts

    def _one_behind(self, state: State, batch: Any) -> Any:
        """Begin the texts of this batch; give those that were begun `ahead` steps before."""
        self._pending.append(self._started(state, batch))
        if len(self._pending) <= self._ahead:
            return self._of_the_data(batch)
        return self._pending.pop(0)()

    def _started(self, state: State, batch: Any) -> Callable[[], Any]:
        """What gives the batch of these prompts, which may be under way elsewhere until then."""
        if float(torch.rand(())) >= self._share:
            from_data = self._of_the_data(batch)
            return lambda: from_data
        prompts = {n: batch[n][:, : self._prompt] for n in ("input_ids", "attention_mask")}
        seed = fold_in(state.seed, state.step)
        # What is not of the text (a weight of each example, an index) stays beside it.
        rest = {n: x for n, x in self._of_the_data(batch).items() if n not in _OF_THE_TEXT}
        if self._ahead:
            assert isinstance(self._generator, Starts)
            ended = self._generator.start(state, prompts, seed)
            return lambda: {**rest, **ended()}
        return lambda: {**rest, **self._generator(state, prompts, seed)}

    def _of_the_data(self, batch: Any) -> Any:
        if self._samples == 1:
            return batch
        return {n: x.repeat_interleave(self._samples, 0) for n, x in batch.items()}

    def state_dict(self) -> dict[str, Any]:
        """The texts that later steps will use: again, or when they are `ahead` steps old."""
        if not self._pending:
            return dict(self._kept)
        return {"pending": {str(i): finish() for i, finish in enumerate(self._pending)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `state_dict` gave it."""
        pending = state.get("pending", {})
        ready = [pending[name] for name in sorted(pending, key=int)]
        self._pending = [functools.partial(_itself, batch) for batch in ready]
        self._kept = {} if pending else dict(state)


def _itself(batch: Any) -> Any:
    return batch


def on_policy(
    generator: Generator,
    *,
    prompt: int,
    share: float = 1.0,
    updates: int = 1,
    samples: int = 1,
    ahead: int = 0,
) -> OnPolicy:
    """What `fit(prepare=...)` takes, so that the student learns on its own text.

    A batch of the data (of `prompt_batch`) is used with probability `1 - share`, drawn from the
    run's seed and step, so that a resumed run draws the same; else its prompts are given to the
    generator. Texts are not written for batches that a resumed run has behind it.

    Args:
      generator: `(state, prompts, seed) -> batch`; see `generator` and `engine_generator`.
      prompt: the width of the prompts in a batch; for an encoder-decoder, of `input_ids`.
      share: lambda of GKD, in [0, 1]. With `samples` (or `behaviour`) both kinds of batches must
        have the same fields and shapes.
      updates: steps on one batch of texts, which are then up to `updates - 1` steps old; the
        batches of the data that come meanwhile are left out. The texts are kept in checkpoints.
      samples: as the generator has it.
      ahead: an engine writes while the student trains: a step uses the texts of `ahead` steps
        before, by the student of then, and the first `ahead` steps use the data. For generators
        with `start` (`engine_generator` with weights of its own). What is under way is waited
        for when a checkpoint is written, and is in it.

    Raises:
      ValueError: a number out of range; a generator that cannot write while the student trains.

    Reference:
      Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated
      Mistakes, arXiv:2306.13649.
    """
    if prompt < 1 or updates < 1 or samples < 1 or not 0 <= share <= 1:
        raise ValueError(
            f"on_policy: prompt={prompt}, updates={updates}, samples={samples}, share={share}; "
            "numbers of at least 1, and a share from 0 to 1, are expected."
        )
    if ahead < 0 or (ahead and updates > 1):
        raise ValueError(
            f"on_policy: ahead={ahead} with updates={updates}; 0 or more steps ahead are expected, "
            "with one update on each batch of texts."
        )
    if ahead and not hasattr(generator, "start"):
        raise ValueError(
            f"on_policy: ahead={ahead}, and the generator has no start(state, prompts, seed). One "
            "that writes with the state's own tensors cannot, since the step changes them "
            "meanwhile: take engine_generator, or ahead=0."
        )
    return OnPolicy(generator, prompt, share, updates, samples, ahead)


def prompt_batch(
    rows: Sequence[Tokens], *, prompt: int, new_tokens: int, pad: int = 0
) -> dict[str, Tensor]:
    """Texts as a batch whose prompts end at one column: padded left, their completions right.

    Of a text (of `chat_tokens(turns="last")` or `completion_tokens`) the prompt is all that stands
    before the first token that counts. Later tokens that do not count (the user's, between two
    answers) stay such. It has the shape of a generator's batches, so that the two can be mixed.

    Args:
      rows: the texts.
      prompt: width of the prompts; longer ones are cut on the left.
      new_tokens: width of the completions; longer ones are cut on the right.
      pad: what stands where there is no token.

    Returns:
      See `completions`.

    Raises:
      ValueError: a text without a prompt; widths of less than 1.
      TypeError: rows that are no `Tokens`, a padding token that is no number.

    Example:
      >>> batch = prompt_batch([Tokens([5, 6, 7], [-100, 6, 7])], prompt=2, new_tokens=3)
      >>> batch["input_ids"], batch["targets"]
      (tensor([[0, 5, 6, 7, 0]]), tensor([[-100,    6,    7, -100, -100]]))
    """
    expect_pad("prompt_batch", pad)
    if min(prompt, new_tokens) < 1:
        raise ValueError(
            f"prompt_batch: prompt={prompt}, new_tokens={new_tokens}; at least 1 is expected."
        )
    for i, row in enumerate(rows):
        expect_tokens("prompt_batch", row, f"text {i}")
    ids = torch.full((len(rows), prompt), pad)
    mask = torch.zeros(len(rows), prompt, dtype=torch.long)
    new = torch.full((len(rows), new_tokens), pad)
    lengths = torch.zeros(len(rows), dtype=torch.long)
    said_by_others = torch.zeros(len(rows), new_tokens, dtype=torch.bool)
    for i, row in enumerate(rows):
        first = next((k for k, x in enumerate(row.labels) if x != IGNORE), len(row.ids))
        before, after = row.ids[:first][-prompt:], row.ids[first:][:new_tokens]
        if not before:
            raise ValueError(
                f"prompt_batch: text {i} has no token before the first one that counts; a prompt "
                "is expected (completion_tokens, chat_tokens)."
            )
        ids[i, prompt - len(before) :] = torch.tensor(before)
        mask[i, prompt - len(before) :] = 1
        new[i, : len(after)] = torch.tensor(after, dtype=torch.long)
        lengths[i] = len(after)
        behind = row.labels[first:][:new_tokens]
        said_by_others[i, : len(after)] = torch.tensor([x == IGNORE for x in behind])
    prompts: Mapping[str, Tensor] = {"input_ids": ids, "attention_mask": mask}
    made = completions(new, prompts, new_tokens=new_tokens, pad=pad, lengths=lengths)
    said = made["targets"][:, prompt - 1 : -1]  # views: what predicts each token behind the prompt
    said.masked_fill_(said_by_others, IGNORE)
    return made
