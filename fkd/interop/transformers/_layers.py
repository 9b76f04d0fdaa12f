"""Start a student from chosen layers of its teacher, as DistilBERT does."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from ._sites import label_stacks

_LOG = logging.getLogger(__name__)
_Model = TypeVar("_Model", bound=nn.Module)

# DistilBERT's names for the parts of a BERT (or RoBERTa) layer.
_BERT_TO_DISTILBERT = (
    ("attention.self.query.", "attention.q_lin."),
    ("attention.self.key.", "attention.k_lin."),
    ("attention.self.value.", "attention.v_lin."),
    ("attention.output.dense.", "attention.out_lin."),
    ("attention.output.LayerNorm.", "sa_layer_norm."),
    ("intermediate.dense.", "ffn.lin1."),
    ("output.dense.", "ffn.lin2."),
    ("output.LayerNorm.", "output_layer_norm."),
)


def init_from_layers(
    student: _Model, teacher: nn.Module, layers: Sequence[int] | Mapping[str, Sequence[int]]
) -> _Model:
    """A copy of the student whose layers start as chosen layers of the teacher.

    Student layer i becomes teacher layer `layers[i]`. Everything outside of the layers
    (embeddings, norms, pooler, head) is copied where name and shape are those of the teacher,
    and stays as the student has it otherwise. Models of one family, and BERT or RoBERTa to
    DistilBERT.

    Args:
      student: any model made of a stack (encoder-decoder: stacks) of layers. Unchanged.
      teacher: a deeper model with layers of the same sizes. Unchanged.
      layers: one teacher layer for each student layer, negative ones counted from the end. For
        several stacks either one sequence for all, or one for each: `{"encoder": [0, 2],
        "decoder": [0, 5]}`.

    Returns:
      A new model with tensors of its own.

    Raises:
      ValueError: the stacks differ, `layers` has the wrong length or names no layer of the
        teacher, or layers differ in their names or shapes (they are listed).

    Example:
      >>> from transformers import BertConfig, BertModel
      >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=4,
      ...                     intermediate_size=8, vocab_size=10)
      >>> teacher = BertModel(config)
      >>> fewer = BertConfig(**{**config.to_dict(), "num_hidden_layers": 2})
      >>> student = init_from_layers(BertModel(fewer), teacher, layers=[0, 2])
      >>> torch.equal(student.encoder.layer[1].output.dense.weight,
      ...             teacher.encoder.layer[2].output.dense.weight)
      True

    Reference:
      Sanh et al., DistilBERT, a distilled version of BERT, arXiv:1910.01108.
    """
    ours, theirs = stacks_of(student), stacks_of(teacher)
    if not ours or ours.keys() != theirs.keys():
        raise ValueError(
            f"init_from_layers: student stacks {list(ours)} and teacher stacks {list(theirs)}; "
            "the same stacks of layers are expected in both."
        )
    mine, weights = bare_state(student), bare_state(teacher)
    start: dict[str, Tensor] = {}
    for label, stack in ours.items():
        chosen = chosen_layers(
            layers, label, depth_of(mine, stack), depth_of(weights, theirs[label])
        )
        start |= _layer_weights(mine, weights, (stack, theirs[label]), chosen)
        if not label:
            log_types(student, teacher, chosen)
    start |= _outside(mine, weights, tuple(ours.values()))
    return begun(student, start)


def begun(model: _Model, start: Mapping[str, Tensor]) -> _Model:
    """A copy of a model, some of whose tensors, by their bare names, are others."""
    result = copy.deepcopy(model)
    names = {bare(model, n): n for n in result.state_dict()}
    result.load_state_dict({names[n]: w for n, w in start.items()}, strict=False)
    return result


def stacks_of(model: nn.Module) -> dict[str, str]:
    """The outermost lists of layers, by label (that of a single one is ""), under bare names."""
    outermost: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f + ".") for f in outermost)
        if isinstance(module, nn.ModuleList) and not inside and _is_stack(module):
            outermost.append(name)
    labels = {outermost[0]: ""} if len(outermost) == 1 else label_stacks(outermost)
    return {label: bare(model, stack) for stack, label in labels.items()}


def _is_stack(module: nn.ModuleList) -> bool:
    """Whether the entries are blocks, not single layers."""
    return len(module) > 0 and all(len(list(block.modules())) > 2 for block in module)


def depth_of(state: Mapping[str, Tensor], stack: str) -> int:
    """How many layers a stack has."""
    matches = (re.match(rf"{re.escape(stack)}\.(\d+)\.", name) for name in state)
    return max(int(m[1]) for m in matches if m) + 1


def layers_of_stack(layers: Any, label: str, caller: str) -> Any:
    """The layers of one stack, where `layers` may be a mapping from stacks."""
    if not isinstance(layers, Mapping):
        return layers
    if label not in layers:
        which = f" for {label!r}" if label else ""
        raise ValueError(
            f"{caller}: layers {sorted(map(str, layers))}; an entry{which} is expected."
        )
    return layers[label]


def chosen_layers(
    layers: Any,
    label: str,
    ours: int,
    theirs: int,
    caller: str = "init_from_layers",
    models: tuple[str, str] = ("student", "teacher"),
) -> list[int]:
    """One layer of the second model for each of the first one's, counted from 0, or an error."""
    which = f" for {label!r}" if label else ""
    layers = layers_of_stack(layers, label, caller)
    if len(layers) != ours:
        raise ValueError(
            f"{caller}: layers {list(layers)}{which} has {len(layers)} entries; the "
            f"{models[0]} has {ours} layers, and one {models[1]} layer for each is expected."
        )
    outside = [i for i in layers if not -theirs <= i < theirs]
    if outside:
        raise ValueError(
            f"{caller}: layers {outside}{which} are not layers of the {models[1]}; "
            f"0 to {theirs - 1} are expected (or {-theirs} to -1, from the end)."
        )
    return [i % theirs for i in layers]


def log_types(
    student: nn.Module, teacher: nn.Module, chosen: Sequence[int], caller: str = "init_from_layers"
) -> None:
    """Say which layers become layers of another type (windowed or full attention, say)."""
    configs = (getattr(m, "config", None) for m in (student, teacher))
    ours, theirs = (getattr(c, "layer_types", None) or [] for c in configs)
    for i, j in enumerate(chosen):
        if i < len(ours) and j < len(theirs) and ours[i] != theirs[j]:
            _LOG.warning(
                "%s: layer %d is %s, teacher layer %d is %s: give the student's config the "
                "layer_types of the chosen layers.",
                *(caller, i, ours[i], j, theirs[j]),
            )


def bare(model: nn.Module, name: str) -> str:
    """A name without the prefix that a head puts before its base model."""
    prefix = getattr(model, "base_model_prefix", "")
    return name.removeprefix(f"{prefix}.") if prefix else name


def bare_state(model: nn.Module) -> dict[str, Tensor]:
    return {bare(model, n): w for n, w in model.state_dict().items()}


def _layer_weights(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    stacks: tuple[str, str],
    chosen: Sequence[int],
) -> dict[str, Tensor]:
    """The weights of the student's layers, under its names; all of them, or an error."""
    start: dict[str, Tensor] = {}
    problems: list[str] = []
    stack, source = stacks
    for name, weight in ours.items():
        match = re.fullmatch(rf"{re.escape(stack)}\.(\d+)\.(.+)", name)
        if match is None:
            continue
        layer, rest = chosen[int(match[1])], match[2]
        copied = _find(theirs, source, layer, rest)
        if copied is None:
            problems.append(f"{name} is not in teacher layer {layer}")
        elif copied.shape != weight.shape:
            problems.append(f"{name} {tuple(weight.shape)}, teacher's {tuple(copied.shape)}")
        else:
            start[name] = copied
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(
            f"init_from_layers: student layers that differ from the teacher's: "
            f"{'; '.join(problems[:4])}{more}. Layers of the same names and sizes are expected: "
            "give the student's config the teacher's hidden, intermediate and head sizes."
        )
    return start


def _find(theirs: Mapping[str, Tensor], stack: str, layer: int, rest: str) -> Tensor | None:
    """A weight of a teacher layer, or the one that only its first layer has (T5's bias)."""
    names = [
        rest,
        *(bert + rest.removeprefix(d) for bert, d in _BERT_TO_DISTILBERT if rest.startswith(d)),
    ]
    places = [f"{stack}.{i}.{n}" for i in (layer, 0) for n in names]
    return next((theirs[p] for p in places if p in theirs), None)


def _outside(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], stacks: tuple[str, ...]
) -> dict[str, Tensor]:
    """The weights outside of the layers that fit; what does not fit is logged."""
    rest = {n: w for n, w in ours.items() if not n.startswith(tuple(f"{s}." for s in stacks))}
    fits = {n: theirs[n] for n, w in rest.items() if n in theirs and theirs[n].shape == w.shape}
    left = [n for n in rest if n not in fits]
    if left:
        _LOG.warning("init_from_layers: left as the student has them: %s", ", ".join(left))
    return fits
