"""Maps as the caller sees them: results in order or as they come, errors as asked.

Role: iterate over jobs of many tasks. Owner: the caller's thread; all of it runs there.

Invariants
    M1  Whatever ends an iteration (the end, an error, a closed generator, Ctrl-C), what is left of the job is given
        up: nothing of it is handed out any more, and what runs is stopped.
    M2  An item is pulled from the source only when fewer than `buffersize` outcomes are due.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from shoal._pool.batching import SOON
from shoal._pool.items import FAILED
from shoal._pool.jobs import ListJob, MapJob, StreamJob, pool_wide
from shoal._settings import ErrorMode, TaskOptions

if TYPE_CHECKING:
    from shoal._pool.engine import Engine

#: Items are pulled for this long before what was pulled is handed on.
_PULL_S = 0.001
#: Bounds of the buffer that `imap` chooses by itself, in items per worker and in all.
_LEAST_PER_WORKER = 4
_MOST_BUFFERED = 20_000


def list_job(
    engine: Engine, fn: Callable[..., Any], items: Sequence[Any], options: TaskOptions, *, star: bool
) -> ListJob:
    """Start a map over `items`."""
    record = engine.functions.record(fn)
    job = ListJob(fn, record, options, items, star=star, main_is_lost=engine.main_is_lost)
    if items:
        _hand_over(engine, job, 0)
    return job


def _hand_over(engine: Engine, job: ListJob, start: int, workers: int | None = None) -> None:
    """Queue the tasks from `start` on; a signal that strikes in between gives them up (M1)."""
    try:
        engine.submit_many(job, start, len(job.results), workers=workers)
    except BaseException:
        engine.give_up(job)
        raise


def rest_job(
    engine: Engine,
    fn: Callable[..., Any],
    items: Sequence[Any],
    options: TaskOptions,
    done: Sequence[Any],
    failures: dict[int, BaseException],
    *,
    star: bool,
    cost_s: float,
    workers: int,
    run_here: Callable[[int], Any],
) -> ListJob:
    """Start a map of whose items the first are `done`, with the rest handed over.

    One of the rest takes about `cost_s` seconds. Up to `workers` workers are started for it, if fewer are there.
    Items that cannot be pickled are given to `run_here` by `collect`. `failures` are the errors of the first, to be added to.
    """
    record = engine.functions.record(fn)
    record.pace.cost_s = cost_s  # measured a moment ago
    job = ListJob(fn, record, options, items, star=star, main_is_lost=engine.main_is_lost)
    job.results[: len(done)] = done
    job.settled = len(done)
    job.errors = failures
    job.run_here = run_here
    _hand_over(engine, job, len(done), workers)
    return job


def collect(engine: Engine, job: ListJob, errors: ErrorMode) -> list[Any]:
    """Wait for a whole map and return its results."""
    try:
        if errors == "raise":
            engine.wait(lambda: job.done or job.failed or job.given_up, job.condition, None)
            if job.errors:
                raise job.errors[min(job.errors)]
        else:
            engine.wait(lambda: job.done or job.given_up, job.condition, None)
        if not job.done:
            raise cancelled(job)
        job.finish()
    finally:
        if not job.done:
            engine.give_up(job)  # M1
        else:
            engine.functions.release(job.record)
    return _with_errors(job, errors)


def _with_errors(job: ListJob, errors: ErrorMode) -> list[Any]:
    results = job.results
    if not job.errors:
        return results
    for error in job.errors.values():
        if pool_wide(error):  # no task's error, so no task's place
            raise error
    if errors == "skip":
        return [value for value in results if value is not FAILED]
    for index, error in job.errors.items():
        results[index] = error
    return results


def in_order(engine: Engine, job: ListJob, deadline: float | None) -> Iterator[Any]:
    """Yield the results of a map in order; the error of a task is raised in its turn.

    Raises:
        TimeoutError: `deadline`, a time of `time.monotonic`, passed.
    """
    results, runs = job.results, job.runs
    index, total = 0, len(results)
    try:
        while index < total:
            if index not in runs:
                left = None if deadline is None else deadline - time.monotonic()
                engine.wait(lambda i=index: i in runs or job.given_up, job.condition, left)  # type: ignore[misc]
                if index not in runs:
                    if job.given_up:
                        raise cancelled(job)
                    raise TimeoutError
            stop = index + runs.pop(index)
            values = results[index:stop]
            results[index:stop] = [None] * len(values)  # the caller has them now; nothing here keeps one it has taken
            if job.errors and index in job.errors:
                raise job.errors[index]
            index = stop
            values.reverse()
            while values:
                yield values.pop()
    finally:
        if not job.done:
            engine.give_up(job)  # M1
        else:
            engine.functions.release(job.record)


def cancelled(job: MapJob) -> BaseException:
    from shoal.errors import Cancelled

    return Cancelled(task=f"the map of {job.record.label}")


class Stream:
    """One `imap` call: pulls items, hands them on, yields outcomes."""

    def __init__(
        self,
        engine: Engine,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        options: TaskOptions,
        *,
        star: bool,
        ordered: bool,
        errors: ErrorMode,
        buffersize: int | None,
        deadline: float | None = None,
        owner: object = None,
    ) -> None:
        self._deadline = deadline
        self._owner = owner  # the pool: it ends when nobody holds it, and we do
        record = engine.functions.record(fn)
        star = star or len(iterables) > 1
        self._engine = engine
        self._source = iter(iterables[0]) if len(iterables) == 1 else iter(zip(*iterables, strict=False))
        self._job = StreamJob(fn, record, options, star=star, ordered=ordered, main_is_lost=engine.main_is_lost)
        self._ordered = ordered
        self._errors = errors
        self._buffersize = buffersize
        self._workers = engine.core.options.workers
        self._pushed = 0
        self._taken = 0
        self._exhausted = False
        self._source_error: BaseException | None = None

    def begin(self) -> None:
        """Pull and hand on the first items now, before the first outcome is asked for."""
        while not (self._exhausted or self._full()):
            self._pull()

    def __iter__(self) -> Iterator[Any]:
        """Yield the outcomes. Results that are there come before a failing source is reported."""
        job = self._job
        try:
            while True:
                self._pull()
                if self._taken == self._pushed:
                    if self._exhausted:
                        break
                    continue
                while (index := self._next_ready()) is not None:
                    self._taken += 1
                    value, error = job.outcomes.pop(index)
                    if error is not None:
                        if self._errors == "raise" or pool_wide(error):
                            raise error
                        if self._errors == "skip":
                            continue
                    box, value, error = [value if error is None else error], None, None
                    yield box.pop()  # the caller has it now; nothing here keeps it
                    if not self._exhausted and self._pushed - self._taken < self._limit() // 2:
                        break
                else:
                    if self._taken < self._pushed and (self._exhausted or self._full()):
                        self._wait()
            if self._source_error is not None:
                raise self._source_error
        finally:
            if self._taken < self._pushed:
                self._engine.give_up(job)  # M1
            else:
                self._engine.functions.release(job.record)

    def _limit(self) -> int:
        if self._buffersize is not None:
            return self._buffersize
        cost_s = self._job.pace.cost_s
        least = _LEAST_PER_WORKER * self._workers
        if not cost_s:
            return least
        return max(least, min(int(4 * SOON.hold_s * self._workers / cost_s), _MOST_BUFFERED))

    def _full(self) -> bool:
        return self._pushed - self._taken >= self._limit()

    def _pull(self) -> None:
        """Pull items for a moment and hand them on (M2)."""
        if self._exhausted or self._full():
            return
        room = self._limit() - (self._pushed - self._taken)
        items: list[Any] = []
        until = time.monotonic() + _PULL_S
        try:
            while len(items) < room and (not items or time.monotonic() < until):
                items.append(next(self._source))
        except StopIteration:
            self._exhausted = True
        except Exception as error:
            self._exhausted = True
            self._source_error = error
        if items:
            first = self._pushed
            self._job.push(first, items)
            self._pushed += len(items)
            self._engine.submit_many(self._job, first, self._pushed)

    def _next_ready(self) -> int | None:
        job = self._job
        if self._ordered:
            return self._taken if self._taken in job.outcomes else None
        return job.arrived.popleft() if job.arrived else None

    def _wait(self) -> None:
        job = self._job
        wanted = self._taken

        def ready() -> bool:
            return (wanted in job.outcomes if self._ordered else bool(job.arrived)) or job.given_up

        left = None if self._deadline is None else self._deadline - time.monotonic()
        self._engine.wait(ready, job.condition, left)
        if not ready():
            raise TimeoutError
        if job.given_up and not (wanted in job.outcomes if self._ordered else job.arrived):
            raise cancelled(job)
