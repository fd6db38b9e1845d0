"""One started Process as this program sees it.

Role: its descriptors, what it said, how it ended. Owner: the hub, which writes with its lock held; the Process object reads.

Invariants
    R1  `known` is set once: the process exists, or `refusal` says why not. `ended` is set once, after everything else here has
        its last value and every descriptor but the sentinel is closed.
    R2  What is not in here does not keep the process's memory alive: outcome and readiness are unpickled by whoever asks.
    R3  Nothing here keeps an error that was raised: its traceback keeps whoever asked, and so this, until the garbage collector
        comes by.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal._memory.page import ASKS
from shoal._os import descriptors, processes
from shoal._os.latch import Latch, StopEvent
from shoal._pool import autopsy
from shoal._pool.failures import unreadable_value
from shoal._pool.worker import WorkerHandle
from shoal._wire import codec, remote
from shoal._wire import messages as m
from shoal._wire.link import Link, Received
from shoal._wire.messages import Message

if TYPE_CHECKING:
    from shoal._pool.launcher import Launcher
    from shoal._process.hub import Hub
    from shoal.errors import Obituary, ShoalError

#: What `multiprocessing` says of a process whose end cannot be learned.
UNKNOWN_EXIT = 255

#: For so long after its object began, or became ready, a process is young.
YOUNG_S = 1.0

#: Called with each message that is not the process's own, by the hub's thread; must not block.
Handler = Callable[[Message, list[Any]], object]


class Sentinel:
    """A descriptor of the process, readable once it has ended; closed with the last who may wait on it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            descriptors.close_quietly(fd)

    __del__ = close


class Parcel:
    """Something a process said, opened by whoever asks for it first. Any thread."""

    def __init__(self, message: Message, buffers: list[Any]) -> None:
        self.message = message
        self._buffers = buffers
        self._opening = threading.RLock()  # held while code of the user runs, which may ask again
        self._opened = False
        self._value: Any = None
        self._failure: ShoalError | None = None

    def value(self, what: str, after: Callable[[], None]) -> Any:
        """Return it; `after` is called when it has been opened. Raises RemoteError if it cannot be rebuilt here."""
        with self._opening:
            if not self._opened:
                self._open(what)
                after()
        if self._failure is not None:
            error = copy.copy(self._failure)  # R3
            error.__cause__ = self._failure.__cause__
            raise error
        return self._value

    def _open(self, what: str) -> None:
        try:
            self._value = codec.unpack(self.message[1], self._buffers)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # what it raises, SystemExit included, is that value's failure
            self._failure = unreadable_value(what, error)
            error.__traceback__ = None  # it is in the failure's text, and holds on to all that is here
        self._opened = True
        self.message, self._buffers = self.message[:1], []  # what they hold may be large


class Running:
    """One process, from the moment it is asked for."""

    def __init__(self, name: str, handle: WorkerHandle, launcher: Launcher, hub: Hub, forgotten: list[bytes]) -> None:
        self.name = name
        self.hub = hub
        self._forgotten = forgotten  # shared segments it has let go of
        self.handle = handle
        self.launcher = launcher
        self.link = Link(handle.sock, handle.courier, handle.send, handle.reader)
        self.known = Latch()
        self.ended = Latch()
        self.heard = Latch()  # it said that it is ready, or ended
        self.stopping = StopEvent(_asks(weakref.ref(self)))
        self.refusal: Exception | None = None
        self.pid = 0
        self.sentinel: Sentinel | None = None
        self.alive = True  # until its end was seen; it is told how it ended a moment later
        self.booted = False
        self.stirred = 0.0  # when it last went from one stage to the next
        self.said_ready: Parcel | None = None
        self.outcome: Parcel | None = None
        self.exitcode: int | None = None
        self.obituary: Obituary | None = None
        self.on_message: Handler | None = None
        self.unheard: list[Received] = []  # what came before there was a handler
        self.at_end: list[Callable[[], object]] = []
        #: Sends the object again, by value; for as long as the process may ask for that.
        self.send_by_value: Callable[[], None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # A Process object that was started may be part of what is sent elsewhere; there it is a stranger's.
        return _nothing, ()

    def know(self, pid: int, pidfd: int) -> None:
        """Take in that the process exists."""
        self.pid = self.handle.pid = pid
        self.handle.pidfd = pidfd
        self.sentinel = Sentinel(pidfd)

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended, though it may not be known how yet. Any thread."""
        sentinel = self.sentinel
        return self.ended.is_set() or (
            sentinel is not None and sentinel.fd >= 0 and processes.wait_pidfd(sentinel.fd, 0.0)
        )

    @property
    def looks_for_stop(self) -> bool:
        """Whether the object has ever looked whether it is to stop; True if that cannot matter any more."""
        try:
            return bool(self.handle.page.words[ASKS])
        except ValueError:  # it has ended: its page is closed
            return True

    @property
    def is_young(self) -> bool:
        """Whether it has begun, or become ready, a moment ago, so that it may be about to look at what it usually looks at."""
        return self.booted and not self.looks_for_stop and time.monotonic() - self.stirred < YOUNG_S

    def ask_where(self) -> None:
        """Have it write its Python stack to its page. Blocks a few milliseconds at most."""
        with contextlib.suppress(OSError):  # it has ended: its page is closed
            autopsy.ask_for_stack(self.handle)

    # --- what it said ---------------------------------------------------------------------------

    def result(self, name: str) -> Any:
        """Return what `run` returned, or raise what it raised; see `Process.result`. It has ended."""
        if self.outcome is None:
            from shoal.errors import ProcessDied

            assert self.obituary is not None
            raise ProcessDied(name=name, obituary=self.obituary)
        if self.outcome.message[0] == m.RAISED:
            error = remote.rebuild(self.outcome.message[1], "run()")  # a new one each time: see R3
            if type(error).__name__ == "MainGuardMissing":  # it says itself where and why
                error.__cause__ = None
            raise error
        return self.outcome.value(f"the result of {name}", self._forget_shared)

    @property
    def guard_error(self) -> BaseException | None:
        """That the main script lacks its guard, if that is how it ended: the next one would end the same way."""
        if self.outcome is None or self.outcome.message[0] != m.RAISED:
            return None
        captured = self.outcome.message[1]
        return remote.rebuild(captured) if remote.type_name(captured) == "shoal.errors.MainGuardMissing" else None

    def ready_value(self, name: str) -> Any:
        """Return what `ready` was given. It was called."""
        assert self.said_ready is not None
        return self.said_ready.value(f"what is ready in {name}", self._forget_shared)

    def _forget_shared(self) -> None:
        """Drop what was just made of shared segments that it had let go of before: it will not say so again."""
        shared = sys.modules.get("shoal._memory.shared")
        if shared is not None:
            for identity in self._forgotten:
                shared.forget(identity)

    def forget(self) -> None:
        """Let go of everything. It has ended."""
        self.outcome = self.said_ready = None
        if self.sentinel is not None:
            self.sentinel.close()

    # --- its end --------------------------------------------------------------------------------

    def close(self, oom: autopsy.OomWatch) -> None:
        """Learn how it ended, then close what it leaves (R1)."""
        status = self.handle.status
        reported = self.outcome.message[2] if self.outcome is not None else None
        if status is not None and status.signal is not None:
            self.exitcode = -status.signal
        elif status is not None and status.code is not None:
            self.exitcode = status.code
        else:
            self.exitcode = UNKNOWN_EXIT if reported is None else reported
        if self.exitcode != 0 or self.outcome is None:
            self.obituary = autopsy.obituary(self.handle, oom, attempt=None, attempts=None, process=self.name)
        self.handle.pidfd = None  # the sentinel's
        self.handle.close()
        self.send_by_value = None

    def abandon(self, *, becomes_us: bool) -> None:
        """In a forked child: nothing of this is ours."""
        self.handle.pidfd = None
        self.handle.abandon(keep_theirs=becomes_us)
        self.link.after_fork()
        self.at_end.clear()
        self.on_message = self.send_by_value = None
        if self.sentinel is not None:
            self.sentinel.close()


def _asks(of: weakref.ref[Running]) -> Callable[[], None]:
    """Return what setting `stopping` in this program does: ask the process, which has an event of its own."""

    def ask() -> None:
        from shoal._process.starting import ask_to_stop

        running = of()
        if running is not None and not running.ended.is_set():
            ask_to_stop(running)

    return ask


def _nothing() -> None:
    return None
