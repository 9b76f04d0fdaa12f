"""The report card of students: what a distillation kept, and what it saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fkd._base.types import Batch
from fkd._objective.models import Model, frozen, trainable
from fkd._objective.objective import Objective
from fkd._objective.terms import term
from fkd._refs.derived import as_ref
from fkd._refs.paths import describe
from fkd._refs.refs import Ref, batch, ref, student, teacher

from .._base.state import State
from .._data.batch import examples_in, normalised
from .._data.epochs import Loader, epoch_batches
from .._evaluate.evaluate import Collect, Metric, evaluate
from .._evaluate.score import score
from .._evaluate.similarity import linear_cka
from .compare import Compared, Part, calibrated, comparison, counted, logits_apart, part
from .measure import cost, method
from .quality import FEWEST_BATCHES, Reference, quality
from .record import ModelCard, Quality
from .report_card import ReportCard

AnyModel: TypeAlias = nn.Module | Model
Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]
_MOST_POSITIONS = 4096  # of the hidden states that are compared


@dataclass(frozen=True)
class _Asked:
    """What is to be measured, with what."""

    loader: list[Batch]
    metrics: Mapping[str, Metric]
    compare: tuple[Ref, Ref] | None
    distance: Distance | None
    labels: Ref | None
    where: Ref | None
    layers: tuple[Ref, Ref] | None
    describe: Callable[[Batch], Sequence[str]] | None
    examples: int
    repeats: int
    device: torch.device


def report_card(
    teacher: AnyModel,
    students: Mapping[str, AnyModel | Sequence[AnyModel]],
    loader: Loader,
    metrics: Mapping[str, Metric] | None = None,
    *,
    compare: tuple[Ref, Ref] | None = (student.logits, teacher.logits),
    distance: Distance | None = None,
    labels: Ref | None = batch.labels,
    where: Ref | None = None,
    layers: tuple[Ref, Ref] | None = None,
    describe: Callable[[Batch], Sequence[str]] | None = None,
    examples: int = 5,
    repeats: int = 20,
) -> ReportCard:
    """Students beside their teacher: quality, agreement, calibration, size, speed, memory.

    Every model is evaluated in eval mode, the teacher as a student of itself. Nothing is trained,
    and no module is changed.

    - Quality: every metric, its share of the teacher's ("kept"), and its difference from the
      teacher's on the same batches, with intervals of 95 %: of the mean over seeds by Student's t
      where a student is a list of modules, one for each seed; for one module by the bootstrap
      over at least eight batches, if the metric is a mean.
    - Agreement: how often the first choice is the teacher's, the mean KL(teacher | student), and
      the examples on which it is greatest.
    - Calibration: expected calibration error over 15 bins, reliability, log-likelihood.
    - Cost: parameters, bytes, FLOPs and latency of one example, throughput in batches, peak
      memory, by the method that the card states. Times are of this machine: compare them within
      a card. With several seeds they are of the first.

    Args:
      teacher: a module; `fkd.frozen(module, inputs=...)` if it takes other inputs.
      students: by name: a module, or a list of them, one for each seed.
      loader: batches to evaluate on, as for `evaluate`. They are held in memory.
      metrics: by name, of refs to `student`: `fkd.metric(fn, student.logits, batch.labels)`,
        `collect(...)`, or metrics of torchmetrics by `collect`.
      compare: two refs to logits `[*batch, classes]`, for agreement and calibration; or to what
        else both models say, with `distance`. None: nothing is compared but the metrics.
      distance: of two such values, one number for each position, such as `fkd.losses.cosine` for
        embeddings, `fkd.losses.mse` for numbers; of models that choose no class. None: KL.
      labels: ref to class numbers `[*batch]`, negative where there is none. None: no calibration.
      where: ref to a mask `[*batch]` of the positions that count.
      layers: two refs to sequences of hidden states, for their similarity.
      describe: one text for each example (or position) of a batch, for the worst examples.
      examples: how many of these are kept.
      repeats: how many forward passes are timed.

    Returns:
      A `ReportCard`: print it, or `save` it as `.json`, `.md` or `.html`.

    Raises:
      ValueError: no students, no batch, a student without seeds, a count below 1, labels that are
        no class numbers of the logits.
      ObjectiveError: a ref does not fit the models.

    Example:
      >>> import fkd.loops
      >>> data = [{"input": torch.randn(8, 4), "labels": torch.arange(8) % 3} for _ in range(2)]
      >>> card = fkd.loops.report_card(
      ...     torch.nn.Linear(4, 3), {"small": torch.nn.Linear(4, 3)}, data,
      ...     {"accuracy": metric(fkd.metrics.accuracy, student.logits, batch.labels)},
      ... )
      >>> card.students[0].cost.parameters
      15

    Reference:
      Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599; Kornblith et al.,
      Similarity of Neural Network Representations Revisited, arXiv:1905.00414.
    """
    _refuse(students, examples=examples, repeats=repeats)
    large = _model("teacher", teacher)
    listed = {name: _seeds(name, models) for name, models in students.items()}
    batches = list(epoch_batches(loader, 0, -1))
    if not batches:
        raise ValueError(
            "report_card: the loader gave no batch. It is empty, or an iterator that can be used "
            "only once: pass a DataLoader, a list, or a function that makes the batches."
        )
    device = next((p.device for p in _module(large).parameters()), torch.device("cpu"))
    asked = _Asked(
        batches,
        metrics or {},
        compare,
        distance,
        labels,
        where,
        layers,
        describe,
        examples,
        repeats,
        device,
    )
    first = _row("teacher", [large], large, asked, None)
    references = _references(first, large, asked, listed)
    rows = [_row(name, seeds, large, asked, references) for name, seeds in listed.items()]
    return ReportCard(first, tuple(rows), _methods(asked, listed))


def _expect_layers(values: Mapping[str, Any], **refs: Ref) -> None:
    for i, (name, layers) in enumerate(refs.items()):
        if not isinstance(values[name], list | tuple):
            raise ValueError(
                f"report_card: layers[{i}]={layers!r} is {describe(values[name])}; a list or tuple "
                "of hidden states is expected, such as student.hidden_states. Of single ones: "
                f"fkd.call(lambda *states: states, {name}.tap('...'), ...)."
            )


def _refuse(students: Mapping[str, Any], **counts: int) -> None:
    if not students or not hasattr(students, "items"):
        raise ValueError(
            f"report_card: students is {type(students).__name__} of {len(students)}; a dict of at "
            "least one name and module is expected: {'small': module}."
        )
    if "teacher" in students:
        raise ValueError("report_card: a student is named 'teacher', as the teacher's row is.")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"report_card: {name} is {value}; at least 1 is expected.")


def _seeds(name: str, models: AnyModel | Sequence[AnyModel]) -> list[Model]:
    many = list(models) if isinstance(models, list | tuple) else [models]
    if not many:
        raise ValueError(f"report_card: student {name!r} is an empty list; a module is expected.")
    return [_model(name, one) for one in many]


def _model(name: str, model: Any) -> Model:
    if isinstance(model, nn.Module):
        return frozen(model)
    if isinstance(model, Model) and model.module is not None:
        return frozen(model.module, inputs=model.inputs, outputs=model.outputs)
    raise ValueError(
        f"report_card: {name} is a {type(model).__name__}; a torch.nn.Module, or "
        "fkd.frozen(module, inputs=...), is expected. A trained student is "
        "fkd.loops.export(objective, state, 'student')."
    )


def _module(model: Model) -> nn.Module:
    assert model.module is not None
    return model.module


def _references(
    teacher: ModelCard, large: Model, asked: _Asked, students: Mapping[str, list[Model]]
) -> dict[str, Reference]:
    """The teacher's metrics; batch by batch, if a student of one seed is compared with them."""
    single = any(len(seeds) == 1 for seeds in students.values())
    each = _Pair(large, large, asked).by_batch() if single else {}
    return {n: Reference(q.mean, each.get(n, ())) for n, q in teacher.quality.items()}


def _row(
    name: str,
    seeds: list[Model],
    large: Model,
    asked: _Asked,
    teacher: Mapping[str, Reference] | None,
) -> ModelCard:
    """Everything about one model; `teacher` are the teacher's metrics, None for itself."""
    pairs = [_Pair(model, large, asked) for model in seeds]
    values = [pair.metrics() for pair in pairs]
    qualities: dict[str, Quality] = {}
    each = pairs[0].by_batch() if len(seeds) == 1 and teacher is not None else {}
    for metric in values[0]:
        reference = teacher[metric] if teacher is not None else None
        qualities[metric] = quality(
            metric, [v[metric] for v in values], each.get(metric, ()), reference
        )
    compared = [pair.compared() for pair in pairs] if asked.compare is not None else []
    return ModelCard(
        name=name,
        quality=qualities,
        cost=cost(seeds[0], normalised(asked.loader[0], asked.device), repeats=asked.repeats,
                  device=asked.device),
        agreement=_mean([c.agreement for c in compared if c.agreement is not None]),
        divergence=_mean([c.divergence for c in compared]),
        calibration=calibrated(compared),
        disagreements=compared[0].worst if compared and teacher is not None else (),
        similarity=pairs[0].similarity() if asked.layers is not None else (),
    )  # fmt: skip


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


class _Anchor(nn.Module):
    """An objective needs something to train; this is never run."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros((), device=device))


class _Pair:
    """One student and the teacher as an objective that is only evaluated."""

    def __init__(self, small: Model, large: Model, asked: _Asked) -> None:
        self.asked = asked
        self.objective = Objective(
            {"anchor": term(_itself, ref("anchor").param("value"))},
            student=small,
            teacher=large,
            anchor=trainable(_Anchor(asked.device)),
        )
        parts = self.objective.init()
        skipped = torch.zeros((), dtype=torch.int64, device=asked.device)
        self.state = State(
            parts.trainable, parts.frozen, parts.buffers, {}, parts.loss_state, skipped, 0, 0
        )

    def metrics(self, batches: list[Batch] | None = None) -> dict[str, float]:
        """The value of every metric over all batches."""
        metrics = self.asked.metrics
        data = self.asked.loader if batches is None else batches
        values = evaluate(self.objective, self.state, data, metrics=metrics) if metrics else {}
        return {n: v for n, v in values.items() if n.split("/")[0] != "loss"}

    def by_batch(self) -> dict[str, list[tuple[float, int]]]:
        """Every metric that is a mean, for every batch, with its examples."""
        if len(self.asked.loader) < FEWEST_BATCHES:
            return {}
        whole = [n for n, m in self.asked.metrics.items() if isinstance(m, Collect)]
        means: dict[str, list[tuple[float, int]]] = {}
        for one in self.asked.loader:
            count = examples_in(normalised(one))
            for name, value in self.metrics([one]).items():
                if name not in whole and name.split("/")[0] not in whole:
                    means.setdefault(name, []).append((value, count))
        return means

    def compared(self) -> Compared:
        """Both models' values at the positions that count, and how far they are apart."""
        asked = self.asked
        assert asked.compare is not None
        refs: dict[str, Any] = {"student": asked.compare[0], "teacher": asked.compare[1]}
        refs |= {} if asked.where is None else {"where": asked.where}
        refs |= {} if asked.labels is None or asked.distance else {"labels": asked.labels}
        kinds = asked.distance or logits_apart
        parts: list[Part] = []
        scored = score(self.objective, self.state, asked.loader, refs)
        for one, values in zip(asked.loader, scored, strict=True):  # one batch's logits at a time
            texts = None if asked.describe is None else [str(text) for text in asked.describe(one)]
            parts.append(part(values, kinds, texts))
        return comparison(parts, asked.examples)

    def similarity(self) -> tuple[tuple[float, ...], ...]:
        """Linear CKA between the layers, on the first batches."""
        assert self.asked.layers is not None
        mine, theirs = map(as_ref, self.asked.layers)
        refs: dict[str, Any] = {"student": mine, "teacher": theirs}
        refs |= {} if self.asked.where is None else {"where": self.asked.where}
        kept: list[list[Tensor]] = []
        count = positions = 0
        for values in score(self.objective, self.state, self.asked.loader, refs):
            _expect_layers(values, student=mine, teacher=theirs)
            layers = [*values["student"], *values["teacher"]]
            keep = counted(values.get("where"), layers[0].shape[:-1])
            kept.append([x.reshape(-1, x.shape[-1])[keep] for x in layers])
            count, positions = len(values["student"]), positions + int(keep.sum())
            if positions >= _MOST_POSITIONS:
                break
        stacks = [torch.cat(layer) for layer in zip(*kept, strict=True)]
        return tuple(tuple(row) for row in linear_cka(stacks[:count], stacks[count:]).tolist())


def _itself(value: Tensor) -> Tensor:
    return value


def _methods(asked: _Asked, students: Mapping[str, list[Model]]) -> dict[str, str]:
    examples = sum(examples_in(normalised(one)) for one in asked.loader)
    seeds = ", ".join(f"{name}: {len(models)}" for name, models in students.items())
    compared = {"distance": _name(asked.distance)} if asked.distance else {}
    return compared | {
        "data": f"{examples} examples in {len(asked.loader)} batches",
        "seeds": seeds,
        **({"intervals of 95 %": _intervals(asked, students)} if asked.metrics else {}),
        "time": method(asked.repeats, asked.device),
        "torch": torch.__version__,
    }


def _intervals(asked: _Asked, students: Mapping[str, list[Model]]) -> str:
    """What they are based on; or why there are none."""
    count = len(asked.loader)
    several = ", ".join(name for name, seeds in students.items() if len(seeds) > 1)
    single = ", ".join(name for name, seeds in students.items() if len(seeds) == 1)
    parts = [f"{several}: Student's t over the seeds"] if several else []
    if single and count < FEWEST_BATCHES:
        batches = f"{count} batch{'' if count == 1 else 'es'}"
        parts.append(
            f"{single}: none, since there is one seed, and {batches} where the bootstrap takes at "
            f"least {FEWEST_BATCHES}"
        )
    elif single:
        parts.append(f"{single}: the bootstrap over {count} batches, of metrics that are means")
    return "; ".join(parts)


def _name(function: Distance) -> str:
    return getattr(function, "__name__", type(function).__name__)
