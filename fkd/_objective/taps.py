"""Hooks that write what a submodule returned, or was given, into a dict; and that return what a
dict says instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .._refs.refs import Tap


def install(modules: Mapping[str, Any], taps: Sequence[Tap], seen: dict[Any, Any]) -> None:
    """Let the tapped modules write into `seen`, under `(module, side)`.

    Args:
      modules: by dotted name; a tap that names another is left to `check` to report.
      taps: what is wanted.
      seen: is written to in every forward pass.
    """
    for tap in taps:
        if tap.module not in modules:
            continue
        key = (tap.module, tap.side)
        if tap.side == "output":
            modules[tap.module].register_forward_hook(_output_hook(seen, key))
        else:
            modules[tap.module].register_forward_pre_hook(_input_hook(seen, key), with_kwargs=True)


def install_patches(
    modules: Mapping[str, Any], names: Sequence[str], patches: Mapping[str, Any]
) -> None:
    """Let submodules return what `patches` has under their name, if it has anything.

    Args:
      modules: by dotted name; a name that is none is left to `check` to report.
      names: of the submodules that may be patched.
      patches: what they return in the next forward pass.
    """
    for name in names:
        if name in modules:
            modules[name].register_forward_hook(_patch_hook(patches, name))


def _patch_hook(patches: Mapping[str, Any], name: str) -> Callable[..., Any]:
    def hook(module: Any, args: Any, output: Any) -> Any:
        del module, args
        if name not in patches:
            return output
        whole = type(output) is tuple
        return (patches[name], *output[1:]) if whole else patches[name]

    return hook


def _output_hook(seen: dict[Any, Any], key: Any) -> Callable[..., None]:
    def hook(module: Any, args: Any, output: Any) -> None:
        del module, args
        seen[key] = _copied(output)

    return hook


def _input_hook(seen: dict[Any, Any], key: Any) -> Callable[..., None]:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        seen[key] = _copied(args[0] if args else next(iter(kwargs.values())))

    return hook


def _copied(value: Any) -> Any:
    """A copy of the tensors, which later in-place operations of the model do not reach."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_copied(v) for v in value)
    if isinstance(value, list):
        return [_copied(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return value
