"""Threads that do what they are given, in order, until nobody holds them any more."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias

Job: TypeAlias = "tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None"
_LAST_WORD = 5.0
"""Seconds that a thread has to end what it is at, when the process ends."""


class Workers:
    """A few threads and the queue before them.

    They begin with the first job, again in every process, and end when the object is closed or
    forgotten, or the process ends. What then still stands in the queue is cancelled.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count, self.name = count, name
        self._process, self._closed = -1, False
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._end: Callable[[], Any] = lambda: None
        self._starting = threading.Lock()

    def submit(self, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        """Do `fn(*args)` in one of the threads.

        Raises:
          RuntimeError: they are closed.
        """
        if self._closed:
            raise RuntimeError(f"{self.name} is closed.")
        with self._starting:
            if self._process != os.getpid():  # the threads of a parent are not in its child
                self._start()
        future: Future[Any] = Future()
        self._jobs.put((future, fn, args))
        return future

    def _start(self) -> None:
        self._process, self._jobs = os.getpid(), queue.SimpleQueue()
        threads = [
            threading.Thread(target=_work, args=(self._jobs,), name=f"{self.name} {i}", daemon=True)
            for i in range(self.count)
        ]
        for thread in threads:
            thread.start()
        self._end = weakref.finalize(self, _end, self._process, self._jobs, threads)

    def close(self) -> None:
        """End the threads: what is under way is finished, the rest cancelled."""
        self._closed = True
        self._end()


def _work(jobs: queue.SimpleQueue[Job]) -> None:
    while (job := jobs.get()) is not None:
        _do(*job)
        del job  # and with it what the caller may want to be freed


def _do(future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _end(process: int, jobs: queue.SimpleQueue[Job], threads: list[threading.Thread]) -> None:
    if process != os.getpid():
        return
    with contextlib.suppress(queue.Empty):
        while True:
            job = jobs.get_nowait()
            if job is not None:
                job[0].cancel()
    for _ in threads:
        jobs.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(_LAST_WORD)
