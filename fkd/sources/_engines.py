"""What servers of language models are asked for log-probabilities, and how they answer.

vLLM: https://docs.vllm.ai/en/stable/serving/openai_compatible_server/ (`prompt_logprobs`) and
https://docs.vllm.ai/en/stable/training/prompt_token_id_logprobs/; SGLang:
https://docs.sglang.io/basic_usage/sampling_params.html.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Question(NamedTuple):
    """One sample.

    Attributes:
      tokens: ids of n tokens, of which n - 1 positions are scored: all but the last.
      k: how many classes of each position.
      by_place: `[n - 1, k]`, the classes of each position, if they are asked for.
      candidates: the classes of all positions, likewise.
      temperature: of the softmax.
    """

    tokens: list[int]
    k: int
    by_place: list[list[int]] | None
    candidates: tuple[int, ...] | None
    temperature: float


class Known(NamedTuple):
    """`[positions, k]`, log-probabilities and the classes that they are of."""

    log_probs: Any
    ids: Any


@dataclass(frozen=True)
class Engine:
    """A kind of server.

    Attributes:
      name: of it.
      request: (question, model) -> path, JSON.
      read: (JSON, question) -> what is known; a `ValueError` says what is wrong.
    """

    name: str
    request: Callable[[Question, str], tuple[str, dict[str, Any]]]
    read: Callable[[Any, Question], Known]


def _vllm_request(question: Question, model: str) -> tuple[str, dict[str, Any]]:
    ids = _by_place(question)
    if ids is None:
        return "/v1/completions", {
            "model": model,
            "prompt": question.tokens,
            "max_tokens": 1,
            "temperature": question.temperature,
            "prompt_logprobs": question.k,
        }
    asked = {"prompt_logprob_token_ids": ids, "prompt_logprob_start": 0}
    sampling = {"max_tokens": 1, "temperature": question.temperature, **asked}
    return "/inference/v1/generate", {
        "model": model,
        "token_ids": question.tokens,
        "sampling_params": sampling,
        "stream": False,
    }


def _by_place(question: Question) -> list[list[int]] | None:
    if question.candidates is not None:
        return [list(question.candidates)] * (len(question.tokens) - 1)
    return question.by_place


def _vllm_read(answer: Any, question: Question) -> Known:
    ids = _by_place(question)
    if ids is not None:
        encoded = answer["prompt_token_id_logprobs"]
        if not isinstance(encoded, str):
            raise ValueError("it has no prompt_token_id_logprobs")
        raw = io.BytesIO(base64.b64decode(encoded, validate=True))
        scores = np.load(raw, allow_pickle=False)
        return Known(np.asarray(scores, np.float64), np.asarray(ids, np.int64))
    places = answer["choices"][0]["prompt_logprobs"]
    if not isinstance(places, list) or len(places) != len(question.tokens):
        told = len(places) if isinstance(places, list) else "no"
        raise ValueError(f"{told} prompt_logprobs for {len(question.tokens)} tokens")
    # Entry j is about token j given those before it; about the first there is nothing to say.
    return _top(map(_vllm_entries, places[1:], question.tokens[1:]), question)


def _vllm_entries(entry: Any, token: int) -> list[tuple[float, int]]:
    """(log-probability, id) of the most probable tokens, and of the one that came."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"nothing is said of a position ({entry!r:.40})")
    if str(token) not in entry:
        raise ValueError(f"nothing is said of the token {token} that was sent")
    return [(float(x["logprob"]), int(i)) for i, x in entry.items()]


def _top(entries: Any, question: Question) -> Known:
    """The k most probable of each position: with them comes the token that was sent, whatever its
    rank."""
    log_probs: list[list[float]] = []
    ids: list[list[int]] = []
    for place in entries:
        if any(not value == value for value, _ in place):
            raise ValueError("a log-probability is nan")
        best = sorted(place, key=lambda x: -x[0])[: question.k]
        if len(best) < question.k:
            raise ValueError(f"{len(best)} tokens at a position, and k is {question.k}")
        log_probs.append([value for value, _ in best])
        ids.append([i for _, i in best])
    shape = (-1, question.k)
    return Known(
        np.asarray(log_probs, np.float64).reshape(shape), np.asarray(ids, np.int64).reshape(shape)
    )


def _sglang_request(question: Question, model: str) -> tuple[str, dict[str, Any]]:
    del model  # it has one
    body: dict[str, Any] = {
        "input_ids": question.tokens,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    if question.candidates is not None:
        return "/generate", {**body, "token_ids_logprob": list(question.candidates)}
    return "/generate", {**body, "top_logprobs_num": question.k}


def _sglang_read(answer: Any, question: Question) -> Known:
    about = (answer[0] if isinstance(answer, list) else answer)["meta_info"]
    sent = about["input_token_logprobs"]
    name = "input_top_logprobs" if question.candidates is None else "input_token_ids_logprobs"
    places = about[name]
    for what, x in (("input_token_logprobs", sent), (name, places)):
        if not isinstance(x, list) or len(x) != len(question.tokens):
            told = len(x) if isinstance(x, list) else "no"
            raise ValueError(f"{told} {what} for {len(question.tokens)} tokens")
    if [int(x[1]) for x in sent] != question.tokens:
        raise ValueError("it is about other tokens than those that were sent")
    entries = [_sglang_entries(place) for place in places[1:]]
    if question.candidates is None:
        return _top(entries, question)
    known = [{i: value for value, i in place} for place in entries]
    scores = [[one[i] for i in question.candidates] for one in known]
    ids = np.asarray([question.candidates] * len(entries), np.int64)
    return Known(np.asarray(scores, np.float64).reshape(ids.shape), ids)


def _sglang_entries(place: Any) -> list[tuple[float, int]]:
    if not isinstance(place, Sequence):
        raise ValueError(f"nothing is said of a position ({place!r:.40})")
    return [(float(x[0]), int(x[1])) for x in place]


VLLM = Engine("vllm", _vllm_request, _vllm_read)
SGLANG = Engine("sglang", _sglang_request, _sglang_read)
