"""Steps and loops: the outer shell, where state is held and files are written."""

from . import language as language
from ._base.errors import CheckpointError as CheckpointError
from ._base.errors import CompileError as CompileError
from ._base.errors import DamagedError as DamagedError
from ._base.errors import LoopError as LoopError
from ._base.errors import MismatchError as MismatchError
from ._base.errors import NonFiniteError as NonFiniteError
from ._base.errors import UnreadableError as UnreadableError
from ._base.random import fold_in as fold_in
from ._base.state import State as State
from ._card.card import report_card as report_card
from ._card.report_card import ReportCard as ReportCard
from ._checkpoint.checkpoint import load as load
from ._checkpoint.checkpoint import load_latest as load_latest
from ._checkpoint.checkpoint import save as save
from ._checkpoint.export import export as export
from ._checkpoint.folder import best as best
from ._checkpoint.lock import lock as lock
from ._data.buckets import BucketBatchSampler as BucketBatchSampler
from ._data.buckets import bucket_batches as bucket_batches
from ._data.buckets import bucket_lengths as bucket_lengths
from ._data.buckets import pad_batch as pad_batch
from ._data.buckets import padded_length as padded_length
from ._data.packing import Packed as Packed
from ._data.packing import next_tokens as next_tokens
from ._data.packing import pack as pack
from ._data.packing import take as take
from ._data.prefetch import prefetch as prefetch
from ._evaluate.evaluate import collect as collect
from ._evaluate.evaluate import evaluate as evaluate
from ._evaluate.score import score as score
from ._evaluate.similarity import linear_cka as linear_cka
from ._log.lines import read_log as read_log
from ._report.report import report as report
from ._run.events import Event as Event
from ._run.events import Result as Result
from ._run.fit import fit as fit
from ._run.fit import run as run
from ._run.resume import restore as restore
from ._run.signals import INTERRUPTED as INTERRUPTED
from ._run.signals import Interrupted as Interrupted
from ._step.optimizer import param_groups as param_groups
from ._step.train_step import TrainStep as TrainStep
from ._step.train_step import train_step as train_step

__all__ = [
    "INTERRUPTED",
    "BucketBatchSampler",
    "CheckpointError",
    "CompileError",
    "DamagedError",
    "Event",
    "Interrupted",
    "LoopError",
    "MismatchError",
    "NonFiniteError",
    "Packed",
    "ReportCard",
    "Result",
    "State",
    "TrainStep",
    "UnreadableError",
    "best",
    "bucket_batches",
    "bucket_lengths",
    "collect",
    "evaluate",
    "export",
    "fit",
    "fold_in",
    "language",
    "linear_cka",
    "load",
    "load_latest",
    "lock",
    "next_tokens",
    "pack",
    "pad_batch",
    "padded_length",
    "param_groups",
    "prefetch",
    "read_log",
    "report",
    "report_card",
    "restore",
    "run",
    "save",
    "score",
    "take",
    "train_step",
]
