"""Run a function over a stream of inputs and give back every outcome beside its input.

Role: the one place where the command meets the pool. `Pool.imap` is not used because outcomes out of order, and
errors, must keep their input, and because inputs that come slowly (`tail -f | shoal map …`) must not hold back
results that are ready.
Owner: `Flow` belongs to the main thread. It has one thread of its own, the feeder.

    feeder    takes a slot, takes an input, submits it                    waits: for slots, for the input
    pool      puts (index, input, future) into `_events` when settled
    main      takes from `_events`, gives a slot back for each outcome     waits: for events
    signal    puts a wake-up into `_events`; `SimpleQueue.put` may be called from a handler

Invariants
    F1  An outcome is given once; in order, outcome n is given after all before it.
    F2  At most `window` inputs are taken and not yet given back, so memory is bounded whatever the stream's length.
    F3  `stop` gives every outcome that was settled by then: what is done is kept.
    F4  No exception is raised between an outcome's leaving the queue and its being given: signals only wake.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

#: `stop` waits for results that are on their way until none has come for the first, at most for the second. Seconds.
GRACE_S = 0.05
GRACE_LIMIT_S = 0.25


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one input: a `result`, or the `error` that took its place."""

    index: int
    input: str
    result: Any = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _End:
    """The feeder is through: `count` inputs were submitted, and `error` is what the stream itself raised."""

    count: int
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _Wake:
    """Somebody wants `Flow` to stop."""


_Settled = tuple[int, str, "Future[Any]"]


class Flow:
    """Outcomes of `submit(input)` for each input, at most `window` on their way at a time."""

    def __init__(
        self, submit: Callable[[str], Future[Any]], inputs: Iterator[str], *, window: int, ordered: bool
    ) -> None:
        self._submit = submit
        self._inputs = inputs
        self._ordered = ordered
        self._slots = threading.Semaphore(window)
        self._events: SimpleQueue[_Settled | _End | _Wake] = SimpleQueue()
        self._live: dict[int, Future[Any]] = {}
        self._early: dict[int, Outcome] = {}
        self._given = 0
        self._end: _End | None = None
        self._stopping = False
        self._feeder = threading.Thread(target=self._feed, name="shoal-cli-feeder", daemon=True)

    @property
    def quiet(self) -> bool:
        """Whether nothing more is ready right now: the moment to flush."""
        return self._events.empty()

    def interrupt(self) -> None:
        """Make the iteration end after what is being given. Safe in a signal handler."""
        self._stopping = True
        self._events.put(_Wake())

    def __iter__(self) -> Iterator[Outcome]:
        """Give outcomes until all are given or `interrupt` was called.

        Raises:
            Exception: What the stream of inputs raised, after the outcomes of all inputs before it.
        """
        self._feeder.start()
        while not self._stopping and (self._end is None or self._given < self._end.count):
            event = self._events.get()
            if isinstance(event, _End):
                self._end = event
            elif not isinstance(event, _Wake):
                yield from self._take(event)
        if self._end is not None and self._end.error is not None and not self._stopping:
            raise self._end.error

    def stop(self) -> list[Outcome]:
        """Give up the rest: return the outcomes that are settled, in order, and cancel everything else."""
        self._stopping = True
        self._slots.release()
        # A worker may hold back a result for a moment to send it with the next: what it has computed is done.
        end = time.monotonic() + GRACE_LIMIT_S
        while (left_s := end - time.monotonic()) > 0 and self._keep_next(min(left_s, GRACE_S)):
            pass
        for future in list(self._live.values()):
            future.cancel()
        while self._keep_next(0):
            pass
        return [self._early.pop(index) for index in sorted(self._early)]

    def _keep_next(self, wait_s: float) -> bool:
        """Keep the next outcome for `stop`; return whether there was an event within `wait_s`."""
        try:
            event = self._events.get(timeout=wait_s) if wait_s else self._events.get_nowait()
        except Empty:
            return False
        if isinstance(event, tuple) and not event[2].cancelled():
            outcome = self._outcome(event)
            self._early[outcome.index] = outcome
        return True

    def _take(self, event: _Settled) -> Iterator[Outcome]:
        outcome = self._outcome(event)
        if not self._ordered:
            yield from self._give(outcome)
            return
        self._early[outcome.index] = outcome
        while self._given in self._early:
            yield from self._give(self._early.pop(self._given))

    def _give(self, outcome: Outcome) -> Iterator[Outcome]:
        self._given += 1
        self._slots.release()
        yield outcome

    def _outcome(self, event: _Settled) -> Outcome:
        index, item, future = event
        self._live.pop(index, None)
        error = future.exception()
        return Outcome(index, item, error=error) if error is not None else Outcome(index, item, future.result())

    def _feed(self) -> None:
        count = 0
        error: BaseException | None = None
        try:
            while True:
                self._slots.acquire()
                if self._stopping:
                    break
                try:
                    item = next(self._inputs)
                except StopIteration:
                    break
                self._start(count, item)
                count += 1
        except BaseException as caught:
            error = caught
        self._events.put(_End(count, error))

    def _start(self, index: int, item: str) -> None:
        future = self._submit(item)
        self._live[index] = future
        if self._stopping:
            future.cancel()  # `stop` may have looked before this one was there
        future.add_done_callback(lambda settled: self._events.put((index, item, settled)))
