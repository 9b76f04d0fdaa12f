"""A student of fewer layers than its teacher, and otherwise like it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from ._forward import is_transformers
from ._layers import init_from_layers

_Model = TypeVar("_Model", bound=nn.Module)


def fewer_layers(teacher: _Model, layers: int | Sequence[int]) -> _Model:
    """A student of the teacher's class that begins with some of its layers.

    With a number, the first third of them from the beginning of the teacher and the others from its
    end: of 12 of the 30 layers of SmolLM2 this leaves a hundredth of the perplexity that layers
    spread evenly do (`benchmarks/smollm2.py`). What the config says layer by layer (kinds of
    attention) is that of the chosen ones.

    Args:
      teacher: a model of transformers with one stack of layers. Unchanged.
      layers: how many; or which, negative ones counted from the end.

    Returns:
      A new model with tensors of its own, of the teacher's dtype.

    Raises:
      ValueError: no such model, or more layers than it has.

    Example:
      >>> from transformers import GPT2Config, GPT2LMHeadModel
      >>> config = GPT2Config(n_embd=8, n_layer=6, n_head=2, vocab_size=10, n_positions=8)
      >>> fewer_layers(GPT2LMHeadModel(config), 2).config.n_layer
      2
    """
    of = f"fewer_layers: the {type(teacher).__name__}"
    if not is_transformers(teacher):
        raise ValueError(f"{of} is no model of transformers.")
    model: Any = teacher
    config = copy.deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    size = _depth_name(text)
    depth = getattr(text, size, None)
    if depth is None or getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{of} has not one stack of layers. Make the student from a config of its own, and "
            "start it with init_from_layers."
        )
    numbers = _ends(layers, depth) if isinstance(layers, int) else [*layers]
    chosen = [number + depth if number < 0 else number for number in numbers]
    if not chosen or not all(0 <= number < depth for number in chosen):
        raise ValueError(f"{of} has {depth} layers; from 1 to {depth} are expected, got {layers}.")
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == depth:  # a word about each layer
            setattr(text, name, [value[number] for number in chosen])
    setattr(text, size, len(chosen))
    student: Any = type(model)(config).to(model.dtype)
    if getattr(model, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(model.generation_config)
    return init_from_layers(student, teacher, chosen)


def _depth_name(config: Any) -> str:
    """What a config calls the number of layers; that of a decoder alone, as BartForCausalLM is,
    which has the config of an encoder, too."""
    names = ("decoder_layers", "num_decoder_layers") if getattr(config, "is_decoder", False) else ()
    return next((name for name in names if hasattr(config, name)), "num_hidden_layers")


def _ends(layers: int, depth: int) -> list[int]:
    """The first third from the beginning, the others from the end; the last one, of one."""
    first = layers // 3
    return [*range(first), *range(depth - layers + first, depth)] if 0 < layers <= depth else []
