"""Results on their way out of a worker.

Role: the write end of the worker's socket, and what waits for it. Owner: `loop.Worker`; its main thread
and its watcher thread both write, each with `lock` held.

Invariants
    R1  A result leaves before the tasks after it have run for longer than `DEFER_NS`; until it leaves it is in
        the page's journal, so it counts even if a later task kills the process.
    R2  After `stop` nothing is written any more.
"""

from __future__ import annotations

import marshal
import socket
import threading
from collections.abc import Sequence

from shoal._memory.page import COMMITTED, Page
from shoal._wire.courier import Courier
from shoal._wire.frames import Buffer, encode, send_all
from shoal._wire.messages import Message

#: Finished results may wait this long (in running time of the tasks after them) to share a frame.
DEFER_NS = 100_000


class Reporter:
    """Sends messages, several to a frame when more follow at once."""

    def __init__(self, sock: socket.socket, page: Page, courier: Courier) -> None:
        self.lock = threading.Lock()
        self.stopped = False
        self._sock = sock
        self._page = page
        self._courier = courier
        self._unsent: list[Message] = []
        self._deferred_ns = 0

    def report(self, message: Message, buffers: Sequence[Buffer], elapsed_ns: int, *, more: bool) -> None:
        """Send a result now, or keep it for a moment if `more` will follow at once (R1). May block."""
        with self.lock:
            self._unsent.append(message)
            self._deferred_ns += elapsed_ns
            if more and not buffers and self._deferred_ns < DEFER_NS and self._page.commit(marshal.dumps(message)):
                return
            self._send(buffers)

    def flush(self) -> None:
        """Send what waits. May block."""
        with self.lock:
            self.flush_locked([])

    def tell(self) -> None:
        """Send what waits, and what the courier has to tell. May block."""
        with self.lock:
            self._send(())

    def flush_locked(self, more: Sequence[Message]) -> None:
        """Send what waits and `more` behind it, with `lock` already held."""
        self._unsent += more
        if self._unsent:
            self._send(())

    def _send(self, buffers: Sequence[Buffer]) -> None:
        batch, self._unsent = self._unsent, []
        if self.stopped:
            return  # R2
        send_all(self._sock, encode(*self._courier.outgoing(batch, buffers)))
        self._deferred_ns = 0
        if self._page.words[COMMITTED]:
            self._page.clear()
