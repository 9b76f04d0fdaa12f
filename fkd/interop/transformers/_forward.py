"""What a model of transformers takes and gives: batch fields, flags, plain outputs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

# Fields that only make a model compute its own loss, or that fkd sets itself.
_NOT_INPUTS = frozenset(
    """labels label class_labels mask_labels mc_labels next_sentence_label sentence_order_label
    start_positions end_positions past_key_values use_cache return_dict output_attentions
    output_hidden_states self kwargs args""".split()
)


def is_transformers(module: nn.Module) -> bool:
    """Whether a module is a model of transformers. Does not import transformers.

    Example:
      >>> is_transformers(torch.nn.Linear(2, 2))
      False
    """
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(module, library.PreTrainedModel)


def is_causal(module: nn.Module) -> bool:
    """Whether a model of transformers predicts at each position the token after it."""
    kind: Any = getattr(module, "loss_type", None)  # by which transformers picks the loss
    return kind == "ForCausalLM" or type(module).__name__.endswith("LMHeadModel")


def default_inputs(module: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a model's forward, from the fields of a batch.

    Fields that the forward names, and, where it passes keywords on (`**kwargs`), those that its
    base model names. Labels are left out, since the model's own loss is not wanted. An
    encoder-decoder that generates gets `decoder_input_ids` made from them, where the batch has
    none. The key-value cache is off.

    Args:
      module: a model of transformers.
      batch: field name -> tensor.
    """
    names = _accepted(module)
    inputs = {k: v for k, v in batch.items() if k in names and k not in _NOT_INPUTS}
    if "labels" in batch and not inputs.keys() & {"decoder_input_ids", "decoder_inputs_embeds"}:
        inputs.update(_decoder_inputs(module, batch["labels"], names))
    return {**inputs, "use_cache": False} if "use_cache" in names else inputs


def _decoder_inputs(module: nn.Module, labels: Any, names: set[str]) -> dict[str, Any]:
    """The decoder's inputs from its labels, without the loss that passing labels would cost."""
    if not _is_encoder_decoder(module):
        return {}
    shift = getattr(module, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None and "decoder_input_ids" in names:
        return {"decoder_input_ids": shift(labels=labels)}
    return {"labels": labels} if type(module).__name__.endswith("ConditionalGeneration") else {}


def _is_encoder_decoder(module: nn.Module) -> bool:
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))


def _accepted(module: nn.Module) -> set[str]:
    """The names that a forward takes, through `**kwargs` too."""
    parameters = inspect.signature(module.forward).parameters
    names = {n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    base = getattr(module, "base_model", module)
    if base is not module and takes_keywords(module):
        names |= set(inspect.signature(base.forward).parameters)
    return names


def takes_keywords(module: nn.Module) -> bool:
    """Whether a forward takes any keyword."""
    parameters = inspect.signature(module.forward).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def flags(
    module: nn.Module, paths: Sequence[Sequence[Any]], *, attentions: bool = False
) -> dict[str, Any]:
    """The output flags that output paths need; those that the config sets in vain are unset.

    Args:
      module: a model of transformers (for any other module there are no flags).
      paths: output paths, `("hidden_states", 3)` for `student.hidden_states[3]`.
      attentions: attention maps are needed for another reason.
    """
    if not is_transformers(module):
        return {}
    hidden = any(_ends(path, "hidden_states") for path in paths)
    attentions = attentions or any(_ends(path, "attentions") for path in paths)
    wanted = {"output_hidden_states": hidden, "output_attentions": attentions}
    wanted["output_router_logits"] = any(_ends(path, "router_logits") for path in paths)
    config = module.config
    chosen = {k: v for k, v in wanted.items() if v or getattr(config, k, False)}
    known = inspect.signature(module.forward).parameters
    every = takes_keywords(module)
    return {k: v for k, v in {**chosen, "return_dict": True}.items() if every or k in known}


def on_request(module: nn.Module) -> tuple[str, ...]:
    """The outputs that a model gives only where its flags ask for them."""
    if _is_encoder_decoder(module):
        sides = ("encoder_hidden_states", "decoder_hidden_states", "encoder_attentions")
        return (*sides, "decoder_attentions", "cross_attentions")
    return ("hidden_states", "attentions")


def _ends(path: Sequence[Any], ending: str) -> bool:
    return bool(path) and isinstance(path[0], str) and path[0].endswith(ending)


def outputs(raw: Any) -> Any:
    """A model's output as plain dicts and tuples of tensors.

    `ModelOutput` (one leaf to optree) becomes a dict, at every depth. Fields that are None and
    key-value caches are left out.
    """
    if isinstance(raw, Mapping):
        return {k: outputs(v) for k, v in raw.items() if _is_value(k, v)}
    if isinstance(raw, (tuple, list)):
        return type(raw)(outputs(v) for v in raw) if type(raw) in (tuple, list) else raw
    return raw


def _is_value(name: Any, value: Any) -> bool:
    return value is not None and name not in ("past_key_values", "mems", "cache_params")
