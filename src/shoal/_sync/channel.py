"""`shoal.Channel`: one writer, one or more readers that each see every message, in a ring of shared slots, without a lock.

Role: the ring, the seats at it, waiting. Owner: every process that has the channel; each seat belongs to one process. Any thread.
Protocol: CHANNEL.md beside this file.

Invariants
    N1  A message is sent by one store, of `SENT`, behind the message itself; received by one store, of the reader's `AT`.
    N2  The writer writes into a slot only when every open seat is past what was in it.
    N3  Nobody sleeps for longer than `RECHECK_S` without looking whether the other end has died.
    N4  Seats change hands inside the guard only. Who has one needs no lock, but one against the threads of his own process.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from shoal._memory import segments
from shoal._os import futex, mutex
from shoal._settings import parse_bytes
from shoal._sync import channel_kinds, deadlines, identities
from shoal._sync.cells import Cell
from shoal._sync.channel_ring import (
    AT,
    CAPACITY,
    CLOSED,
    OPEN,
    READERS,
    RESERVED,
    ROOM_BELL,
    SEAT_WORDS,
    SEATS,
    SENT,
    SHUT,
    SLEEPS,
    SLOT,
    STATE,
    WHO,
    WRITER,
    WRITER_SLEEPS,
    Ring,
)
from shoal._sync.deadlines import RECHECK_S
from shoal._sync.gates import Reentered
from shoal._sync.patience import Patience
from shoal.errors import ChannelClosed

#: Memory reserved at once; a larger ring takes the rest as it comes to it.
_AT_ONCE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelStatistics:
    """What a channel has done so far and who is at it.

    Attributes:
        sent: Messages sent so far.
        received: For each seat, how many messages it has received, or passed over.
        capacity: Messages that the ring holds.
        writer: Pid of the writer; `None` if nobody has sent.
        readers: Pids of those who have a seat.
        closed: Whether the writer closed it.
    """

    sent: int
    received: tuple[int, ...]
    capacity: int
    writer: int | None
    readers: tuple[int, ...]
    closed: bool


class Channel:
    """A typed channel: one process sends, one or more receive, and each of them gets every message, in order.

    Whoever sends first is the writer, whoever receives first takes a seat as reader; `writer()` and `reader()` say so in
    advance. Messages wait for readers that have not come yet. Passed as an argument to a task or process, or inherited by a
    fork, it is the same channel. A reader that dies holds nobody up; the death of the writer is seen by the readers.
    """

    def __init__(
        self,
        kind: Any,
        *,
        shape: tuple[int, ...] | int | None = None,
        capacity: int = 64,
        readers: int = 1,
        message_bytes: int | str = 4096,
    ) -> None:
        """Make a channel.

        Args:
            kind: `bytes`, a dataclass, or a numpy dtype. A dataclass whose fields are int, float and bool is packed, not pickled.
            shape: Of the arrays, with a dtype.
            capacity: Messages that may wait; then `send` does.
            readers: Seats.
            message_bytes: The largest message, of bytes or of a dataclass that has to be pickled.

        Raises:
            TypeError: No channel carries `kind`.
            ValueError: `capacity` or `readers` is not positive.
            NoSharedMemory: There is no memory for it.
        """
        if capacity < 1 or readers < 1:
            raise ValueError(f"capacity and readers must be positive, not {capacity} and {readers}")
        carried = channel_kinds.find(kind, shape, parse_bytes("message_bytes", message_bytes))
        slot = 8 + -(-carried.size // 8) * 8
        start = (SEATS + readers * SEAT_WORDS) * 8
        size = start + capacity * slot
        reserved = min(capacity, max(1, _AT_ONCE_BYTES // slot))
        cell = Cell(segments.create_sparse(size, start + reserved * slot), 0, size)
        words = cell.words(0, start // 8)
        words[CAPACITY], words[SLOT], words[READERS], words[RESERVED] = capacity, slot, readers, reserved
        mutex.make(cell.address)
        self._attach(cell, carried)

    def _attach(self, cell: Cell, kind: channel_kinds.Kind) -> None:
        self._kind = kind
        self._ring = Ring(cell, kind)
        self._become_local()
        _open.add(self)

    def _become_local(self) -> None:
        self._writer: Writer | None = None
        self._reader: Reader | None = None
        self._choosing = threading.Lock()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _arrive, (type(self), self._ring.cell, self._kind)

    def __repr__(self) -> str:
        return f"<shoal.Channel of {self._kind}>"

    def writer(self) -> Writer:
        """Become the writer, and return the end to write to.

        Raises:
            RuntimeError: Another process is, and lives.
        """
        with self._choosing:
            if self._writer is None:
                self._ring.claim_writer()
                self._writer = Writer(self._ring)
            return self._writer

    def reader(self) -> Reader:
        """Take a free seat and return it: another one with each call. One that a dead reader left goes on where that one was.

        Raises:
            RuntimeError: All seats are taken.
        """
        return Reader(self._ring, self._ring.claim_seat())

    def _default_reader(self) -> Reader:
        with self._choosing:
            if self._reader is None:
                self._reader = self.reader()
            return self._reader

    def send(self, value: Any, timeout: float | None = None) -> None:
        """Send a message; see `Writer.send`. The first time, become the writer."""
        (self._writer or self.writer()).send(value, timeout)

    def receive(self, timeout: float | None = None, *, out: Any = None) -> Any:
        """Receive the next message; see `Reader.receive`. The first time, take a seat."""
        return (self._reader or self._default_reader()).receive(timeout, out=out)

    def __iter__(self) -> Iterator[Any]:
        """Receive until the channel is closed."""
        return iter(self._reader or self._default_reader())

    async def asend(self, value: Any) -> None:
        """As `send`, for a coroutine: the event loop runs on meanwhile."""
        await (self._writer or self.writer()).asend(value)

    async def areceive(self) -> Any:
        """As `receive`, for a coroutine: the event loop runs on meanwhile. Cancelled, it has received nothing."""
        return await (self._reader or self._default_reader()).areceive()

    def __aiter__(self) -> AsyncIterator[Any]:
        """Receive until the channel is closed."""
        return (self._reader or self._default_reader()).__aiter__()

    def close(self) -> None:
        """Close the ends that this process has; if it has none, close the channel for its readers."""
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None or self._reader is None:
            self._ring.close()

    def statistics(self) -> ChannelStatistics:
        """Return what it has done and who is at it."""
        words = self._ring.words
        seats = self._ring.seats
        return ChannelStatistics(
            sent=words[SENT],
            received=tuple(words[seat + AT] for seat in seats),
            capacity=words[CAPACITY],
            writer=identities.pid_of(words[WRITER]) if words[WRITER] else None,
            readers=tuple(identities.pid_of(words[seat + WHO]) for seat in seats if words[seat + WHO]),
            closed=bool(words[CLOSED]),
        )


class _End:
    """What both ends have: threads that take turns, and a process it belongs to."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._become_local()
        self._inherited = False
        _ends.add(self)

    def _become_local(self) -> None:
        self._turn: Any = threading.RLock()  # knows whose it is
        self._inherited = True

    def _await_turn(self, until: float | None) -> bool:
        """Wait for the turn until then. Whoever asks releases it, had or not: a handler may raise on the way."""
        turn = self._turn
        if turn.acquire(False):
            return True
        return bool(
            turn.acquire() if until is None else turn.acquire(True, deadlines.left(until, threading.TIMEOUT_MAX))
        )


class Writer(_End):
    """The end of a channel to send to. A context manager that closes it. Inherited by a fork, it is another writer there."""

    def __init__(self, ring: Ring) -> None:
        super().__init__(ring)
        self._patience = Patience()
        self._slowest = 0
        self._reserved: int = ring.words[RESERVED]

    def send(self, value: Any, timeout: float | None = None) -> None:
        """Send a message, which is copied. Waits while the ring is full.

        Raises:
            TypeError: `value` is not of the channel's type.
            ValueError: It is larger than the channel's messages may be.
            TimeoutError: No room within `timeout` seconds. Nothing was sent.
            ChannelClosed: It was closed, or nobody reads it any more.
        """
        ring = self._ring
        words = ring.words
        until = None if timeout is None else deadlines.deadline(timeout)
        if self._inherited:
            self._take_over()
        turn = self._turn
        if turn._is_owned():
            raise Reentered("channel")
        try:
            if not self._await_turn(until):
                raise TimeoutError("this channel stayed full: other threads are waiting to send")
            sent = words[SENT]
            if words[CLOSED]:
                raise ChannelClosed(reason="this channel is closed: nothing more can be sent")
            if sent - self._slowest >= ring.capacity:
                self._wait_for_room(sent, until, at_once=timeout == 0)
            index = sent % ring.capacity
            if index >= self._reserved:
                self._reserve(index)
            at = ring.start + index * ring.slot
            words[at >> 3] = ring.kind.write(ring.view, at + 8, value)
            words[SENT] = sent + 1  # N1
        finally:
            try:
                turn.release()  # the first call here, so that no signal handler comes before it
            except RuntimeError:
                pass  # we did not have it
        # Giving the turn back is an atomic instruction: what was stored is seen before we look.
        for seat in ring.seats:
            if words[seat + SLEEPS]:
                futex.wake(ring.address + 8 * SENT, futex.EVERYBODY)
                break

    def _reserve(self, index: int) -> None:
        ring = self._ring
        segments.reserve(ring.view, ring.start + index * ring.slot, ring.slot)
        self._reserved = ring.words[RESERVED] = index + 1

    def _take_over(self) -> None:
        """Become the writer in a forked child."""
        self._ring.claim_writer()
        self._slowest = 0
        self._inherited = False

    def _wait_for_room(self, sent: int, until: float | None, *, at_once: bool) -> None:
        while not self._has_room(sent):
            if not at_once and self._patience.spin(lambda: self._has_room(sent)):
                return
            if not (left_s := deadlines.left(until, RECHECK_S)):
                raise TimeoutError("this channel stayed full: a reader is too slow")
            self._sleep(sent, left_s)

    def _has_room(self, sent: int) -> bool:
        self._slowest = self._ring.slowest()
        return sent - self._slowest < self._ring.capacity

    def _sleep(self, sent: int, most_s: float) -> None:
        ring = self._ring
        try:
            ring.words[WRITER_SLEEPS] = 1
            seen = ring.halves[2 * ROOM_BELL]
            ring.guard.run(_nothing)  # an atomic instruction: our word is seen before we look
            if not self._has_room(sent) and not futex.wait(ring.address + 8 * ROOM_BELL, seen, min(most_s, RECHECK_S)):
                ring.bury()  # N3
        finally:
            ring.words[WRITER_SLEEPS] = 0
        if ring.words[CLOSED]:
            raise ChannelClosed(reason="this channel was closed")

    async def asend(self, value: Any) -> None:
        """As `send`, for a coroutine: the event loop runs on meanwhile."""
        from asyncio import get_running_loop

        while True:
            try:
                return self.send(value, 0)
            except TimeoutError:
                await get_running_loop().run_in_executor(None, self._sleep, self._ring.words[SENT], RECHECK_S)

    def close(self) -> None:
        """Tell the readers that nothing more will come: they get what is in the ring, then `ChannelClosed`."""
        if not self._inherited:  # else the parent is the writer
            self._ring.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


class Reader(_End):
    """A seat of a channel, to receive from. A context manager that gives it up. Inherited by a fork, it takes another there."""

    def __init__(self, ring: Ring, seat: int) -> None:
        super().__init__(ring)
        self._seat = seat
        self._patience = Patience()
        self._stash: list[Any] = []

    def receive(self, timeout: float | None = None, *, out: Any = None) -> Any:
        """Return a copy of the next message. Waits until there is one.

        Args:
            timeout: Most seconds to wait; `None`: no limit.
            out: An array to receive into, in a channel of arrays; it is returned.

        Raises:
            TimeoutError: Nothing came within `timeout` seconds.
            ChannelClosed: The writer closed it, or died, and everything it sent was received.
        """
        ring = self._ring
        words = ring.words
        until = None if timeout is None else deadlines.deadline(timeout)
        if self._inherited:
            self._take_over()
        turn = self._turn
        if turn._is_owned():
            raise Reentered("channel")
        try:
            if not self._await_turn(until):
                raise TimeoutError("nothing came through the channel in time: other threads are waiting to receive")
            stash, seat = self._stash, self._seat
            if not stash:
                at = words[seat + AT]
                if words[SENT] == at:
                    self._wait(at, until, at_once=timeout == 0)
                value = self._read(at, out)
                stash.append(value)  # a signal handler that raises from here on does not take it away
                words[seat + AT] = at + 1  # N1
            value = stash[0]
            stash.clear()
        finally:
            try:
                turn.release()  # the first call here, so that no signal handler comes before it
            except RuntimeError:
                pass  # we did not have it
        if words[WRITER_SLEEPS]:
            ring.ring()
        return value

    def _read(self, at: int, out: Any) -> Any:
        ring, words = self._ring, self._ring.words
        place = ring.start + at % ring.capacity * ring.slot
        try:
            return ring.kind.read(ring.view, place + 8, words[place >> 3], out)
        except Exception:
            if out is None or not isinstance(ring.kind, channel_kinds.Array):  # else `out` may be what is wrong
                words[self._seat + AT] = at + 1  # it could not be rebuilt the next time either
                ring.ring()
            raise

    def _take_over(self) -> None:
        """Take a seat in a forked child."""
        self._seat = self._ring.claim_seat()
        self._stash = []
        self._inherited = False

    def _wait(self, at: int, until: float | None, *, at_once: bool) -> None:
        words = self._ring.words
        while words[SENT] == at:
            if words[self._seat + STATE] != OPEN:
                raise ChannelClosed(reason="this end of the channel was closed")
            if words[CLOSED] and words[SENT] == at:
                raise ChannelClosed(reason="the channel is closed: its writer has finished")
            if not at_once and self._patience.spin(lambda: words[SENT] != at):
                return
            if not (left_s := deadlines.left(until, RECHECK_S)):
                raise TimeoutError("nothing came through the channel in time")
            self._sleep(at, left_s)

    def _sleep(self, at: int, most_s: float) -> None:
        ring, words = self._ring, self._ring.words
        try:
            words[self._seat + SLEEPS] = 1
            # The kernel looks at the word after us, so what was sent meanwhile is not missed.
            woken = words[CLOSED] or futex.wait(ring.address + 8 * SENT, at & 0xFFFFFFFF, min(most_s, RECHECK_S))
        finally:
            words[self._seat + SLEEPS] = 0
        if not woken and words[WRITER] and self._ring.gone(words[WRITER]) and words[SENT] == at:  # N3
            pid = identities.pid_of(words[WRITER])
            raise ChannelClosed(reason=f"the writer of the channel, process {pid}, ended without closing it")

    async def areceive(self) -> Any:
        """As `receive`, for a coroutine: the event loop runs on meanwhile. Cancelled, it has received nothing."""
        from asyncio import get_running_loop

        while True:
            try:
                return self.receive(0)
            except TimeoutError:
                at = self._ring.words[self._seat + AT]
                await get_running_loop().run_in_executor(None, self._sleep, at, RECHECK_S)

    def __iter__(self) -> Iterator[Any]:
        """Receive until the channel is closed."""
        while True:
            try:
                value = self.receive()
            except ChannelClosed:
                return
            yield value

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Receive until the channel is closed."""
        while True:
            try:
                value = await self.areceive()
            except ChannelClosed:
                return
            yield value

    def close(self) -> None:
        """Give the seat up: the writer does not wait for it any more, and nobody else gets it."""
        if self._inherited:
            return  # the seat is the parent's
        self._ring.words[self._seat + STATE] = SHUT
        self._ring.ring()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


def _nothing() -> None:
    """A step that takes part in the order of all others."""


def _arrive(kind: Any, cell: Cell, carried: channel_kinds.Kind) -> Any:
    made = kind.__new__(kind)
    made._attach(cell, carried)
    return made


_open: weakref.WeakSet[Channel] = weakref.WeakSet()
_ends: weakref.WeakSet[_End] = weakref.WeakSet()


def _become_another() -> None:
    for one in _open:
        one._become_local()
    for end in _ends:
        end._become_local()


os.register_at_fork(after_in_child=_become_another)
