"""Cells: small pieces of shared memory, one for each lock, event, queue head and so on.

Role: cut cells out of shared segments, and let them travel to other processes. Owner: everybody who holds a view.

A segment of `SLAB_BYTES` is cut from its start on; when it is full the next one is made. A cell is never used twice: nobody
can know which processes still have it. Its segment is freed with the last view of any of its cells, in the last process, the
one that is being cut included.

Invariants
    C1  A cell begins at a multiple of 64 and is zero before its maker writes to it.
    C2  A cell travels as (the whole segment, where it begins, its size), beside a pickle that is made to be passed to a
        process of ours. Any other pickle would make a copy: it is refused when it is made, or else on arrival.
    C3  Cells of one maker only share a segment with cells of the same process: after a fork the child cuts its own.
"""

from __future__ import annotations

import os
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

from shoal._memory import segments
from shoal._memory.reducers import OnlyPassed, passing
from shoal._os import mapping

#: A view of words, read and written by index, each in one load or store.
Words = Any

SLAB_BYTES = 1 << 16
_ALIGN = 64


_HINT = (
    "pass it as an argument of a task or a shoal.Process, alone or inside other arguments, "
    "or let a forked process inherit it"
)
_ONLY_PASSED = f"a lock, queue or other object of shared memory cannot be pickled to bytes or copied\n  hint: {_HINT}"


class _Slab:
    """The segment that is being cut, if any cell of it is left."""

    def __init__(self) -> None:
        self.array: Callable[[], Any] = lambda: None
        self.used = 0


_guard = threading.Lock()
_slab = _Slab()


def _after_fork_in_child() -> None:
    global _guard, _slab
    _guard = threading.Lock()
    _slab = _Slab()  # C3: the parent goes on cutting the one we inherited


os.register_at_fork(after_in_child=_after_fork_in_child)


class Cell:
    """A piece of shared memory as this process has it: `view`, its bytes, and `address`, where they are."""

    __slots__ = ("_offset", "_whole", "address", "view")

    def __init__(self, whole: memoryview, offset: int, size: int) -> None:
        self._whole = whole
        self._offset = offset
        self.view = whole[offset : offset + size]
        self.address = mapping.address(self.view)

    def words(self, offset: int, count: int, kind: Any = "Q") -> Words:
        """Return `count` words at `offset` of the cell: "Q" unsigned or "q" signed 64 bits, "I" or "i" 32 bits."""
        size = 8 if kind in "Qq" else 4
        return self.view[offset : offset + count * size].cast(kind)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        only_passed(protocol)
        # Of the array, not of the view: Python 3.11 to 3.13 crash when a view that has exports is collected in a cycle,
        # as it is when what was about to be sent is left in a traceback.
        whole = mapping.mapped_array(self._whole)
        return _arrive, (pickle.PickleBuffer(whole), self._offset, self.view.nbytes)


def only_passed(protocol: int) -> None:
    """Refuse to be pickled or copied, unless it is to be passed to a process of ours (C2).

    What consists of cells asks this itself: `copy.copy` looks no deeper.

    Raises:
        OnlyPassed: It is not.
    """
    if protocol < 5 or not passing.on:
        raise OnlyPassed(_ONLY_PASSED)


def _arrive(buffer: Any, offset: int, size: int) -> Cell:
    whole = memoryview(buffer)
    if segments.find(whole) is None:
        raise TypeError(
            f"a lock, queue or other object of shared memory arrived as a mere copy of its bytes\n  hint: {_HINT}"
        )
    return Cell(whole, offset, size)


def make(size: int) -> Cell:
    """Return a new cell of at least `size` zero bytes, all of them reserved. Safe from any thread.

    Raises:
        NoSharedMemory: There is no memory, or no descriptor, for it.
    """
    size = -(-size // _ALIGN) * _ALIGN
    if size > SLAB_BYTES // 2:
        return Cell(segments.create(size), 0, size)
    with _guard:
        array = _slab.array()
        if array is None or _slab.used + size > SLAB_BYTES:
            whole = segments.create(SLAB_BYTES)
            _slab.array = weakref.ref(mapping.mapped_array(whole))
            _slab.used = 0
        else:
            whole = mapping.view(array)
        offset = _slab.used
        _slab.used += size
    return Cell(whole, offset, size)
