"""A language model behind a server of vLLM or SGLang, as a source of sparse distributions."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch

from fkd._base.arguments import called_with
from fkd._base.errors import listing
from fkd._base.sparse import TopKDistribution, id_dtype
from fkd._base.types import Batch
from fkd._refs.refs import Ref, roots, teacher
from fkd.loops._data.ahead import Pending
from fkd.loops._data.epochs import Loader
from fkd.loops._data.fields import Field

from ._engines import SGLANG, VLLM, Engine, Known, Question
from ._errors import SourceError
from ._http import (
    Address,
    Failed,
    Patience,
    Refused,
    address_of,
    attempted,
    failure_of,
    patience_of,
    request,
)
from ._questions import Rows, Wanted, rows_of, wanted_of
from ._source import AttachedCollate, attach
from ._workers import Workers

_MOST_BYTES = 1 << 30
_SURPLUS = 1e-2
"""By how much probabilities that a server rounds may add up to more than 1."""


class Scored:
    """See `vllm` and `sglang`, which make it.

    Attributes:
      url: of the server.
      model: its name there.
      name: of the source.
      place: in words, for `check` and `draw`.
      batches: how many batches ahead of the step.
    """

    def __init__(
        self,
        engine: Engine,
        address: Address,
        model: str | None,
        wanted: Wanted,
        batches: int,
        requests: int,
        patience: Patience,
    ) -> None:
        self._arguments = (engine, address, model, wanted, batches, requests, patience)
        self.engine, self.address, self.wanted = engine, address, wanted
        self.batches, self._patience = batches, patience
        self.url, self.place = address.url, f"served by {engine.name} at {address.url}"
        self._stopped = threading.Event()
        self._workers = Workers(requests, f"fkd {engine.name} ({address.host}:{address.port})")
        served = attempted(self._models, address, patience, self._stopped)
        if model is not None and model not in served:
            raise SourceError(
                f"{engine.name}: {address.url} has no model {model!r}; it has {listing(served)}."
            )
        self.model = model or served[0]
        code = repr((engine.name, self.model, wanted))
        self.name = f"{engine.name}-{hashlib.sha256(code.encode()).hexdigest()[:8]}"

    @property
    def codes(self) -> list[str]:
        """The ref whose value it gives, as code."""
        return [repr(self.wanted.of)]

    def key(self, ref: Ref) -> str | None:
        """Under which key it gives the value of a ref; None if it does not."""
        return "v0" if ref == self.wanted.of else None

    def is_sparse(self, key: str) -> bool:
        """Whether a value is a distribution that is known on some classes; here, each is."""
        return True

    def instead(self, read: Sequence[Ref]) -> str:
        """What to do where the terms read something else than what is served here."""
        ours = [ref for ref in read if roots(ref) == roots(self.wanted.of)]
        hidden = next((ref for ref in ours if "hidden_states" in repr(ref)), None)
        if hidden is None:
            return ""
        name = self.engine.name
        return (
            f" {name} serves log-probabilities of tokens and no hidden states, so that no head can "
            f"be applied to them here. The head takes the distribution in their place: "
            f"{name.lower()}(..., of={hidden!r}). Hidden states are served by fkd's own server, "
            "with the parameters of the head: python -m fkd serve, and fkd.sources.served(url)."
        )

    def values(self, batch: Batch) -> dict[str, Any]:
        """The distributions for a batch, on the CPU.

        Raises:
          ServedError: the server did not give them.
          SourceError: the batch has not the fields that are needed.
        """
        return self.start(batch).result()

    def start(self, batch: Batch) -> Pending:
        """Ask for the distributions of a batch, one request for each sample."""
        rows = rows_of(batch, self.wanted, self.engine.name)
        futures = [self._workers.submit(self._asked, row.question) for row in rows.samples]
        return _Answers(futures, rows, self.wanted)

    def attach(self, loader: Loader) -> Loader:
        """The loader, with the values in its batches; see `Kept.attach`."""
        return attach(self, loader)

    def attach_collate(self, collate: Callable[[Any], Batch]) -> AttachedCollate:
        """A `collate_fn` for a `DataLoader`, whose workers then ask; see `Kept.attach_collate`."""
        return AttachedCollate(self, collate)

    def close(self) -> None:
        """End the threads; requests that wait are given up. Leaving a `with` does the same, and so
        does forgetting the source."""
        self._stopped.set()
        self._workers.close()

    def __enter__(self) -> Scored:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Scored, self._arguments

    def __repr__(self) -> str:
        return f"<source {self.name!r}: {self.codes[0]}, {self.model} {self.place}>"

    def _asked(self, question: Question) -> Known:
        def ask(timeout: float) -> Known:
            path, body = self.engine.request(question, self.model)
            answer = self._json("POST", path, json.dumps(body).encode(), timeout)
            try:
                known = self.engine.read(answer, question)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise Failed(f"{self.engine.name} has answered what is no such answer: {error}"
                             ) from None  # fmt: skip
            return _expected(known, question, self.wanted)

        return attempted(ask, self.address, self._patience, self._stopped)

    def _json(self, method: str, path: str, body: bytes, timeout: float) -> Any:
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        answer = request(
            self.address, method, path, [body], headers, timeout=timeout, most=_MOST_BYTES
        )
        failure = failure_of(answer)
        if failure is not None:
            raise failure
        try:
            return json.loads(answer.body)
        except ValueError:
            raise Failed(f"the answer is not JSON: {answer.text!r}") from None

    def _models(self, timeout: float) -> list[str]:
        answer = self._json("GET", "/v1/models", b"", timeout)
        try:
            names = [str(one["id"]) for one in answer["data"]]
        except (LookupError, TypeError):
            names = []
        if not names:
            raise Refused(f"it names no model at /v1/models; it said {str(answer)[:200]!r}")
        return names


class _Answers:
    """The distributions of a batch on their way."""

    def __init__(self, futures: list[Future[Known]], rows: Rows, wanted: Wanted) -> None:
        self.futures, self.rows, self.wanted = futures, rows, wanted

    def result(self) -> dict[str, Any]:
        """The distributions; waits for all of them. Padding has the even distribution."""
        wanted, (count, length) = self.wanted, self.rows.shape
        k, vocab = wanted.k, wanted.vocab
        ids = torch.arange(k).expand(count, length, k).clone()
        log_probs = torch.full((count, length, k), -float(np.log(vocab)))
        rest = -np.inf if k == vocab else float(np.log1p(-k / vocab))
        log_rest = torch.full((count, length), rest)
        try:
            for r, (row, future) in enumerate(zip(self.rows.samples, self.futures, strict=True)):
                known = future.result()
                ids[r, row.places] = torch.from_numpy(known.ids)
                log_probs[r, row.places] = torch.from_numpy(known.log_probs).float()
                log_rest[r, row.places] = torch.from_numpy(_others(known.log_probs, vocab)).float()
        except BaseException:
            self.cancel()
            raise
        distribution = TopKDistribution(
            ids=ids.to(id_dtype(vocab)),
            vocab=vocab,
            temperature=wanted.temperature,
            log_probs=log_probs,
            log_rest=log_rest,
        )
        return {"v0": distribution}

    def cancel(self) -> None:
        """Nobody wants them any more."""
        for future in self.futures:
            future.cancel()


def _others(log_probs: Any, vocab: int) -> Any:
    """log of the probability of all other classes, from those of some."""
    if log_probs.shape[-1] == vocab:
        return np.full(log_probs.shape[:-1], -np.inf)
    some = np.exp(log_probs.astype(np.float64)).sum(-1)
    with np.errstate(divide="ignore"):
        return np.where(some < 1, np.log1p(-np.minimum(some, 1)), -np.inf)


def _expected(known: Known, question: Question, wanted: Wanted) -> Known:
    """The answer, largest first.

    Raises:
      Failed: it is not one to this question.
    """
    shape = (len(question.tokens) - 1, wanted.k)
    for name, x in (("log-probabilities", known.log_probs), ("ids", known.ids)):
        if x.shape != shape:
            raise Failed(f"{name} {list(x.shape)} came back, and {list(shape)} were asked for")
    if not np.isfinite(known.log_probs).all():
        wrong = int((~np.isfinite(known.log_probs)).sum())
        raise Failed(f"{wrong} of {known.log_probs.size} log-probabilities are not finite")
    if ((known.ids < 0) | (known.ids >= wanted.vocab)).any():
        raise Failed(
            f"an answer has the id {known.ids.max()}, and vocab is {wanted.vocab}. Is it the "
            "teacher of this tokenizer?"
        )
    most = float(np.exp(known.log_probs.astype(np.float64)).sum(-1).max(initial=0.0))
    if most > 1 + _SURPLUS:
        raise Failed(
            f"the probabilities of a position add up to {most:.4g}: these are no "
            "log-probabilities (vLLM: --logprobs-mode raw_logprobs)"
        )
    order = np.argsort(-known.log_probs, axis=-1, kind="stable")
    ids = np.take_along_axis(known.ids, order, -1)
    if (np.diff(np.sort(ids, -1), axis=-1) == 0).any():
        raise Failed("an answer has one id twice at a position")
    return Known(np.take_along_axis(known.log_probs, order, -1), ids)


@dataclass(frozen=True)
class ServerArguments:
    """The arguments of `vllm`, which documents them, and of `sglang`."""

    url: str
    _: KW_ONLY
    vocab: int
    k: int = 20
    of: Ref = teacher.logits
    model: str | None = None
    candidates: str | Sequence[int] | None = None
    tokens: Field = "input_ids"
    mask: Field = "attention_mask"
    token: str | None = None
    batches: int = 1
    requests: int = 16
    timeout: float = 60.0
    retries: int = 5

    def source(self, engine: Engine, temperature: float = 1.0) -> Scored:
        """A server of a kind as a source."""
        name, ids = engine.name, self.candidates
        fields = self.tokens, self.mask
        wanted = wanted_of(name, self.of, self.vocab, self.k, ids, *fields, temperature)
        address = address_of(self.url, self.token, name)
        patience = patience_of(name, self.timeout, self.retries, self.requests, self.batches)
        return Scored(engine, address, self.model, wanted, self.batches, self.requests, patience)


@dataclass(frozen=True, kw_only=True)
class VllmArguments(ServerArguments):
    """The arguments of `vllm`."""

    temperature: float = 1.0


@called_with(VllmArguments)
def vllm(arguments: VllmArguments) -> Scored:
    """A causal language model behind vLLM's server as a source: the k most probable tokens of each
    position, and how probable all others are together.

        vllm serve big-model --max-logprobs 64                       # on the machine of the teacher

        source = fkd.sources.vllm("http://10.0.0.7:8000", k=64, vocab=len(tokenizer))
        objective = Objective({"kd": term(kl, student.logits, teacher.logits, where=...)}, ...)
        step = train_step(fkd.sources.bind(objective, source), optimizer)
        fit(step, step.init(), source.attach(loader), epochs=3)

    The value of `teacher.logits` is then a `TopKDistribution`, which `kl`, `soft_cross_entropy`
    and `head_divergence` take; its bias is that of `top_k`. As the logits of a transformers model,
    position t is about the token at t + 1, and padding may be on either side. The last position
    is scored as well, for which the server is sent one more token: its `--max-model-len` has to be
    2 more than the longest sample.

    Asked is `POST /v1/completions` with `prompt_logprobs`. With `candidates`, it is
    `POST /inference/v1/generate` with `prompt_logprob_token_ids` (of recent versions, with the V2
    model runner), which scores just these ids, exactly and in binary, whatever their rank: the
    labels of a classifier, or what the student thinks most probable.

    Requests, time-outs, faults and errors are those of `served`.

    Args:
      url: of the server, without `/v1`.
      vocab: how many classes the student has.
      k: how many of them for a position; at most the server's `--max-logprobs` (20 if it says
        nothing). With `candidates` their number, and not given.
      of: the ref that the distributions stand for.
      model: its name at the server; None: the first that the server names.
      candidates: ids to be scored: a field of the batch, `[samples, length, k]`, or the same for
        all positions.
      temperature: T of the softmax. Other than 1 needs a server with
        `--logprobs-mode processed_logprobs`, and is not known to `prompt_logprobs` of most
        versions: leave it, and distil at 1.
      tokens, mask: fields of the batch (of a tuple, their places) with the tokens, and with 1
        where there is one (all, if the batch has no such field).
      token: the server's `--api-key`.
      batches, requests, timeout, retries: as for `served`; a request is one sample.

    Raises:
      SourceError: an argument is out of range, or the server has not this model.
      ServedError: the server does not answer.

    Example:
      >>> fkd.sources.vllm("127.0.0.1:1", vocab=100, k=200)
      Traceback (most recent call last):
      ...
      fkd.sources._errors.SourceError: vllm: k is 200; 1 to vocab = 100 is expected.

    Reference:
      https://docs.vllm.ai/en/stable/training/prompt_token_id_logprobs/
    """
    return arguments.source(VLLM, arguments.temperature)


@called_with(ServerArguments)
def sglang(arguments: ServerArguments) -> Scored:
    """A causal language model behind SGLang's server as a source; see `vllm`, whose value it has.

        python -m sglang.launch_server --model-path big-model

        source = fkd.sources.sglang("http://10.0.0.7:30000", k=64, vocab=len(tokenizer))

    Asked is `POST /generate` with `return_logprob` and `top_logprobs_num`; with `candidates`, the
    same ids for all positions, `token_ids_logprob`. The temperature is 1.

    Args:
      url, vocab, k, of, model, tokens, mask, token, batches, requests, timeout, retries: as for
        `vllm`.
      candidates: ids to be scored at every position.

    Raises:
      SourceError: an argument is out of range, or the server has not this model.
      ServedError: the server does not answer.

    Example:
      >>> fkd.sources.sglang("127.0.0.1:1", vocab=100, candidates=[3, 3])
      Traceback (most recent call last):
      ...
      fkd.sources._errors.SourceError: sglang: candidates has an id twice; each once is expected.

    Reference:
      https://docs.sglang.io/basic_usage/sampling_params.html
    """
    if isinstance(arguments.candidates, str):
        raise SourceError(
            f"sglang: candidates is the field {arguments.candidates!r}; SGLang scores the same ids "
            "at all positions: candidates=[id, ...]."
        )
    return arguments.source(SGLANG)
