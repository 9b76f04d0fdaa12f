"""Conversations as tokens, of which those count that the assistant says."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from fkd._base.errors import expect
from fkd._check.tokenizers import Tokenizer

from .tokens import IGNORE, Tokens, counted

Message: TypeAlias = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`, and what else a template reads."""

_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
"""The tags by which a template marks what the assistant says."""

_ALWAYS = ("add_generation_prompt", "continue_final_message", "tokenize", "return_dict")
_PRIVATE = range(0xE000, 0xF8FF)
"""Letters that mean nothing by themselves."""


def chat_tokens(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    turns: Literal["all", "last"] = "all",
    max_length: int | None = None,
    **options: Any,
) -> Tokens:
    """A conversation as its model's template writes it; only what the assistant says counts.

    What the assistant says ends with the token that ends its turn, which it has to learn, too.
    Templates that mark it (`{% generation %}`) are asked; for others, its turn is what the
    template adds to the conversation before it, with the prompt for an answer. A token counts if
    any of its characters is the assistant's: where the prompt ends with a space that the first
    token of the answer begins with, that token counts, as in the mask of transformers.

    Args:
      tokenizer: a fast one of transformers, with a chat template; or give it as an option.
      messages: in order, each with a "role" and a "content".
      turns: which turns of the assistant count; `"last"` leaves out what comes after the last.
      max_length: leave out what is beyond, from the right; at least 2.
      options: for `apply_chat_template`, such as `tools` or `enable_thinking`.

    Raises:
      ValueError: nobody is the assistant; nothing of what it says is within `max_length`; the
        tokenizer has no template, or is not a fast one; the template refuses the conversation, or
        rewrites earlier turns when later ones come (Qwen3's, which leaves out their thoughts).

    Example:
      >>> class Words:  # stands for a tokenizer of transformers
      ...     is_fast, chat_template = True, "..."
      ...     def apply_chat_template(self, messages, add_generation_prompt=False, **_):
      ...         said = "".join(f"{m['role'][0]} {m['content']} . " for m in messages)
      ...         return said + ("a " if add_generation_prompt else "")
      ...     def __call__(self, text, **_):
      ...         at = [i for i in range(0, len(text), 2)]
      ...         return {"input_ids": [ord(text[i]) for i in at],
      ...                 "offset_mapping": [(i, i + 1) for i in at]}
      >>> chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
      >>> chat_tokens(Words(), chat).labels
      [-100, -100, -100, -100, 121, 46]
    """
    _expect_tokenizer(tokenizer, options)
    _expect_conversation(messages, turns, max_length, options)
    template = _template(tokenizer, options)
    answers = [i for i, m in enumerate(messages) if m.get("role") == "assistant"]
    if not answers:
        keys = f", of messages with the keys {[*messages[0]]}" if messages else ""
        raise ValueError(
            "chat_tokens: no message has the role 'assistant', so that nothing would count. Its "
            f"roles: {_roles(messages)}{keys}."
        )
    if turns == "last":
        messages, answers = messages[: answers[-1] + 1], answers[-1:]
    chat = _Chat(tokenizer, messages, options)
    by = _marked if _TAG.search(template) else _by_prefix
    tokens = _labelled(chat, by(chat, answers, template))
    return _shortened(tokens, max_length)


class _Chat:
    """A conversation, as a template writes it."""

    def __init__(self, tokenizer: Tokenizer, messages: Sequence[Message], options: Any) -> None:
        self.tokenizer, self.messages, self.options = tokenizer, list(messages), options

    def __call__(
        self, messages: Sequence[Message], *, prompt: bool = False, template: str | None = None
    ) -> str:
        options = self.options if template is None else {**self.options, "chat_template": template}
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=prompt, **options
            )
        except Exception as error:  # what a template raises, or what its code fails with
            raise ValueError(
                f"chat_tokens: the chat template does not take this conversation "
                f"({type(error).__name__}: {error}), with the roles {_roles(messages)}. Give it "
                "roles and contents that it takes (some want the words of the system in the first "
                "turn of the user, or text in place of a list), or another template, "
                "chat_template=."
            ) from error

    def upto(self, count: int, *, prompt: bool = False) -> str:
        """The first messages; with the prompt for an answer."""
        return self(self.messages[:count], prompt=prompt)


def _expect_tokenizer(tokenizer: Tokenizer, options: Mapping[str, Any]) -> None:
    kind = type(tokenizer).__name__
    if not hasattr(tokenizer, "apply_chat_template"):
        raise TypeError(f"chat_tokens: tokenizer is a {kind}; one of transformers is expected.")
    if not _template(tokenizer, options):
        raise ValueError(
            f"chat_tokens: the {kind} has no chat template. Give it that of the model: "
            "tokenizer.chat_template = ...; or use completion_tokens."
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"chat_tokens: the {kind} is not a fast tokenizer, which knows where in the text a "
            "token stands. Load it with use_fast=True."
        )


def _expect_conversation(
    messages: Any, turns: str, max_length: int | None, options: Mapping[str, Any]
) -> None:
    one = 'one conversation, [{"role": "user", "content": "..."}, ...],'
    expect("chat_tokens", "messages", messages, (list, tuple), one)
    for message in messages:
        expect("chat_tokens", "a message", message, Mapping, 'a dict with "role" and "content"')
    if turns not in ("all", "last"):
        raise ValueError(f"chat_tokens: turns is {turns!r}; 'all' or 'last' is expected.")
    ours = [name for name in _ALWAYS if name in options]
    if ours:
        raise ValueError(
            f"chat_tokens: {ours[0]}={options[ours[0]]!r} is no option: it writes a conversation "
            "as it is, and says itself what counts. Leave it out."
        )
    if max_length is not None:
        expect("chat_tokens", "max_length", max_length, int, "a whole number of tokens")
        if max_length < 2:
            raise ValueError(f"chat_tokens: max_length is {max_length}; at least 2 is expected.")


def _roles(messages: Sequence[Message]) -> list[Any]:
    return [m.get("role") for m in messages]


def _template(tokenizer: Tokenizer, options: Mapping[str, Any]) -> str:
    """The template that is used: that of the options, or that of the tokenizer, which may have
    several by name."""
    named, tools = options.get("chat_template"), options.get("tools")
    if isinstance(tokenizer.chat_template, Mapping):
        return tokenizer.get_chat_template(named, tools)
    return named or tokenizer.chat_template or ""


_Said: TypeAlias = tuple[str, list[tuple[int, int]]]
"""A text, and from where to where it is what the assistant says."""


def _labelled(chat: _Chat, said: _Said) -> Tokens:
    """The tokens of a text; those count of which any character is the assistant's."""
    text, spans = said
    more = {**(chat.options.get("tokenizer_kwargs") or {}), "return_offsets_mapping": True}
    encoded = chat.tokenizer(text, add_special_tokens=False, **more)
    ids = list(encoded["input_ids"])
    inside = [any(a < end and b > start for start, end in spans)
              for a, b in _stretches(encoded["offset_mapping"])]  # fmt: skip
    return Tokens(ids, [i if kept else IGNORE for i, kept in zip(ids, inside, strict=True)])


def _stretches(offsets: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The characters of every token. Tokens of white space have none with some tokenizers
    (`trim_offsets`): theirs are those after the token before."""
    read = 0
    for a, b in offsets:
        yield (a, b) if a < b else (min(a, read), max(b, read + 1))
        read = max(read, b)


def _shortened(tokens: Tokens, max_length: int | None) -> Tokens:
    """The first tokens of a conversation, of which at least one is to be predicted."""
    at, size = counted(tokens), len(tokens.ids)
    if not at:
        raise ValueError(
            f"chat_tokens: none of the {size} tokens is what the assistant says, so that nothing "
            "would count. Its words are empty, or the template marks something else."
        )
    if max_length is not None and at[0] >= max_length:
        raise ValueError(
            f"chat_tokens: max_length={max_length} leaves nothing of what the assistant says, "
            f"which begins behind {at[0]} of the {size} tokens, so that nothing would count. "
            f"Give at least max_length={at[0] + 1}, or leave this conversation out."
        )
    return Tokens(tokens.ids[:max_length], tokens.labels[:max_length])


def _marked(chat: _Chat, answers: Sequence[int], template: str) -> _Said:
    """By the tags of a template: each of the two is written as a letter of its own.

    (The mask that transformers makes of them ends early, or goes on to the end of the text, where
    an answer begins or ends with white space that has no token.)
    """
    whole = chat(chat.messages)
    letters = [chr(i) for i in itertools.islice((i for i in _PRIVATE if chr(i) not in whole), 2)]

    def written(tag: re.Match[str]) -> str:
        before, is_end, after = tag.groups()
        return f"{{%{before} if true %}}{letters[bool(is_end)]}{{% endif {after}%}}"

    spans = list[tuple[int, int]]()
    rendered = chat(chat.messages, template=_TAG.sub(written, template))
    text, *others = rendered.split(letters[0])
    for part in others:
        words, _, rest = part.partition(letters[1])
        spans.append((len(text), len(text) + len(words)))
        text += words + rest
    if text != whole:
        raise ValueError(
            "chat_tokens: the template does more with what stands between {% generation %} and "
            "{% endgeneration %} than to write it, so that it cannot be told what the assistant "
            "says. Put the tags where the words are written, or leave them out."
        )
    if len(answers) == 1 and len(spans) > 1 and answers[0]:
        before = chat.upto(answers[0])  # of one answer, what is marked behind the others
        start = len(before) if whole.startswith(before) else spans[-1][0]
        spans = [span for span in spans if span[0] >= start]
    return whole, spans


def _by_prefix(chat: _Chat, answers: Sequence[int], template: str) -> _Said:
    """By the characters that each answer adds to the text of the conversation before it."""
    del template
    whole, spans = chat(chat.messages), list[tuple[int, int]]()
    end = getattr(chat.tokenizer, "eos_token", None)
    for i in answers:
        after = chat.upto(i + 1)
        if not whole.startswith(after) and end and whole.endswith(end):
            after = after.removesuffix(end)  # which some templates put where a conversation stops
        content = str(chat.messages[i].get("content") or "")
        start = len(_opening(chat, after)) if i == 0 else None
        if start is None:
            start = _start(chat.upto(i, prompt=True), chat.upto(i), after, content)
        if start is None or not whole.startswith(after):
            raise ValueError(
                f"chat_tokens: the template does not leave turn {i} as it was when later ones "
                "come (or its prompt for an answer is not how an answer begins), so that it "
                "cannot be told what the assistant said. Make one example of each answer, "
                "chat_tokens(tokenizer, messages[:i + 1], turns='last') for each i whose role is "
                "assistant, or take a template with {% generation %} around its words."
            )
        spans.append((start, len(after) - _after_the_end(after[start:], content)))
    return whole, spans


def _opening(chat: _Chat, begun: str) -> str:
    """What stands before the words of a first message: templates refuse none at all."""
    rendered = chat([{**chat.messages[0], "content": "\ufff0"}])
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(begun, rendered, strict=False))
    return "".join(character for character, _ in same)


def _start(prompt: str, before: str, after: str, content: str) -> int | None:
    """Where in a conversation its last answer begins: behind the prompt for one. A prompt that
    begins to think (`<think>`) where the finished turn does not ends where the two part."""
    if after.startswith(prompt):
        return len(prompt)
    if not after.startswith(before):
        return None
    pairs = zip(prompt, after, strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    if same == len(before):  # nothing there makes the turn the assistant's
        return None
    words = after.find(content, len(before))
    return min(same, words) if content and words >= 0 else same


def _after_the_end(added: str, content: str) -> int:
    """How many characters of white space a template has put after the token that ends a turn."""
    behind = added.rpartition(content)[2] if content else added
    return len(added) - len(added.rstrip()) if behind.strip() else 0
