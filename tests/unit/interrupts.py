"""Raise an exception where a signal handler could have: at each point at which Python lets handlers run.

Role: Ctrl-C at every place of shoal's own code, without signals. Owner: `test_sync_interrupts.py`.

Handlers run as a Python function begins, after a call of a C function, and as a loop turns back; see the byte codes RESUME, CALL
and JUMP_BACKWARD of CPython.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import shoal

_SYNC = str(Path(shoal.__file__).parent / "_sync")
_MUTEX = str(Path(shoal.__file__).parent / "_os" / "mutex.py")


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt."""


class Interrupter:
    """Runs something, and raises `Interrupt` at the n-th point; `where` says in which function."""

    def __init__(self, at: int) -> None:
        self._left = at
        self._last: dict[FrameType, int] = {}
        self._called_python: set[FrameType] = set()
        self.where: str | None = None

    def run(self, body: Callable[[], object]) -> bool:
        """Returns whether it was interrupted."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            body()
        except Interrupt:
            return True
        finally:
            sys.settrace(before)
            self._last.clear()
        return False

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_back is not None:
            self._called_python.add(frame.f_back)
        if not frame.f_code.co_filename.startswith(_SYNC) and frame.f_code.co_filename != _MUTEX:
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            last = self._last.get(frame)
            self._last[frame] = frame.f_lasti
            if self._is_point(frame, last):
                self._left -= 1
                if not self._left:
                    self.where = frame.f_code.co_name
                    raise Interrupt
        return self._step

    def _is_point(self, frame: FrameType, last: int | None) -> bool:
        if last is None:
            return True
        name = dis.opname[frame.f_code.co_code[last]]
        if name.startswith("CALL"):
            into_python = frame in self._called_python
            self._called_python.discard(frame)
            return not into_python
        return name.startswith("JUMP_BACKWARD")


def interrupted_everywhere(body: Callable[[], object], check: Callable[[str], object]) -> int:
    """Interrupt `body` at its first point, its second, ...; after each call `check` with the function. Returns how many."""
    at = 1
    while True:
        interrupter = Interrupter(at)
        if not interrupter.run(body):
            return at - 1
        check(interrupter.where or "")
        at += 1
