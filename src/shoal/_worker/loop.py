"""The worker's loop: take tasks, run them, report.

Role: everything between two frames. Owner: the worker's main thread; the watcher thread may only call
`Worker.recall`, `Worker.flush` and `Worker.trim`.

Invariants
    W1  A task is announced on the page before anything of it is unpickled, so whatever kills the process
        is blamed on the right task.
    W2  What the watcher hands back was not started and will not be: the queue's ends are taken by one
        thread each, and a chunk's items are claimed under the reporter's lock.
    W3  After STOP nothing is read or written any more.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from shoal._memory.page import DONE, INDEX, SPAN, STARTED, Page
from shoal._wire import codec
from shoal._wire import messages as m
from shoal._wire.courier import Courier, forget_shared
from shoal._wire.frames import Buffer, Frame, FrameReader
from shoal._worker.chunks import Chunk, Stretcher
from shoal._worker.functions import FunctionMissing, FunctionTable
from shoal._worker.reporting import DEFER_NS, Reporter

if TYPE_CHECKING:
    from shoal._memory.arena import Arena

_clock = time.monotonic_ns


class Worker:
    """One worker process's state."""

    def __init__(self, sock: socket.socket, passing: socket.socket, page: Page, spin_ns: int) -> None:
        self._sock = sock
        self._page = page
        self._words = page.words
        self.spin_ns = spin_ns
        self._reader = FrameReader()
        self._reading = threading.Lock()  # whoever has it reads the socket and queues what came
        self._queue: deque[tuple[m.Message, list[Any]]] = deque()
        self._functions = FunctionTable()
        self._stretcher = Stretcher()
        self._chunk: Chunk | None = None
        self.arena_bytes = 0
        self._arena: Arena | None = None
        self._courier = Courier(passing, self._arena_now, forget_shared)
        self.reporter = Reporter(sock, page, self._courier)

    def _arena_now(self) -> Arena:
        if self._arena is None:
            from shoal._memory.arena import Arena

            self._arena = Arena(self.arena_bytes)
        return self._arena

    def first_message(self) -> tuple[m.Message, list[Any]]:
        """Return the boot message. Blocks."""
        self._receive()
        return self._queue.popleft()

    def serve(self) -> None:
        """Run tasks until told to stop. Raises OSError or EOFError when the pool is gone."""
        queue = self._queue
        while not self.reporter.stopped:
            self._receive()
            while not self.reporter.stopped:
                try:
                    message, buffers = queue.popleft()
                except IndexError:  # done, or the watcher took the rest
                    break
                self._do(message, buffers)
                del message, buffers  # the last views of lent memory, perhaps
            self.reporter.flush()

    # --- taking ---------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Block until something is queued."""
        while not self._queue:
            with self._reading:
                self._read()
                frames = self._take_frames()
                with self.reporter.lock:  # a recall may be holding back what it puts in again at this end
                    self._enqueue(frames)

    def _take_frames(self) -> list[Frame]:
        frames = self._reader.frames()
        for frame in frames:
            self._courier.incoming(frame)
        return frames

    def _enqueue(self, frames: list[Frame]) -> None:
        for frame in frames:
            self._queue.extend([(message, frame.buffers) for message in frame.messages])

    def _read_what_is_there(self) -> None:
        """Take in what was sent while the main thread is busy; with the reporter's lock. Does not block."""
        if self._reading.acquire(blocking=False):  # else the main thread reads, so it is not busy
            try:
                while self._reader.read(self._sock, socket.MSG_DONTWAIT):
                    pass
            except OSError:  # BlockingIOError: that was all; others the main thread will see
                pass
            finally:
                self._enqueue(self._take_frames())
                self._reading.release()

    def _read(self) -> None:
        """Read once. Looks for a bounded time before it sleeps: waking up costs more than that."""
        sock, reader = self._sock, self._reader
        limit = _clock() + self.spin_ns
        while True:
            try:
                if not reader.read(sock, socket.MSG_DONTWAIT):
                    raise EOFError
            except BlockingIOError:
                if _clock() < limit:
                    continue
                break
            else:
                return
        if sys.stdout is not None:
            sys.stdout.flush()  # a line without an end, from the task before
        if self._courier.has_news:  # nothing else would tell it while there is no work
            self.reporter.tell()
        if not reader.read(sock):
            raise EOFError

    # --- running --------------------------------------------------------------------------------

    def _do(self, message: m.Message, buffers: list[Any]) -> None:
        kind = message[0]
        if kind == m.TASK:
            self._run_task(message, buffers)
        elif kind == m.CHUNK:
            self._run_chunk(message, buffers)
        elif kind == m.FUNCTION:  # in its turn: a task before it may still need what a FORGET takes away
            self._functions.receive(message[1], message[2], buffers)
        elif kind == m.FORGET:
            self._functions.forget(message[1])
        else:
            self.reporter.flush()
            with self.reporter.lock:
                self.reporter.stopped = True  # W3

    def _run_task(self, message: m.Message, buffers: list[Any]) -> None:
        _, span, function_id, payload = message
        began = _clock()
        words = self._words
        words[STARTED] = began
        words[INDEX] = 0
        words[SPAN] = span  # W1
        out: list[Buffer] = []
        try:
            fn = self._functions.get(function_id)
            args, kwargs = codec.unpack(payload, buffers)
            value = fn(*args, **kwargs)
            del args, kwargs
            packed = codec.pack(value, out, ("the result of", fn))
            value = None
            report: m.Message = (m.DONE, span, packed, _clock() - began)
        except FunctionMissing as error:
            report = (m.UNKNOWN, span, 0, self._functions.captured(error.__cause__ or error, function_id), function_id)
        except BaseException as error:
            out = []
            report = (m.FAILED, span, 0, self._functions.captured(error, function_id), _clock() - began)
        words[DONE] += 1
        self.reporter.report(report, out, _clock() - began, more=bool(self._queue))

    def _run_chunk(self, message: m.Message, buffers: list[Any]) -> None:
        chunk = Chunk(message, buffers, self._page, self.reporter)
        self._chunk = chunk
        try:
            chunk.run(self._functions, self._stretcher)
        except FunctionMissing as error:
            captured = self._functions.captured(error.__cause__ or error, message[2])
            self.reporter.report((m.UNKNOWN, message[1], message[3], captured, message[2]), (), DEFER_NS, more=False)
        finally:
            self._chunk = None

    # --- giving back ----------------------------------------------------------------------------

    def trim(self) -> None:
        """Give memory that is only kept warm back to the system. Called by the watcher thread."""
        if self._arena is not None:
            self._arena.trim()

    def flush(self) -> None:
        """Send what is finished. Called by the watcher thread."""
        with self.reporter.lock:
            self.reporter.flush_locked(self._finished())

    def _finished(self) -> list[m.Message]:
        """Return results of the chunk that runs; with the reporter's lock."""
        chunk = self._chunk
        part = chunk.finished() if chunk is not None else None
        return [] if part is None else [part]

    def recall(self) -> None:
        """Send what is finished and hand back what is not started. Called by the watcher thread."""
        with self.reporter.lock:
            self._read_what_is_there()
            back = self._finished()
            kept: list[tuple[m.Message, list[Any]]] = []
            while True:
                try:
                    entry = self._queue.pop()
                except IndexError:
                    break
                kind, span = entry[0][0], entry[0][1] if len(entry[0]) > 1 else 0
                if kind == m.TASK:
                    back.append((m.HANDBACK, span, 0))
                elif kind == m.CHUNK:
                    back.append((m.HANDBACK, span, entry[0][3]))
                else:
                    kept.append(entry)
            self._queue.extend(reversed(kept))
            chunk = self._chunk
            rest = chunk.hand_back() if chunk is not None else None
            if rest is not None:
                back.append(rest)
            self.reporter.flush_locked(back)
