"""A worker that can be killed before any of its stores and sends, in this process.

Role: runs the real worker code (`_worker/loop.py`, `chunks.py`, `reporting.py`) on a real page, and the real dispatcher at
the other end; only the socket is a list. Owner: `test_page`.

Each store into the page's words, each send and each line of user code first passes `Mortal.step`. At the chosen step the
worker dies: nothing after it has any effect. At another chosen step its watcher thread may act, if the lock it needs is
free there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from shoal._memory.page import COMMITTED, FAULT_OFFSET, Page
from shoal._os.memory import memory_file
from shoal._pool.batching import SOON, Pace
from shoal._pool.dispatcher import Dispatcher, Span
from shoal._settings import TaskOptions
from shoal._wire import codec, remote
from shoal._wire import messages as m
from shoal._wire.frames import FrameReader
from shoal._worker.loop import Worker

#: The worker that user code below runs in.
current: Mortal | None = None
FUNCTION_ID = 7
#: A clock that counts steps may say that each takes this long.
STEP_NS = 10_000
#: Timeout of a timed job: eight steps.
LIMIT_S = 8 * STEP_NS / 1e9


def user_code(key: int) -> None:
    """Stands for code of the user that runs for task `key`."""
    if current is not None:
        current.in_user_code(key)


class Argument:
    """Runs user code while it is unpickled."""

    def __init__(self, key: int) -> None:
        self.key = key

    def __reduce__(self) -> tuple[Any, ...]:
        return unpickled, (self.key,)


def unpickled(key: int) -> int:
    user_code(key)
    return key


class Result:
    """Runs user code while it is pickled."""

    def __init__(self, key: int) -> None:
        self.key = key

    def __reduce__(self) -> tuple[Any, ...]:
        user_code(self.key)
        return abs, (self.key,)


class Stubborn:
    """Runs user code and then refuses to be pickled."""

    def __init__(self, key: int) -> None:
        self.key = key

    def __reduce__(self) -> tuple[Any, ...]:
        user_code(self.key)
        raise TypeError(self.key)


class Complaint(Exception):
    """Runs user code while it is pickled, too."""

    def __reduce__(self) -> tuple[Any, ...]:
        user_code(self.args[0])
        return Complaint, self.args


class Job:
    """A map; task i is known by its key."""

    def __init__(self, keys: list[int], items: list[Any], *, single: bool, timed: bool) -> None:
        self.keys, self.items, self.single, self.timed = keys, items, single, timed
        self.options = TaskOptions(timeout=LIMIT_S if timed else None)
        self.pace = Pace()
        self.pace.cost_s = 1e-6  # known to be short: one worker gets them all
        self.grain = SOON
        self.given_up = False

    def message(self, span: Span) -> m.Message:
        if self.single:
            return m.TASK, span.id, FUNCTION_ID, codec.pack(((self.items[0],), {}), [], ("", None))
        whole = codec.pack_plain(self.items)
        payload: Any = whole if whole is not None else [codec.pack(one, [], ("", None)) for one in self.items]
        stretch_ns = 0 if self.timed else int(self.grain.stretch_s * 1e9)
        return m.CHUNK, span.id, FUNCTION_ID, span.start, False, stretch_ns, whole is not None, payload


class Words:
    """The page's words, with a step before each store."""

    def __init__(self, words: memoryview, mortal: Mortal) -> None:
        self._words, self._mortal = words, mortal

    def __getitem__(self, place: int) -> int:
        return int(self._words[place])

    def __setitem__(self, place: int, value: int) -> None:
        if self._mortal.step():
            self._words[place] = value

    def release(self) -> None:
        self._words.release()


class Wire:
    """The worker's socket: what it took stays readable; a death cuts what is being sent."""

    def __init__(self, mortal: Mortal) -> None:
        self._mortal = mortal
        self.taken = bytearray()

    def sendall(self, data: bytes) -> None:
        alive = self._mortal.alive
        if self._mortal.step():
            self.taken += data
        elif alive:  # it dies here
            self.taken += data[: int(len(data) * self._mortal.torn)]

    def recv(self, size: int, flags: int) -> bytes:
        if flags & socket.MSG_DONTWAIT:  # the worker's end: nothing more comes
            raise BlockingIOError
        data = bytes(self.taken[:size])
        del self.taken[:size]
        return data


class Mortal:
    """One worker with some jobs, from its first task to its death or to its last result."""

    def __init__(self, fn: Any, jobs: list[Job], *, dies_at: int, recalled_at: int = 0, torn: float = 0.0) -> None:
        self.fn, self.jobs, self.torn = fn, jobs, torn
        self._dies_at, self._recalled_at = dies_at, recalled_at
        self.dispatcher = Dispatcher()
        self.steps = 0
        self.alive = True
        self.guilty: int | None = None  # whose code was running when it died
        self.begun: int | None = None  # whose code ran last
        self.returned: set[int] = set()  # tasks of which the worker had reported all
        self.settled: dict[int, Any] = {}
        self.read_early = False  # a clock could have been read before it was set
        self.verdict: Callable[[Any], Any] = lambda announced: announced
        self._reader = FrameReader()
        self.on_step: Callable[[], None] | None = None  # what else happens between two steps
        self.on_idle: Callable[[], None] | None = None  # and when all is done
        self._estate = b""
        self._started: dict[int, tuple[int, int]] = {}  # start -> the first task it was true for

    def step(self) -> bool:
        """Pass one step; False if dead."""
        if self.alive:
            self.steps += 1
            self._look_at_the_clock()
            if self.on_step is not None:
                self.on_step()
            if self.steps == self._recalled_at and not self.worker.reporter.lock.locked():
                self.worker.recall()
            if self.steps == self._dies_at:
                self.die()
        return self.alive

    def _look_at_the_clock(self) -> None:
        """P1: the start of one task must never be read beside the number of a later one."""
        span, index, started = self.page.running() or (0, 0, 0)
        known = self._started.get(started)
        if known is not None and started > 1:  # a clock that stands still says nothing
            timed = self.jobs[span - 1].timed  # else a stretch has one start
            self.read_early = self.read_early or span > known[0] or (timed and (span, index) > known)

    def die(self) -> None:
        self.alive = False
        self._estate = bytes(self.page._bytes)

    def in_user_code(self, key: int) -> None:
        if self.alive:
            self.begun = key
            span, index, started = self.page.running() or (0, 0, 0)
            self._started.setdefault(started, (span, index))
            if not self.step():
                self.guilty = key

    # --- a life ---------------------------------------------------------------------------------

    def live(self) -> None:
        """Run everything, die on the way if so chosen, and settle what is left."""
        global current
        fd = memory_file("mortal", FAULT_OFFSET)
        self.page = page = Page(fd)
        try:
            words = page.words
            page.words = Words(words, self)  # type: ignore[assignment]
            self.wire = Wire(self)
            self.worker = Worker(self.wire, None, page, 0)  # type: ignore[arg-type]
            self.worker._functions._known[FUNCTION_ID] = self.fn
            self._hand_over()
            current = self
            self._serve()
        finally:
            current = None
            self._inherit(page)
            page.close()
            os.close(fd)

    def _hand_over(self) -> None:
        self.dispatcher.worker_ready(0)
        for job in self.jobs:
            self.dispatcher.add(job, 0, len(job.keys))  # type: ignore[arg-type]
        for _, span in self.dispatcher.assign():
            job: Any = span.job
            self.worker._queue.append((job.message(span), []))

    def _serve(self) -> None:
        queue = self.worker._queue
        while queue and self.alive:
            message, buffers = queue.popleft()
            job = self.jobs[message[1] - 1]  # span ids count from one
            self.worker._do(message, buffers)
            if self.alive:
                self.returned.update(job.keys)
        self.worker.reporter.flush()
        if self.on_idle is not None:
            self.on_idle()

    # --- the other end --------------------------------------------------------------------------

    def _inherit(self, page: Page) -> None:
        """What the pool does with a dead worker; see `_pool/deaths.py`."""
        if self._estate:
            page._bytes[:] = self._estate  # nothing it did later happened
        announced = page.running()
        self.unsent_bytes = page.words[COMMITTED]
        self.hear()
        for journalled in page.journal():
            self._heard(journalled, [])
        self.handed_back = {self._key(job, index) for job, a, b in self._waiting() for index in range(a, b)}
        culprit = self.dispatcher.worker_gone(0, self.verdict(announced and announced[:2]))
        self.culprit = None if culprit is None else self._key(*culprit)
        self.requeued = {self._key(job, index) for job, a, b in self._waiting() for index in range(a, b)}

    def hear(self) -> None:
        """Take in what the worker sent until now."""
        while self._reader.read(self.wire):  # type: ignore[arg-type]
            pass
        for frame in self._reader.frames():
            for message in frame.messages:
                self._heard(message, frame.buffers)

    def _waiting(self) -> list[tuple[Any, int, int]]:
        return [(span.job, span.start, span.stop) for span in self.dispatcher._backlog]

    @staticmethod
    def _key(job: Any, index: int) -> int:
        return int(job.keys[index])

    def _heard(self, message: Any, buffers: list[bytearray]) -> None:
        kind, span_id = message[:2]
        if kind == m.HANDBACK:
            self.dispatcher.handed_back(0, span_id, message[2])
        elif kind == m.DONE:
            job = self.dispatcher.finished(0, span_id, 0, 1)
            self._settle(job, 0, [message[2]], buffers)
        elif kind == m.PART:
            _, _, first, count, whole, payload, _ = message
            job = self.dispatcher.finished(0, span_id, first, count)
            if whole and job is not None:
                payload = [codec.pack(one, [], ("", None)) for one in codec.unpack(payload, buffers)]
            self._settle(job, first, payload, buffers)
        else:
            job = self.dispatcher.finished(0, span_id, message[2], 1)
            self._settle(job, message[2], [codec.pack(str(remote.rebuild(message[3])), [], ("", None))], buffers)

    def _settle(self, job: Any, first: int, payloads: list[Any], buffers: list[bytearray]) -> None:
        for index, payload in enumerate(payloads if job is not None else (), first):
            key = self._key(job, index)
            assert key not in self.settled, f"task {key} counts twice"
            self.settled[key] = codec.unpack(payload, buffers)
