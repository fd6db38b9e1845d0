"""The arena: memory that large data is copied into once, lent to other processes, and used again while it is warm.

Role: the blocks this process made: filled, lent, taken back, given back to the system. Owner: in the program, one engine;
in a worker, the worker. Any thread. `ledger.py` decides, here it is done. Protocol: README.md beside this file.

Invariants
    A1  A block is written only while nobody has a lease on it.
    A2  New pages are written through the file, which fails with an error if memory is short; only pages that are there
        already are written through the mapping (no SIGBUS).
    A3  What a finalizer gives back goes through `_returned`, without a lock (it may run anywhere), and is taken in at the
        next operation.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Iterable
from typing import Any

from shoal._memory.ledger import Block, Ledger, Slab
from shoal._memory.segments import check_room
from shoal._os import descriptors, mapping, memory
from shoal._os.descriptors import close_quietly

#: Part of the descriptors this process may have that an arena may take, one for each slab.
DESCRIPTORS_SHARE = 4


class Stored:
    """A buffer that lies in the arena; the block is held for as long as this object lives."""

    __slots__ = ("__weakref__", "_arena", "block", "nbytes")

    def __init__(self, arena: Arena, block: Block, nbytes: int) -> None:
        self._arena = arena
        self.block = block
        self.nbytes = nbytes

    def view(self) -> memoryview:
        """Return the bytes themselves, to be read only. The view holds the block, too."""
        return mapping.part(self._arena._memory(self.block.slab), self.block.offset, self.nbytes, self)

    def __del__(self) -> None:
        self._arena._returned.append(self.block)  # A3


class _File:
    """The memory file of a slab. Closed when nobody uses it any more, the arena itself included."""

    __slots__ = ("fd", "view")

    def __init__(self, fd: int, view: memoryview) -> None:
        self.fd = fd
        self.view = view

    def __del__(self) -> None:
        close_quietly(self.fd)


class Arena:
    """The blocks of one process for one pool."""

    def __init__(self, limit_bytes: int) -> None:
        self._lock = threading.Lock()
        self._ledger = Ledger(limit_bytes, descriptors.limit() // DESCRIPTORS_SHARE)
        self._files: dict[int, _File] = {}  # by the slab's number
        self._returned: deque[Block] = deque()
        self._closed = False

    def store(self, *parts: memoryview) -> Stored | None:
        """Copy contiguous bytes, one part behind the other, into a block.

        Returns None if they do not fit: over the limit, or memory is short.
        """
        nbytes = sum(part.nbytes for part in parts)
        with self._lock:
            block = self._take(nbytes)
            if block is None:
                return None
            file = self._files[block.slab.number]  # ours while we write, whatever becomes of the arena
        stored = Stored(self, block, nbytes)
        at = block.offset
        for part in parts:
            if block.warm < nbytes:
                try:
                    memory.write_at(file.fd, part, at)  # A2
                except OSError:
                    return None  # `stored` goes, and with it the hold
            else:
                mapping.copy(file.view[at : at + part.nbytes], part)
            at += part.nbytes
        block.warm = max(block.warm, nbytes)
        return stored

    def _take(self, nbytes: int) -> Block | None:
        self._take_in()
        if self._closed:
            return None
        block = self._ledger.take(nbytes)
        if block is not None:
            return block
        slab = self._ledger.add_slab(nbytes)
        if slab is None:
            self._trim()  # of other sizes
            slab = self._ledger.add_slab(nbytes)
        if slab is None or not self._open(slab):
            return None
        return self._ledger.take(nbytes)

    def _open(self, slab: Slab) -> bool:
        fd = -1
        try:
            check_room(slab.nbytes)
            fd = memory.memory_file("shoal-arena", slab.nbytes)
            whole = mapping.view(mapping.map_file(fd, slab.nbytes, inherited=False))
        except BaseException as error:  # Ctrl-C, too
            if fd >= 0:
                close_quietly(fd)
            self._ledger.remove_slab(slab)
            if isinstance(error, OSError):
                return False
            raise
        self._files[slab.number] = _File(fd, whole)
        return True

    def _memory(self, slab: Slab) -> memoryview:
        return self._files[slab.number].view

    def _take_in(self) -> None:
        while self._returned:
            self._ledger.let_go(self._returned.popleft())

    # --- leases ---------------------------------------------------------------------------------

    def lend(self, stored: Stored, holder: Hashable) -> tuple[int, int, int]:
        """Open a lease for `holder`; returns (lease, descriptor, offset)."""
        with self._lock:
            lease = self._ledger.lend(stored.block, holder)
            return lease, self._files[stored.block.slab.number].fd, stored.block.offset

    def give_back(self, holder: Hashable, leases: Iterable[int]) -> None:
        """Take in that `holder` has no view of these leases any more; of those below zero a fork of it may have one."""
        with self._lock:
            self._ledger.give_back(holder, leases)
            self._drop(self._ledger.spoilt_slabs())

    def holder_gone(self, holder: Hashable) -> None:
        """Take in that `holder` has died: its mappings went with it, but for those of processes that it forked."""
        with self._lock:
            self._ledger.holder_gone(holder)
            self._drop(self._ledger.spoilt_slabs())

    # --- giving back ----------------------------------------------------------------------------

    def trim(self) -> None:
        """Give what nobody uses back to the system."""
        with self._lock:
            self._take_in()
            self._trim()

    def _trim(self) -> None:
        self._drop(self._ledger.unused_slabs())

    def _drop(self, slabs: Iterable[Slab]) -> None:
        for slab in slabs:
            self._ledger.remove_slab(slab)
            del self._files[slab.number]

    def close(self) -> None:
        """Give everything back that is not in use, and take nothing new in. The rest goes with its last use."""
        with self._lock:
            self._closed = True
            self._take_in()
            self._trim()

    def abandon(self) -> None:
        """In a forked child: close the descriptors, touch nothing else; the mappings are not here."""
        self._lock = threading.Lock()
        self._closed = True
        self._files.clear()

    # --- figures --------------------------------------------------------------------------------

    @property
    def held_bytes(self) -> int:
        """Memory of all slabs, used or kept warm."""
        return self._ledger.slab_bytes

    @property
    def used_bytes(self) -> int:
        """Memory of the blocks that are held or lent."""
        with self._lock:
            self._take_in()
            return self._ledger.used_bytes

    @property
    def lent(self) -> int:
        """Open leases."""
        with self._lock:
            return self._ledger.lent

    def describe(self) -> dict[str, Any]:
        """Return the figures, for tests and statistics."""
        return {"held_bytes": self.held_bytes, "used_bytes": self.used_bytes, "lent": self.lent}
