"""Waiting for any of many descriptors, by one thread at a time, whichever has the most use for it.

Role: two nested epolls. The inner one holds all descriptors; the outer one holds the inner one and is what the
background thread sleeps on. A caller that reads for itself masks the inner one in the outer, so the background
thread sleeps on; unmasking it costs one system call and loses nothing, because both are level-triggered.
Owner: the engine.

While the background thread rests, the inner one stays masked between the turns of callers that come and go; what `wake`
tells then reaches the background thread by a nudge.

Rejected
    hand-over by a lock or condition   the background thread would have to wake up to give way: 25 µs and more
    one epoll for both                 every result would wake the background thread as well
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable

Handler = Callable[[int], None]


class Poller:
    """Descriptors and what to call when they are ready. `add` and `remove` are safe from any thread."""

    def __init__(self) -> None:
        """Raises OSError when descriptors are short; nothing stays open then."""
        self._handlers: dict[int, Handler] = {}
        self._wake = self._nudge = -1
        self.resting = False
        self._inner = select.epoll()
        self._outer = self._inner  # until it is there
        try:
            self._outer = select.epoll()
            self._outer.register(self._inner.fileno(), select.EPOLLIN)
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.add(self._wake, self._woken)
            self._nudge = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._outer.register(self._nudge, select.EPOLLIN)
        except OSError:
            self.close()
            raise

    def add(self, fd: int, handler: Handler, events: int = select.EPOLLIN) -> None:
        self._handlers[fd] = handler
        self._inner.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._inner.modify(fd, events)

    def remove(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._inner.unregister(fd)

    def poll(self, timeout_s: float | None) -> list[tuple[int, int]]:
        """Return (descriptor, events) that are ready. Blocks up to `timeout_s`. The reader only."""
        return self._inner.poll(timeout_s)

    def handler(self, fd: int) -> Handler | None:
        return self._handlers.get(fd)

    def sleep(self, timeout_s: float | None) -> None:
        """Block until something is ready and not masked, or `nudge`. The background thread only."""
        for fd, _ in self._outer.poll(timeout_s):
            if fd == self._nudge:
                with contextlib.suppress(OSError):
                    os.eventfd_read(self._nudge)

    def nudge(self) -> None:
        """Wake the background thread, masked or not."""
        with contextlib.suppress(OSError, ValueError):
            os.eventfd_write(self._nudge, 1)

    def mask(self) -> None:
        if not self.resting:
            self._watch(0)

    def unmask(self) -> None:
        if not self.resting:
            self._watch(select.EPOLLIN)

    def rest(self) -> None:
        """Stay masked whoever unmasks. One that was just about to may still do so: call it again. The background thread only."""
        self.resting = True  # first: what `wake` tells from here on is told by a nudge, too
        self._watch(0)

    def stir(self) -> None:
        """End the rest, unmasked. The background thread only."""
        self.resting = False
        self._watch(select.EPOLLIN)

    def _watch(self, events: int) -> None:
        with contextlib.suppress(ValueError):  # closed meanwhile
            self._outer.modify(self._inner.fileno(), events)

    def wake(self) -> None:
        """Make whoever polls come back. Safe anywhere, a finalizer included."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            os.eventfd_write(self._wake, 1)
            if self.resting:
                os.eventfd_write(self._nudge, 1)

    def _woken(self, _events: int) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_read(self._wake)

    def close(self) -> None:
        self._handlers.clear()
        self._outer.close()
        self._inner.close()
        fds = self._wake, self._nudge
        self._wake = self._nudge = -1  # first: a late `wake` must not write to a number that means something else
        for fd in fds:
            if fd >= 0:
                os.close(fd)
