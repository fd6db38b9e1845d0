"""A forked child that kills or stops itself at the n-th step of shoal's own code.

Role: real kills at every line, or every byte code, of what `_sync` does. Owner: `test_sync_kills.py`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import shoal

_SYNC = str(Path(shoal.__file__).parent / "_sync")
_OS = tuple(str(Path(shoal.__file__).parent / "_os" / name) for name in ("mutex.py", "futex.py"))
#: What the child exits with if its body came to its end.
FINISHED = 0
FAILED = 3
#: Set to try every step also where each of them takes long: minutes in all.
EVERY_STEP = "SHOAL_TEST_EVERY_STEP"


class Child:
    """A forked child that runs `body` and is killed, or stopped, before its step `at`."""

    def __init__(self, body: Callable[[], object], at: int, *, fine: bool, by: int = signal.SIGKILL) -> None:
        self._killer = _Killer(at, fine=fine, by=by)
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = FAILED
            try:
                self._killer.run(body)
                code = FINISHED
            except BaseException as error:
                os.write(2, f"the child failed: {error!r}\n".encode())
            finally:
                os._exit(code)

    def ended(self) -> bool:
        """Whether it has; reaps it."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def stopped(self) -> bool:
        """Whether it is, or has ended."""
        if self.ended():
            return True
        with open(f"/proc/{self.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "T"

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self) -> bool:
        """Wait for its end; returns whether it was killed."""
        if self.status is None:
            self.status = os.waitpid(self.pid, 0)[1]
        assert self.status in (FINISHED, signal.SIGKILL), f"the child ended with {self.status}"
        return self.status == signal.SIGKILL


class _Killer:
    def __init__(self, at: int, *, fine: bool, by: int) -> None:
        self._left = at
        self._by = by
        # Newer ones report byte codes only where tracing was on before the function began.
        self._event = "opcode" if fine and sys.version_info[:2] == (3, 11) else "line"

    def run(self, body: Callable[[], object]) -> None:
        sys.settrace(self._enter)
        try:
            body()
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_SYNC) and name not in _OS:
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == self._event:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), self._by)
        return self._step


def children(
    body: Callable[[], object], *, fine: bool = False, stride: int = 1, by: int = signal.SIGKILL
) -> Iterator[Child]:
    """Yield children killed before their first step, then `stride` steps later, ... until one of them comes to its end.

    `by` SIGSTOP they are stopped; whoever asks for them kills them.
    """
    at = 1
    stride = 1 if EVERY_STEP in os.environ else stride
    while True:
        child = Child(body, at, fine=fine, by=by)
        yield child
        if not child.wait():
            return
        at += stride
