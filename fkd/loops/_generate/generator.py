"""Who writes: a generator is a function `(state, prompts, seed) -> batch`.

`generator` runs the `generate` of a transformers model on the state's own tensors;
`engine_generator` hands the tensors to another engine. Any other function of this form will do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import stateless

from fkd._objective.apply import embedded_ids
from fkd._objective.models import skeleton
from fkd._objective.objective import Objective

from .._base.random import seeded
from .._base.state import State, device_of
from .._data.packing import next_tokens
from .._evaluate.score import autocast_of
from .._text.tokens import IGNORE

Prompts: TypeAlias = Mapping[str, Tensor]
"""`input_ids` and `attention_mask`, `[rows, prompt]`, padded left."""

Generator: TypeAlias = Callable[[State, Prompts, int], dict[str, Tensor]]
"""`(state, prompts, seed) -> batch`, a function of its arguments alone."""


@runtime_checkable
class Engine(Protocol):
    """An engine that generates with weights of its own: vLLM, SGLang, a server."""

    def load(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Take new weights, by the names of the model's checkpoint."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], seed: int) -> Sequence[Sequence[int]]:
        """What is said after each prompt, up to the token that ends it (that one included)."""
        ...


@runtime_checkable
class Starts(Protocol):
    """A generator that can write while the student trains."""

    def start(self, state: State, prompts: Prompts, seed: int) -> Callable[[], dict[str, Tensor]]:
        """Begin with the weights that the state has now; the batch, once it is asked for."""
        ...


def generator(
    objective: Objective,
    name: str = "student",
    *,
    new_tokens: int,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    end: int | Sequence[int] | None = None,
    pad: int | None = None,
    behaviour: bool = False,
    **options: Any,
) -> Generator:
    """Generation by a model of the objective, on the parameters of a state: nothing is copied.

    In eval mode, without gradients. Every batch has the same shape. In a bf16 run the parameters
    are rounded once a call, as in an engine: a copy of half the size. Of the model's own
    `generation_config` only its special tokens and its kind of cache are used: a repetition penalty
    or a `top_k` of it would draw from another distribution than the one that is trained. They may
    be given here.

    Args:
      objective: which model.
      name: of the model, or of an EMA copy.
      new_tokens: how many at most.
      samples: how many for each prompt; they are rows one after the other.
      temperature: of the draw; 0 takes the likeliest token.
      top_p: draw from the least set of tokens that has this probability.
      top_k: draw from so many tokens; None from all.
      end: the token (or one of several) that ends a text; by default what the model's own
        `generation_config` says. None where that says nothing: texts are of full length.
      pad: what stands where there is no token; by default as the model says, else `end`.
      behaviour: add `behaviour`, the log-probability of every target at this temperature, for
        losses that correct for a student that has moved on. It costs one forward pass. `top_p`
        and `top_k` are not in it.
      options: for `generate`, such as `cache_implementation="static"`.

    Returns:
      `(state, prompts, seed) -> batch`, with the fields of `completions`. For an encoder-decoder
      the prompts, and as `labels` what its decoder said, -100 after the end, as its data have it.

    Raises:
      ValueError: a number out of range; a model that has no `generate`.
    """
    if new_tokens < 1 or samples < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"generator: new_tokens={new_tokens}, samples={samples}, temperature={temperature}, "
            f"top_p={top_p}; at least 1, at least 1, at least 0, and above 0 up to 1 are expected."
        )
    if name not in objective.models:
        raise ValueError(
            f"generator: no model {name!r}. The objective has {', '.join(objective.models)}."
        )
    module: Any = objective.program.model(name).module
    config: Any = getattr(module, "generation_config", None)
    if not callable(getattr(module, "generate", None)) or config is None:
        raise ValueError(
            f"generator: model {name!r} is a {type(module).__name__}, which has no generate(). "
            "Write a generator of your own: a function (state, prompts, seed) -> batch."
        )
    # A small model with the config of a large one may name tokens that it does not have.
    known = range(embedded_ids(module) or torch.iinfo(torch.long).max)
    ends = [i for i in _ends(config.eos_token_id) if i in known] if end is None else _ends(end)
    filler = next(i for i in (pad, config.pad_token_id, *ends, 0) if i is not None and i in known)
    answers = bool(getattr(module.config, "is_encoder_decoder", False))
    drawn = temperature > 0
    chosen: dict[str, Any] = dict(
        max_new_tokens=new_tokens,
        do_sample=drawn,
        num_return_sequences=samples,
        eos_token_id=ends or None,
        pad_token_id=filler,
    )
    if drawn:
        chosen |= dict(temperature=temperature, top_p=top_p, top_k=top_k or 0)
    own = ("bos_token_id", "decoder_start_token_id", "cache_implementation")
    chosen |= {n: getattr(config, n) for n in own if getattr(config, n, None) is not None}
    settings = type(config)(**{**chosen, **options})
    copied: Any = skeleton(module, training=False)
    copied.generation_config = settings  # what it does not say, `generate` would take from here

    def write(state: State, prompts: Prompts, seed: int) -> dict[str, Tensor]:
        device = device_of(state.trainable)
        ids, mask = (prompts[n].to(device) for n in ("input_ids", "attention_mask"))
        tensors = _tensors(state, name, autocast_of(objective, state))
        swap = stateless._reparametrize_module(copied, tensors, tie_weights=True)  # pyright: ignore[reportPrivateUsage]
        with seeded(seed, device), torch.no_grad(), swap:
            said = copied.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
            each = {"input_ids": _each(ids, samples), "attention_mask": _each(mask, samples)}
            if answers:
                new, kept = _until_the_end(said[:, 1:], new_tokens, ends, filler)
                batch = {**each, "labels": new.masked_fill(~kept, IGNORE)}
            else:
                new = said[:, ids.shape[1] :]
                batch = completions(new, each, new_tokens=new_tokens, end=ends, pad=filler)
            if behaviour:
                batch["behaviour"] = _log_probs(copied, batch, temperature if drawn else 1.0)
        return batch

    return write


def engine_generator(
    engine: Engine,
    name: str = "student",
    *,
    new_tokens: int,
    samples: int = 1,
    end: int | Sequence[int] | None = None,
    pad: int = 0,
    every: int = 1,
) -> EngineGenerator:
    """Generation by another engine, which gets the weights of the state before it writes.

    For vLLM in one process, `load` is `model.load_weights(tensors.items())` and a reset of the
    prefix cache; for a server, its way of updating weights. With adapters, `load` merges them, or
    sends them under a name for each version.

    Args:
      engine: `load` and `generate`; see `Engine`.
      name: of the model whose weights it gets.
      new_tokens: how many at most; what an engine says beyond is cut.
      samples: how many for each prompt; a prompt is given so often.
      end: the token (or one of several) that ends a text.
      pad: what stands where there is no token.
      every: steps between updates of the weights. With more than 1 the texts are of an older
        student, of at most `every - 1` steps before.

    Returns:
      `(state, prompts, seed) -> batch`, with the fields of `completions`. With `every` more than
      1, a resumed run gives the engine the weights it has then. It can write while the student
      trains: `on_policy(ahead=1)`.
    """
    if every < 1:
        raise ValueError(f"engine_generator: every is {every}; at least 1 is expected.")
    return EngineGenerator(engine, name, new_tokens, samples, _ends(end), pad, every)


class EngineGenerator:
    """See `engine_generator`, which makes it."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        new_tokens: int,
        samples: int,
        ends: list[int],
        pad: int,
        every: int,
    ) -> None:
        self._engine, self._name, self._every = engine, name, every
        self._new_tokens, self._samples, self._ends, self._pad = new_tokens, samples, ends, pad
        self._loaded: int | None = None
        # One at a time: the next weights are loaded when the texts of the last ones are there.
        self._writer = ThreadPoolExecutor(1, "fkd-engine")
        self._last: Future[dict[str, Tensor]] | None = None

    def __call__(self, state: State, prompts: Prompts, seed: int) -> dict[str, Tensor]:
        """The batch, when it is there."""
        return self.start(state, prompts, seed)()

    def start(self, state: State, prompts: Prompts, seed: int) -> Callable[[], dict[str, Tensor]]:
        """The engine takes the weights now, and writes in a thread of its own."""
        if self._last is not None:
            wait([self._last])
        if self._loaded is None or not 0 <= state.step - self._loaded < self._every:
            self._engine.load(_tensors(state, self._name), state.step)
            self._loaded = state.step
        ids = _each(prompts["input_ids"].cpu(), self._samples)
        mask = _each(prompts["attention_mask"].cpu(), self._samples)
        self._last = self._writer.submit(self._written, ids, mask, seed)
        return self._last.result

    def _written(self, ids: Tensor, mask: Tensor, seed: int) -> dict[str, Tensor]:
        texts = [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]
        said = [list(row)[: self._new_tokens] for row in self._engine.generate(texts, seed)]
        if len(said) != len(texts):
            raise ValueError(f"the engine gave {len(said)} texts for {len(texts)} prompts.")
        width = max((len(row) for row in said), default=0)
        new = torch.full((len(said), max(width, 1)), self._pad)
        lengths = torch.tensor([len(row) for row in said])
        for i, row in enumerate(said):
            new[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        return completions(
            new,
            {"input_ids": ids, "attention_mask": mask},
            new_tokens=self._new_tokens,
            end=self._ends,
            pad=self._pad,
            lengths=lengths,
        )


def completions(
    new: Tensor,
    prompts: Prompts,
    *,
    new_tokens: int,
    end: Sequence[int] = (),
    pad: int = 0,
    lengths: Tensor | None = None,
) -> dict[str, Tensor]:
    """Prompts and what was said after them, as a batch of one shape.

    Args:
      new: `[rows, <= new_tokens]`, what was said. After the first token that ends it, nothing
        counts.
      prompts: of these rows, padded left.
      new_tokens: the width for what was said.
      end: tokens that end a text.
      pad: what stands where there is no token.
      lengths: `[rows]`, how many tokens were said, where no token says so.

    Returns:
      `input_ids`, `attention_mask`, `position_ids` and `targets` (the next token, where it was
      said by the model; -100 elsewhere), `[rows, prompt + new_tokens]`.

    Example:
      >>> prompts = {"input_ids": torch.tensor([[0, 5]]), "attention_mask": torch.tensor([[0, 1]])}
      >>> batch = completions(torch.tensor([[7, 2, 9]]), prompts, new_tokens=4, end=[2])
      >>> batch["input_ids"], batch["targets"]
      (tensor([[0, 5, 7, 2, 0, 0]]), tensor([[-100,    7,    2, -100, -100, -100]]))
    """
    new, said = _until_the_end(new, new_tokens, end, pad)
    if lengths is not None:
        said = said & (torch.arange(new_tokens) < lengths[:, None])
    prompt_mask = prompts["attention_mask"].long()
    mask = torch.cat([prompt_mask, said.long()], dim=1)
    ids = torch.cat([prompts["input_ids"], new], dim=1)
    counts = torch.cat([torch.zeros_like(prompt_mask), said.long()], dim=1).bool()
    return {
        "input_ids": ids.masked_fill(mask == 0, pad),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "targets": next_tokens(ids.masked_fill(~counts, IGNORE)),
    }


def _until_the_end(new: Tensor, width: int, end: Sequence[int], pad: int) -> tuple[Tensor, Tensor]:
    """What was said, in its width; and which of it counts: up to the first token that ends it."""
    new = F.pad(new, (0, width - new.shape[1]), value=pad)
    ended = torch.isin(new, torch.tensor(list(end), dtype=new.dtype, device=new.device))
    return new, (ended.long().cumsum(-1) - ended.long()) == 0


def _tensors(state: State, name: str, form: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a model; its parameters in another dtype, if one is given. For many tokens
    one copy is cheaper than autocast, which rounds every weight again for each of them."""
    tensors = {**state.frozen.get(name, {}), **state.trainable.get(name, {})}
    if form is not None:
        tensors = {n: x.to(form) if x.is_floating_point() else x for n, x in tensors.items()}
    return {n: x.detach() for n, x in {**tensors, **state.buffers.get(name, {})}.items()}


def _log_probs(model: nn.Module, batch: Mapping[str, Tensor], temperature: float) -> Tensor:
    names = ("input_ids", "attention_mask", "position_ids", "labels")
    fields = {n: batch[n] for n in names if n in batch}
    accepted = inspect.signature(model.forward).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    fields = {n: x for n, x in fields.items() if every or n in accepted}
    output: Any = model(**fields, use_cache=False)
    targets = batch["targets"] if "targets" in batch else batch["labels"]
    log_q = (output.logits.float() / temperature).log_softmax(-1)
    drawn = log_q.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    return drawn.masked_fill(targets == IGNORE, 0.0)


def _each(x: Tensor, samples: int) -> Tensor:
    return x.repeat_interleave(samples, dim=0)


def _ends(end: int | Sequence[int] | None) -> list[int]:
    return [] if end is None else [end] if isinstance(end, int) else list(end)
