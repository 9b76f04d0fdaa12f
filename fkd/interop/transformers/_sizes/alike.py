"""What two models compute on inputs that are made up, and where they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fkd._objective.models import evaluating

from .._layers import stacks_of


class Seen(NamedTuple):
    """What was seen in a forward pass.

    Attributes:
      embedded: what the first layer reads; None: not seen.
      read: what the head reads.
      norms: what norms give, by module.
      output: the first tensor that the model returns.
    """

    embedded: Tensor | None
    read: Tensor | None
    norms: dict[nn.Module, Tensor]
    output: Tensor


def made_up(model: nn.Module) -> dict[str, Tensor] | None:
    """Inputs for a model of transformers: ids, pixels, or features; None: not known which."""
    config: Any = getattr(model, "config", None)
    name = getattr(model, "main_input_name", "")
    parameter = next(model.parameters(), None)
    if config is None or parameter is None or parameter.is_meta:
        return None
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> Tensor:
        words = config.get_text_config().vocab_size
        return torch.randint(words // 8, words, (2, length), generator=generator)

    inputs: dict[str, Tensor] = {}
    if name == "input_ids":
        inputs[name] = ids(6)
    elif name == "pixel_values":
        size: Any = getattr(config, "image_size", 64)
        height, width = (size, size) if isinstance(size, int) else size
        channels = getattr(config, "num_channels", 3)
        inputs[name] = torch.randn(2, channels, height, width, generator=generator)
    elif name == "input_features" and hasattr(config, "max_source_positions"):
        shape = 2, config.num_mel_bins, 2 * config.max_source_positions
        inputs[name] = torch.randn(shape, generator=generator)
    elif name == "input_values":
        inputs[name] = torch.randn(2, 4000, generator=generator)
    else:
        return None
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids(5)
    moved = {n: x.to(parameter.device) for n, x in inputs.items()}
    return {n: x.to(parameter.dtype) if x.is_floating_point() else x for n, x in moved.items()}


def seen_in(model: nn.Module, inputs: Mapping[str, Tensor]) -> Seen | None:
    """What a model computes in eval mode; None: it does not run on these inputs."""
    embedded: list[Tensor] = []
    read: list[Tensor] = []
    norms: dict[nn.Module, Tensor] = {}
    head = head_of(model)

    def first(of: list[Tensor]) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            values = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            of.extend(values[:1])

        return hook

    def given(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            norms[module] = output

    block = _first_block(model)
    hooks = [m.register_forward_hook(given) for m in model.modules() if is_norm(m)]
    if block is not None:
        hooks.append(block.register_forward_pre_hook(first(embedded), with_kwargs=True))
    if head is not None:
        hooks.append(head.register_forward_pre_hook(first(read), with_kwargs=True))
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            output = _first_tensor(model(**inputs))
    except Exception:
        return None  # such inputs are not for it
    finally:
        for hook in hooks:
            hook.remove()
    if output is None:
        return None
    return Seen(embedded[0] if embedded else None, read[0] if read else None, norms, output)


def factor(ours: Tensor | None, theirs: Tensor | None) -> float | None:
    """The number that all of theirs are multiplied by in ours; None: there is none."""
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return None
    a, b = theirs.double(), ours.double()
    norm = (a * a).sum()
    if not norm > 0:
        return None
    r = float((a * b).sum() / norm)
    return r if difference(b, r * a) < tolerance(ours.dtype) else None


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    largest = theirs.double().abs().max().clamp(min=1e-12)
    return float((ours.double() - theirs.double()).abs().max() / largest)


def tolerance(dtype: torch.dtype) -> float:
    """What rounding may do to a model's output."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 0.1


def embeddings_of(model: Any) -> Any:
    """The table of tokens of a model of transformers, or None."""
    return _asked(getattr(model, "get_input_embeddings", None))


def head_of(model: Any) -> Any:
    """The head over the tokens of a model of transformers, or None."""
    return _asked(getattr(model, "get_output_embeddings", None))


def _asked(question: Callable[[], Any] | None) -> Any:
    try:
        return None if question is None else question()
    except NotImplementedError:  # a model of images, which has none
        return None


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm over units."""
    kind = type(module).__name__.lower()
    return kind.endswith(("norm", "layernorm", "rmsnorm")) and "batch" not in kind


def _first_block(model: nn.Module) -> nn.Module | None:
    stacks = list(stacks_of(model).values())
    if not stacks:
        return None
    prefix = getattr(model, "base_model_prefix", "")
    modules = dict(model.named_modules())
    name = f"{stacks[0]}.0"
    return modules.get(name, modules.get(f"{prefix}.{name}"))


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    values: Any = output.values() if isinstance(output, Mapping) else output
    return next((x for x in values if isinstance(x, Tensor)), None)
