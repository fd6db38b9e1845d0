"""Looking for a moment before sleeping: how long, and whether it is worth while.

Role: the spin of a queue or channel. Owner: each end for itself; a lost update between threads does no harm.

Waking a sleeping processor takes longer than many waits last, so whoever waits looks for `SPIN_S` first. When others want the
processor that only keeps them from doing what we wait for; then looking fails, and after a few failures it is left out
for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from shoal._os import cpus, futex

#: How long a thread looks before it sleeps. Seconds.
SPIN_S: Final = 50e-6
#: Looks in a row before the first in which others are let run: some 10 us.
_GLANCES: Final = 60
#: After so many failures in a row ...
_FAILURES: Final = 3
#: ... so many waits go to sleep at once.
_PAUSE: Final = 20


class Patience:
    """Spins, if that has helped lately."""

    __slots__ = ("_failures", "_most_s", "_pause")

    def __init__(self) -> None:
        self._most_s = SPIN_S if cpus.usable_cpus() > 1 else 0.0
        self._failures = 0
        self._pause = 0

    def spin(self, ready: Callable[[], bool]) -> bool:
        """Look whether it is `ready`; False if that did not come about soon."""
        if self._pause:
            self._pause -= 1
            return ready()
        for _ in range(_GLANCES if self._most_s else 1):
            if ready():
                self._failures = 0
                return True
        limit = time.monotonic() + self._most_s
        while time.monotonic() < limit:
            if ready():
                self._failures = 0
                return True
            futex.give_way()
        self._failures += 1
        if self._failures >= _FAILURES:
            self._failures = 0
            self._pause = _PAUSE
        return False
