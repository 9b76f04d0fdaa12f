"""Two small tokenizers, trained on a few sentences: byte-level BPE and SentencePiece."""

from __future__ import annotations

import functools

import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = [
    "The student reads what the teacher has read, and learns to say it.",
    "A naïve student repeats; a good one understands: 2 + 2 = 4, and 3 * 3 = 9.",
    "Distillation moves knowledge from large models to small ones 🙂.",
] * 3
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}"
    "{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def wrapped(tokenizer: Tokenizer, **options: str) -> hf.PreTrainedTokenizerFast:
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", **options
    )


@functools.cache
def byte_level(vocab: int = 330) -> hf.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=vocab, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return wrapped(tokenizer)


@functools.cache
def sentence_piece() -> hf.PreTrainedTokenizerFast:
    """As Llama 2 has it: a space in front, byte fallback."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<pad>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokens = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=[*SPECIAL, *tokens], show_progress=False, limit_alphabet=20
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    # The trainer takes the bytes for special tokens, which they are not.
    import json

    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in SPECIAL]
    return wrapped(Tokenizer.from_str(json.dumps(state)))
