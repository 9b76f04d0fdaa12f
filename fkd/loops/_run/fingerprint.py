"""What a run is of: its objective and optimizer in words and digests, which a checkpoint keeps."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fkd._base.types import Params
from fkd._objective.models import Model, values_of
from fkd._objective.terms import Term
from fkd._refs.paths import show
from fkd.parallel._shards import everywhere, locals_of, whole

from .._base.digest import digest_of
from .._base.state import State
from .._step.by_model import Names, label
from .._step.combine import Combined
from .._step.train_step import TrainStep
from .._step.updaters import Updaters
from .identity import facts_of, module_facts, without_addresses

_NOT_SETTINGS = frozenset(("transformers_version", "architectures", "dtype", "torch_dtype"))
"""What the config of a model says of where it came from, and of its parameters, which are compared
themselves."""


def fingerprint(step: TrainStep, state: State) -> dict[str, Any]:
    """A description of objective and optimizer; runs with different ones do not mix."""
    objective, here = step.objective, locals_of(state.trainable)
    return {
        "terms": {name: _term(term) for name, term in objective.terms.items()},
        "models": {name: _described(step, state, name) for name in objective.models},
        **_how(step, here),
        **only_if("within", {n: _how(one, here) for n, one in step.within.items()}),
    }


def _how(step: TrainStep, trainable: Params) -> dict[str, Any]:
    """How a step updates its models."""
    choices = step.choices
    models = {m: params for m, params in trainable.items() if m in choices.models}
    names = {id(p): f"{m}.{n}" for m, params in models.items() for n, p in params.items()}
    built = Updaters(choices.optimizers, models, {}).optimizers if choices.optimizers else {}
    optimizers = {label(k): _optimizer_words(optimizer, names) for k, optimizer in built.items()}
    alone = list(built) == [choices.models]
    when = {label(n): _words(_shown(f), f) for n, f in choices.when.items()}
    rates = {n: _words(_shown(f), f) for n, f in choices.rates.items()}
    return {
        "optimizer": optimizers[label(choices.models)] if alone else optimizers,
        "step": {
            "accumulate": step.accumulate,
            "autocast": str(step.autocast),
            "clip": _by_models(choices.clips, choices.models),
            "lr": _by_models(rates, choices.models),
            **only_if("when", when),
            **only_if("combine", step.combined and _combination(step.combined)),
        },
    }


def _by_models(chosen: Mapping[Names, Any], models: Names) -> Any:
    """The value for all models; by their names, where it is one of some."""
    if list(chosen) == [models]:
        return chosen[models]
    return {label(names): value for names, value in chosen.items()} or None


def only_if(name: str, value: Any) -> dict[str, Any]:
    """A field that runs without it do not have, as those of earlier versions."""
    return {name: value} if value else {}


def _combination(combined: Combined) -> dict[str, Any]:
    what = combined.combination
    return {
        "what": _words(_shown(what), what),
        "groups": {group: list(names) for group, names in combined.groups.items()},
    }


def optimizer_settings(described: Mapping[str, Any]) -> dict[str, Any]:
    """The optimizer of a fingerprint, or the several by their models, for the log."""
    if "groups" not in described:
        return {"optimizers": {name: optimizer_settings(one) for name, one in described.items()}}
    groups = enumerate(described["groups"])
    return {
        "optimizer": described["class"],
        "groups": {i: {k: v for k, v in g.items() if k != "params"} for i, g in groups},
    }


def _optimizer_words(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    groups = [
        {
            **{k: _shown(v) for k, v in g.items() if k not in ("params", "param_names")},
            "params": [names[id(p)] for p in g["params"]],
        }
        for g in optimizer.param_groups
    ]
    return {"class": type(optimizer).__name__, "groups": groups}


def _value(model: Model, name: str, x: Tensor, read: bool) -> Tensor:
    """The whole values of a tensor of a model, if it is in files and not to be read nothing."""
    if model.stored is not None and model.stored.holds(name):
        return values_of(model, name, x) if read else x.new_empty(0, device="cpu")
    return everywhere(x)


def _described(step: TrainStep, state: State, name: str) -> dict[str, Any]:
    objective = step.objective
    model = objective.program.model(name)
    module = model.module
    assert module is not None
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    about: dict[str, Any] = {
        "model": _words(repr(objective.models[name]), (model.inputs, model.outputs)),
        "training": model.training,
        "modules": {path or ".": _module_words(part) for path, part in module.named_modules()},
        **only_if("config", _config(module)),
        "parameters": {n: f"{tuple(p.shape)} {p.dtype}" for n, p in parameters.items()},
        "unused": list(model.unused),
    }
    if model.kind == "frozen":
        values = {**parameters, **buffers}
        read = step.world.first  # which alone compares it, so that files are read once
        about["values"] = digest_of((n, _value(model, n, x, read)) for n, x in values.items())
    if model.kind == "trainable" and name in state.frozen:
        about["frozen values"] = digest_of((n, whole(x)) for n, x in state.frozen[name].items())
    return about | ({"decay": _shown(model.decay)} if model.kind == "ema" else {})


def _module_words(part: Any) -> str:
    facts = module_facts(part)
    text = without_addresses(f"{type(part).__name__}({part.extra_repr()})")
    return text + (f" [{', '.join(facts)}]" if facts else "")


def _config(module: Any) -> dict[str, str]:
    """The settings of a model that has a config, as those of transformers, by name: its modules do
    not show all of them (activations, dropout of the attention)."""
    to_dict = getattr(getattr(module, "config", None), "to_dict", None)
    config = to_dict() if callable(to_dict) else None
    if not isinstance(config, Mapping):
        return {}
    return {
        str(name): without_addresses(repr(value))
        for name, value in config.items()
        if name not in _NOT_SETTINGS and not str(name).startswith("_")
    }


def _term(term: Term) -> str:
    """A term as code. A 0-d tensor is a knob, whose value may have moved."""
    kwargs = {k: _knob(v) for k, v in term.kwargs.items()}
    shown = replace(term, kwargs=kwargs, weight=_knob(term.weight))
    bound = term.loss
    extra = ""
    if isinstance(bound, functools.partial):
        extra = f" with {show(bound.args)} {show(bound.keywords)}"
    return _words(repr(shown) + extra, term)


def _words(text: str, value: Any) -> str:
    """A repr, and what it does not say."""
    facts = facts_of(value)
    return without_addresses(text) + (f" [{', '.join(facts)}]" if facts else "")


def _knob(value: Any) -> Any:
    return _NUMBER if isinstance(value, Tensor) and value.ndim == 0 else value


class _Number:
    def __repr__(self) -> str:
        return "tensor"


_NUMBER = _Number()


def _shown(value: Any) -> str:
    return without_addresses(show(_knob(value)))
