"""What the parts of an engine share.

Role: one object with the lock and everything the lock protects. Owner: the engine.

The rules, for every part
    - State is read and changed with `lock` held, and only for moments: nothing under it blocks.
    - Code of the user (pickling, unpickling, callbacks, writing to its streams) never runs under it.
      A part that wants to run some appends it to `later`; the pump runs it afterwards.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from shoal._os import cpus
from shoal._pool.dispatcher import Dispatcher
from shoal._pool.poller import Poller
from shoal._pool.timers import Timers
from shoal._pool.worker import WorkerHandle
from shoal._settings import PoolOptions
from shoal.errors import Obituary


@dataclass(slots=True)
class Counters:
    """What happened so far."""

    submitted: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    timeouts: int = 0
    workers_started: int = 0
    workers_lost: int = 0
    requeued: int = 0
    cpu_s: float = 0.0
    deaths: list[Obituary] = field(default_factory=list)


class Core:
    """The shared state of one engine."""

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self.lock = threading.Lock()
        self.cpus = cpus.usable_cpus()
        self.dispatcher = Dispatcher(options.max_tasks_per_worker, self.cpus)
        self.timers = Timers()
        self.poller = Poller()
        self.workers: dict[int, WorkerHandle] = {}
        self.later: deque[Callable[[], None]] = deque()
        self.counters = Counters()
        self.pumps_here: Callable[[], bool] = lambda: False  # whether this thread is the one that counts the time
        self.killed = False  # ended at once: nothing is tried again
        self.closing = False  # no new work; end when the rest is done

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Have `action` run by the pump, with the lock held, in `delay_s` seconds."""
        if self.timers.after(delay_s, action) and not self.pumps_here():
            self.poller.wake()
