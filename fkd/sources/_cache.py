"""Run a teacher once, and keep on the disk what it says of every sample."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data.distributed import DistributedSampler

from fkd._base.errors import expect, listing
from fkd._base.types import Batch
from fkd._objective.frontier import frontier, is_fixed, needs_forward, read_refs, reduced
from fkd._objective.objective import Objective
from fkd._refs.refs import Ref, walk
from fkd.loops._base.files import make_folder
from fkd.loops._base.waiting import Say
from fkd.loops._data.batch import examples_in, normalised
from fkd.loops._data.epochs import Loader, epoch_batches
from fkd.loops._data.fields import Field
from fkd.loops._data.loaders import expect_loader
from fkd.loops._log.progress import open_progress

from ._bind import bound_terms
from ._build import Build, Place
from ._errors import SourceError
from ._header import VERSION, Header
from ._identity import describe_model, describe_tokenizer, identity, short
from ._keep import Exact, Keep
from ._kept import Kept
from ._live import Precision, Teacher
from ._parameters import Parameters, frozen_parameters, write_parameters
from ._parts import Share, occupied, share_of
from ._probe import Contents, probe
from ._structure import indices, is_sparse
from ._temperature import expect_temperature


def cache(
    objective: Objective,
    loader: Loader,
    folder: str | os.PathLike[str],
    *,
    keep: Mapping[Ref, Keep] | None = None,
    key: Field | None = None,
    mask: Field | Sequence[Field] | None = "attention_mask",
    compile: bool | Mapping[str, Any] = False,
    precision: Precision = "fp32",
    device: torch.device | str | None = None,
    about: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    shard_bytes: int = 1 << 28,
    progress: bool = True,
    rank: int | None = None,
    world: int | None = None,
) -> Kept:
    """Run the teacher of an objective once over a loader, and keep what the terms read of it.

        kept = fkd.sources.cache(objective, loader, "cache", key="index")
        cheap = fkd.sources.bind(objective, kept)
        fit(train_step(cheap, optimizer), ..., kept.attach(loader), epochs=10)

    Kept is the frontier of the objective, in the dtypes of the teacher. What is not by sample (a
    matrix between the samples of a batch, positions that are packed) is computed in the step, and
    what it is computed from is kept. The objective needs no student.

    A sample is found again by what the teacher reads of it, and may stand in any batch, in any
    order, beside any padding (with `mask`). With `key`, it is found by that field, and what the
    teacher reads is compared. A sample that comes twice is kept once.

    A call that was interrupted goes on when it is made again, with the same bytes in the end. The
    folder has `header.json` and safetensors files; each is whole or not there, and has checksums.

    Several processes make one cache together: under `torchrun` the same call in each, with the
    same whole loader. Process r runs the teacher on every batch whose number is r modulo their
    count, and writes shards of its own; all return when the cache is whole. The bits are those of
    one process. When all are started again, they go on, and so may another number of them.

    Samples may have several lengths, each with a mask of its own: those of an encoder and of its
    decoder, or of two tokenizers. Whole rows (no mask) have one.

    Args:
      objective: whose teacher runs. All its random numbers are those of eval mode.
      loader: every sample once, as for `fit`. Epoch -1 of seed 0.
      folder: of the cache.
      keep: how much of a ref is kept, for those of which less is kept than every number in the
        dtype of the teacher: `exact(dtype)`, `scaled(dtype)`, `top_k(k)` or `sampled(n)`. A ref
        (`teacher.logits`) may stand for others that are computed from it.
      key: field of the batch with an integer or a text for each sample; of a tuple or a list,
        its place, as for `mask`.
      mask: field that is 1 where a sample has a token, by which padding is left out. One whose
        name ends so (`teacher_attention_mask`, `decoder_attention_mask`) is one, too, if the
        teacher reads it; other names in a list. Where the batches have none, or None: whole rows,
        which then all have one length.
      compile, precision, device: of the teacher, as in `train_step`. The bits are those of a step
        with the same options.
      about: JSON to write into the header; on the next call it has to be the same.
      tokenizer: that made the samples. Its vocabulary, rules, special tokens and chat template are
        written into the header as digests, and one that differs is refused, here and by
        `Kept.verify_tokenizer`.
      shard_bytes: size of a file.
      progress: show a progress bar, of the first process.
      rank, world: which of how many processes this is, for those that no launcher has started
        (the jobs of an array): each returns when its own part is done, and the last one joins the
        parts. By default those of `torch.distributed`, or of `torchrun`, or one.

    Returns:
      The cache, as `open(folder)` gives it.

    Raises:
      TypeError: an argument of another kind: a step, one batch.
      SourceError: nothing can be kept; a value is not by sample; the folder has a cache of
        another teacher or of other values; a term reads padding; a number does not fit its dtype;
        the other processes have not come, or have ended before their part was done.
      DamagedSourceError: the header is not what was written.
      CheckpointError: another process holds the folder, or this part of it.

    Example:
      >>> import tempfile
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits, temperature=2.0)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> loader = [{"input": torch.randn(2, 4)} for _ in range(3)]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     kept = fkd.sources.cache(objective, loader, folder, progress=False)
      ...     len(kept), kept.codes
      (6, ['teacher.logits'])
    """
    expect("cache", "objective", objective, Objective, "an fkd.Objective", "Try step.objective.")
    expect_loader("cache", "loader", loader)
    expect("cache", "folder", folder, (str, os.PathLike), "a path")
    expect("cache", "keep", keep or {}, Mapping, "{ref: fkd.sources.top_k(k), ...}")
    share = share_of(rank, world)
    plan = _planned(objective, keep or {})
    told = dict(about or {})
    if tokenizer is not None:
        told["tokenizer"] = describe_tokenizer(tokenizer)
    _expect_whole(loader, share)
    teacher = functools.partial(Teacher, objective, precision=precision, device=device)
    place = Place(Path(folder), share, shard_bytes)
    make_folder(place.folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(occupied(place.folder, share))
        bar = _Progress(loader, progress and share.rank == 0)
        shown = stack.enter_context(contextlib.closing(bar))
        build: Build | None = None
        for index, batch in enumerate(epoch_batches(loader, 0, -1)):
            if examples_in(normalised(batch)) == 0:
                continue
            if build is None:
                contents = _contents(objective, plan, batch, key, mask, teacher)
                tensors = _parameters(objective, contents)
                header = _header(objective, contents, precision, told,
                                 write_parameters(place.folder, tensors))  # fmt: skip
                run = teacher(contents.computed, compile=compile, say=shown.say)
                build = Build(objective, contents, run, header, place)
                stack.enter_context(contextlib.closing(build))
            build.add(batch, index)
            shown.advance(index + 1)
        if build is None:
            raise SourceError("cache: the loader gave no batch. It is empty, or was used before.")
        build.finish()
    return Kept(place.folder)


def _expect_whole(loader: Loader, share: Share) -> None:
    """Refuse a loader that was divided over the processes already."""
    if share.world > 1 and isinstance(getattr(loader, "sampler", None), DistributedSampler):
        raise SourceError(
            "cache: the loader has a DistributedSampler, and each process is expected to have the "
            "whole loader, of which it runs the teacher on its own batches: every sample is "
            "written once. Leave the sampler out."
        )


class _Plan(NamedTuple):
    """What should be kept, and how much of those refs that were asked for."""

    refs: tuple[Ref, ...]
    keep: Mapping[Ref, Keep]


def _planned(objective: Objective, keep: Mapping[Ref, Any]) -> _Plan:
    models = objective.models.items()
    frozen = {name for name, model in models if getattr(model, "kind", "") == "frozen"}
    known = {part for ref in read_refs(objective.terms) for part in walk(ref)}
    for ref, how in keep.items():
        if not isinstance(how, Keep):
            raise SourceError(
                f"cache: keep[{ref!r}] is {how!r}; fkd.sources.exact(dtype), scaled(dtype), "
                "top_k(k) or sampled(n) is expected."
            )
        if ref not in known or not is_fixed(ref, frozen) or not needs_forward(ref, frozen):
            raise SourceError(
                f"cache: keep has {ref!r}, which is not a value of a frozen model that the terms "
                f"read. The frontier is {listing(map(repr, frontier(objective)))}."
            )
        if not is_fixed(how.computed(ref), frozen):
            raise SourceError(
                f"cache: keep[{ref!r}] is {how!r}, which is not a value of frozen models alone."
            )
        if objective.problems:  # no student: the terms cannot be tried on what is kept
            expect_temperature(objective.terms, ref, how)
    wanted = reduced([*keep, *frontier(objective)], frozen, first=len(keep))
    if not wanted:
        raise SourceError("cache: no term reads the forward pass of a frozen model.")
    return _Plan(wanted, keep)


def _contents(
    objective: Objective,
    plan: _Plan,
    batch: Batch,
    key: Field | None,
    mask: Field | Sequence[Field] | None,
    teacher: Any,
) -> Contents:
    """What is kept, in the dtypes that were asked for."""
    contents = probe(objective, plan.refs, plan.keep, batch, key, mask, teacher)
    forms = list(contents.forms)
    for ref, structure in zip(contents.refs, contents.structures, strict=True):
        how = plan.keep.get(ref)
        if isinstance(how, Exact) and how.dtype is not None:
            for i in indices(structure):
                if forms[i].live.is_floating_point and not how.dtype.is_floating_point:
                    raise SourceError(
                        f"cache: {ref!r} is {forms[i].live}, of which {how.dtype} would keep no "
                        "fractions. For 8 bits a number: fkd.sources.scaled(torch.int8)."
                    )
                forms[i] = forms[i]._replace(dtype=how.dtype)
    return dataclasses.replace(contents, forms=forms)


class _Planned:
    """What will be kept, by key."""

    def __init__(self, contents: Contents) -> None:
        self.name, self._contents = "planned", contents

    def key(self, ref: Ref) -> str | None:
        return str(self._contents.refs.index(ref)) if ref in self._contents.refs else None

    def is_sparse(self, key: str) -> bool:
        return is_sparse(self._contents.structures[int(key)])


def _parameters(objective: Objective, contents: Contents) -> dict[str, dict[str, torch.Tensor]]:
    """The parameters of frozen models that the terms will read beside what is kept."""
    return frozen_parameters(objective, bound_terms(objective.terms, _Planned(contents)))


def _header(
    objective: Objective,
    contents: Contents,
    precision: str,
    about: Mapping[str, Any],
    parameters: Parameters,
) -> Header:
    refs = [
        {
            "code": repr(ref),
            "identity": identity(ref),
            "kept": repr(computed),
            "kept_identity": identity(computed),
            "structure": structure,
        }
        for ref, computed, structure in zip(
            contents.refs, contents.computed, contents.structures, strict=True
        )
    ]
    program = Teacher(objective, contents.computed).program
    described: dict[str, Any] = {
        "refs": refs,
        "forms": [form.to_json() for form in contents.forms],
        "models": {name: describe_model(model) for name, model in program.models.items()},
        "precision": precision,
        "about": dict(about),
    }
    name = "cache-" + short([described, contents.reading])
    versions = {"format": str(VERSION), "torch": torch.__version__}
    return Header(name=name, reading=contents.reading, versions=versions, shards=[], complete=False,
                  parameters=parameters, **described)  # fmt: skip


class _Progress:
    """A bar over the batches of a loader, or nothing."""

    def __init__(self, loader: Loader, show: bool) -> None:
        sized: Any = loader
        total = len(sized) if hasattr(loader, "__len__") else None
        self._bar = open_progress(total=total) if show else None

    @property
    def say(self) -> Say | None:
        """What shows a line; None where nothing is shown."""
        return None if self._bar is None else self._bar.message

    def advance(self, count: int) -> None:
        """So many batches are done."""
        if self._bar is not None:
            self._bar.advance(count)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
