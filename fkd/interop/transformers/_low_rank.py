"""An output layer with adapters of PEFT, as a head of longer rows.

A layer with LoRA gives `W h + s B A h`, which is one product: `[W, B] [h; s A h]`. DoRA multiplies
its rows by numbers. So the logits are not stored, nor is an adapter added to the weights, where a
small one would be lost in half precision. PEFT is not imported: names tell its layers.

Reference:
  Hu et al., LoRA, arXiv:2106.09685; Liu et al., DoRA, arXiv:2402.09353 (its norm is a constant).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fkd._refs.derived import call
from fkd._refs.refs import ModelRef, Ref


class Product(NamedTuple):
    """What an output layer computes: `hidden weight^T + bias`."""

    hidden: Ref
    weight: Ref
    bias: Ref | None


def has_adapters(layer: nn.Module) -> bool:
    """Whether a layer is one of LoRA, around a linear one.

    Example:
      >>> has_adapters(nn.Linear(2, 2))
      False
    """
    kind = type(layer)
    lora = kind.__module__ == "peft.tuners.lora.layer" and kind.__name__ == "Linear"
    return lora and isinstance(getattr(layer, "base_layer", None), nn.Linear)


def adapted_product(layer: Any, place: str, model: ModelRef, *, trains: bool) -> Product:
    """The product of a layer and its active adapters.

    Args:
      layer: for which `has_adapters`.
      place: its name.
      model: whose it is.
      trains: whether the model runs as in training, where adapters drop features.

    Raises:
      ValueError: an adapter that drops features, or is neither LoRA nor a single DoRA.
    """

    def of(name: str) -> Ref:
        return model.param(f"{place}.{name}")

    hidden, weight = model.tap(place, "input"), of("base_layer.weight")
    bias = None if layer.base_layer.bias is None else of("base_layer.bias")
    names = [n for n in layer.active_adapters if n in layer.lora_A]
    if layer.disable_adapters or layer.merged or not names:
        return Product(hidden, weight, bias)
    _refuse_others(layer, names, trains=trains)
    downs = [of(f"lora_A.{n}.weight") for n in names]
    ups = [of(f"lora_B.{n}.weight") for n in names]
    scalings = [float(layer.scaling[n]) for n in names]
    for name, scaling in zip(names, scalings, strict=True):
        if layer.lora_B[name].bias is not None:
            more = scaling * of(f"lora_B.{name}.bias")
            bias = more if bias is None else bias + more
    features = [call(adapter_features, hidden, *x) for x in zip(downs, scalings, strict=True)]
    rows = call(side_by_side, weight, *ups)
    if _variant(layer, names[0]):
        magnitude = of(f"lora_magnitude_vector.{names[0]}.weight")
        rows = call(dora_rows, rows, weight, downs[0], ups[0], magnitude, scaling=scalings[0])
    return Product(call(side_by_side, hidden, *features), rows, bias)


def adapter_features(hidden: Tensor, down: Tensor, scaling: float) -> Tensor:
    """What goes into the upper matrix of an adapter, scaled."""
    return scaling * nn.functional.linear(hidden.to(down.dtype), down)


def side_by_side(first: Tensor, *others: Tensor) -> Tensor:
    """Features of two products that are one, in the precision of the first."""
    return torch.cat([first, *(x.to(first.dtype) for x in others)], dim=-1)


def dora_rows(
    rows: Tensor, weight: Tensor, down: Tensor, up: Tensor, magnitude: Tensor, scaling: float
) -> Tensor:
    """The rows of `[W, B]`, such that those of `W + s B A` get the lengths that DoRA learns."""
    with torch.no_grad():
        w, a, b = weight.float(), down.float(), scaling * up.float()
        lengths = w.square().sum(1) + 2 * (b * (w @ a.mT)).sum(1) + (b * (b @ (a @ a.mT))).sum(1)
    return rows * (magnitude / lengths.sqrt()).to(rows.dtype)[:, None]


def _refuse_others(layer: Any, names: list[str], *, trains: bool) -> None:
    for name in names:
        dropout = getattr(layer.lora_dropout[name], "p", 0.0)
        if trains and dropout:
            raise ValueError(
                f"head: the adapter {name!r} of the output layer has lora_dropout={dropout:g}, "
                "which a head term does not draw. Leave it out of this layer, "
                f"model.get_output_embeddings().lora_dropout[{name!r}] = torch.nn.Identity(); "
                "or compare the logits: term(kl, student.logits, teacher.logits). For a teacher, "
                "which drops nothing, give what the objective gets: heads(..., "
                "teacher=fkd.frozen(model))."
            )
        variant = _variant(layer, name)
        if variant not in ("", "DoraLinearVariant") or (variant and len(names) > 1):
            raise ValueError(
                f"head: the adapter {name!r} of the output layer is a {variant}, of {len(names)} "
                "that are active; LoRA is expected, or DoRA alone. Compare the logits instead: "
                "term(kl, student.logits, teacher.logits)."
            )


def _variant(layer: Any, name: str) -> str:
    """The name of what an adapter does other than LoRA, or nothing."""
    variant = layer.lora_variant.get(name)
    if variant is None:
        return ""
    return variant.__name__ if isinstance(variant, type) else type(variant).__name__
