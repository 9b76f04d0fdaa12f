"""Conversations, completions and plain text as tokens."""

from __future__ import annotations

import copy

import pytest

from fkd.loops.language import Tokens, chat_tokens, completion_tokens, pack_documents, token_blocks

from .tokenizers import CHATML, FORGETFUL, MARKED, byte_level, sentence_piece

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who reads?"},
    {"role": "assistant", "content": "The student. "},
    {"role": "user", "content": "And who learns?"},
    {"role": "assistant", "content": "A good one 🙂"},
]


def with_template(template: str):
    tokenizer = copy.deepcopy(byte_level())
    tokenizer.chat_template = template
    return tokenizer


def said(tokenizer, tokens: Tokens) -> list[str]:
    """The stretches of text that count."""
    runs: list[list[int]] = [[]]
    for i, label in zip(tokens.ids, tokens.labels, strict=True):
        assert label in (i, -100)
        runs[-1].append(i) if label == i else runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["by prefix", "marked"])
def test_what_the_assistant_says_counts_with_its_end(template):
    tokenizer = with_template(template)
    tokens = chat_tokens(tokenizer, CHAT)
    assert said(tokenizer, tokens) == ["The student. <|im_end|>", "A good one 🙂<|im_end|>"]
    last = chat_tokens(tokenizer, CHAT, turns="last")
    assert last.ids == tokens.ids
    assert said(tokenizer, last) == ["A good one 🙂<|im_end|>"]
    cut = chat_tokens(tokenizer, CHAT, max_length=50)
    assert len(cut.ids) == len(cut.labels) == 50 and cut.ids == tokens.ids[:50]
    assert tokens.ids == tokenizer.apply_chat_template(CHAT)["input_ids"]


def test_a_conversation_in_which_nothing_counts_is_refused():
    tokenizer = with_template(CHATML)
    labels = chat_tokens(tokenizer, CHAT).labels
    first = next(i for i, label in enumerate(labels) if label != -100)
    cut = chat_tokens(tokenizer, CHAT, max_length=first + 1)
    assert cut.labels == labels[: first + 1] and cut.labels[-1] != -100
    with pytest.raises(ValueError, match=f"max_length={first} leaves nothing.*={first + 1}, or"):
        chat_tokens(tokenizer, CHAT, max_length=first)
    with pytest.raises(ValueError, match="max_length is -3; at least 2"):
        chat_tokens(tokenizer, CHAT, max_length=-3)
    with pytest.raises(ValueError, match="Its words are empty"):
        chat_tokens(with_template("Hello"), CHAT)


def test_documents_that_are_cut_before_they_count_are_left_out_and_counted():
    late = Tokens([1, 2, 3, 4, 5], [-100, -100, -100, 4, 5])
    fine = Tokens([6, 7, 8], [-100, 7, 8])
    with pytest.warns(UserWarning, match="left out 2 of the documents.*first 3"):
        rows = list(pack_documents([late, fine, late], 3))
    assert rows == [[fine]]


def test_an_open_conversation_counts_what_was_said():
    tokenizer = with_template(CHATML)
    tokens = chat_tokens(tokenizer, CHAT[:4])
    assert said(tokenizer, tokens) == ["The student. <|im_end|>"]


def test_what_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match="no chat template"):
        chat_tokens(byte_level(), CHAT)
    with pytest.raises(ValueError, match=r"no message has the role 'assistant'.*'system'"):
        chat_tokens(with_template(CHATML), CHAT[:2])
    forgetful = with_template(FORGETFUL)
    with pytest.raises(ValueError, match="does not leave turn 2 as it was"):
        chat_tokens(forgetful, CHAT)
    assert said(forgetful, chat_tokens(forgetful, CHAT, turns="last")) == [
        "A good one 🙂<|im_end|>"
    ]


def test_a_completion_counts_and_its_prompt_does_not():
    tokenizer = byte_level()
    tokens = completion_tokens(tokenizer, "Who reads? ", "The student.")
    assert said(tokenizer, tokens) == ["The student.</s>"]
    assert tokenizer.decode(tokens.ids) == "Who reads? The student.</s>"
    assert completion_tokens(tokenizer, "", "A", end=False).labels == tokenizer("A")["input_ids"]


def test_blocks_hold_every_token_in_order():
    documents = [list(range(1, 1 + n)) for n in (5, 1, 9, 2)]
    blocks = list(token_blocks(iter(documents), 4, end=0))
    flat = [i for block in blocks for i in block.ids]
    assert flat == [1, 2, 3, 4, 5, 0, 1, 0, *range(1, 10), 0, 1, 2][: len(flat)]
    assert len(flat) == 20 and all(b.ids == b.labels and len(b.ids) == 4 for b in blocks)
    with pytest.raises(ValueError, match="at least 2"):
        next(token_blocks(documents, 1))


def test_documents_are_packed_whole_and_once():
    documents = [Tokens([i] * n, [i] * n) for i, n in enumerate((5, 3, 7, 2, 2, 8, 0, 1, 11))]
    rows = list(pack_documents(documents, 8, open_rows=2))
    assert all(sum(len(d.ids) for d in row) <= 8 for row in rows)
    kept = sorted((d.ids[0], len(d.ids)) for row in rows for d in row)
    assert kept == [(0, 5), (1, 3), (2, 7), (3, 2), (4, 2), (5, 8), (7, 1), (8, 8)]  # 11 are cut
    assert len(rows) == 5


@pytest.mark.parametrize("words", ["assistant", "end", "Hello 🙂", ""])
def test_a_conversation_may_begin_with_the_assistant(words):
    tokenizer = with_template(CHATML)
    first = {"role": "assistant", "content": words}
    tokens = chat_tokens(tokenizer, [first, *CHAT[1:3]])
    assert said(tokenizer, tokens) == [f"{words}<|im_end|>", "The student. <|im_end|>"]


def test_tools_and_answers_without_words():
    tokenizer = with_template(CHATML)
    tool = {"role": "tool", "content": "42"}
    answers = [{"role": "assistant", "content": words} for words in ("", "It is 42")]
    tokens = chat_tokens(tokenizer, [*CHAT[:2], answers[0], tool, answers[1]])
    assert said(tokenizer, tokens) == ["<|im_end|>", "It is 42<|im_end|>"]


# The prompt of the first ends with a space, which byte-level tokenizers put into the next token.
SPACED = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% else %}"
    "{{ m['role'] | upper + ': ' + m['content'] + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
SPACED_AND_MARKED = SPACED.replace(
    "{{ 'ASSISTANT: ' + m['content'] + eos_token }}",
    "{{ 'ASSISTANT: ' }}{%- generation -%}{{ m['content'] + eos_token }}{%- endgeneration -%}",
)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
@pytest.mark.parametrize("template", [SPACED, INST, SPACED_AND_MARKED])
@pytest.mark.parametrize("words", ["reads what", "42", "🙂", "x", "  two  spaces\n\n"])
def test_the_token_across_the_border_of_an_answer_counts(make, template, words):
    tokenizer = copy.deepcopy(make())
    tokenizer.chat_template = template
    chat = [*CHAT[1:3], CHAT[3], {"role": "assistant", "content": words}]
    tokens = chat_tokens(tokenizer, chat)
    answers = [text.strip() for text in said(tokenizer, tokens)]
    assert answers == ["The student. </s>", f"{words.strip()}{words[len(words.rstrip()) :]}</s>"]
    assert chat_tokens(tokenizer, chat, turns="last").labels.count(-100) > tokens.labels.count(-100)


def test_white_space_of_an_answer_counts_with_trimmed_offsets():
    from tokenizers import processors

    tokenizer = with_template(CHATML)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    words = "The student.\n\n\n  reads"
    tokens = chat_tokens(tokenizer, [*CHAT[:2], {"role": "assistant", "content": words}])
    assert said(tokenizer, tokens) == [f"{words}<|im_end|>"]


def test_the_template_may_be_an_option_or_one_of_several():
    chat = CHAT[1:3]
    expected = chat_tokens(with_template(MARKED), chat)
    assert chat_tokens(byte_level(), chat, chat_template=MARKED) == expected
    several = copy.deepcopy(byte_level())
    several.chat_template = {"default": CHATML, "tool_use": MARKED}
    assert chat_tokens(several, chat) == chat_tokens(with_template(CHATML), chat)
    assert chat_tokens(several, chat, chat_template="tool_use") == expected


def test_a_text_begins_once():
    tokenizer = copy.deepcopy(byte_level())
    from tokenizers import processors

    first = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[first]
    )
    plain, rendered = (completion_tokens(tokenizer, p, "x") for p in ("Who?", "<s>Who?"))
    assert plain == rendered and plain.ids.count(tokenizer.bos_token_id) == 1


# The prompt begins to think, and a finished turn holds no thoughts, as DeepSeek's.
THINKING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}{% else %}"
    "<s>{{ m['content'].split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<s><think>\n{% endif %}"
)


@pytest.mark.parametrize("words", ["reads", "<b>", "hm</think>reads"])
def test_a_prompt_that_begins_to_think_is_no_part_of_the_answer(words):
    tokenizer = with_template(THINKING)
    chat = [CHAT[1], {"role": "assistant", "content": words}]
    tokens = chat_tokens(tokenizer, chat)
    assert said(tokenizer, tokens) == [f"{words.split('>')[-1] if 'k>' in words else words}</s>"]


@pytest.mark.parametrize("begin", ["", "<s>"])
def test_a_token_that_ends_the_whole_conversation_ends_no_turn_before(begin):
    """As the templates of Phi have it."""
    tokenizer = copy.deepcopy(byte_level())
    tokenizer.chat_template = begin + CHATML.replace(
        "{% endif %}", "{% else %}{{ eos_token }}{% endif %}"
    )
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "two"},
    ]
    said = lambda row: tokenizer.decode([i for i in row.labels if i != -100])
    assert said(chat_tokens(tokenizer, chat)) == "one<|im_end|>two<|im_end|>\n</s>"
    assert said(chat_tokens(tokenizer, chat[:3])) == "one<|im_end|>"
    assert said(chat_tokens(tokenizer, chat, turns="last")) == "two<|im_end|>\n</s>"
