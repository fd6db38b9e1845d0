"""A worker's page: what it runs now, and results it has not sent yet, readable after its death.

Role: one small `memfd` per worker. Owner: the worker writes; this program reads.

Layout (bytes)
    0      u64  started_ns    CLOCK_MONOTONIC when the task below began
    8      u64  index         which task of the span
    16     u64  span          id of the span it runs, 0 before the first
    24     u64  committed     bytes of the journal that count
    32     u64  done          tasks finished since it began
    40     u64  stage         1 booting, 2 importing the main module, 3 in the initializer, 4 serving
    48     u64  asks          1 once a `shoal.Process` has looked whether it is to stop
    64     ...  journal       entries: u32 length, marshal of one message
    65536  ...  fault text    written by `faulthandler` through the file, at its own offset

Guarantees
    P1  A word is written in one store. The worker writes started_ns, then index, then span: a reader
        that finds it between two stores sees the older task with the newer start, never the reverse,
        so a clock read here can be late but not early.
    P2  The journal below `committed` is whole: the entry is written first, then `committed`.
    P3  After the worker's death the page does not change, so what is read then is exact.
Relies on
    A process that was seen stopped or dead has no store under way.
"""

from __future__ import annotations

import marshal
import mmap
import struct
from typing import Final

from shoal._os.memory import map_shared

FAULT_OFFSET: Final = 1 << 16
PAGE_BYTES: Final = 1 << 16
_JOURNAL: Final = 64
#: Most bytes the journal takes before the worker has to send.
JOURNAL_BYTES: Final = FAULT_OFFSET - _JOURNAL
#: Most bytes of fault text that are read.
_FAULT_LIMIT: Final = 1 << 16

STARTED, INDEX, SPAN, COMMITTED, DONE, STAGE, ASKS = range(7)
BOOTING, IMPORTING, INITIALIZING, SERVING = range(1, 5)

_LENGTH = struct.Struct("<I")


class Page:
    """Either end's view of the page. `words` is the array of u64 above, written by index."""

    def __init__(self, fd: int) -> None:
        self._map: mmap.mmap = map_shared(fd, PAGE_BYTES)
        self._bytes = memoryview(self._map)
        self.words = self._bytes[:_JOURNAL].cast("Q")

    # --- the worker's end -----------------------------------------------------------------------

    def commit(self, entry: bytes) -> bool:
        """Append one marshalled message to the journal; False if it does not fit."""
        at = self.words[COMMITTED]
        end = at + 4 + len(entry)
        if end > JOURNAL_BYTES:
            return False
        start = _JOURNAL + at
        _LENGTH.pack_into(self._bytes, start, len(entry))
        self._bytes[start + 4 : start + 4 + len(entry)] = entry
        self.words[COMMITTED] = end
        return True

    def clear(self) -> None:
        """Forget the journal: everything in it was sent."""
        self.words[COMMITTED] = 0

    # --- this program's end ---------------------------------------------------------------------

    def running(self) -> tuple[int, int, int] | None:
        """Return (span, index, started_ns) of the task announced last; exact once it is stopped or dead."""
        span = self.words[SPAN]
        return (span, self.words[INDEX], self.words[STARTED]) if span else None

    def journal(self) -> list[tuple[object, ...]]:
        """Return the committed messages, oldest first. Only of a dead worker."""
        messages = []
        at, end = 0, min(self.words[COMMITTED], JOURNAL_BYTES)
        while at + 4 <= end:
            (length,) = _LENGTH.unpack_from(self._bytes, _JOURNAL + at)
            start = _JOURNAL + at + 4
            messages.append(marshal.loads(self._bytes[start : start + length]))
            at += 4 + length
        return messages

    def close(self) -> None:
        self.words.release()
        self._bytes.release()
        self._map.close()


def fault_text(fd: int) -> str:
    """Return what `faulthandler` wrote into the page's file."""
    import os

    return os.pread(fd, _FAULT_LIMIT, FAULT_OFFSET).decode("utf-8", "replace").strip("\0\n")
