"""This program's end of one worker.

Role: its descriptors, what it was sent, what it printed last. Owner: the engine, with its lock held; `send` may be
called by any thread, and orders frames by its own lock.

Invariants
    H1  Frames reach the socket whole and one after the other, whoever sends.
    H2  A handle that is closed owns no descriptor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from shoal._memory.page import FAULT_OFFSET, Page
from shoal._os import descriptors, memory, processes
from shoal._pool.output import OutputTail
from shoal._wire.courier import Courier
from shoal._wire.frames import Buffer, FrameReader
from shoal._wire.messages import ASK, FLUSH, RECALL, TRIM

if TYPE_CHECKING:
    from shoal._memory.arena import Arena
    from shoal._pool.dispatcher import Span

#: Room for descriptors under way: each takes about 800 bytes of it. What finds none travels in its frame.
PASSING_BYTES = 1 << 18

State = Literal["spare", "starting", "ready", "stopping", "dead"]


class WorkerHandle:
    """One worker process as this program sees it."""

    def __init__(
        self,
        number: int,
        arena: Callable[[], Arena],
        forget: Callable[[bytes], object],
        *,
        captured: bool,
        name: str | None = None,
    ) -> None:
        """Make every descriptor or none. `name` stands before what it prints; without one it is a worker's."""
        self.number = number
        self.name = f"worker {number}" if name is None else name
        self.state: State = "spare"
        self.pid: int | None = None
        self.pidfd: int | None = None
        self.generation = 0  # failed starts that had been reported when it was told to boot
        self.orphaned = False  # its template died, so nobody will tell how it ended
        self.status: processes.ExitStatus | None = None
        self.seen: tuple[int, int, int] | None = None  # where it was at the last look at it
        self.known: set[int] = set()
        self.to_forget: set[int] = set()
        self.unsent: deque[Span] = deque()  # handed over, to be encoded and sent; appended with the engine's lock held
        self.sending = threading.Lock()  # whoever has it encodes and sends; never waited for
        self.heard_ns = 0  # when it last said something, or was handed work while idle
        self.doomed: str | None = None  # why we killed it, if we did
        self.watched_ns = 0  # when a deadline check is due, 0 if none is
        self.tasks_done = 0
        self.reader = FrameReader()
        self._lock = threading.Lock()
        self._outbox: deque[memoryview] = deque()
        self.on_blocked: Callable[[WorkerHandle], None] | None = None
        self.on_drained: Callable[[WorkerHandle], None] | None = None
        passing = self._open(captured=captured)
        self.courier = Courier(passing, arena, forget)

    def _open(self, *, captured: bool) -> socket.socket:
        """Make every descriptor or none; returns this end of the courier's socket."""
        opened: list[int] = []
        sockets: list[socket.socket] = []
        try:
            self.sock, data = descriptors.socket_pair()
            sockets += [self.sock, data]
            self.control, control = descriptors.socket_pair()
            sockets += [self.control, control]
            passing, their_passing = descriptors.socket_pair(PASSING_BYTES)
            sockets += [passing, their_passing]
            self.page_fd = memory.memory_file("shoal-page", FAULT_OFFSET)
            opened.append(self.page_fd)
            self.page = Page(self.page_fd)
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            opened.append(null)
            page_copy = os.dup(self.page_fd)
            opened.append(page_copy)
            self.outputs: list[OutputTail] = []
            ends = [null, null]
            if captured:
                for index, name in enumerate(("stdout", "stderr")):
                    read_end, ends[index] = os.pipe2(os.O_CLOEXEC)
                    opened += [read_end, ends[index]]
                    os.set_blocking(read_end, False)
                    self.outputs.append(OutputTail(read_end, name, self.name))
        except OSError:
            if hasattr(self, "page"):
                self.page.close()
            for fd in opened:
                descriptors.close_quietly(fd)
            for one in sockets:
                one.close()
            raise
        self.sock.setblocking(False)
        passing.setblocking(False)
        self._theirs = [data, control, their_passing]
        self._their_fds = [page_copy, null, *(ends if captured else ())]
        self.passed = [data.fileno(), control.fileno(), page_copy, *ends, null, their_passing.fileno()]
        return passing

    def close_theirs(self) -> None:
        """Close this program's copies of what was passed to the worker."""
        theirs, self._theirs = self._theirs, []
        for one in theirs:
            one.close()
        while self._their_fds:
            descriptors.close_quietly(self._their_fds.pop())

    @property
    def has_news(self) -> bool:
        """Whether it is to be told something that can wait a moment."""
        return bool(self.to_forget) or self.courier.has_news

    # --- talking --------------------------------------------------------------------------------

    def send(self, pieces: Sequence[Buffer]) -> None:
        """Send a frame, or keep what the socket does not take now. Never blocks; a dead peer is ignored."""
        with self._lock:
            if self.state == "dead":
                return
            if not self._outbox and len(pieces) == 1:  # the usual case, kept short
                data = pieces[0]
                sent = self._try(data)
                if sent == len(data):
                    return
                self._outbox.append(memoryview(data)[sent:])
            else:
                self._outbox.extend(memoryview(piece) for piece in pieces)
                self._drain()
            if self._outbox and self.on_blocked is not None:
                self.on_blocked(self)

    def drain(self) -> None:
        """Send more of what was kept."""
        with self._lock:
            self._drain()
            self.heard_ns = time.monotonic_ns()  # it reads: what is being sent to it is not late
            if not self._outbox and self.on_drained is not None:
                self.on_drained(self)  # with the lock held: a sender that blocks next must come after it

    def _drain(self) -> None:
        while self._outbox:
            first = self._outbox[0]
            sent = self._try(first)
            if sent < first.nbytes:
                self._outbox[0] = first[sent:]
                return
            self._outbox.popleft()

    def _try(self, data: Buffer) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # it is dead, which the pump will find out; what is left goes the same way
            return len(data)

    def recall(self) -> None:
        """Ask for finished results and unstarted work."""
        with contextlib.suppress(OSError):
            self.control.send(RECALL, socket.MSG_DONTWAIT)

    def flush(self) -> None:
        """Ask for finished results."""
        with contextlib.suppress(OSError):
            self.control.send(FLUSH, socket.MSG_DONTWAIT)

    def trim(self) -> None:
        """Ask it to give memory that it only keeps warm back to the system."""
        with contextlib.suppress(OSError):
            self.control.send(TRIM, socket.MSG_DONTWAIT)

    def ask(self) -> None:
        """Ask a `shoal.Process` to stop."""
        with contextlib.suppress(OSError):
            self.control.send(ASK, socket.MSG_DONTWAIT)

    def signal(self, signum: int) -> bool:
        """Send a signal; False if the process is gone or was never known."""
        return self.pidfd is not None and processes.kill_pidfd(self.pidfd, signum)

    def kill(self, why: str) -> None:
        if self.state != "dead":  # else it would excuse a death that we had no part in
            self.doomed = self.doomed or why
            self.signal(signal.SIGKILL)

    # --- closing --------------------------------------------------------------------------------

    def tail(self) -> tuple[str, ...]:
        """Return the last lines it printed."""
        lines = [line for output in self.outputs for line in output.last()]
        return tuple(lines[-20:])

    def close(self) -> None:
        """Close every descriptor (H2)."""
        self.close_theirs()
        self.close_ours()

    def abandon(self, *, keep_theirs: bool) -> None:
        """In a forked child: close without waiting for a lock whose holder is not here."""
        self._lock = threading.Lock()
        self.courier.abandon()
        self.close_ours()
        if not keep_theirs:
            self.close_theirs()

    def close_ours(self) -> None:
        """Close this program's ends."""
        with self._lock:
            self.state = "dead"
            self._outbox.clear()
        self.courier.close()
        self.sock.close()
        self.control.close()
        for output in self.outputs:
            output.close()
        pidfd, self.pidfd = self.pidfd, None
        if pidfd is not None:
            descriptors.close_quietly(pidfd)
        page_fd, self.page_fd = self.page_fd, -1
        if page_fd >= 0:
            self.page.close()
            descriptors.close_quietly(page_fd)
