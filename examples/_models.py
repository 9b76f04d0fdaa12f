"""Teacher and student of the text examples: loading, cutting layers, resizing."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
from _text import DataError
from torch import nn
from transformers import AutoConfig

import fkd
from fkd.interop.transformers import init_from_layers


def is_classifier(config: Any, auto: Any) -> bool:
    """Whether a saved model has a trained head of the kind that `auto` loads."""
    head = auto.__name__.removeprefix("AutoModel")
    return any(name.endswith(head) for name in config.architectures or [])


def load(
    auto: Any, source: str, names: Sequence[str] | None = None, pad: int | None = None
) -> nn.Module:
    """A model from a directory or the hub; with names, one that has these classes; with the
    number of the token to pad with, where the model has none."""
    config = AutoConfig.from_pretrained(source)
    if names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    if pad is not None and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = pad
    return auto.from_pretrained(
        source, config=config, dtype=torch.float32, ignore_mismatched_sizes=names is not None
    )


def longest(config: Any, length: int) -> int:
    """The most tokens that a model takes; `length` if it sets no limit."""
    limit = getattr(config, "max_position_embeddings", None) or length
    if limit < 1:  # XLNet
        return length
    offset = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "esm")
    return limit - config.pad_token_id - 1 if config.model_type in offset else limit


def names_of(config: Any) -> list[str]:
    """The names of a model's classes; numbers where it has none of its own."""
    names = [config.id2label[i] for i in range(config.num_labels)]
    generic = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    return [str(i) for i in range(len(names))] if generic else names


def make_student(args: Namespace, auto: Any, large: nn.Module) -> nn.Module:
    """The student before its training: from a directory, from layers of the teacher, or fresh."""
    depth = large.config.num_hidden_layers
    if args.student:
        return load(auto, args.student, names_of(large.config), large.config.pad_token_id)
    chosen = args.init_layers
    layers = args.student_layers or (len(chosen) if chosen else max(depth // 2, 1))
    fresh = args.fresh or args.student_hidden not in (None, large.config.hidden_size)
    if not fresh and layers > depth:
        raise DataError(
            f"--student-layers {layers}: the teacher has {depth} layers to start from. Take at "
            f"most {depth}, or start at random: --fresh (with --hidden 0, or --layer-map giving a "
            "teacher layer for each of the student's)."
        )
    if chosen is None and not fresh:
        chosen = [t - 1 for _, t in fkd.layer_map(student=layers, teacher=depth)]
    made = auto.from_config(_changed(large.config, layers, args.student_hidden, chosen))
    if fresh:
        return made
    if hasattr(large.config, "num_hidden_groups"):  # ALBERT: all layers share their weights
        chosen = list(range(large.config.num_hidden_groups))
    return init_from_layers(made, large, chosen)


def _changed(config: Any, layers: int, hidden: int | None, chosen: Sequence[int] | None) -> Any:
    """Fewer layers, and another hidden size, with heads of the same size and layers of the same
    shape."""
    values = config.to_dict()

    def replace(names: str, new: Any) -> None:
        known = (config.attribute_map.get(n, n) for n in names.split())
        values[next(n for n in known if n in values)] = new

    replace("num_hidden_layers", layers)
    if "layer_types" in values:
        depth = config.num_hidden_layers
        values["layer_types"] = [config.layer_types[i % depth] for i in chosen or range(layers)]
    if hidden:
        each = config.hidden_size // config.num_attention_heads
        if hidden % each:
            raise DataError(
                f"--student-hidden {hidden}: a multiple of {each}, the size of a head, is expected."
            )
        inner = [
            n for n in ("intermediate_size", "hidden_dim", "n_inner", "d_inner") if n in values
        ]
        if inner and values[inner[0]]:  # GPT-2's is 4 times the hidden size by itself
            values[inner[0]] = values[inner[0]] * hidden // config.hidden_size
        replace("num_attention_heads", hidden // each)
        replace("hidden_size", hidden)
        if "pooler_hidden_size" in values:
            values["pooler_hidden_size"] = hidden
    return type(config).from_dict(values)


def adjust(model: nn.Module, args: Namespace) -> nn.Module:
    """Dropout and frozen embeddings, as the flags say."""
    if args.precision == "bf16" and args.device == "cpu":
        # torch's own attention on the CPU has a slow gradient in bfloat16 (a quarter of a step on
        # sentences), and none at all with dropout.
        model.set_attn_implementation("eager")
    if args.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = args.dropout
            elif hasattr(module, "dropout_prob"):
                module.dropout_prob = args.dropout
    if args.freeze_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    return model


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
