"""One thread as a queue knows it.

Role: its place in the party table, what it has taken, and giving both back. Owner: that thread; its end may come in another one.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from shoal._sync.queue_core import Core
from shoal._sync.queue_items import kept


class Party:
    """One thread of this process as the queue knows it. Ends with the thread or the queue, unless views of blocks remain."""

    __slots__ = ("__weakref__", "_core", "_pid", "held", "leases", "place", "stash")

    def __init__(self, core: Core, view: memoryview, place: int) -> None:
        kept[id(self)] = view
        self._core = core
        self._pid = os.getpid()
        self.place = place
        self.stash: Any = None
        self.held: list[int] = []
        self.leases = 0

    def __del__(self, kept: dict[int, memoryview] = kept) -> None:
        if self._pid == os.getpid() and self.stash is None:  # else the item counts as lost when the process has ended
            self._core.leave(self, self.held)
        kept.pop(id(self), None)


class Local(threading.local):
    """The party of the current thread."""

    party: Party | None = None
