"""A tiny BERT, the script as a module, and files, for the tests of `examples/distill_bert.py`."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
import transformers as hf

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = (
    "a bad dull fine film good great long of poor story the anna paris rome went to lives in"
).split()
FAST = ["--no-compile", "--max-length", "16", "--batch-size", "8", "--device", "cpu"]
FAST += ["--dropout", "0"]


@pytest.fixture(scope="module")
def scripts():
    """The modules of the folder, which is no package."""
    pytest.importorskip("datasets")
    sys.path.insert(0, str(EXAMPLES))
    names = ("distill_bert", "texts", "conll")
    yield types.SimpleNamespace(**{n: importlib.import_module(n) for n in names})
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A tiny BERT without a head, and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    vocab = folder / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##s", "##ing"]
    vocab.write_text("\n".join([*special, *WORDS]) + "\n")
    hf.BertTokenizerFast(vocab=str(vocab)).save_pretrained(folder)
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=len(special) + len(WORDS), hidden_size=16, num_attention_heads=2,
        num_hidden_layers=4, intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    hf.BertModel(config).save_pretrained(folder)
    return str(folder)


def write(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)
