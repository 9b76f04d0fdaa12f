"""The record of a report card: plain numbers, which JSON can hold."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Difference:
    """A student's metric less the teacher's, on the same data.

    Attributes:
      mean: over the seeds.
      low, high: an interval of 95 %; None where there is nothing to base it on. Where it holds
        0, this data does not tell the two models apart.
    """

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Quality:
    """One metric of one model.

    Attributes:
      seeds: its value for every seed.
      mean: over the seeds.
      low, high: an interval of 95 %; None where there is nothing to base it on.
      kept: the mean over that of the teacher, or, where lower is better, that of the teacher over
        the mean; None where the name of the metric does not say which is better
        (`fkd.metrics.higher_is_better`), for negative values, and without a teacher's.
      difference: from the teacher's; None for the teacher itself.
    """

    seeds: tuple[float, ...]
    mean: float
    low: float | None = None
    high: float | None = None
    kept: float | None = None
    difference: Difference | None = None


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are frequencies.

    Attributes:
      error: the expected calibration error, the mean distance of accuracy and confidence.
      nll: the mean negative log-likelihood of the labels, in nats.
      confidence, accuracy, count: of every bin of the reliability plot.
    """

    error: float
    nll: float
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """What a model costs, on the machine where the card was made.

    Attributes:
      parameters: numbers, shared ones once.
      megabytes: of parameters and buffers, as they are held (10^6 bytes).
      gflops: 10^9 floating-point operations of the products and convolutions for one example.
      latency_ms: the median for one example, of the forward pass alone.
      latency_p95_ms: 95 of 100 are as fast.
      throughput: examples a second, in batches as the loader gives them; the median.
      peak_megabytes: the most memory that a batch's forward pass holds above the model.
    """

    parameters: int
    megabytes: float
    gflops: float
    latency_ms: float
    latency_p95_ms: float
    throughput: float
    peak_megabytes: float


@dataclass(frozen=True)
class Disagreement:
    """An example on which student and teacher differ most.

    Attributes:
      index: its number in the order of the loader (of the positions, where there are several).
      divergence: KL(teacher | student), in nats; or what `distance` says.
      teacher, student: their choices; None of models that choose no class.
      label: the right one, if it is known.
      example: what it is, as `describe` says.
    """

    index: int
    divergence: float
    teacher: int | None
    student: int | None
    label: int | None = None
    example: str = ""


@dataclass(frozen=True)
class ModelCard:
    """One row: the teacher, or one student.

    Attributes:
      name: of the model.
      quality: by metric.
      cost: see `Cost`.
      agreement: how often its first choice is the teacher's; None where nothing is compared.
      divergence: the mean KL(teacher | student), in nats; or the mean of `distance`.
      calibration: None where there are no labels.
      disagreements: the worst first.
      similarity: linear CKA, `[layer][teacher layer]`; empty where no layers are given.
    """

    name: str
    quality: dict[str, Quality]
    cost: Cost
    agreement: float | None = None
    divergence: float | None = None
    calibration: Calibration | None = None
    disagreements: tuple[Disagreement, ...] = ()
    similarity: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Record:
    """What a card says, before it says it in some form.

    Attributes:
      teacher: its row.
      students: theirs, in the order in which they were given.
      method: how everything was measured, by what was measured.
    """

    teacher: ModelCard
    students: tuple[ModelCard, ...]
    method: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def rows(self) -> tuple[ModelCard, ...]:
        """The teacher, and then the students."""
        return (self.teacher, *self.students)
