"""Segments: memory that several processes see under one identity, for as long as any of them holds a view.

Role: the registry of the shared segments this process has mapped; `share` and shared arrays stand on it. Owner: each
segment belongs to everybody who maps it. Any thread.

A segment is a memory file without a name. A process has it while it holds the descriptor and the mapping, and lets go of
both when the last view over it goes. The kernel frees it when the last process has let go, however that process ended.

Invariants
    S1  One mapping per segment and process: the same id gives the same memory, so views of it compare and overlap.
    S2  Memory is reserved when a segment is made, so no access can fail for lack of memory later (SIGBUS).
    S3  What runs when a last view goes takes no lock: it may run inside any allocation, in any thread.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from shoal._os import cgroup, mapping, memory
from shoal._os.descriptors import close_quietly
from shoal.errors import NoSharedMemory

#: Left for everybody else when memory is asked for.
MARGIN_BYTES = 64 << 20

_WORTH_A_LOOK_BYTES = 1 << 20

_lock = threading.Lock()
_by_array: dict[int, Segment] = {}
_by_id: dict[bytes, Segment] = {}


class Segment:
    """One shared segment as this process has it. Does not keep it alive: views do."""

    __slots__ = ("_array", "_key", "fd", "id", "size", "watchers")

    def __init__(self, identity: bytes, fd: int, size: int) -> None:
        self.id = identity
        self.fd = fd
        self.size = size
        #: Called with the id when this process lets go; must not block or take locks (S3).
        self.watchers: list[Callable[[bytes], object]] = []
        self._key = 0
        self._array: Callable[[], Any] = lambda: None

    def map(self) -> memoryview:
        """Map it, note it, and return all of it. Once. The view keeps it alive."""
        array = mapping.map_file(self.fd, self.size, on_gone=self._gone)
        self._array = weakref.ref(array)
        self._key = id(array)
        _by_array[self._key] = self
        _by_id[self.id] = self
        return mapping.view(array)

    def view(self) -> memoryview:
        """Return all of it, writable.

        Raises:
            LookupError: Its last view has gone.
        """
        array = self._array()
        if array is None:
            raise LookupError("this segment is not mapped any more")
        return mapping.view(array)

    def _gone(self) -> None:
        _by_array.pop(self._key, None)
        if _by_id.get(self.id) is self:
            _by_id.pop(self.id, None)
        close_quietly(self.fd)
        for watcher in self.watchers:
            watcher(self.id)


def refusal(size: int, error: OSError) -> NoSharedMemory:
    """Return the error for memory that could not be had, from what the system said."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return NoSharedMemory(
            wanted_bytes=size,
            reason="no descriptors left",
            hint="raise the limit (ulimit -n), or hold fewer shared objects at once",
        )
    return NoSharedMemory(
        wanted_bytes=size,
        reason=f"the system refused it ({error.strerror or error})",
        hint="see what limits this process: memory, address space (ulimit -v), its control group",
    )


def check_room(size: int) -> None:
    """Refuse what would leave this machine, or this control group, without memory.

    Raises:
        NoSharedMemory: There is less than that available.
    """
    available = cgroup.available_memory_bytes()
    if available and size + MARGIN_BYTES > available:
        raise NoSharedMemory(
            wanted_bytes=size,
            reason=f"{available >> 20} MiB are available to this process",
            hint="share less at once, or give this machine or container more memory",
        )


def create(size: int) -> memoryview:
    """Make a segment of `size` zero bytes (at least one) and return a writable view of all of it.

    Raises:
        NoSharedMemory: Not enough memory or descriptors. Nothing is left behind.
    """
    return _create(max(1, size), lambda fd: memory.reserve(fd, 0, max(1, size)))


def create_filled(size: int, parts: Sequence[tuple[int, memoryview]]) -> memoryview:
    """Make a segment of `size` bytes with `parts`, (offset, contiguous bytes), in it; no page may be left out.

    Writing through the file is quicker than through a new mapping, and fails with an error where that would be killed.

    Raises:
        NoSharedMemory: Not enough memory or descriptors. Nothing is left behind.
    """

    def fill(fd: int) -> None:
        for offset, part in parts:
            memory.write_at(fd, part, offset)

    return _create(size, fill)


def create_sparse(size: int, reserved: int) -> memoryview:
    """Make a segment of `size` zero bytes of which only the first `reserved` take memory, and return a view of all of it.

    Whoever touches more reserves it first (S2), by `reserve`: what is not there cannot be written, and kills who tries.

    Raises:
        NoSharedMemory: Not enough memory, address space or descriptors. Nothing is left behind.
    """
    return _create(size, lambda fd: memory.reserve(fd, 0, reserved), room=reserved)


def reserve(whole: memoryview, offset: int, size: int) -> None:
    """Reserve memory for part of a sparse segment.

    Raises:
        NoSharedMemory: There is not enough.
    """
    segment = find(whole)
    if segment is None:
        raise LookupError("this segment is not mapped any more")
    if size >= _WORTH_A_LOOK_BYTES:  # looking takes half a millisecond
        check_room(size)
    try:
        memory.reserve(segment.fd, offset, size)
    except OSError as error:
        raise refusal(size, error) from error


def _create(size: int, fill: Callable[[int], None], room: int | None = None) -> memoryview:
    check_room(size if room is None else room)
    fd = -1
    try:
        fd = memory.memory_file("shoal-shared", size)
        fill(fd)
        with _lock:
            return Segment(os.urandom(16), fd, size).map()
    except BaseException as error:  # Ctrl-C, too, while it is filled
        if fd >= 0:
            close_quietly(fd)
        if isinstance(error, OSError):
            raise refusal(size, error) from error
        raise


def adopt(identity: bytes, fd: int, size: int) -> memoryview:
    """Take over a segment received from another process and return a view of all of it. Owns `fd` from now on.

    Raises:
        OSError: It cannot be mapped. `fd` is closed.
    """
    with _lock:
        try:
            known = _by_id.get(identity)
            if known is not None:
                seen = known.view()
                close_quietly(fd)
                return seen
        except LookupError:
            pass  # its last view is going this moment
        try:
            return Segment(identity, fd, size).map()
        except OSError:
            close_quietly(fd)
            raise


def known(identity: bytes) -> Segment | None:
    """Return the segment of this identity if this process has it mapped."""
    return _by_id.get(identity)


def find(buffer: Any) -> Segment | None:
    """Return the segment a view, or an array made over one, lies in; None if it is ordinary memory."""
    for _ in range(64):  # views of views; a chain this long is somebody else's
        if type(buffer) is memoryview:
            buffer = buffer.obj
            continue
        found = _by_array.get(id(buffer))
        if found is not None:
            return found if found._array() is buffer else None
        inner = getattr(buffer, "base", None)
        if inner is None:
            return None
        buffer = inner
    return None


def after_fork_in_child() -> None:
    """Replace the lock: its holder may not be here. The segments themselves are inherited with their views."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=after_fork_in_child)
