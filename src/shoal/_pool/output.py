"""What workers print, on its way to this program's own streams.

Role: whole lines with the worker's name in front, and the last of them for obituaries. Owner: the engine reads with
its lock held; `forward` writes to the user's streams and is called without it.

Invariants
    T1  A line is forwarded whole, in one write, so lines of different workers never mix.
    T2  A stream that fails or was closed costs the text, never the pool.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque

from shoal._os import descriptors

_READ_BYTES = 1 << 16
#: Lines kept for an obituary.
KEPT_LINES = 20
#: A line longer than this is forwarded in pieces.
_LINE_LIMIT = 1 << 16


class OutputTail:
    """One output stream of one worker, or of whatever is called `who`."""

    def __init__(self, fd: int, name: str, who: str) -> None:
        self.fd = fd
        self._name = name
        self._prefix = f"[{who}] "
        self._partial = b""
        self._last: deque[str] = deque(maxlen=KEPT_LINES)

    def read(self) -> list[str] | None:
        """Return the whole lines that came; None at end of file."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LINE_LIMIT:
            lines.append(self._partial)
            self._partial = b""
        return self._keep(lines)

    def rest(self) -> list[str]:
        """Return everything that is still in the pipe, the unfinished last line included. Does not block."""
        lines: list[str] = []
        while more := self.read():
            lines += more
        if self._partial:
            lines += self._keep([self._partial])
            self._partial = b""
        return lines

    def _keep(self, lines: list[bytes]) -> list[str]:
        texts = [line.decode("utf-8", "backslashreplace") for line in lines]
        self._last.extend(texts)
        return texts

    def forward(self, lines: list[str]) -> None:
        """Write lines to this program's stream of the same name. Runs whatever the user put there."""
        stream = getattr(sys, self._name)
        with contextlib.suppress(Exception):
            stream.write("".join(f"{self._prefix}{line}\n" for line in lines))
            stream.flush()

    def last(self) -> list[str]:
        """Return the last lines, the unfinished one included."""
        lines = list(self._last)
        if self._partial:
            lines.append(self._partial.decode("utf-8", "backslashreplace"))
        return lines

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        descriptors.close_quietly(fd)
