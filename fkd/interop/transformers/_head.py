"""The head of a language model: what `head_divergence` needs to know of it, by one call.

Between the last hidden states and the logits a model may transform, scale, add and bound. All of
it is in the refs and numbers that `head` gives; and it is tried, on a few tokens.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fkd._objective.models import Model, skeleton
from fkd._objective.not_models import two_of_one_memory
from fkd._refs.refs import ModelRef, Ref, Root

from ._forward import default_inputs, is_transformers
from ._low_rank import Product, adapted_product, has_adapters

_LOG = logging.getLogger(__name__)
_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
_TOKENS = 6
_LARGE = 40.0  # logits at which a bound shows


@dataclass(frozen=True)
class Head:
    """The head of one model, `z = softcap tanh(scale (hidden weight^T + bias) / softcap)`.

    Attributes:
      hidden: `[*batch, features]`, what goes into the output layer (after the last norm, after a
        transform); where that has adapters, with their features beside it.
      weight: `[vocab, features]`.
      bias: `[vocab]`, or None.
      logit_scale: a number, or None.
      softcap: a number, or None.
    """

    hidden: Ref
    weight: Ref
    bias: Ref | None = None
    logit_scale: float | None = None
    softcap: float | None = None

    def arguments(self, side: str) -> dict[str, Any]:
        """The keyword arguments of `head_divergence` for one side, those that are not None."""
        return {f"{side}_{n}": v for n, v in vars(self).items() if v is not None}


def head(model: nn.Module | Model, name: str = "student", *, probe: bool = True) -> Head:
    """Where a model's head is, and what it does to its product.

    Args:
      model: a model of transformers that gives logits over a vocabulary, or one that wraps such
        a model (PEFT); or what `fkd.trainable` or `fkd.frozen` made of it.
      name: what the objective calls it.
      probe: run it on a few tokens, and compare the head's logits with its own. Without it, the
        numbers are those of its config.

    Returns:
      A `Head`: refs and numbers. `heads` gives both sides of a term.

    Raises:
      ValueError: the model has no output layer, one that is quantised or has adapters other than
        LoRA and DoRA, or does more to its logits than a head can.

    Example:
      >>> from transformers import GPT2Config, GPT2LMHeadModel
      >>> from fkd.interop.transformers import head
      >>> config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=10, n_positions=8)
      >>> head(GPT2LMHeadModel(config)).hidden
      student.tap('lm_head', 'input')
    """
    module = model.module if isinstance(model, Model) else model
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"head: a {type(module).__name__}; a model of transformers is expected. For an EMA "
            "copy give the model that it follows."
        )
    if problem := two_of_one_memory(module):
        raise ValueError(f"head: {type(module).__name__} {problem}")
    inner = _with_head(module)
    layer = _in_use(inner.get_output_embeddings())
    place = next((n for n, m in module.named_modules() if m is layer), None)
    adapted = has_adapters(layer)
    holder = layer.get_submodule("base_layer") if adapted else layer
    params = dict(holder.named_parameters(recurse=False))
    if place is None or type(params.get("weight")) is not nn.Parameter:
        raise ValueError(
            f"head: the output layer of {type(inner).__name__} is a {_kind(layer)}, which has no "
            "weight of its own (quantised, or with adapters that are not LoRA). Compare the "
            "logits instead: term(kl, student.logits, teacher.logits)."
        )
    root = ModelRef(Root(name))
    if adapted:
        trains = not isinstance(model, Model) or model.kind == "trainable"
        product = adapted_product(layer, place, root, trains=trains)
    else:
        bias = root.param(f"{place}.bias") if "bias" in params else None
        product = Product(root.tap(place, "input"), root.param(f"{place}.weight"), bias)
    scale, softcap = _probed(module, inner, place) if probe else next(_stated(inner))
    return Head(*product, logit_scale=scale, softcap=softcap)


def heads(
    *, probe: bool = True, vocabulary: int | None = None, **models: nn.Module | Model
) -> dict[str, Any]:
    """The arguments of `head_divergence` that say where the heads of two models are, as in
    `term(head_divergence, **heads(student=small, teacher=big), divergence=head.kl())`.

    Args:
      probe: see `head`.
      vocabulary: how many entries the tokenizer of both has, `len(tokenizer)`. Where their numbers
        of rows differ (a model may have more of them than its tokenizer has entries), these alone
        are compared.
      models: the student, then the teacher, under the names that the objective gives them; the
        student alone for a loss of labels.

    Raises:
      ValueError: neither one nor two models; and see `head`.

    Example:
      >>> from transformers import GPT2Config, GPT2LMHeadModel
      >>> from fkd.interop.transformers import heads
      >>> config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=10, n_positions=8)
      >>> sorted(heads(student=GPT2LMHeadModel(config)))
      ['student_hidden', 'student_weight', 'teacher_hidden', 'teacher_weight']
    """
    if not 1 <= len(models) <= 2:
        raise ValueError(
            f"heads: {len(models)} models ({', '.join(models)}); the student and the teacher are "
            "expected, or the student alone: heads(student=small, teacher=big)."
        )
    counted = models if vocabulary is not None else {}
    rows = {name: _rows(model) for name, model in counted.items()}
    if vocabulary is not None and not 0 < vocabulary <= min(rows.values()):
        raise ValueError(
            f"heads: vocabulary is {vocabulary}; the number of entries of the tokenizer is "
            f"expected, and the heads have {rows} rows."
        )
    arguments: dict[str, Any] = {"teacher_hidden": None, "teacher_weight": None}
    for side, (name, model) in zip(("student", "teacher"), models.items(), strict=False):
        arguments |= head(model, name, probe=probe).arguments(side)
        if vocabulary is not None and len(set(rows.values())) > 1:
            arguments[f"{side}_vocabulary"] = slice(0, vocabulary)
    return arguments


def _rows(model: nn.Module | Model) -> int:
    module: Any = model.module if isinstance(model, Model) else model
    layer: Any = _in_use(_with_head(module).get_output_embeddings())
    return int(layer.weight.shape[0])


def _with_head(module: nn.Module) -> Any:
    """The outermost model inside that has an output layer."""
    for inner in module.modules():
        if is_transformers(inner):
            model: Any = inner
            if isinstance(model.get_output_embeddings(), nn.Module):
                return model
    raise ValueError(
        f"head: {type(module).__name__} has no output layer over a vocabulary. A model such as "
        "AutoModelForCausalLM loads is expected; for others give head_divergence the hidden "
        "states and the weight: student.tap('head', 'input'), student.param('head.weight')."
    )


def _in_use(layer: Any) -> nn.Module:
    """An output layer, or the copy of it that PEFT trains (`modules_to_save`)."""
    copies = getattr(layer, "modules_to_save", None)
    active = next(iter(getattr(layer, "active_adapters", ())), "")
    return copies[active] if isinstance(copies, nn.ModuleDict) and active in copies else layer


def _kind(layer: nn.Module) -> str:
    """The class of a layer, with its library where the name alone looks like one of torch."""
    kind = type(layer)
    return f"{kind.__module__}.{kind.__name__}" if hasattr(nn, kind.__name__) else kind.__name__


def _stated(model: Any) -> Iterator[tuple[float | None, float | None]]:
    """Scale and bound as the config may mean them, the likeliest first."""
    configs = [model.config, model.config.get_text_config(decoder=True)]
    factors = [v for n in _SCALES for c in configs if (v := getattr(c, n, None)) is not None]
    divides = any(getattr(c, "logits_scaling", None) is not None for c in configs)
    scales: list[float | None] = [1 / v if divides else v for v in factors] + [*factors, None]
    bounds = [getattr(c, "final_logit_softcapping", None) for c in configs]
    caps = [c for c in bounds if c is not None] + [None]
    yield from dict.fromkeys(itertools.product(scales, caps))


@torch.no_grad()
def _probed(module: nn.Module, inner: Any, place: str) -> tuple[float | None, float | None]:
    """Scale and bound, such that the head's logits are the model's own."""
    stated = list(_stated(inner))
    if any(p.is_meta for p in module.parameters()):
        return stated[0]
    copied = skeleton(module, training=False)
    layer: Any = copied.get_submodule(place)
    seen: dict[str, Tensor] = {}
    factor = 1.0

    def enlarge(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * factor, *args[1:])

    def keep(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen["product"] = output.float()

    layer.register_forward_pre_hook(enlarge)
    layer.register_forward_hook(keep)
    inputs = _few_tokens(copied, inner)
    try:
        copied(**inputs)
        factor = _LARGE / float(seen["product"].abs().max().clamp(min=1e-6))
        logits: Tensor = copied(**inputs).logits.float()
    except Exception as error:
        _LOG.warning(
            "head: %s does not run on input_ids alone (%s: %s), so that its head could not be "
            "tried; scale and bound of its logits are those of its config.",
            *(type(inner).__name__, type(error).__name__, error),
        )
        return stated[0]
    product = seen["product"]
    if product.shape == logits.shape:
        for scale, cap in stated:
            z = product if scale is None else product * scale
            z = z if cap is None else cap * torch.tanh(z / cap)
            error = (z - logits).abs().max()
            if error <= 2e-2 * logits.abs().max().clamp(min=1e-6):
                return None if scale == 1 else scale, cap
    raise ValueError(
        f"head: the logits of {type(inner).__name__} are not those of its output layer "
        f"({place}) with any scale and bound that its config has, {stated[:-1]}. Compare the "
        "logits instead: term(kl, student.logits, teacher.logits)."
    )


def _few_tokens(module: nn.Module, inner: Any) -> Mapping[str, Any]:
    """Inputs that almost every language model takes."""
    config = inner.config.get_text_config(decoder=True)
    device = next(module.parameters()).device
    ids = torch.arange(_TOKENS, device=device)[None] * 7 % max(int(config.vocab_size), 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(inner.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    return default_inputs(inner, inputs)
