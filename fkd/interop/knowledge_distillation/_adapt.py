"""What the user's adaptors return and take: outputs as `{layer: {output: tensor}}`, inputs as
dicts or tuples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fkd._refs.derived import call
from fkd._refs.paths import describe, name_of
from fkd._refs.refs import Ref

OutputAdaptor = Callable[[Any], Any]


class Adapted(nn.Module):
    """A model that returns what an output adaptor makes of its output.

    With it a model can be a student or a teacher of `terms_from_config`.

    Args:
      model: any module, called as it is.
      adaptor: output -> `{layer: {output: tensor}}`.
      as_tuple: give the adaptor the output of a transformers model as a plain tuple, for
        adaptors that unpack it, as in `last_hidden_state, pooler_output, ... = output`.

    Example:
      >>> model = Adapted(torch.nn.Linear(2, 3), lambda output: {"head": {"logits": output}})
      >>> model(torch.zeros(1, 2))["head"]["logits"].shape
      torch.Size([1, 3])
    """

    def __init__(
        self, model: nn.Module, adaptor: OutputAdaptor | None, *, as_tuple: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.adaptor = adaptor
        self.as_tuple = as_tuple

    def forward(self, arguments: Any) -> Any:
        """The adapted output.

        Args:
          arguments: what the model is called with: keyword arguments (a dict), positional arguments
            (a tuple or list), or its one argument.
        """
        output = call_with(self.model, arguments)
        return adapted_by(self.adaptor, output, as_tuple=self.as_tuple)


def adapted_by(adaptor: OutputAdaptor | None, output: Any, *, as_tuple: bool) -> Any:
    """What an adaptor makes of an output."""
    output = plain_tuple(output) if as_tuple else output
    return output if adaptor is None else adaptor(output)


def call_with(model: nn.Module, arguments: Any) -> Any:
    """A model called with a dict of keyword arguments, a tuple of arguments, or one argument."""
    if isinstance(arguments, Mapping):
        return model(**arguments)
    return model(*arguments) if isinstance(arguments, tuple | list) else model(arguments)


def plain_tuple(output: Mapping[str, Any]) -> tuple[Any, ...]:
    """The output of a transformers model as the tuple of old: what it holds, without the cache
    and without collections that are empty (cross-attention maps of an encoder)."""
    return tuple(
        value
        for name, value in output.items()
        if isinstance(value, Tensor) or (value and name != "past_key_values")
    )


Wanted = Sequence[tuple[Any, Any]]
"""The `(layer, output)` that a config reads from one model."""


def form_of(adaptor: OutputAdaptor, output: Any, *, whose: str) -> bool:
    """Whether an adaptor only works with the plain tuple of a transformers output.

    Raises:
      ValueError: the adaptor works with neither.
    """
    adapted, problem = _tried(adaptor, output)
    if problem is None and not (hasattr(output, "to_tuple") and _has_text(adapted)):
        return False
    if hasattr(output, "to_tuple"):
        again, failed = _tried(adaptor, plain_tuple(output))
        if failed is None and not _has_text(again):
            return True
    if problem is None:
        return False
    raise ValueError(
        f"{whose}_output_adaptor ({name_of(adaptor)}) failed on the model's output, "
        f"{describe(output)}: {type(problem).__name__}: {problem}."
    ) from problem


def _tried(adaptor: OutputAdaptor, output: Any) -> tuple[Any, Exception | None]:
    try:
        return adaptor(output), None
    except Exception as error:
        return None, error


def _has_text(adapted: Any) -> bool:
    """Whether there is text among the outputs: what unpacking a mapping by mistake gives."""
    layers = adapted.values() if isinstance(adapted, Mapping) else ()
    inner = [layer.values() if isinstance(layer, Mapping) else [layer] for layer in layers]
    return any(isinstance(value, str) for values in inner for value in values)


def picked(adaptor: OutputAdaptor, wanted: Wanted) -> OutputAdaptor:
    """An adaptor that gives `{layer: {output: value}}` of just what is wanted, whatever the
    user's adaptor returns: dicts, lists, anything with `adapted[layer][output]`."""

    def pick(output: Any) -> dict[Any, dict[Any, Any]]:
        adapted = adaptor(output)
        chosen: dict[Any, dict[Any, Any]] = {}
        for layer, name in wanted:
            chosen.setdefault(layer, {})[name] = adapted[layer][name]
        return chosen

    return pick


@dataclass(frozen=True, eq=False)
class Layout:
    """What an input (a dict, or a tuple of arguments) holds besides tensors.

    Tensors travel through the compiled step as arguments; everything else (flags, None,
    strings) is a constant of it.

    Attributes:
      keys: the names of the fields; None if they are positions.
      constants: the fields that do not hold a tensor, by name or position.
      size: the number of fields.
    """

    keys: tuple[str, ...] | None
    constants: Mapping[str, Any]
    size: int

    def join(self, tensors: Mapping[str, Any]) -> Any:
        """The input again, from its tensors."""
        fields = {**self.constants, **tensors}
        if self.keys is None:
            return tuple(fields[str(i)] for i in range(self.size))
        return {key: fields[key] for key in self.keys}

    def same(self, other: Layout) -> bool:
        """Whether another input has the same fields and the same constants."""
        try:
            equal = bool(self.constants == other.constants)
        except (RuntimeError, ValueError):  # arrays, which have no one truth value
            equal = False
        return equal and self.keys == other.keys and self.size == other.size


def split(arguments: Any) -> tuple[dict[str, Any], Layout]:
    """The tensors of an input by name (or position), and the rest."""
    if isinstance(arguments, Mapping):
        fields = {str(key): value for key, value in arguments.items()}
        keys: tuple[str, ...] | None = tuple(fields)
    else:
        arguments = arguments if isinstance(arguments, tuple | list) else (arguments,)
        fields, keys = {str(i): value for i, value in enumerate(arguments)}, None
    tensors = {key: value for key, value in fields.items() if _has_tensor(value)}
    constants = {key: value for key, value in fields.items() if key not in tensors}
    return tensors, Layout(keys, constants, len(fields))


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_tensor(v) for v in value.values())
    if isinstance(value, tuple | list):
        return any(_has_tensor(v) for v in value)
    return isinstance(value, Tensor)


def joined(layout: Layout, tensors: Ref) -> Ref:
    """Ref to an input as the adaptor gave it, from the ref to its tensors."""
    return call(layout.join, tensors)


def mask_of(model: nn.Module, layout: Layout, tensors: Ref) -> Ref:
    """Ref to the attention mask of an input: by name, or by its place among the arguments."""
    if layout.keys is not None:
        return tensors["attention_mask"]
    names = list(inspect.signature(model.forward).parameters)
    if "attention_mask" not in names[: layout.size]:
        raise ValueError(
            "a loss with a mask needs 'attention_mask' in the teacher's input; the data adaptor "
            f"gave a tuple of {layout.size}, and the first arguments of {type(model).__name__} "
            f"are {names[: layout.size]}. Give a dict."
        )
    return tensors[str(names.index("attention_mask"))]
