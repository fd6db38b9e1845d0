"""`workers="auto"`: begin in the calling process, measure, bring in workers if what remains is worth it.

Role: one `shoal.map` that chooses for itself. Owner: the caller's thread, in which all of it runs.

Programs whose whole work takes milliseconds use this, so nothing is imported at the top that costs any time.

Invariants
    A1  Each item is run once: here, or by a worker.
    A2  Where the plain loop works, this works: what cannot be sent to a worker, or finds none, is run here.
    A3  Workers are looked for only when, by what was measured, they would pay; looking itself costs little.
"""

from __future__ import annotations

import math
from time import perf_counter

from shoal._pool.items import FAILED, PENDING
from shoal._wire.words import describe_call, describe_callable, note_task

TYPE_CHECKING = False  # as type checkers read it; importing `typing` would cost more than a small map
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from shoal._pool.engine import Engine
    from shoal._pool.jobs import ListJob

#: Items are run for about this long between two looks at the clock.
BATCH_S = 0.001
#: The same while workers start: in between, what they say is read.
_BRIDGE_S = 0.0005
#: A map that is expected to take less than this altogether stays here; the second figure, if no pool runs yet.
_SHORT_S, _SHORT_COLD_S = 0.01, 0.5
#: Seconds of work before the first look, likewise: the first calls of a function may cost many times what the next do, and
#: looking without a pool imports what would run one.
_SETTLE_S, _SETTLE_COLD_S = 0.001, 0.02
#: One item says little about the others, unless it took this long: then starting workers is lost in it.
_TELLING_S = 1.0
#: Most items run between two looks at the clock: the next may cost a thousand times what the last did.
_BLOCK = 512
#: Most items pickled to see what sending them costs.
_SAMPLE = 64
#: Tasks longer than this are not run here while workers start: the first worker is there sooner.
_BRIDGED_S = 0.02
#: Bytes a second at which large buffers are copied.
_COPY_RATE = 5e9


class Choice:
    """What one map did, and why; `explain.py` shows it."""

    __slots__ = ("cost_s", "fn", "here", "reason", "sent", "workers")

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = describe_callable(fn)
        self.here = self.sent = self.workers = 0
        self.cost_s = 0.0
        self.reason = ""


#: Of the map that ended last in this program.
last: Choice | None = None


def run(fn: Callable[..., Any], items: Sequence[Any], errors: str, retries: int, *, star: bool) -> list[Any]:
    """Return the results of all items; see `default.map`."""
    global last
    course = Course(fn, items, errors, star=star)
    try:
        return course.go(retries)
    finally:
        last = course.choice


class Course:
    """One map on its way."""

    def __init__(self, fn: Callable[..., Any], items: Sequence[Any], errors: str, *, star: bool) -> None:
        self.fn, self.items, self.star, self.errors = fn, items, star, errors
        self.results: list[Any] = []
        self.failures: dict[int, BaseException] = {}
        self.choice = Choice(fn)
        self._stays = False  # for good
        self._carry_s: float | None = None

    def go(self, retries: int) -> list[Any]:
        """Run everything."""
        began = perf_counter()
        try:
            if self._run(began):
                return self._hand_over(retries)
        except BaseException as error:
            self.choice.reason = f"it ended with {type(error).__name__}"
            raise
        finally:
            self._conclude(perf_counter() - began)
        return self._finished()

    def _run(self, began: float) -> bool:
        """Run items here until all are done, or workers are worth it: then True."""
        results, total = self.results, len(self.items)
        now = began
        mark = before = (
            began,
            0,
        )  # (time, tasks done by then) of two marks: what came long ago tells little of what comes
        look_at = _SETTLE_S  # seconds of work after which to look for workers
        size, latest_s = 1, math.inf
        while (at := len(results)) < total:
            start = now
            stop = min(at + size, total)
            while True:
                self._append(results, len(results), stop if self._stays else min(stop, len(results) + _BLOCK))
                now = perf_counter()
                if len(results) == stop or now - start > 4 * BATCH_S:
                    break
            count, took_s, spent_s = len(results) - at, max(now - start, 1e-9), now - began
            size = max(1, min(8 * count, int(BATCH_S * count / took_s)))
            if self._stays:
                size = total
                continue
            # The lowest of these: any of them may have paid for an import or a cold cache.
            latest_s, previous_s = took_s / count, latest_s
            cost_s = min((now - before[0]) / (len(results) - before[1]), latest_s, previous_s)
            if now - mark[0] >= _SETTLE_COLD_S:
                mark, before = (now, len(results)), mark
            left = total - len(results)
            expected_s = spent_s + left * cost_s
            telling = len(results) > 1 or took_s >= _TELLING_S
            if (
                left > 1
                and telling
                and spent_s >= look_at
                and expected_s >= _SHORT_S
                and not self._early(spent_s, expected_s)
            ):
                self.choice.cost_s = cost_s
                if self._look(left, cost_s, spent_s):
                    return True
                look_at = 1.5 * spent_s
                now = perf_counter()
        return False

    def _append(self, out: list[Any], start: int, stop: int) -> list[Any]:
        """Run items `start..stop` here; append their outcomes, and return them all."""
        fn = self.fn
        first = start - len(out)  # the item of the first place
        piece = iter(self.items[start:stop])
        while first + len(out) < stop:
            try:
                if self.star:
                    for args in piece:
                        out.append(fn(*args))  # noqa: PERF401 - what came before an error has to be there
                else:
                    for item in piece:
                        out.append(fn(item))  # noqa: PERF401 - as above
            except (Exception, SystemExit) as error:
                out.append(self._failed(first + len(out), error))
        return out

    def _failed(self, index: int, error: BaseException) -> Any:
        item = self.items[index]
        args = tuple(item) if self.star else (item,)
        note_task(error, index, lambda: describe_call(describe_callable(self.fn), args, {}))
        if self.errors == "raise":
            raise error
        self.failures[index] = error
        return FAILED

    def _finished(self) -> list[Any]:
        if self.failures:
            if self.errors == "skip":
                return [value for value in self.results if value is not FAILED]
            for index, error in self.failures.items():
                self.results[index] = error
        return self.results

    def _conclude(self, spent_s: float) -> None:
        """Note what was done."""
        choice = self.choice
        if not choice.workers:
            choice.here = len(self.results)
            choice.cost_s = spent_s / choice.here if choice.here else 0.0
        choice.reason = choice.reason or f"all of it takes {show(spent_s)}: over before workers would have helped"

    # --- whether ------------------------------------------------------------------------------

    def _early(self, spent_s: float, expected_s: float) -> bool:
        """Say whether it is too early, or the whole map too short, for a pool that would have to be started first."""
        if spent_s >= _SETTLE_COLD_S and expected_s >= _SHORT_COLD_S:
            return False
        from shoal._pool import default

        return default.running_pool() is None

    def _look(self, left: int, cost_s: float, spent_s: float) -> bool:
        """Say whether to bring in workers now; how many, and why, is noted."""
        from shoal._os import cpus, interpreter
        from shoal._pool import choice, default

        most = cpus.usable_cpus()
        if most < 2:
            return self._stay("this process may use one processor only")
        if interpreter.is_worker():
            return self._stay("this is a worker: the other processors are its neighbours'")
        if self._carry_s is None:
            try:
                self._carry_s = self._weigh(cost_s)
            except Exception as refused:  # classes may raise anything when they are pickled or rebuilt
                said = str(refused).splitlines() or [type(refused).__name__]
                return self._stay(f"it cannot be sent to workers: {said[0]}")
        pool = default.running_pool()
        ready = 0
        if pool is not None:
            ready, more = pool._engine_now().vacancies()
            most = min(most, ready + more)
        workers = choice.choose(
            left, cost_s, self._carry_s, spent_s=spent_s, most=most, ready=ready, running=pool is not None
        )
        rest = f"{left:,} tasks of {show(cost_s)} were left"
        if workers:
            self.choice.workers = workers
            best_s = choice.finish_s(left, cost_s, self._carry_s, workers)
            self.choice.reason = f"{rest}: {show(left * cost_s)} here, about {show(best_s)} with {workers} workers"
        elif pool is not None and most < 2:
            self.choice.reason = f"{rest}, and every worker of the default pool was busy"
        elif self._carry_s > cost_s / 2:
            self.choice.reason = f"{rest}, and sending one there and its result back takes {show(self._carry_s)}"
        else:
            self.choice.reason = f"{rest}: {show(left * cost_s)}, too little for workers"
        return workers > 0

    def _stay(self, reason: str) -> bool:
        self._stays = True
        self.choice.reason = reason
        return False

    def _weigh(self, cost_s: float) -> float:
        """Return the seconds that sending one item and its result take. Raises what pickling and unpickling raise."""
        from shoal._os.interpreter import main_module
        from shoal._pool.functions import own_bytes
        from shoal._wire import codec

        done = len(self.results)
        count = max(1, min(_SAMPLE, int(2 * BATCH_S / max(cost_s, 1e-9)), done, len(self.items) - done))
        buffers: list[Any] = []
        lost = main_module().kind == "none"
        by_value = lost and getattr(self.fn, "__module__", None) == "__main__"
        codec.pack_function(self.fn, [], by_value=by_value)
        start = perf_counter()
        items = codec.pack(
            list(self.items[done : done + count]), buffers, ("the arguments of", self.fn), main_is_lost=lost
        )
        results = codec.pack(self.results[-count:], buffers, ("the results of", self.fn))
        if not buffers:
            codec.unpack(items, [])
            codec.unpack(results, [])
        copied = sum(map(own_bytes, buffers))
        return (perf_counter() - start + copied / _COPY_RATE) / count

    # --- with workers ---------------------------------------------------------------------------

    def _hand_over(self, retries: int) -> list[Any]:
        """Have workers run what is left."""
        from shoal._pool import default, mapping
        from shoal._settings import TaskOptions
        from shoal.errors import MainGuardMissing, PoolClosed, StartFailed

        choice, done = self.choice, len(self.results)
        job: ListJob | None = None
        try:
            engine = default.default_pool()._engine_now()
            options = TaskOptions(retries=retries)
            job = mapping.rest_job(
                engine,
                self.fn,
                self.items,
                options,
                self.results,
                self.failures,
                star=self.star,
                cost_s=choice.cost_s,
                workers=choice.workers,
                run_here=self._run_one,
            )
            choice.here, choice.sent = done, len(self.items) - done
            if choice.cost_s <= _BRIDGED_S:
                self._bridge(engine, job)
            return mapping.collect(engine, job, self.errors)  # type: ignore[arg-type]
        except (StartFailed, MainGuardMissing, PoolClosed) as refused:
            return self._after_all(job, refused)
        except BaseException:
            if job is not None:
                engine.give_up(job)
            raise

    def _run_one(self, index: int) -> Any:
        """Run an item that cannot be pickled."""
        self.choice.here += 1
        self.choice.sent -= 1
        return self._append([], index, index + 1)[0]

    def _bridge(self, engine: Engine, job: ListJob) -> None:
        """Go on here until the first worker is ready."""
        choice = self.choice
        size = max(1, min(_BLOCK, int(_BRIDGE_S / max(choice.cost_s, 1e-9))))
        while (claimed := engine.claim(job, size)) is not None:
            start, stop = claimed
            values = self._append([], start, stop)
            engine.settle_claimed(job, start, stop, values)
            choice.here += stop - start
            choice.sent -= stop - start

    def _after_all(self, job: ListJob | None, refused: BaseException) -> list[Any]:
        """No worker could be had: run here what they did not (A2)."""
        choice = self.choice
        choice.reason = f"no worker could be had: {str(refused).splitlines()[0]}"
        choice.workers = choice.sent = 0
        if job is not None:
            from shoal._pool.jobs import pool_wide

            self.results = job.results
            self.failures = {i: error for i, error in job.errors.items() if not pool_wide(error)}
        else:
            self.results += [PENDING] * (len(self.items) - len(self.results))
        for index, value in enumerate(self.results):
            if value is PENDING or (value is FAILED and index not in self.failures):
                self.results[index] = self._append([], index, index + 1)[0]
        return self._finished()


def show(seconds: float) -> str:
    """Write a time with its unit, for people."""
    if seconds >= 999.5:
        return f"{seconds:,.0f} s"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
