"""The memory a pool copies large data into: kept while it is used, given back when the pool is idle.

Role: the engine's arena, what is stored in it once for many tasks, and news for workers that nothing else is sent to.
Owner: the engine. `keep` and `repeat` copy memory and are called without its lock; the rest with it.

Invariants
    E1  What is kept of a submitted task holds what the arguments were at that time.
    E2  Nothing here wakes a thread while the pool is idle and nobody lets go of anything.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal._os import cgroup
from shoal._pool.core import Core
from shoal._wire import codec
from shoal._wire.courier import LEND_BYTES, shared_segment
from shoal._wire.frames import parts_of

if TYPE_CHECKING:
    from shoal._memory.arena import Arena, Stored
    from shoal._pool.worker import WorkerHandle

#: Without work for this long a pool gives its warm memory back.
TRIM_S = 3.0
#: Leases given up here are told to an idle worker within this time.
NEWS_S = 0.05
#: Part of the memory this process may use that an arena may take, if nothing is said.
DEFAULT_SHARE = 4
#: Buffers of one map that are remembered because the next item may hold the same.
REPEATS = 4

#: Where a buffer is and how long it is.
_Place = tuple[int, int]


class Repeats:
    """The last large buffers of one map: an array that is part of many items is stored once.

    Holds on to the caller's memory, so an address means the same object for as long as it is here.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[_Place, tuple[memoryview, Stored]] = OrderedDict()

    def store(self, data: memoryview, arena: Arena) -> Any:
        """Return `data` stored, or itself if that is not possible."""
        place = _place(data)
        known = self._last.get(place)
        if known is not None:
            self._last.move_to_end(place)
            return known[1]
        stored = arena.store(data)
        if stored is None:
            return data
        self._last[place] = data, stored
        if len(self._last) > REPEATS:
            self._last.popitem(last=False)
        return stored


class Depot:
    """The arena of one engine and what goes with it."""

    def __init__(self, core: Core, send: Callable[[WorkerHandle], None]) -> None:
        """`send` sends a worker what there is for it; called without the lock."""
        self._core = core
        self._send = send
        self._lock = threading.Lock()
        self._arena: Arena | None = None
        self._kept: dict[_Place, weakref.ref[Any]] = {}
        self._limit_bytes = 0  # found out when it is asked for
        self._news_due = False
        self._trim_due = False
        self._seen = -1  # tasks submitted at the last look

    @property
    def limit_bytes(self) -> int:
        """Most memory the arena may take."""
        if not self._limit_bytes:
            self._limit_bytes = self._core.options.shared_memory_limit or cgroup.usable_memory_bytes() // DEFAULT_SHARE
        return self._limit_bytes

    def arena(self) -> Arena:
        """Return the arena, made at first use. Any thread."""
        if self._arena is None:
            from shoal._memory.arena import Arena

            with self._lock:
                if self._arena is None:
                    self._arena = Arena(self.limit_bytes)
        return self._arena

    @property
    def used_bytes(self) -> int:
        """Memory that is held for tasks or lent to workers now."""
        return self._arena.used_bytes if self._arena is not None else 0

    @property
    def held_bytes(self) -> int:
        """Memory of the arena, kept warm or used."""
        return self._arena.held_bytes if self._arena is not None else 0

    # --- storing --------------------------------------------------------------------------------

    def keep(self, buffers: list[Any]) -> None:
        """Replace the buffers of a submitted task by copies (E1), in the arena if they are large and it has room.

        Any thread, without the lock.
        """
        for slot, buffer in enumerate(buffers):
            parts = _large(buffer)
            if parts is None:
                buffers[slot] = codec.frozen(buffer)
            elif len(parts) == 1:
                buffers[slot] = self._keep(parts[0])
            else:
                buffers[slot] = self.arena().store(*parts) or codec.frozen(buffer)

    def _keep(self, data: memoryview) -> Any:
        """Copy `data`, unless what an earlier task that still waits has kept of the same place is equal to it."""
        from shoal._os import mapping

        place = _place(data)
        known = self._kept.get(place)
        kept = known() if known is not None else None
        if kept is not None and mapping.same(kept.view(), data):
            return kept
        kept = self.arena().store(data) or codec.frozen(data)
        # By the place alone: whatever lies there by now, what is equal to it may be sent for it.
        self._kept[place] = weakref.ref(kept, lambda ref: self._let_go(place, ref))
        return kept

    def _let_go(self, place: _Place, ref: weakref.ref[Any]) -> None:
        if self._kept.get(place) is ref:
            self._kept.pop(place, None)

    def repeat(self, repeats: Repeats, buffers: list[Any], start: int) -> None:
        """Replace large buffers of a map's items from `start` on by stored ones, each stored once. Without the lock."""
        for slot in range(start, len(buffers)):
            parts = _large(buffers[slot])
            if parts is not None and len(parts) == 1:
                buffers[slot] = repeats.store(parts[0], self.arena())

    # --- news -----------------------------------------------------------------------------------

    def news(self) -> None:
        """Somebody let go of lent memory. Any thread, also in a finalizer: takes no lock."""
        if not self._news_due:
            self._news_due = True
            self._core.poller.wake()

    def look(self) -> None:
        """Set the clocks for what is due; called by every pump."""
        if self._news_due and not self._core.closing:
            self._news_due = False
            self._core.after(NEWS_S, self._tell)
            self.touch()

    def _tell(self) -> None:
        for worker in self._core.workers.values():
            if worker.has_news and worker.state == "ready":
                self._core.later.append(lambda worker=worker: self._send(worker))  # type: ignore[misc]

    # --- giving back ----------------------------------------------------------------------------

    def touch(self) -> None:
        """Something large was sent or received: give the memory back some time after the last of it."""
        if not self._trim_due:
            self._trim_due = True
            self._core.after(TRIM_S, self._trim)

    def _trim(self) -> None:
        self._trim_due = False
        submitted = self._core.counters.submitted
        if self._core.dispatcher.has_work or submitted != self._seen:
            self._seen = submitted
            self.touch()
            return
        if self._arena is not None:
            self._arena.trim()
        for worker in self._core.workers.values():
            worker.trim()

    def close(self) -> None:
        """Give back all that nobody uses; what the caller holds of results stays valid."""
        if self._arena is not None:
            self._arena.close()

    def abandon(self) -> None:
        """In a forked child."""
        self._lock = threading.Lock()
        if self._arena is not None:
            self._arena.abandon()


def forget_shared(core: Core, identity: bytes) -> None:
    """A worker has let go of a shared segment: drop the object made from it, which may run code of the user."""
    import sys

    shared = sys.modules.get("shoal._memory.shared")
    if shared is not None:
        core.later.append(lambda: shared.forget(identity))


def _large(buffer: Any) -> list[memoryview] | None:
    """Return the parts of a buffer that is to be stored; None if it is small, shared or stored already."""
    if hasattr(buffer, "block") or shared_segment(buffer) is not None:
        return None
    parts = parts_of(buffer)
    return parts if sum(part.nbytes for part in parts) >= LEND_BYTES else None


def _place(data: memoryview) -> _Place:
    from shoal._os import mapping

    return mapping.address(data), data.nbytes
