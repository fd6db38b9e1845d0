"""Ctrl-C while a caller reads the sockets.

Role: keep a signal handler that raises from cutting the pump in two. Owner: the thread that has the role; only
the main thread gets signals, every other one uses `NO_SHIELD`.

While `deferred()` is active, the program's own handlers (Ctrl-C's, and others that may raise) run at once if the thread
is waiting (`with shield.open()`), where nothing can be torn, and otherwise as soon as it waits next or leaves.
"""

from __future__ import annotations

# `signal` tries to make an enum of every handler it gives or takes: 24 us for each shield instead of 2.
import _signal  # type: ignore[import-not-found]
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Shield:
    """No protection; also the protocol of the real one."""

    def open(self) -> Shield:
        """Return the context in which a signal may raise."""
        return self

    def __enter__(self) -> Shield:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


NO_SHIELD = Shield()


class _Door:
    """The context in which the handler may run."""

    __slots__ = ("_shield",)

    def __init__(self, shield: _MainShield) -> None:
        self._shield = shield

    def __enter__(self) -> None:
        self._shield.waiting = True
        self._shield.deliver()

    def __exit__(self, *_: object) -> None:
        self._shield.waiting = False


class _MainShield(Shield):
    """Stands in for the program's signal handlers while the main thread reads."""

    def __init__(self, originals: dict[int, Any]) -> None:
        self._originals = originals
        self._pending: list[tuple[int, FrameType | None]] = []
        self.waiting = False
        self._door: _Door | None = None

    def open(self) -> Any:
        if self._door is None:
            self._door = _Door(self)
        return self._door

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.waiting:
            self._originals[signum](signum, frame)
        else:
            self._pending.append((signum, frame))

    def deliver(self) -> None:
        while self._pending:
            signum, frame = self._pending.pop(0)
            self._originals[signum](signum, frame)

    def __enter__(self) -> Shield:
        handle = self._handle
        for signum in self._originals:
            _signal.signal(signum, handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, original in self._originals.items():
            _signal.signal(signum, original)
        self._door = None  # it holds us: else each wait would leave a cycle to the garbage collector
        if error is None:
            self.deliver()


#: Signals whose handlers, if they are written in Python, are likely to raise.
_RAISING = (int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGALRM), int(signal.SIGHUP))


def deferred() -> Shield:
    """Return the shield for this thread, a context manager."""
    if threading.get_ident() == threading.main_thread().ident:
        originals: dict[int, Any] = {}
        for signum in _RAISING:
            handler = _signal.getsignal(signum)
            if callable(handler):  # else it is a number: the default, or ignored; or None: set by native code
                originals[signum] = handler
        if originals:
            return _MainShield(originals)
    return NO_SHIELD
