"""Mistakes that can be seen without running anything: names, kinds, options, numbers."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .._base.errors import listing, nearest
from .._refs.derived import AsFunction, Call
from .._refs.paths import name_of
from .._refs.refs import (
    Capture,
    Inside,
    Node,
    OfModel,
    Param,
    Patched,
    Ref,
    Root,
    Tap,
    node,
    output_path,
    walk,
)
from .apply import has_attention_captures, layer_drop
from .models import Model, trainable_parameters
from .not_models import not_a_model
from .reach import reach_problems
from .terms import Term, moves, value_at

_NUMBER = re.compile(r"(^|\.)\d+(\.|$)")


def static_problems(
    terms: Mapping[str, Term], models: Mapping[str, Any], refs: Sequence[Ref]
) -> list[str]:
    """One message for every mistake."""
    return [*_graph(terms), *_models(models), *read_problems(terms, models, refs)]


def read_problems(
    terms: Mapping[str, Term], models: Mapping[str, Any], refs: Sequence[Ref]
) -> list[str]:
    """One message for every mistake in terms and in refs that read these models."""
    known = {name: model for name, model in models.items() if isinstance(model, Model)}
    problems: list[str] = []
    for name, term in terms.items():
        mistakes = (*_signature(term), *_knobs(term), *reach_problems(term, models))
        problems += [f"term {name!r}: {p}" for p in mistakes]
    for ref in dict.fromkeys(refs):
        problems += [first_reader(terms, ref) + p for p in _ref(ref, models, known)]
    return list(dict.fromkeys(problems))


def first_reader(terms: Mapping[str, Term], ref: Ref) -> str:
    """`"term 'kd': "` for the first term that depends on a ref; nothing if none does."""
    users = (name for name, term in terms.items() if any(ref in walk(r) for r in term.refs))
    name = next(users, None)
    return "" if name is None else f"term {name!r}: "


def _graph(terms: Mapping[str, Term]) -> Iterator[str]:
    if not any(term.weight is not None for term in terms.values()):
        yield "there are no terms to minimise. Give at least one: {'kd': fkd.term(kl, ...)}."
    if "total" in terms:
        yield "a term is named 'total', and loss/total is the sum of all terms. Rename the term."


def _models(models: Mapping[str, Any]) -> Iterator[str]:
    owners: dict[int, str] = {}
    for name, model in models.items():
        if name == "batch":
            yield "a model is named 'batch', which is the name of the batch. Rename the model."
        if name == "total":
            yield "a model is named 'total', and grad_norm/total is of all of them. Rename it."
        if not isinstance(model, Model):
            yield (
                f"model {name!r} is a {type(model).__name__}; fkd.trainable(module), "
                "fkd.frozen(module) or fkd.ema(name) is expected. Wrap it."
            )
            continue
        yield from _functions(name, model)
        if model.kind == "ema":
            yield from _ema(name, model, models)
        elif problem := not_a_model(model.module, model.stored.holds if model.stored else _nowhere):
            yield f"model {name!r}: {problem}"
        else:
            yield from _shared(name, model, models, owners)
    yield from _ambiguous(models)
    if not any(isinstance(m, Model) and _has_trainable(m) for m in models.values()):
        yield (
            "no model has a parameter to train. Give at least one fkd.trainable(module) whose "
            "parameters have requires_grad=True."
        )


def _functions(name: str, model: Model) -> Iterator[str]:
    uses = {"inputs": "lambda batch: {'x': batch['pixels']}", "outputs": "lambda out: out[0]"}
    for argument, example in uses.items():
        function = getattr(model, argument)
        if function is not None and not callable(function):
            yield (
                f"model {name!r}: {argument}={function!r:.60} is a {type(function).__name__}; a "
                f"function is expected: {argument}={example}."
            )


def _ambiguous(models: Mapping[str, Any]) -> Iterator[str]:
    """Optimizers know a parameter by one name, `model.parameter`."""
    owners: dict[str, str] = {}
    for name in (name for name in models if any(other.startswith(f"{name}.") for other in models)):
        owners |= {f"{name}.{p}": name for p in _trained(models[name])}
    for name in (name for name in models if "." in name):
        for parameter in _trained(models[name]):
            owner = owners.get(f"{name}.{parameter}", name)
            if owner != name:
                yield (
                    f"models {owner!r} and {name!r} both have a parameter that an optimizer knows "
                    f"as {name}.{parameter}. Rename one of the two models."
                )
                break


def _trained(model: Any) -> list[str]:
    module = isinstance(model, Model) and isinstance(model.module, nn.Module)
    return list(trainable_parameters(model)) if module else []


def _has_trainable(model: Model) -> bool:
    return isinstance(model.module, nn.Module) and bool(trainable_parameters(model))


def _shared(
    name: str, model: Model, models: Mapping[str, Any], owners: dict[int, str]
) -> Iterator[str]:
    """A tensor that two models hold would be trained in one and stand still in the other."""
    assert model.module is not None
    others: dict[str, str] = {}
    for parameter, tensor in model.module.named_parameters():
        owner = owners.setdefault(id(tensor), name)
        if owner != name:
            others.setdefault(owner, parameter)
    for owner, parameter in others.items():
        kinds = {models[owner].kind, model.kind}
        if kinds == {"frozen"}:
            continue
        both = "both trainable and frozen" if len(kinds) == 2 else "trainable under two names"
        yield (
            f"models {owner!r} and {name!r} share the parameter {parameter!r}, so it would be "
            f"{both}. Give one of them a copy: copy.deepcopy(module); or let it follow the "
            f"other: fkd.ema({owner!r})."
        )


def _nowhere(name: str) -> bool:
    del name
    return False


def _ema(name: str, model: Model, models: Mapping[str, Any]) -> Iterator[str]:
    followed = models.get(model.of)
    if not isinstance(followed, Model) or followed.kind != "trainable":
        what = "is not a model" if followed is None else "is not trainable"
        names = [n for n, m in models.items() if isinstance(m, Model) and m.kind == "trainable"]
        yield (
            f"model {name!r}: ema({model.of!r}) follows {model.of!r}, which {what}. "
            f"{nearest(model.of, names)}Trainable models: {listing(names)}."
        )
    yield from (f"model {name!r}: {p}" for p in _number("decay", model.decay, low=0.0, high=1.0))


def _not_a_loss(term: Term) -> str:
    """What is wrong with a loss that cannot be called as one; nothing if it can."""
    loss: Any = term.loss
    if isinstance(loss, Ref):
        return (
            f"the loss is {loss!r}, which is a ref. The function comes first, then what it is "
            f"given: fkd.term(kl, student.logits, teacher.logits). A value that is computed by "
            f"refs alone: fkd.term(lambda x: x, {loss!r})."
        )
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        return (
            f"the loss is {loss.__name__}, a class, which would be made and not computed. Give a "
            f"function such as fkd.losses.mse, or an instance: fkd.term({loss.__name__}(), ...)."
        )
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        return (
            f"the loss is a {type(loss).__name__} with parameters, which would never be trained. "
            "Give it to the objective, name=fkd.trainable(module), and use "
            "fkd.module('name')(student.logits)."
        )
    if isinstance(loss, nn.Module) or callable(loss):
        return _wants_log_probabilities(term)
    return f"the loss is {loss!r}; a function is expected. Import it: from fkd.losses import kl."


def _wants_log_probabilities(term: Term) -> str:
    """What is wrong with torch's losses of log-probabilities where they are given logits."""
    ours: dict[Any, str] = {
        nn.functional.kl_div: "fkd.losses.kl, student.logits, teacher.logits",
        nn.functional.nll_loss: "fkd.losses.cross_entropy, student.logits, batch.labels",
    }
    ours |= {nn.KLDivLoss: ours[nn.functional.kl_div], nn.NLLLoss: ours[nn.functional.nll_loss]}
    loss: Any = getattr(term.loss, "func", term.loss)
    kind = type(loss) if isinstance(loss, nn.Module) else loss
    instead = ours.get(kind) if isinstance(kind, Hashable) else None
    path = output_path(term.args[0]) if term.args else None
    if instead is None or path is None or path[1][-1:] != ("logits",):
        return ""
    return (
        f"{name_of(loss)} expects log-probabilities, and {term.args[0]!r} are logits. Write "
        f"fkd.term({instead}), which takes logits; or torch.log_softmax({term.args[0]!r}, -1)."
    )


def _signature(term: Term) -> Iterator[str]:
    problem = _not_a_loss(term)
    if problem:
        yield problem
        return
    try:
        signature = inspect.signature(term.loss)
    except (TypeError, ValueError):
        return
    name = name_of(term.loss)
    options = [p.name for p in signature.parameters.values() if p.kind is not p.POSITIONAL_ONLY]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    unknown = [k for k in term.kwargs if k not in options and not open_ended]
    for option in unknown:
        yield (
            f"{name} has no option {option!r}. {nearest(option, options)}"
            f"Options: {listing(options)}."
        )
    known = {k: v for k, v in term.kwargs.items() if k not in unknown}
    if term.state is not None:
        known["state"] = term.state
    try:
        signature.bind(*term.args, **known)
    except TypeError as error:
        yield f"{name}{signature} cannot take these arguments: {error}."


def _knobs(term: Term) -> Iterator[str]:
    if term.weight is not None and not isinstance(term.weight, Ref):
        yield from _number("weight", term.weight)
    defaults = _number_options(term.loss)
    for name, knob in term.kwargs.items():
        if name in defaults and not isinstance(knob, Ref):
            yield from _number(name, knob, positive=name == "temperature")


def _number_options(loss: Callable[..., Any]) -> set[str]:
    """The options whose default is a number, and so whose value should be one."""
    try:
        parameters = inspect.signature(loss).parameters
    except (TypeError, ValueError):
        return set()
    numbers = {n for n, p in parameters.items() if type(p.default) in (int, float)}
    return numbers | ({"temperature"} & set(parameters))


def _number(
    name: str,
    knob: Any,
    *,
    positive: bool = False,
    low: float = -math.inf,
    high: float = math.inf,
) -> Iterator[str]:
    if isinstance(knob, Tensor) and (knob.ndim or knob.is_complex()) and not positive:
        yield (
            f"{name} is a tensor {tuple(knob.shape)}; a number, a 0-d tensor, a schedule "
            "or a ref is expected."
        )
        return
    if (isinstance(knob, Tensor) and knob.device.type != "cpu") or getattr(knob, "ndim", 0):
        return  # reading it would wait for the device, or it is one value for each position
    try:
        value = float(value_at(knob, 0)) if moves(knob) else knob
    except Exception as error:
        yield f"{name} is {name_of(knob)}, which failed at step 0: {type(error).__name__}: {error}."
        return
    if isinstance(value, bool | str) or not isinstance(value, int | float | Tensor):
        yield (
            f"{name} is {value!r}, a {type(value).__name__}; a number, a 0-d tensor, a schedule "
            "(step -> float) or a ref is expected."
        )
    elif math.isnan(float(value)) or not low <= float(value) <= high:
        bounds = "" if low == -math.inf else f" from {low:g} to {high:g}"
        yield f"{name} is {float(value)}; a number{bounds} is expected."
    elif positive and float(value) <= 0:
        yield f"{name} is {float(value)}; a positive number is expected."


def _ref(ref: Ref, models: Mapping[str, Any], known: Mapping[str, Model]) -> Iterator[str]:
    part = node(ref)
    yield from _left_out(ref, known)
    if isinstance(part, Inside):
        part = part.place
    name = _root_of(part)
    if name is None or name == "batch":
        return
    if name not in models:
        yield _no_model(ref, name, models)
        return
    model = known.get(name)
    if model is not None and model.kind == "ema":
        model = known.get(model.of)
    if model is None or not isinstance(model.module, nn.Module):
        return
    if isinstance(part, Tap):
        names = [n for n, _ in model.module.named_modules(remove_duplicate=False)]
        if part.module not in names:
            yield _unknown(ref, name, "submodule", part.module, names)
    elif isinstance(part, Patched):
        names = [n for n, _ in model.module.named_modules(remove_duplicate=False)]
        unknown = (path for path, _ in part.outputs if path not in names)
        yield from (_unknown(ref, name, "submodule", path, names) for path in unknown)
    elif isinstance(part, Param):
        names = [n for n, _ in model.module.named_parameters(remove_duplicate=False)]
        names += [n for n, _ in model.module.named_buffers(remove_duplicate=False)]
        if part.parameter not in names:
            yield _unknown(ref, name, "parameter or buffer", part.parameter, names)
    elif isinstance(part, Capture) and not has_attention_captures(model.module):
        yield (
            f"{ref!r}: {name!r} is a {type(model.module).__name__}, not a transformers model. "
            f"Take the output of the submodule: {name}.tap('...')."
        )


def _no_model(ref: Ref, name: str, models: Mapping[str, Any]) -> str:
    members = [m for m in models if m.endswith(f"/{name}")]
    if members:
        return (
            f"{ref!r} refers to {name!r}, of which each member of a sweep has its own. Say whose: "
            f"{' or '.join(f'fkd.ref({m!r})' for m in members[:3])}. Models: {listing(models)}."
        )
    kind = "trainable" if isinstance(node(ref), Call | AsFunction) else "frozen"
    return (
        f"{ref!r} refers to {name!r}, and the objective has no such model. {nearest(name, models)}"
        f"Models: {listing(models)}. Give it: Objective(terms, {name}=fkd.{kind}(module))."
    )


def _left_out(ref: Ref, known: Mapping[str, Model]) -> Iterator[str]:
    """What one layer gives, of a model that leaves out layers at random."""
    part, path = node(ref), output_path(ref)
    if isinstance(part, Inside):
        part = part.place
    name = _root_of(part)
    layer = isinstance(part, Capture) or (isinstance(part, Tap) and _NUMBER.search(part.module))
    if path is not None and len(path[1]) == 2 and isinstance(path[1][1], int):
        name, layer = path[0], str(path[1][0]).endswith(("hidden_states", "attentions"))
    model = known.get(name or "")
    drop = layer_drop(model) if layer and model is not None else None
    if drop is not None:
        yield (
            f"{ref!r}: model {name!r} leaves out whole layers at random while it trains ({drop}), "
            "so that this one is missing in some steps. Set the layerdrop settings of its config "
            "to 0 before it is made."
        )


def _root_of(part: Node) -> str | None:
    if isinstance(part, Root):
        return part.name
    if isinstance(part, OfModel):
        return part.root
    if isinstance(part, AsFunction):
        return part.name
    return part.name if isinstance(part, Call) and part.fn is None else None


def _unknown(ref: Ref, model: str, what: str, got: str, names: Sequence[str]) -> str:
    shown = [repr(n) for n in names if n]
    return (
        f"{ref!r}: model {model!r} has no {what} {got!r}. {nearest(got, names)}"
        f"Available: {listing(shown)}."
    )
