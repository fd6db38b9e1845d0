"""Ctrl-C while a caller reads the sockets.

Role: keep a signal handler that raises from cutting the pump in two. Owner: the thread that has the role; only
the main thread gets signals, every other one uses `NO_SHIELD`.

While `deferred()` is active, SIGINT's handler runs at once if the thread is waiting (`with shield.open()`), where
nothing can be torn, and otherwise as soon as it waits next or leaves.
"""

from __future__ import annotations

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
    """Stands in for SIGINT's handler while the main thread reads."""

    def __init__(self, original: Any) -> None:
        self._original = original
        self._pending: tuple[int, FrameType | None] | None = None
        self.waiting = False
        self._door = _Door(self)

    def open(self) -> Any:
        return self._door

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.waiting:
            self._original(signum, frame)
        else:
            self._pending = signum, frame

    def deliver(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            self._original(*pending)

    def __enter__(self) -> Shield:
        signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._original)
        if error is None:
            self.deliver()


def deferred() -> Shield:
    """Return the shield for this thread, a context manager."""
    if threading.current_thread() is threading.main_thread():
        original = signal.getsignal(signal.SIGINT)
        if callable(original) and not isinstance(original, signal.Handlers):
            return _MainShield(original)
    return NO_SHIELD
