"""Things to do later.

Role: a heap of due times. Owner: the engine; calls are made with its lock held, but for `wait_s` of a thread that has just stopped reading.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable

Action = Callable[[], None]


class Timers:
    """Actions and when they are due, in seconds of `time.monotonic`."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Action]] = []
        self._count = itertools.count()

    def after(self, delay_s: float, action: Action) -> bool:
        """Have `action` run in `delay_s` seconds; True if nothing else is due before it."""
        entry = (time.monotonic() + delay_s, next(self._count), action)
        heapq.heappush(self._heap, entry)
        return self._heap[0] is entry

    def wait_s(self) -> float | None:
        """Return the seconds until the next action, None if there is none."""
        first = self._heap[:1]  # one look: the one call without the lock may lose a race, but not fail
        return max(0.0, first[0][0] - time.monotonic()) if first else None

    def take_due(self) -> list[Action]:
        """Remove and return what is due."""
        due: list[Action] = []
        now = time.monotonic()
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        return due

    def clear(self) -> None:
        """Forget all of them."""
        self._heap.clear()
