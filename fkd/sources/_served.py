"""A teacher behind fkd's own server, as a source."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fkd._base.errors import listing
from fkd._base.types import Batch
from fkd._objective.objective import Objective
from fkd._refs.refs import Ref
from fkd._refs.sourced import FIELD
from fkd.loops._data.ahead import Pending
from fkd.loops._data.batch import Signature, normalised, signature
from fkd.loops._data.epochs import Loader
from fkd.loops._data.fields import Field, as_fields

from ._errors import ServedError
from ._http import (
    Address,
    Answer,
    Failed,
    Patience,
    Refused,
    address_of,
    attempted,
    failure_of,
    patience_of,
)
from ._http import request as http_request
from ._identity import describe_model, describe_tensor, identity
from ._kept import refuse_difference
from ._parameters import expect_kept
from ._protocol import ABOUT, PARAMETERS, VALUES, read_about
from ._source import AttachedCollate, attach
from ._wire import (
    CONTENT,
    Malformed,
    can_be_sent,
    form_of,
    leaves_of,
    question_of,
    size_of,
    told,
    unpacked,
)
from ._workers import Workers

_MOST_ABOUT = 1 << 26


class Served:
    """See `served`, which makes it.

    Attributes:
      url: of the server.
      about: what the server says of itself.
      name: of the source: a digest of the teacher and the refs, and the same at another address.
      place: in words, for `check` and `draw`.
      batches: how many batches ahead of the step.
    """

    def __init__(
        self, address: Address, batches: int, requests: int, patience: Patience, options: _Options
    ) -> None:
        self.address, self.batches, self._requests = address, batches, requests
        self._patience, self._options = patience, options
        self._stopped = threading.Event()
        self._workers = Workers(requests, f"fkd served ({address.host}:{address.port})")
        self.url, self.place = address.url, f"served at {address.url}"
        self.about = attempted(self._described, address, patience, self._stopped)
        self.name: str = self.about["name"]
        self._fields: dict[frozenset[Field], list[Field]] = {}
        self._forms: dict[Signature, Signature] = {}
        self._seen_again: set[Signature] = set()
        self._keys: dict[Ref, str | None] = {}
        self._parameters: dict[str, dict[str, Tensor]] | None = None

    @property
    def codes(self) -> list[str]:
        """The refs whose values it gives, as code."""
        return [ref["code"] for ref in self.about["refs"]]

    def key(self, ref: Ref) -> str | None:
        """Under which key it gives the value of a ref; None if it does not."""
        if ref not in self._keys:
            code = repr(ref)
            same = [i for i, about in enumerate(self.about["refs"])
                    if about["code"] == code and about["identity"] == identity(ref)]  # fmt: skip
            self._keys[ref] = f"v{same[0]}" if same else None
        return self._keys[ref]

    def values(self, batch: Batch) -> dict[str, Any]:
        """The values for a batch by key, on the CPU.

        Raises:
          ServedError: the server did not give them.
        """
        sent = self._question(batch)
        return self._asked(*sent)

    def start(self, batch: Batch) -> Pending:
        """Ask for the values of a batch."""
        return self._workers.submit(self._asked, *self._question(batch))

    def attach(self, loader: Loader) -> Loader:
        """The loader, with the values in its batches; see `Kept.attach`."""
        return attach(self, loader)

    def attach_collate(self, collate: Callable[[Any], Batch]) -> AttachedCollate:
        """A `collate_fn` for a `DataLoader`, whose workers then ask; see `Kept.attach_collate`."""
        return AttachedCollate(self, collate)

    def verify_models(self, objective: Objective) -> None:
        """Compare the teacher in an objective, if it is there, with the one that is served.

        Raises:
          SourceError: they differ; says in what.
        """
        for name, theirs in self.about["models"].items():
            model = objective.models.get(name)
            if model is not None and model.module is not None:
                refuse_difference(f"the server at {self.url}", {name: theirs},
                                  {name: describe_model(model)}, "at the server")  # fmt: skip

    def parameters(self, model: str, names: Sequence[str]) -> dict[str, Tensor]:
        """Some parameters of the teacher, that the terms read beside its values (a head).

        Raises:
          SourceError: one of them is not served.
          ServedError: the server did not give them.
        """
        have = [name for of, name in self.about["parameters"] if of == model]
        fix = "it serves those that its own terms read. Serve an objective with these terms"
        expect_kept(model, names, have, f"{self.url} serves", fix)
        if self._parameters is None:
            ask = self._parameters_asked
            self._parameters = attempted(ask, self.address, self._patience, self._stopped)
        return {name: self._parameters[model][name] for name in names}

    def close(self) -> None:
        """End the threads; requests that wait are given up. Leaving a `with` does the same, and so
        does forgetting the source."""
        self._stopped.set()
        self._workers.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        options = (self.address, self.batches, self._requests, self._patience, self._options)
        return Served, options

    def __repr__(self) -> str:
        return f"<source {self.name!r}: {', '.join(self.codes)}, {self.place}>"

    def _parameters_asked(self, timeout: float) -> dict[str, dict[str, Tensor]]:
        answer = self._request("GET", PARAMETERS, [], {}, timeout)
        try:
            tensors, said = unpacked(answer.body)
        except Malformed as error:
            raise Failed(f"the answer is damaged: {error}") from None
        if said.get("name") != self.name:
            raise Refused(f"it serves {said.get('name')!r} now, and {self.name!r} before")
        for model, name in self.about["parameters"]:
            of_model = self.about["models"].get(model, {}).get("tensors", {})
            x = tensors[model][name]
            if describe_tensor(x) != of_model.get(name, describe_tensor(x)):
                raise Failed(f"{model}.param({name!r}) is not the one that the server described")
        return tensors

    # Asking

    def _question(
        self, batch: Batch
    ) -> tuple[list[bytes | memoryview], Signature, frozenset[Field]]:
        """What is sent for a batch: the fields that the server reads, once it has said which."""
        fields: Any = as_fields(batch)
        tensors: Any = normalised({k: v for k, v in fields.items() if not str(k).startswith(FIELD)})
        have = frozenset(tensors)
        read = self._fields.get(have)
        if read is None:  # all that can be sent, of which the server says what it reads
            read = [name for name, x in tensors.items() if can_be_sent(x)]
        sent: Any = {name: tensors[name] for name in read}
        # Copied, since a loader may use the memory of a batch again.
        pieces: list[bytes | memoryview] = [bytes(piece) for piece in question_of(sent, batch)]
        most = self.about["max_bytes"]
        if size_of(pieces) > most:
            names = listing(map(str, sent))
            raise ServedError(
                f"a batch has {size_of(pieces):,} bytes in the fields {names}, and "
                f"{self.url} takes {most:,}. Smaller batches, or serve(..., max_bytes=...)."
            )
        return pieces, signature(sent), have

    def _asked(
        self, pieces: list[bytes | memoryview], sent: Signature, have: frozenset[Field]
    ) -> dict[str, Any]:
        digest = hashlib.blake2b(digest_size=16)
        for piece in pieces:
            digest.update(piece)
        question = digest.hexdigest()

        def ask(timeout: float) -> dict[str, Any]:
            headers = {"Content-Type": CONTENT, "Content-Length": str(size_of(pieces))}
            answer = self._request("POST", VALUES, pieces, headers, timeout)
            return self._read(answer, question, sent, have)

        try:
            return attempted(ask, self.address, self._patience, self._stopped)
        except ServedError:
            # The one before may have been the wrong one: whoever asks again begins anew.
            self._forms = {form: x for form, x in self._forms.items() if form in self._seen_again}
            raise

    def _request(
        self,
        method: str,
        path: str,
        pieces: list[bytes | memoryview],
        headers: Mapping[str, str],
        timeout: float,
    ) -> Answer:
        most = _MOST_ABOUT if path == ABOUT else self._options.max_bytes
        answer = http_request(
            self.address, method, path, pieces, headers, timeout=timeout, most=most
        )
        failure = failure_of(answer)
        if failure is not None:
            raise failure
        return answer

    def _described(self, timeout: float) -> dict[str, Any]:
        answer = self._request("GET", ABOUT, [], {}, timeout)
        return read_about(answer.body, answer.text)

    def _read(
        self, answer: Answer, question: str, sent: Signature, have: frozenset[Field]
    ) -> dict[str, Any]:
        """The values of an answer that is one to this question.

        Raises:
          Failed: it is not whole, not to this question, or not as it should be.
          Refused: another teacher answers than the one that was connected to.
        """
        try:
            values, said = unpacked(answer.body)
        except Malformed as error:
            raise Failed(f"the answer is damaged: {error}") from None
        if said.get("name") != self.name:
            raise Refused(
                f"it serves {said.get('name')!r} now, and {self.name!r} when this source was made: "
                "another teacher, or other refs. Make the source again"
            )
        if said.get("question") != question:
            raise Failed("the answer is to another question")
        keys = [f"v{i}" for i in range(len(self.codes))]
        if not isinstance(values, dict) or sorted(values) != sorted(keys):
            raise Failed("the answer has not the values that are served")
        if not self._options.nonfinite:
            self._expect_finite(values)
        form = form_of(values)
        if said.get("form", form) != form:
            raise Failed(f"the values are {form}, and were {said['form']} at the server")
        self._expect_form(signature(values), sent)
        read = said.get("fields")
        if isinstance(read, list) and have.issuperset(read):
            self._fields.setdefault(have, read)
        return values

    def _expect_form(self, now: Signature, sent: Signature) -> None:
        """Refuse values of another form than before, or of another number of samples."""
        again = sent in self._forms
        before = self._forms.setdefault(sent, now)
        if before.shapes != now.shapes or before.dtypes != now.dtypes:
            raise Failed(f"the values are {told(now)}, and were {told(before)} for such a batch")
        if again:
            self._seen_again.add(sent)
        first_sent, first = next(iter(self._forms.items()))
        if (now.tree, now.dtypes) != (first.tree, first.dtypes):
            raise Failed(f"the values are {told(now)}, and were {told(first)} before")
        rows, first_rows = _rows(sent), _rows(first_sent)
        for one, other in zip(now.shapes, first.shapes, strict=True):
            by_row = bool(other) and other[0] == first_rows
            if len(one) != len(other) or (by_row and one[0] != rows):
                raise Failed(
                    f"a value of shape {one} for a batch of {rows} samples, and it was {other} "
                    f"for {first_rows}"
                )

    def _expect_finite(self, values: dict[str, Any]) -> None:
        for i, code in enumerate(self.codes):
            for x, lowest in leaves_of(values[f"v{i}"]):
                if x.is_floating_point():
                    wrong = int((~(torch.isfinite(x) | (x == lowest))).sum())
                    if wrong:
                        raise Failed(
                            f"{code} has {wrong} values of {x.numel()} that are not finite. If "
                            "that is what this teacher says: served(..., nonfinite=True)"
                        )


def _rows(form: Signature) -> int:
    """How many samples a batch has: the length of the first axis that most fields share."""
    firsts = [shape[0] for shape in form.shapes if shape]
    return max(firsts, key=firsts.count, default=1)


class _Options:
    """What is accepted of an answer."""

    def __init__(self, max_bytes: int, nonfinite: bool) -> None:
        self.max_bytes, self.nonfinite = max_bytes, nonfinite


def served(
    url: str,
    *,
    token: str | None = None,
    batches: int = 1,
    requests: int = 4,
    timeout: float = 60.0,
    retries: int = 5,
    max_bytes: int = 1 << 31,
    nonfinite: bool = False,
) -> Served:
    """A teacher that another process serves, here or on another machine, as a source.

        source = fkd.sources.served("http://10.0.0.7:8400", token=token)
        step = train_step(fkd.sources.bind(objective, source), optimizer)
        fit(step, step.init(), source.attach(loader), epochs=3)

    There, `python -m fkd serve objective.py:make` or `fkd.sources.serve(objective)`. Here, the
    objective needs no teacher; if it has one, `bind` compares every tensor of it with the one that
    is served. Values are those of `live` to the bit, on the same kind of machine.

    While the step is at one batch, the next ones are asked for, in their order, at most `requests`
    of them at a time. What fails (no connection, no answer in time, 429, 5xx, an answer that is cut
    off, of other shapes than before, or not finite) is asked again, after 0.1, 0.2, 0.4 s and so
    on. When that has happened `retries` times, the batch has a `ServedError`: `fit` saves what is
    done, and goes on from there when it is called again.

    Args:
      url: of the server, http or https.
      token: that it wants.
      batches: how many batches ahead of the step; 0: none.
      requests: how many at the same time.
      timeout: seconds for one request.
      retries: how often a request is made again.
      max_bytes: greatest size of an answer.
      nonfinite: accept values that are not finite, where a teacher means them.

    Raises:
      SourceError: an argument is out of range.
      ServedError: nobody answers at this address, or not a server of fkd.

    Example:
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits, temperature=2.0)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> with fkd.sources.serve(objective) as server, fkd.sources.served(server.url) as source:
      ...     cheap = fkd.sources.bind(objective, source)
      ...     [batch] = source.attach([{"input": torch.ones(2, 4)}])
      >>> list(cheap.models), cheap(cheap.init(), batch)[0].shape
      (['student'], torch.Size([]))
    """
    patience = patience_of("served", timeout, retries, requests, batches)
    options = _Options(max_bytes, nonfinite)
    return Served(address_of(url, token, "served"), batches, requests, patience, options)
