"""One request over HTTP with an end in time, and several attempts at it."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from ._errors import ServedError, SourceError

T = TypeVar("T")
_PIECE = 1 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0


class Failed(Exception):
    """An attempt that failed; says how. Another may succeed.

    Attributes:
      pause: seconds that the server asked to wait.
    """

    def __init__(self, what: str, pause: float = 0.0) -> None:
        super().__init__(what)
        self.pause = pause


class Refused(Exception):
    """An answer that would be the same at every attempt; says why."""


class Address(NamedTuple):
    """Where a server is.

    Attributes:
      url: without a slash at the end.
      host, port, secure, path: its parts.
      token: sent with every request, or None.
    """

    url: str
    host: str
    port: int
    secure: bool
    path: str
    token: str | None

    def __repr__(self) -> str:
        return f"Address({self.url!r})"  # the token stays out of logs


def address_of(url: str, token: str | None, what: str) -> Address:
    """The address of a URL.

    Raises:
      SourceError: it is not one of http or https.
    """
    parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        port = None
    if parts.scheme not in ("http", "https") or not parts.hostname or port is None:
        raise SourceError(
            f"{what}: {url!r} is not an address of a server; one such as "
            "'http://127.0.0.1:8400' is expected."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise SourceError(
            f"{what}: the address {parts.hostname} has a user, a query or a fragment. "
            "A secret is given as token=..."
        )
    path = parts.path.rstrip("/")
    clean = f"{parts.scheme}://{parts.netloc}{path}"
    return Address(clean, parts.hostname, port, parts.scheme == "https", path, token)


class Answer(NamedTuple):
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    body: bytearray

    @property
    def text(self) -> str:
        """The first words of the body."""
        return " ".join(self.body[:600].decode("utf-8", "replace").split())[:300]


def request(
    address: Address,
    method: str,
    path: str,
    body: Iterable[bytes | memoryview],
    headers: Mapping[str, str],
    *,
    timeout: float,
    most: int,
) -> Answer:
    """One request.

    Args:
      address: of the server.
      method, path, body, headers: of the request; its length is among the headers.
      timeout: seconds for all of it.
      most: bytes of the answer, above which it is not read.

    Raises:
      Failed: no answer, or not all of it, or not in time.
      Refused: the answer is longer than `most`.
    """
    end = time.monotonic() + timeout
    connection = _connection(address, timeout)
    if address.token is not None:
        headers = {**headers, "Authorization": f"Bearer {address.token}"}
    try:
        connection.connect()
        link = connection.sock  # of which the connection lets go before the answer is read
        with contextlib.suppress(ConnectionError):  # it may answer before it has read everything
            _send(connection, method, address.path + path, body, headers, end)
        _until(link, end)
        response = connection.getresponse()
        said = dict(response.headers.items())
        return Answer(response.status, said, _read(link, response, end, most))
    except TimeoutError as error:
        raise Failed(f"no answer in {timeout:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()


def _connection(address: Address, timeout: float) -> http.client.HTTPConnection:
    if address.secure:
        secure = ssl.create_default_context()
        return http.client.HTTPSConnection(
            address.host, address.port, timeout=timeout, context=secure
        )
    return http.client.HTTPConnection(address.host, address.port, timeout=timeout)


def _send(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Iterable[bytes | memoryview],
    headers: Mapping[str, str],
    end: float,
) -> None:
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    for piece in body:
        view = memoryview(piece).cast("B")
        for start in range(0, view.nbytes, _PIECE):
            _until(connection.sock, end)
            connection.send(view[start : start + _PIECE])


def _read(
    link: socket.socket, response: http.client.HTTPResponse, end: float, most: int
) -> bytearray:
    length = response.length  # None where the answer comes in chunks
    if length is not None and length > most:
        raise Refused(f"an answer of {length:,} bytes, and at most {most:,} are read")
    body = bytearray()
    while not response.isclosed():
        _until(link, end)
        piece = response.read1(_PIECE)
        if not piece:
            break
        body += piece
        if len(body) > most:
            raise Refused(f"an answer of more than {most:,} bytes")
    if length is not None and len(body) != length:
        raise Failed(f"the answer was cut off after {len(body):,} of {length:,} bytes")
    return body


def _until(link: socket.socket, end: float) -> None:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    link.settimeout(left)


def failure_of(answer: Answer) -> Failed | Refused | None:
    """What the status of an answer says is wrong; None: nothing."""
    if answer.status == 200:
        return None
    said = f"{answer.status} {answer.text}".strip()
    if answer.status in (408, 425, 429) or answer.status >= 500:
        asked = answer.headers.get("Retry-After", "")
        return Failed(said, float(asked) if asked.isdecimal() else 0.0)
    return Refused(said)


class Patience(NamedTuple):
    """How long a server is waited for.

    Attributes:
      timeout: seconds for one attempt.
      retries: attempts after the first one; between them it waits 0.1 s, 0.2 s, ... up to 10 s.
    """

    timeout: float
    retries: int


def patience_of(what: str, timeout: float, retries: int, requests: int, batches: int) -> Patience:
    """The patience with a server.

    Raises:
      SourceError: a number is out of range.
    """
    if not timeout > 0 or retries < 0 or requests < 1 or batches < 0:
        raise SourceError(
            f"{what}: timeout={timeout}, retries={retries}, requests={requests}, batches={batches};"
            " a positive timeout, at least one request, and no negative number are expected."
        )
    return Patience(timeout, retries)


def attempted(
    ask: Callable[[float], T], address: Address, patience: Patience, stopped: threading.Event
) -> T:
    """What `ask(timeout)` gives, after as many attempts as it takes.

    Raises:
      ServedError: it is refused, or it has failed too often; names the last failure.
    """
    began, last, attempt = time.monotonic(), "", 0
    draw = random.SystemRandom()  # the generators of the process are the step's
    for attempt in range(patience.retries + 1):
        try:
            return ask(patience.timeout)
        except Refused as error:
            raise ServedError(f"{address.url} refuses: {error}") from error
        except Failed as error:
            last = str(error)
            pause = max(error.pause, _FIRST_PAUSE * 2**attempt * (1 + 0.25 * draw.random()))
            if attempt < patience.retries and stopped.wait(min(pause, _LONGEST_PAUSE)):
                break
    taken, times = time.monotonic() - began, f"{attempt + 1} times" if attempt else "once"
    raise ServedError(
        f"{address.url} has failed {times} in {taken:.1f} s; the last failure: {last}. "
        "Nothing of this batch was used. When the server answers again, make the same call: a run "
        "goes on from its checkpoint."
    )
