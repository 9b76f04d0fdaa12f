"""fkd's own server: what the frozen models of an objective say of a batch, over HTTP."""

from __future__ import annotations

import functools
import hashlib
import hmac
import http.server
import ipaddress
import json
import logging
import socket
import threading
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fkd._base.trees import map_tensors
from fkd._base.types import TensorBatch
from fkd._objective.objective import Objective
from fkd.loops._base.random import drawn_so_far, seeded
from fkd.loops._data.batch import normalised
from fkd.loops._data.fields import Field, as_fields

from ._errors import SourceError
from ._identity import describe_model, identity, short
from ._live import Live, Precision
from ._parameters import frozen_parameters
from ._probe import fields_read
from ._protocol import ABOUT, FORMAT, PARAMETERS, VALUES, VERSION
from ._wire import CONTENT, asked_of, form_of, packed, size_of, unpacked
from ._workers import Workers

_LOG = logging.getLogger("fkd")
_PIECE = 1 << 20
_QUEUE = 5.0
"""Seconds that a request waits for a place."""
_OURS = (ValueError, TypeError, LookupError, AttributeError)
"""What a teacher raises for a batch that does not fit it, and would raise again."""


_Named: TypeAlias = Mapping[str, Mapping[str, Tensor]]


class Server:
    """See `serve`, which makes it.

    Attributes:
      url: where it answers.
      about: what it says of itself.
      parameters: of the frozen models, that the terms read beside the values.
    """

    def __init__(
        self, live: Live, parameters: _Named, about: dict[str, Any], limits: _Limits
    ) -> None:
        self.about, self.parameters = about, parameters
        self._live, self._workers = live, Workers(1, "fkd serve")  # one batch at a time
        self._fields: dict[frozenset[Field], list[Field]] = {}
        self._draws: bool | None = None  # whether the teacher draws random numbers, if known
        kind = _Sockets6 if ":" in limits.host else _Sockets
        try:
            self._sockets = kind((limits.host, limits.port), functools.partial(_Handler, self))
        except OSError as error:
            raise SourceError(
                f"serve: {limits.host}:{limits.port} cannot be bound: {error.strerror or error}. "
                "Another server may be there; port=0 takes a free one."
            ) from error
        self.limits = limits
        self.places = threading.BoundedSemaphore(limits.connections)
        host, port = self._sockets.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        self.url = f"http://{shown}:{port}"
        self._thread = threading.Thread(
            target=self._sockets.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        self._thread.start()

    def values(self, batch: TensorBatch) -> tuple[dict[str, Any], list[Field]]:
        """The values for a batch by key, and the fields that were read for them."""
        return self._workers.submit(self._values, batch).result()

    def _values(self, batch: TensorBatch) -> tuple[dict[str, Any], list[Field]]:
        tensors = normalised(batch, self._live.teacher.device)
        by_field = as_fields(tensors)
        have = frozenset(name for name, x in by_field.items() if x is not None)
        if have not in self._fields:
            self._fields[have] = fields_read(self._live.teacher.program, tensors)
        fields = self._fields[have]
        read = {str(name): by_field[name] for name in fields if name in have}
        values = self._computed(tensors, read)
        return map_tensors(lambda x: x.cpu(), values), fields

    def _computed(self, tensors: Any, read: dict[str, Any]) -> dict[str, Any]:
        """The values; a teacher that draws random numbers has for the same fields the same ones."""
        if self._draws is None:
            before = drawn_so_far()
            values = self._live.values(tensors)
            self._draws = drawn_so_far() != before
            if not self._draws:
                return values
        if not self._draws:  # the generators are left to whoever else uses them
            return self._live.values(tensors)
        digest = hashlib.blake2b(b"".join(map(bytes, packed(read, {}))), digest_size=8)
        with seeded(int(digest.hexdigest(), 16), self._live.teacher.device):
            return self._live.values(tensors)

    def wait(self) -> None:
        """Serve until the process is interrupted, or the server closed."""
        try:
            while self._thread.is_alive():
                self._thread.join(0.5)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Stop answering. Leaving a `with` does the same."""
        self._sockets.shutdown()
        self._sockets.server_close()
        self._workers.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<server of {', '.join(self._live.codes)} at {self.url}>"


class _Limits:
    """What a server lets itself in for."""

    def __init__(self, host: str, port: int, token: str | None, bytes: int, connections: int,
                 timeout: float) -> None:  # fmt: skip
        self.host, self.port, self.token = host, port, token
        self.bytes, self.connections, self.timeout = bytes, connections, timeout


class _Sockets(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        _LOG.info("serve: the connection of %s broke", client_address, exc_info=True)


class _Sockets6(_Sockets):
    address_family = socket.AF_INET6


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fkd", ""

    def __init__(self, server: Server, *args: Any) -> None:
        self.ours = server
        super().__init__(*args)

    def setup(self) -> None:
        """Limit the time of one read or write."""
        super().setup()
        self.connection.settimeout(self.ours.limits.timeout)

    def do_GET(self) -> None:
        """What is served here, or the parameters that the terms read beside it."""
        if not self._admitted():
            return
        if self.path == PARAMETERS:
            told = {"name": self.ours.about["name"]}
            return self._answer(200, CONTENT, packed(self.ours.parameters, told))
        if self.path != ABOUT:
            return self._say(404, f"There is nothing at {self.path[:80]}. GET {ABOUT}.")
        self._answer(200, "application/json", [json.dumps(self.ours.about).encode()])

    def do_POST(self) -> None:
        """The values for a batch."""
        if not self._admitted():
            return
        if not self.ours.places.acquire(timeout=_QUEUE):  # the body waits on its way meanwhile
            return self._say(503, "Too many requests at once.", {"Retry-After": "1"})
        try:
            raw = self._body()
            if raw is not None:
                self._answer_batch(raw)
        finally:
            self.ours.places.release()

    def _admitted(self) -> bool:
        token = self.ours.limits.token
        if token is None:
            return True
        said = self.headers.get("Authorization", "")
        if hmac.compare_digest(said.encode("utf-8", "replace"), f"Bearer {token}".encode()):
            return True
        self._say(401, "The token is missing or wrong.")
        return False

    def _body(self) -> bytearray | None:
        """The bytes of the request; None if they are refused, which is said."""
        most, length = self.ours.limits.bytes, self.headers.get("Content-Length", "")
        if self.path != VALUES:
            self._say(404, f"There is nothing at {self.path[:80]}. POST {VALUES}.")
        elif self.headers.get("Content-Type") != CONTENT:
            self._say(415, f"{CONTENT} is expected.")
        elif not (length.isascii() and length.isdecimal()):
            self._say(411, "A Content-Length is expected.")
        elif len(length) > 18 or int(length) > most:
            self._say(413, f"The request has {length[:18]} bytes; this server takes {most}.")
        else:
            return self._read(int(length))
        return None

    def _read(self, length: int) -> bytearray | None:
        raw = bytearray()
        while len(raw) < length:
            piece = self.rfile.read1(min(_PIECE, length - len(raw)))  # pyright: ignore[reportAttributeAccessIssue]
            if not piece:
                self.close_connection = True
                return None
            raw += piece
        return raw

    def _answer_batch(self, raw: bytearray) -> None:
        question = hashlib.blake2b(raw, digest_size=16).hexdigest()
        try:
            values, fields = self.ours.values(asked_of(unpacked(raw)))
            name, form = self.ours.about["name"], form_of(values)
            told = {"name": name, "fields": fields, "question": question, "form": form}
            self._answer(200, CONTENT, packed(values, told))
        except _OURS as error:
            _LOG.warning("serve: %s: %s", type(error).__name__, error)
            self._say(422, f"{type(error).__name__}: {error}")
        except (OSError, TimeoutError):
            raise  # of the connection, on which nothing more can be said
        except Exception as error:
            _LOG.exception("serve: the teacher failed")
            self._say(500, f"{type(error).__name__}: {error}")

    def _say(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        self.close_connection = True  # what else the request has was not read
        self._answer(status, "text/plain; charset=utf-8", [text.encode()], headers)

    def _answer(
        self,
        status: int,
        content: str,
        pieces: list[bytes | memoryview],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content)
        self.send_header("Content-Length", str(size_of(pieces)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)

    def log_message(self, format: str, *args: Any) -> None:
        """To the log of the package."""
        _LOG.debug("serve: %s " + format, self.address_string(), *args)


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine reach a host."""
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host or "0.0.0.0", None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


def serve(
    objective: Objective,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    device: torch.device | str | None = None,
    compile: bool | Mapping[str, Any] = False,
    precision: Precision = "fp32",
    about: Mapping[str, Any] | None = None,
    max_bytes: int = 1 << 28,
    connections: int = 16,
    timeout: float = 60.0,
) -> Server:
    """Serve the frontier of an objective over HTTP: `fkd.sources.served(url)` reads it.

        with fkd.sources.serve(objective) as server:    # on the machine of the teacher
            print(server.url)
            server.wait()

    From a shell: `python -m fkd serve objective.py:make --port 8400`. The objective needs no
    student. A request is the fields of a batch that the teacher reads, the answer what its frozen
    models say of it, both as safetensors; nothing is ever unpickled. One batch is computed at a
    time, whole, so that the values are those of `live`, to the bit. Parameters that the terms read
    beside the values (the head that is applied to hidden states) are served, too.

    Anybody who reaches the server can use the teacher, so it is bound to this machine alone unless
    a host is given, and then it needs a token. The token travels as it is: between machines that do
    not trust their network, put a server with TLS before it (`served` takes https).

    Args:
      objective: whose frozen models answer.
      host: to bind to; one that other machines reach needs a `token`.
      port: 0 takes a free one.
      token: that every request has to carry, at least 16 characters; None: none, on this machine.
      device, compile, precision: of the teacher, as in `train_step`.
      about: JSON that the server says of itself (the tokenizer, the template).
      max_bytes: greatest size of a request.
      connections: how many requests are held at once; further ones are told to come again.
      timeout: seconds that one read or write may take.

    Returns:
      The server, which answers already, in threads of its own, until it is closed.

    Raises:
      SourceError: the objective reads nothing of a frozen model; the host needs a token; the port
        is taken.

    Example:
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits, temperature=2.0)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> with fkd.sources.serve(objective) as server:
      ...     fkd.sources.served(server.url).codes
      ['teacher.logits']
    """
    if token is not None and (len(token) < 16 or not token.isascii() or not token.isprintable()):
        raise SourceError(
            "serve: the token has less than 16 characters, or others than printable ASCII. Make "
            "one: python -c 'import secrets; print(secrets.token_urlsafe())'."
        )
    if token is None and not is_loopback(host):
        raise SourceError(
            f"serve: other machines reach {host or '0.0.0.0'!r}, so a token is needed: "
            "serve(..., token=...), and served(url, token=...) there."
        )
    if max_bytes < 1 or connections < 1 or not timeout > 0:
        raise SourceError("serve: max_bytes, connections and timeout have to be positive.")
    live = Live(objective, device=device, compile=compile, precision=precision).beside()
    limits = _Limits(host, port, token, max_bytes, connections, timeout)
    parameters = frozen_parameters(objective, objective.terms)
    described = _described(live, parameters, precision, about or {}, max_bytes)
    return Server(live, parameters, described, limits)


def _described(
    live: Live, parameters: _Named, precision: str, about: Mapping[str, Any], max_bytes: int
) -> dict[str, Any]:
    models = live.teacher.program.models
    content: dict[str, Any] = {
        "refs": [{"code": repr(ref), "identity": identity(ref)} for ref in live.teacher.refs],
        "models": {name: describe_model(model) for name, model in models.items()},
        "parameters": [[model, name] for model, named in parameters.items() for name in named],
        "precision": precision,
        "about": dict(about),
    }
    versions = {"format": FORMAT, "version": VERSION, "torch": torch.__version__}
    return {**versions, "name": "served-" + short(content), "max_bytes": max_bytes, **content}
