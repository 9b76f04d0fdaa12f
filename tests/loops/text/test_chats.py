"""Templates and tokenizers that are unlike the usual ones."""

from __future__ import annotations

import copy

import pytest
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fkd.loops.language import Tokens, chat_tokens

from .tokenizers import CHATML, MARKED, SPECIAL, TEXT, byte_level, sentence_piece, wrapped


def word_piece() -> hf.PreTrainedTokenizerFast:
    """White space has no token."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<pad>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return wrapped(tokenizer)


def trimmed() -> hf.PreTrainedTokenizerFast:
    """Tokens of white space have no characters."""
    from tokenizers import processors

    tokenizer = copy.deepcopy(byte_level())
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


MAKE = {"words": word_piece, "trimmed": trimmed, "bytes": byte_level, "pieces": sentence_piece}


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def answer(content: object, **more: object) -> dict[str, object]:
    return {"role": "assistant", "content": content, **more}


def said(tokenizer: hf.PreTrainedTokenizerFast, tokens: Tokens) -> list[str]:
    """The stretches that count, without the white space that some tokenizers lose."""
    runs: list[list[int]] = [[]]
    for i, label in zip(tokens.ids, tokens.labels, strict=True):
        runs[-1].append(i) if label == i else runs.append([])
    return ["".join(tokenizer.decode(run).split()) for run in runs if run]


def chat(name: str, template: str, messages: list, **options) -> list[str]:
    tokenizer = copy.deepcopy(MAKE[name]())
    tokenizer.chat_template = template
    return said(tokenizer, chat_tokens(tokenizer, messages, **options))


# The break after a turn is marked, too, as in the templates of SmolLM3.
BREAKS_MARKED = MARKED.replace(
    "{{ m['content'] }}<|im_end|>{% endgeneration %}",
    "{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}",
    1,
)
# What a turn thinks is marked apart from what it says.
TWICE = MARKED.replace(
    "{% generation %}",
    "{%- generation -%}{{ m['thought'] }}{%- endgeneration -%}{{ ' -> ' }}{%- generation -%}",
    1,
)


@pytest.mark.parametrize("template", [MARKED, BREAKS_MARKED, CHATML])
@pytest.mark.parametrize("name", MAKE)
def test_white_space_around_an_answer_hides_no_later_one(name, template):
    """The mask of transformers ends there, or goes on to the end of the text."""
    messages = [user("Who?"), answer("  so it is\n"), user("And?"), answer("\n\nsmall")]
    messages += [user("It is so."), answer("A student")]
    expected = ["soitis<|im_end|>", "small<|im_end|>", "Astudent<|im_end|>"]
    assert chat(name, template, messages) == expected
    assert chat(name, template, messages, turns="last") == expected[-1:]


def test_a_turn_may_be_marked_in_parts():
    messages = [user("Who?"), answer("so", thought="hm"), user("And?"), answer("42", thought="m")]
    assert chat("bytes", TWICE, messages) == ["hm", "so<|im_end|>", "m", "42<|im_end|>"]
    assert chat("bytes", TWICE, messages, turns="last") == ["m", "42<|im_end|>"]


def test_words_may_be_letters_of_private_use():
    words = "\ue000 and \ue001"
    assert chat("bytes", MARKED, [user("a"), answer(words)]) == ["\ue000and\ue001<|im_end|>"]


def test_what_is_marked_and_then_changed_is_refused():
    template = (
        "{% for m in messages %}{% set x %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% endset %}{{ x | upper | reverse }}{% endfor %}"
    )
    with pytest.raises(ValueError, match="does more with what stands between"):
        chat("bytes", template, [user("a"), answer("b")])


def test_what_comes_after_the_last_answer_is_left_out():
    tokenizer = copy.deepcopy(byte_level())
    tokenizer.chat_template = CHATML
    messages = [user("Who?"), answer("so"), user("And?")]
    whole = chat_tokens(tokenizer, messages[:2], turns="last")
    assert chat_tokens(tokenizer, messages, turns="last") == whole
    assert len(chat_tokens(tokenizer, messages).ids) > len(whole.ids)


REFUSES = "{{ raise_exception('System role not supported') if messages[0]['role'] == 'system' }}"


def test_the_words_of_a_template_that_refuses_are_passed_on():
    system = {"role": "system", "content": "Be brief."}
    with pytest.raises(
        ValueError, match=r"System role not supported.*'system', 'user'.*first turn"
    ):
        chat("bytes", REFUSES + CHATML, [system, user("a"), answer("b")])
    parts = [{"type": "text", "text": "Who?"}]
    with pytest.raises(ValueError, match=r"does not take this conversation.*text in place of"):
        template = "{% for m in messages %}{{ '<s>' + m['content'] }}{% endfor %}"
        chat("bytes", template, [user(parts), answer("b")])


def test_contents_may_be_lists():
    template = CHATML.replace(
        "{{ m['content'] }}",
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
        "{{ p['text'] if p['type'] == 'text' else '<image>' }}{% endfor %}{% endif %}",
    )
    words = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    reply = [{"type": "text", "text": "A student."}]
    messages = [user(words), answer(reply), user("And?"), answer("42")]
    assert chat("bytes", template, messages) == ["Astudent.<|im_end|>", "42<|im_end|>"]


# Qwen3's: a turn thinks (or has an empty thought) as long as nobody has asked again.
THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and "
    "loop.last %}<think>\n{{ m['thought'] }}\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_an_example_of_each_answer_keeps_its_thoughts():
    messages = [user("Who?"), answer("so", thought="hm"), user("And?"), answer("42", thought="m")]
    with pytest.raises(ValueError, match=r"Make one example of each answer.*\[:i \+ 1\]"):
        chat("bytes", THOUGHTS, messages)
    each = [chat("bytes", THOUGHTS, messages[: i + 1], turns="last") for i in (1, 3)]
    assert each == [["<think>hm</think>so<|im_end|>"], ["<think>m</think>42<|im_end|>"]]


@pytest.mark.parametrize("name", ["add_generation_prompt", "tokenize", "return_dict"])
def test_options_that_it_sets_itself_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=True is no option"):
        chat("bytes", CHATML, [user("a"), answer("b")], **{name: True})
