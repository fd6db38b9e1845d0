"""`shoal.Queue`: many producers, many consumers, in any processes, any of which may be killed at any instant.

Role: the surface, waiting, asyncio. The steps on shared memory are in `queue_core.py`, the objects in `queue_items.py`, the
protocol in QUEUE.md. Owner: every process that has the queue. Any thread.

Invariants
    K1  Nobody sleeps for longer than `RECHECK_S` without looking again, and at what the dead have left.
    K2  An item that was taken and not handed out, because a signal handler raised, is what the same thread gets next.
    K3  Whoever waits for the event loop's sake only waits: nothing is taken or put outside the coroutine itself.
"""

from __future__ import annotations

import os
import queue as _stdlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from shoal._memory import segments
from shoal._os import futex, mutex
from shoal._settings import parse_bytes
from shoal._sync import deadlines, identities, queue_items
from shoal._sync import queue_layout as at
from shoal._sync.cells import Cell
from shoal._sync.deadlines import RECHECK_S
from shoal._sync.gates import Gate
from shoal._sync.patience import Patience
from shoal._sync.queue_core import FULL, SHUT, Core
from shoal._sync.queue_items import PLAIN_BYTES, PLAIN_TYPES, dumps
from shoal._sync.queue_party import Local, Party
from shoal._sync.queue_snapshots import LostItem, QueueStatistics
from shoal.errors import NoSharedMemory, QueueClosed

ItemT = TypeVar("ItemT")

#: Two chunks for small items, and as much again for blocks.
_LEAST_UNITS = 4


class Queue(Generic[ItemT]):
    """A queue for any number of producers and consumers, of any processes and threads.

    Has the calls of `multiprocessing.Queue` and `queue.Queue`. Passed as an argument to a task or process, alone or inside
    other objects, or inherited by a fork, it is the same queue everywhere. Whoever is killed at whatever instant holds up
    nobody: what a producer had not put yet was never there, what a consumer had taken is reported by `lost`, or with
    `ack=True` taken again by another one.
    """

    def __init__(self, maxsize: int = 0, *, ack: bool = False, memory_limit: int | str = "1GiB") -> None:
        """Make an empty queue.

        Args:
            maxsize: Most items in it; 0 or less for no limit but that of its memory.
            ack: Whoever takes an item says `task_done()` when it is done with; items of the dead are taken again.
            memory_limit: Most bytes for the items in it. Memory is taken as it is needed, and used again.

        Raises:
            TypeError: `maxsize` is no whole number.
            ValueError: `memory_limit` is less than 256 KiB.
            NoSharedMemory: There is no memory, or no descriptor, for it.
        """
        if not hasattr(type(maxsize), "__index__"):
            raise TypeError(f"maxsize must be a whole number of items, or 0 for no limit, not {maxsize!r}")
        units = parse_bytes("memory_limit", memory_limit) >> at.UNIT_BITS
        if units < _LEAST_UNITS:
            raise ValueError(f'memory_limit must be at least "256KiB", not {memory_limit!r}')
        table, data, size = at.plan(units, ack=ack)
        whole = segments.create_sparse(size, (table + 2) * 8)
        segments.reserve(whole, data, at.UNIT_BYTES)
        words = whole.cast("Q")
        words[at.UNITS] = units
        words[at.RESERVED] = 1
        words[at.MOST] = max(0, maxsize)
        words[at.ACK] = ack
        words[at.PUT_AT] = words[at.TAKE_AT] = data
        words[table] = at.NEVER
        words[table + 1] = 1 << 32 | at.CHUNK
        cell = Cell(whole, 0, size)
        mutex.make(cell.address + at.PUT_GUARD)
        mutex.make(cell.address + at.TAKE_GUARD)
        self._attach(cell)

    def _attach(self, cell: Cell) -> None:
        self._cell = cell
        self._view = view = cell.view
        self._words = words = cell.words(0, view.nbytes // 8)
        self._bells = cell.words(0, at.PARTIES * 2, "I")  # a bell is the first half of its word
        gates = Gate(cell.address + at.PUT_GUARD), Gate(cell.address + at.TAKE_GUARD)
        self._core = Core(words, view, *gates, lambda offset, nbytes: segments.reserve(view, offset, nbytes))
        self._ack = bool(words[at.ACK])
        self._patience = Patience()
        self._swept = 0.0
        self._become_local()
        _open.add(self)

    def _become_local(self) -> None:
        self._local = Local()
        self._parties: weakref.WeakSet[Party] = weakref.WeakSet()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _arrive, (type(self), self._cell)

    def __repr__(self) -> str:
        state = " closed" if self._words[at.CLOSED] else ""
        return f"<shoal.Queue{state}, {self.qsize()} waiting>"

    def _join_in(self) -> Party:
        core = self._core
        place = core.join(identities.me())
        if not place and core.sweep(identities.gone):
            place = core.join(identities.me())
        if not place:
            raise RuntimeError(f"a queue serves {at.PARTY_COUNT} threads that take, wait or put large items at a time")
        party = self._local.party = Party(core, self._view, place)
        self._parties.add(party)
        return party

    # --- putting --------------------------------------------------------------------------------

    def put(self, obj: ItemT, block: bool = True, timeout: float | None = None) -> None:
        """Put an item at the end; it is pickled before. Waits while the queue is full.

        Args:
            obj: Anything that can be pickled. Buffers of 64 KiB or more, such as those of numpy arrays, are copied once.
            block: Wait for room.
            timeout: Most seconds to wait; `None`: no limit.

        Raises:
            queue.Full: No room, or none within `timeout`. Nothing was put.
            QueueClosed: The queue was closed.
            NotPicklable: `obj` cannot be pickled, or lies in shared memory.
            NoSharedMemory: It is larger than the queue may ever hold, or there is no memory left. Nothing was put.
        """
        if timeout is not None:
            deadlines.seconds(timeout)  # refused also where nobody would wait
        if type(obj) in PLAIN_TYPES and len(data := dumps(obj)) <= PLAIN_BYTES:
            answer = self._core.put(data, at.PLAIN)
            if answer:
                self._put_later(queue_items.Record(at.PLAIN, data), block, timeout)
        else:
            record = queue_items.pack(obj)
            answer = self._try_put(record)
            if answer:
                self._put_later(record, block, timeout)
        if self._words[at.TAKERS]:
            self._ring(at.ITEM_BELL, 1)

    def _try_put(self, record: queue_items.Record) -> int:
        return self._put_large(record) if record.buffers else self._core.put(record.data, record.kind)

    def _put_later(self, record: queue_items.Record, block: bool, timeout: float | None) -> None:
        deadline = deadlines.deadline(timeout)
        while True:
            ready = self._room_from_now_on()
            answer = self._try_put(record)
            if not answer:
                return
            if answer == SHUT:
                raise QueueClosed(reason="the queue is closed: nothing more can be put into it")
            if not block or not self._wait(ready, at.ROOM_BELL, 2, deadline):
                raise _stdlib.Full

    def _room_from_now_on(self) -> Callable[[], bool]:
        """Return what tells whether there may be room that there is not now: an item was taken, or memory came back."""
        words, bells = self._words, self._bells
        bell = bells[2 * at.ROOM_BELL]
        taken = words[at.TAKEN]
        return lambda: bool(words[at.TAKEN] != taken or bells[2 * at.ROOM_BELL] != bell or words[at.CLOSED])

    def _put_large(self, record: queue_items.Record) -> int:
        core, view = self._core, self._view
        party = self._local.party or self._join_in()
        sizes = [sum(part.nbytes for part in parts) for parts in record.buffers]
        self._check_size(sum(-(-size >> at.UNIT_BITS) for size in sizes))
        units: list[int] = []
        try:
            for size in sizes:
                if core.allocate(size, party, units) < 0:
                    return FULL
            queue_items.fill(core, view, units, record)
            return core.put(queue_items.references(units, record), record.kind, units)
        finally:
            try:
                self._give_back(units)
            finally:
                self._give_back(units)  # what is left if a signal handler raised

    def _give_back(self, units: list[int]) -> None:
        """Free the blocks that no item has got: `Core.put` empties the list when one has."""
        while units:
            self._core.release(units[-1])
            del units[-1]  # no call since the store, so no signal handler either

    def _check_size(self, units: int) -> None:
        if units > self._core.units // 2:
            raise NoSharedMemory(
                wanted_bytes=units << at.UNIT_BITS,
                reason="an item takes at most half of what its queue may hold",
                hint=f"make the queue with memory_limit= at least {units >> 3 or 1} MiB",
            )

    def put_nowait(self, obj: ItemT) -> None:
        """As `put(obj, block=False)`."""
        self.put(obj, False)

    # --- taking ---------------------------------------------------------------------------------

    def get(self, block: bool = True, timeout: float | None = None) -> ItemT:
        """Take the first item. Waits while the queue is empty.

        With it in hand the item taken before counts as done with, unless the queue has `ack=True`: see `task_done`.

        Args:
            block: Wait for an item.
            timeout: Most seconds to wait; `None`: no limit.

        Raises:
            queue.Empty: No item, or none within `timeout`.
            QueueClosed: The queue was closed, and is empty.
        """
        if timeout is not None:
            deadlines.seconds(timeout)
        party = self._local.party or self._join_in()
        if party.stash is None and not self._core.take(party):
            self._take_later(party, block, timeout)
        if self._words[at.PUTTERS]:
            self._ring(at.ROOM_BELL, 1)
        item: ItemT = self._hand_out(party)
        return item

    def _take_later(self, party: Party, block: bool, timeout: float | None) -> None:
        self._finish(party)
        deadline = deadlines.deadline(timeout)
        closed = False
        while not self._core.take(party):
            if closed:
                raise QueueClosed(reason="the queue is closed, and nothing is left in it")
            closed = bool(self._words[at.CLOSED])
            if closed:
                self._sweep()  # and look once more: what was put before the close is there by now
            elif not block:
                if not self._sweep():
                    raise _stdlib.Empty
            elif not self._wait(self._has_item, at.ITEM_BELL, 1, deadline):
                raise _stdlib.Empty

    def _has_item(self) -> bool:
        words = self._words
        return bool(words[at.PUT] != words[at.TAKEN] or words[at.RETURNED] or words[at.CLOSED])

    def _hand_out(self, party: Party) -> Any:
        kind, data, entry = party.stash
        try:
            if kind == at.PLAIN:
                value = data
            else:
                value = queue_items.unpack(
                    self._core, self._view, kind, data, party, self._room_came, private=self._ack
                )
        except Exception:
            if self._ack:
                self._words[at.HELD_BY + entry] = 0  # acknowledged: the next one could not unpack it either
            party.stash = None
            raise
        # No calls from here on, so no signal handler either: it is in hand or in the stash, never both.
        if self._ack:
            party.held = [*party.held, entry]
        party.stash = None
        return value

    def get_nowait(self) -> ItemT:
        """As `get(block=False)`."""
        return self.get(False)

    def __iter__(self) -> Iterator[ItemT]:
        """Take items until the queue is closed and empty."""
        while True:
            try:
                item = self.get()
            except QueueClosed:
                return
            yield item

    # --- what becomes of items ------------------------------------------------------------------

    def task_done(self) -> None:
        """Say that an item is done with: the oldest one this thread took and has not said so of.

        Without `ack=True` this matters to `lost` and `join` only, and asking for the next item says the same.

        Raises:
            ValueError: This thread has no item in hand.
        """
        party = self._local.party
        if self._ack:
            if party is None or not party.held:
                raise ValueError("task_done() was called more often than items were taken by this thread")
            self._words[at.HELD_BY + party.held[0]] = 0  # no call from here to the next line, so no signal handler
            del party.held[0]
            self._room_came()
        else:
            if party is None or not self._words[party.place + at.CLAIM]:
                raise ValueError("task_done() was called though this thread has no item in hand")
            self._core.finish(party)
        self._done_came()

    def _finish(self, party: Party) -> None:
        if self._words[party.place + at.CLAIM]:
            self._core.finish(party)
            self._done_came()

    def join(self) -> None:
        """Wait until every item that was put is done with: nothing waits, and no living consumer has one in hand."""
        party = self._local.party or self._join_in()
        self._finish(party)
        words = self._words
        while True:
            words[at.JOINERS] = 1
            seen = self._bells[2 * at.DONE_BELL]
            self._sweep()
            if not self._unfinished():
                return
            futex.wait(self._cell.address + 8 * at.DONE_BELL, seen, RECHECK_S)

    def _unfinished(self) -> bool:
        words = self._words
        if words[at.PUT] != words[at.TAKEN] or (self._ack and self._unacknowledged()):
            return True
        return any(words[place + at.CLAIM] for place, _ in self._core.parties())

    def _unacknowledged(self) -> int:
        entries: list[int] = self._words[at.HELD_BY : at.HELD_BY + at.HELD_COUNT].tolist() if self._ack else []
        return at.HELD_COUNT - entries.count(0) if entries else 0

    @property
    def lost(self) -> list[LostItem]:
        """Items whose consumers died with them in hand, oldest first; the last 512 of them. Looks for the dead first."""
        self._core.sweep(identities.gone)
        return [LostItem(identities.pid_of(who), number) for who, number in self._core.losses()]

    # --- the state of it ------------------------------------------------------------------------

    def qsize(self) -> int:
        """Return how many items wait; another process may change that at any time."""
        return self._core.waiting()

    def empty(self) -> bool:
        """Say whether no item waits; another process may change that at any time."""
        return not self.qsize()

    def full(self) -> bool:
        """Say whether `maxsize` items wait; another process may change that at any time."""
        most = self._words[at.MOST]
        return bool(most and self.qsize() >= most)

    def close(self) -> None:
        """Close the queue for everybody: no more can be put, what is in it can be taken. Twice does no harm."""
        self._core.close()
        self._ring(at.ITEM_BELL, futex.EVERYBODY)
        self._ring(at.ROOM_BELL, futex.EVERYBODY)

    @property
    def closed(self) -> bool:
        """Whether somebody closed it."""
        return bool(self._words[at.CLOSED])

    def join_thread(self) -> None:
        """Do nothing: what was put is in the queue when `put` returns. Here for programs that used `multiprocessing`'s."""

    cancel_join_thread = join_thread

    def statistics(self) -> QueueStatistics:
        """Return what it has done and what is in it. Looks for the dead first."""
        core, words = self._core, self._words
        core.sweep(identities.gone)
        return QueueStatistics(
            put=words[at.PUT],
            taken=words[at.TAKEN],
            waiting=core.waiting(),
            lost=words[at.LOST],
            redelivered=words[at.REDELIVERED],
            unacknowledged=self._unacknowledged(),
            consumers_asleep=words[at.TAKERS],
            producers_asleep=words[at.PUTTERS],
            memory_bytes=core.data + (words[at.RESERVED] << at.UNIT_BITS),
            memory_limit_bytes=core.units << at.UNIT_BITS,
            closed=self.closed,
        )

    # --- waiting --------------------------------------------------------------------------------

    def _wait(self, ready: Callable[[], bool], bell: int, how: int, deadline: float | None) -> bool:
        """Wait until `ready()` or for a little less than `RECHECK_S`; False once the deadline has passed."""
        if deadline is not None and time.monotonic() >= deadline:
            return False
        if not self._patience.spin(ready):
            self._sleep(ready, bell, how, RECHECK_S if deadline is None else deadline - time.monotonic())
        return True

    def _sleep(self, ready: Callable[[], bool], bell: int, how: int, most_s: float) -> None:
        party = self._local.party or self._join_in()
        core = self._core
        try:
            core.fall_asleep(party, how)
            seen = self._bells[2 * bell]
            if ready() or most_s <= 0:
                return
            woken = futex.wait(self._cell.address + 8 * bell, seen, min(most_s, RECHECK_S))
        finally:
            core.fall_asleep(party, 0)
        if not woken:
            self._sweep()  # K1

    def _sweep(self) -> bool:
        """Look for the dead, if that was not done just now. True if there were any."""
        now = time.monotonic()
        if now - self._swept < RECHECK_S / 2:
            return False
        self._swept = now
        if not self._core.sweep(identities.gone):
            return False
        self._ring(at.ITEM_BELL, futex.EVERYBODY)
        self._ring(at.ROOM_BELL, futex.EVERYBODY)
        return True

    def _ring(self, bell: int, count: int) -> None:
        # Any other number will do; two who ring at once shall not write the same one.
        self._bells[2 * bell] = (time.monotonic_ns() ^ threading.get_ident()) & 0xFFFFFFFF
        if count:
            futex.wake(self._cell.address + 8 * bell, count)

    def _room_came(self) -> None:
        """Memory came back. Runs in finalizers."""
        self._ring(at.ROOM_BELL, futex.EVERYBODY if self._words[at.PUTTERS] else 0)

    def _done_came(self) -> None:
        if self._words[at.JOINERS]:
            self._ring(at.DONE_BELL, futex.EVERYBODY)

    # --- asyncio --------------------------------------------------------------------------------

    async def aput(self, obj: ItemT) -> None:
        """As `put`, for a coroutine: the event loop runs on meanwhile. Cancelled, it has put nothing."""
        while True:
            ready = self._room_from_now_on()
            try:
                return self.put(obj, False)
            except _stdlib.Full:
                await self._wait_aside(ready, at.ROOM_BELL, 2)

    async def aget(self) -> ItemT:
        """As `get`, for a coroutine: the event loop runs on meanwhile. Cancelled, it has taken nothing."""
        while True:
            try:
                return self.get(False)
            except _stdlib.Empty:
                await self._wait_aside(self._has_item, at.ITEM_BELL, 1)

    async def _wait_aside(self, ready: Callable[[], bool], bell: int, how: int) -> None:
        from asyncio import get_running_loop  # not at the top: it is the largest import of all

        await get_running_loop().run_in_executor(None, self._wait, ready, bell, how, None)

    async def __aiter__(self) -> Any:
        """Take items until the queue is closed and empty."""
        while True:
            try:
                item = await self.aget()
            except QueueClosed:
                return
            yield item


def _arrive(kind: Any, cell: Cell) -> Any:
    made = kind.__new__(kind)
    made._attach(cell)
    return made


_open: weakref.WeakSet[Queue[Any]] = weakref.WeakSet()


def _about_to_fork() -> None:
    for one in _open:
        for party in one._parties:
            if party.leases:
                one._words[party.place + at.FORKED] = 1


def _become_another() -> None:
    for one in _open:
        one._become_local()


os.register_at_fork(before=_about_to_fork, after_in_child=_become_another)
