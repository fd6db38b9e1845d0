"""Large buffers on their way between two processes: lent, not sent.

Role: what goes beside the frames of one worker. The sender replaces each large buffer of a frame by a lease on shared
memory and passes its descriptor through a socket of its own; the receiver maps it, and tells when its last view is gone.
Owner: at either end, whoever writes and reads that worker's frames. `outgoing` and `incoming` are called by one thread
at a time each, in the order in which the frames are written and read. Protocol: `_memory/README.md`.

Invariants
    C1  The descriptors of a frame are in their socket before the frame is in its own, so whoever has read the frame
        finds them there at once.
    C2  What cannot be lent (no memory, no descriptors, over the limit) travels inside the frame: slower, not lost. But a
        shared segment never does: the other end would get a copy, and what it writes there would be lost.
    C3  A lease is given up after its memory is unmapped, never before.
    C4  A descriptor belongs to one frame: both carry its number, so one whose frame never came is passed over.
    C5  A finalizer only appends to a queue here; the queue is sent with the next frame.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shoal._os import descriptors
from shoal._wire import messages as m
from shoal._wire.frames import Frame, parts_of

if TYPE_CHECKING:
    from shoal._memory.arena import Arena

#: A buffer of a frame as the sender has it: bytes, `codec.Stream`, or `_memory.arena.Stored`.
Outgoing = Any
#: Least size of a buffer that is lent. Measured, see docs/internals/performance.md.
LEND_BYTES = 1 << 18
#: Mappings of lent memory this process may have; beyond them data is copied and the lease given up (the kernel allows 65,530
#: mappings to a process).
MOST_MAPPINGS = 20_000

_mappings = 0  # of all couriers; counted loosely, the margin is wide


class Courier:
    """One end of the socket beside a worker's frames."""

    def __init__(self, sock: socket.socket, arena: Callable[[], Arena], forget: Callable[[bytes], object]) -> None:
        """Take over `sock`.

        Args:
            sock: Does not block.
            arena: Returns this end's arena; asked for when there is something large.
            forget: Called when the other end has let go of a shared segment; may free objects of the user.
        """
        self._sock = sock
        self._arena = arena
        self._forget = forget
        self._given_up: deque[int] = deque()
        self._let_go: deque[bytes] = deque()
        self._missed: deque[bytes] = deque()  # segments that did not arrive
        self._known: dict[bytes, Any] = {}  # shared segments the other end has from us
        self._kept: dict[bytes, memoryview] = {}  # those we have from it, for as long as it says
        self._reserve = -1  # a descriptor to give up when there are no others
        self._lends = False
        self._sent = 0  # descriptors passed so far
        #: Called when there is something to tell. Any thread, also in finalizers.
        self.on_news: Callable[[], object] | None = None

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell the other end."""
        return bool(self._given_up or self._let_go or self._missed)

    # --- out ------------------------------------------------------------------------------------

    def outgoing(self, messages: Sequence[m.Message], buffers: Sequence[Outgoing]) -> tuple[list[m.Message], list[Any]]:
        """Return what to encode in place of `messages` and `buffers`. Copies memory; does not block."""
        head: list[m.Message] = []
        if self.has_news:
            head.append(self._news())
        placed: list[Any] = []
        fds: list[int] = []
        lent: list[tuple[Any, ...]] = []
        for slot, buffer in enumerate(buffers):
            entry = self._lend(buffer, slot, fds)
            if entry is None:
                placed.append(buffer.view() if hasattr(buffer, "block") else buffer)
            else:
                lent.append(entry)
                placed.append(b"")
        if lent:
            head.append((m.LENT, len(fds), self._sent - len(fds), lent))
        return [*head, *messages], placed

    def _news(self) -> m.Message:
        given_up, let_go, missed = _drained(self._given_up), _drained(self._let_go), _drained(self._missed)
        for identity in let_go:
            self._known.pop(identity, None)
        return m.NEWS, given_up, let_go, missed

    def _lend(self, buffer: Outgoing, slot: int, fds: list[int]) -> tuple[Any, ...] | None:
        """Make a buffer readable for the other end; returns its entry in LENT, or None if it has to travel (C2)."""
        stored = buffer
        if isinstance(buffer, bytes | bytearray | memoryview):
            segment = shared_segment(buffer)
            if segment is not None:
                return self._share(segment, slot, fds)
        if not hasattr(buffer, "block"):
            parts = parts_of(buffer)
            if sum(part.nbytes for part in parts) < LEND_BYTES:
                return None
            stored = self._arena().store(*parts)
            if stored is None:
                return None
        self._lends = True
        arena = self._arena()
        lease, fd, offset = arena.lend(stored, self)
        place = self._pass(fd, fds)
        if place is None:
            arena.give_back(self, (lease,))
            return None
        return slot, place, lease, offset, stored.nbytes

    def _share(self, segment: Any, slot: int, fds: list[int]) -> tuple[Any, ...]:
        """As `_lend`, for a shared segment. One that cannot be passed now is an error there, never silently a copy."""
        new = segment.id not in self._known
        back = new and segment.id in self._kept  # it came from there: two that keep it for each other never let go
        place: int | None = -1
        if new:
            place = self._pass(segment.fd, fds)
            if place is None:
                return slot, -1, segment.id, 0, segment.size
        if new and not back:
            self._known[segment.id] = segment
            segment.watchers.append(self._gone)
        return slot, place, segment.id, int(back), segment.size

    def _pass(self, fd: int, fds: list[int]) -> int | None:
        """Send a descriptor, once per frame; returns its place among them, or None if that is impossible now."""
        if fd in fds:
            return fds.index(fd)
        try:
            descriptors.send_with_fds(self._sock, bytes((self._sent & 0xFF,)), (fd,))
        except OSError:  # too many under way, or nobody there
            return None
        self._sent += 1
        fds.append(fd)
        return len(fds) - 1

    # --- in -------------------------------------------------------------------------------------

    def incoming(self, frame: Frame) -> None:
        """Take out of a frame what is ours, and put the lent memory in the place of its buffers. Does not block."""
        messages = frame.messages
        while messages and messages[0][0] >= m.LENT:
            message = messages.pop(0)
            if message[0] == m.NEWS:
                self._take_news(*message[1:])
            else:
                self._receive(frame, *message[1:])

    def _take_news(self, given_up: list[int], let_go: list[bytes], missed: list[bytes]) -> None:
        if given_up:
            self._arena().give_back(self, given_up)
        for identity in let_go:
            self._kept.pop(identity, None)
            self._forget(identity)
        for identity in missed:
            segment = self._known.pop(identity, None)
            if segment is not None:
                segment.watchers.remove(self._gone)

    def _receive(self, frame: Frame, count: int, first: int, lent: list[tuple[Any, ...]]) -> None:
        fds = [self._take_descriptor(first + index) for index in range(count)]
        slots: list[Any] = frame.buffers
        for slot, place, key, offset, nbytes in lent:
            fd = fds[place] if place >= 0 else -1
            try:
                if isinstance(key, bytes):
                    slots[slot] = self._adopt(key, fd, nbytes, keep=not offset)
                else:
                    slots[slot] = self._map(fd, key, offset, nbytes)
            except Exception as error:  # whoever needs this buffer is told; the other ones are good
                slots[slot] = _lost(nbytes, error)
                if isinstance(key, bytes):
                    self._missed.append(key)
                else:
                    self._give_up(key)
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        self._refill()

    def _take_descriptor(self, number: int) -> int:
        """Receive one descriptor; -1 if this process may not have another. Passes over those of frames that never came."""
        if self._reserve < 0:
            self._refill()
        try:
            os.close(os.dup(self._sock.fileno()))
        except OSError:  # none left: use the reserve, because what arrives now and finds no place is lost
            self._spend()
        while True:
            try:
                data, fds = descriptors.recv_with_fds(self._sock, 1, 1)
            except OSError:
                return -1
            if not fds:
                return -1
            if data[0] == number & 0xFF:
                return fds[0]
            os.close(fds[0])

    def _spend(self) -> None:
        if self._reserve >= 0:
            reserve, self._reserve = self._reserve, -1
            os.close(reserve)

    def _refill(self) -> None:
        if self._reserve < 0:
            try:
                self._reserve = os.dup(self._sock.fileno())
            except OSError:
                pass  # next time

    def _map(self, fd: int, lease: int, offset: int, nbytes: int) -> Any:
        from shoal._os import mapping

        global _mappings
        if fd < 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if _mappings < MOST_MAPPINGS:
            _mappings += 1
            try:
                forks = mapping.forks
                array = mapping.map_file(
                    fd,
                    nbytes,
                    offset=offset,
                    private=True,
                    on_gone=lambda: self._unmapped(lease, mapping.forks - forks),
                )
                return mapping.view(array)
            except OSError:
                _mappings -= 1
        data = bytearray(nbytes)
        done = 0
        while done < nbytes:
            count = os.preadv(fd, [memoryview(data)[done:]], offset + done)
            if not count:
                raise OSError("a large buffer ended early")
            done += count
        self._give_up(lease)
        return data

    def _adopt(self, identity: bytes, fd: int, size: int, *, keep: bool) -> memoryview:
        from shoal._memory import segments

        if fd < 0:
            if identity not in self._kept:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return self._kept[identity]
        view = segments.adopt(identity, os.dup(fd), size)
        if keep:
            self._kept[identity] = view
        return view

    def _unmapped(self, lease: int, forked: int) -> None:
        global _mappings
        _mappings -= 1
        self._give_up(-lease if forked else lease)  # a forked child may have the mapping, and shall not see it change

    def _give_up(self, lease: int) -> None:
        self._given_up.append(lease)  # C5
        if self.on_news is not None:
            self.on_news()

    def _gone(self, identity: bytes) -> None:
        self._let_go.append(identity)  # C5
        if self.on_news is not None:
            self.on_news()

    # --- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """The other end is gone: everything lent to it returns."""
        self.on_news = None
        if self._lends:
            self._arena().holder_gone(self)
        for segment in self._known.values():
            segment.watchers.remove(self._gone)
        self._known.clear()
        kept, self._kept = self._kept, {}
        for identity in kept:
            self._forget(identity)
        self._spend()
        self._sock.close()

    def abandon(self) -> None:
        """In a forked child: close the descriptors."""
        self.on_news = None
        self._lends = False
        self._known.clear()
        self._spend()
        self._sock.close()


def shared_segment(buffer: Any) -> Any:
    """Return the shared segment of which this buffer is the whole, or None."""
    segments = sys.modules.get("shoal._memory.segments")  # not loaded: nothing is shared
    if segments is None or not isinstance(buffer, memoryview):
        return None
    array = segments.mapping.mapped_array(buffer)
    found = segments.find(array) if array is not None else None
    return found if found is not None and found.size == buffer.nbytes else None


def forget_shared(identity: bytes) -> None:
    """Drop what this process made from a shared segment that the other end has let go of. May run code of the user."""
    shared = sys.modules.get("shoal._memory.shared")
    if shared is not None:
        shared.forget(identity)


def _drained(queue: deque[Any]) -> list[Any]:
    """Empty a queue that others may append to meanwhile."""
    taken = []
    while queue:
        taken.append(queue.popleft())
    return taken


def _lost(nbytes: int, error: Exception) -> Exception:
    """Return what whoever needs a buffer that could not be mapped is told."""
    from shoal._memory import segments

    if not isinstance(error, OSError):  # MemoryError
        error = OSError(errno.ENOMEM, f"it cannot be mapped here: {type(error).__name__}")
    return segments.refusal(nbytes, error)
