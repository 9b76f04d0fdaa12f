"""A server that stands before another one, and does what it is told to do wrong."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
import urllib.parse

import torch

from fkd.sources._wire import CONTENT, packed, unpacked


class Faulty(http.server.ThreadingHTTPServer):
    """`faults[i]` is what goes wrong with the i-th POST: a function of (handler, answer) that
    writes the answer itself, or returns another one; None: nothing."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, url: str, faults=()) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.faults, self.posts = urllib.parse.urlsplit(url), list(faults), 0
        self.most = self.at_once = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def __exit__(self, *error) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply(*self.forward("GET", b""))

    def do_POST(self) -> None:
        server = self.server
        with server.lock:
            fault = server.faults.pop(0) if server.faults else None
            server.posts += 1
            server.at_once += 1
            server.most = max(server.most, server.at_once)
        try:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, content = self.forward("POST", body)
            answer = content if fault is None else fault(self, content)
        finally:
            with server.lock:  # before the answer, after which the next request may come
                server.at_once -= 1
        if answer is not None:
            self.reply(status, answer)

    def forward(self, method: str, body: bytes) -> tuple[int, bytes]:
        behind = self.server.behind
        connection = http.client.HTTPConnection(behind.hostname, behind.port, timeout=30)
        try:
            connection.request(method, self.path, body, {**dict(self.headers.items())})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def reply(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", CONTENT)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args) -> None:
        pass


def status(code: int, text: str = "overloaded"):
    def fault(handler, answer):
        handler.reply(code, text.encode())

    return fault


def stall(seconds: float):
    def fault(handler, answer):
        time.sleep(seconds)
        handler.close_connection = True

    return fault


def trickle(handler, answer):
    """A byte now and then: no single read is late."""
    handler.reply(200, answer[:8], len(answer))
    for i in range(8, 200):
        time.sleep(0.05)
        handler.wfile.write(answer[i : i + 1])
    handler.close_connection = True


def cut_off(handler, answer):
    handler.reply(200, answer[:-7], len(answer))
    handler.close_connection = True
    handler.wfile.flush()
    handler.connection.close()


def hang_up(handler, answer):
    handler.close_connection = True
    handler.connection.close()


def garbage(handler, answer):
    return b"<html>" + answer[6:]


def changed(fn):
    """Another tree, or other words about it, in an answer that is otherwise right."""

    def fault(handler, answer):
        tree, about = unpacked(bytearray(answer))
        tree, about = fn(tree, about)
        return b"".join(map(bytes, packed(tree, about)))

    return fault


def each(fn):
    return changed(lambda tree, about: ({k: fn(v) for k, v in tree.items()}, about))


def with_nan(x):
    x = x.clone()
    x.view(-1)[3] = torch.nan
    return x


not_finite = each(with_nan)
infinite = each(lambda x: torch.full_like(x, torch.inf))
fewer_rows = each(lambda x: x[:-1])
another_width = each(lambda x: x[..., :-1])
another_axis = each(lambda x: x[None])
another_dtype = each(lambda x: x.double())
without_values = changed(lambda tree, about: ({}, about))
to_another_question = changed(lambda tree, about: (tree, {**about, "question": "0" * 32}))
of_another_teacher = changed(lambda tree, about: (tree, {**about, "name": "served-00000000"}))
