"""Steps and loops: the outer shell, where state is held and files are written."""

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
from ._errors import CheckpointError as CheckpointError
from ._errors import CompileError as CompileError
from ._errors import DamagedError as DamagedError
from ._errors import LoopError as LoopError
from ._errors import MismatchError as MismatchError
from ._errors import NonFiniteError as NonFiniteError
from ._errors import UnreadableError as UnreadableError
from ._evaluate.evaluate import collect as collect
from ._evaluate.evaluate import evaluate as evaluate
from ._evaluate.score import score as score
from ._evaluate.similarity import linear_cka as linear_cka
from ._log.lines import read_log as read_log
from ._random import fold_in as fold_in
from ._report.report import report as report
from ._run.events import Event as Event
from ._run.events import Result as Result
from ._run.fit import fit as fit
from ._run.fit import run as run
from ._run.resume import restore as restore
from ._run.signals import INTERRUPTED as INTERRUPTED
from ._run.signals import Interrupted as Interrupted
from ._state import State as State
from ._step.optimizer import param_groups as param_groups
from ._step.train_step import TrainStep as TrainStep
from ._step.train_step import train_step as train_step
from ._text.align import Aligned as Aligned
from ._text.align import Spans as Spans
from ._text.align import align as align
from ._text.align import align_responses as align_responses
from ._text.batches import document_mask as document_mask
from ._text.batches import fields_of as fields_of
from ._text.batches import token_batch as token_batch
from ._text.tokenizers import TokenizerReport as TokenizerReport
from ._text.tokenizers import compare_tokenizers as compare_tokenizers
from ._text.tokenizers import shared_vocabulary as shared_vocabulary
from ._text.tokenizers import token_bytes as token_bytes
from ._text.tokens import Tokens as Tokens
from ._text.tokens import chat_tokens as chat_tokens
from ._text.tokens import completion_tokens as completion_tokens
from ._text.tokens import pack_documents as pack_documents
from ._text.tokens import token_blocks as token_blocks

__all__ = [
    "INTERRUPTED",
    "Aligned",
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
    "Result",
    "Spans",
    "State",
    "TokenizerReport",
    "Tokens",
    "TrainStep",
    "UnreadableError",
    "align",
    "align_responses",
    "best",
    "bucket_batches",
    "bucket_lengths",
    "chat_tokens",
    "collect",
    "compare_tokenizers",
    "completion_tokens",
    "document_mask",
    "evaluate",
    "export",
    "fields_of",
    "fit",
    "fold_in",
    "linear_cka",
    "load",
    "load_latest",
    "lock",
    "next_tokens",
    "pack",
    "pack_documents",
    "pad_batch",
    "padded_length",
    "param_groups",
    "prefetch",
    "read_log",
    "report",
    "restore",
    "run",
    "save",
    "score",
    "shared_vocabulary",
    "take",
    "token_batch",
    "token_blocks",
    "token_bytes",
    "train_step",
]
