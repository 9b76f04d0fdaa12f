"""Language models: from text to batches, two tokenizers, and students that write their own text."""

from __future__ import annotations

from fkd._check.tokenizers import TokenizerReport as TokenizerReport
from fkd._check.tokenizers import compare_tokenizers as compare_tokenizers

from ._generate.generator import Engine as Engine
from ._generate.generator import Generator as Generator
from ._generate.generator import completions as completions
from ._generate.generator import engine_generator as engine_generator
from ._generate.generator import generator as generator
from ._generate.on_policy import on_policy as on_policy
from ._generate.on_policy import prompt_batch as prompt_batch
from ._generate.samples import text_samples as text_samples
from ._text.align import Aligned as Aligned
from ._text.align import Spans as Spans
from ._text.align import align as align
from ._text.align import align_responses as align_responses
from ._text.batches import document_mask as document_mask
from ._text.batches import fields_of as fields_of
from ._text.batches import predicted_tokens as predicted_tokens
from ._text.batches import token_batch as token_batch
from ._text.chats import chat_tokens as chat_tokens
from ._text.tokenizers import shared_vocabulary as shared_vocabulary
from ._text.tokenizers import token_bytes as token_bytes
from ._text.tokens import Tokens as Tokens
from ._text.tokens import completion_tokens as completion_tokens
from ._text.tokens import pack_documents as pack_documents
from ._text.tokens import token_blocks as token_blocks

__all__ = [
    "Aligned",
    "Engine",
    "Generator",
    "Spans",
    "TokenizerReport",
    "Tokens",
    "align",
    "align_responses",
    "chat_tokens",
    "compare_tokenizers",
    "completion_tokens",
    "completions",
    "document_mask",
    "engine_generator",
    "fields_of",
    "generator",
    "on_policy",
    "pack_documents",
    "predicted_tokens",
    "prompt_batch",
    "shared_vocabulary",
    "text_samples",
    "token_batch",
    "token_blocks",
    "token_bytes",
]
