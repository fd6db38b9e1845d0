"""What was asked for: a submitted call, or a map over many items.

Role: the arguments, the outcome and the retry count of each task. Owner: the engine. `pack`, `settle` and `fail`
run user code (pickling, unpickling, callbacks) and are called without the engine's lock.

Invariants
    J1  Each task of a job is settled once, by the one thread that took it out of the dispatcher.
    J2  `given_up` only ever goes from False to True, with the engine's lock held.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shoal._pool.batching import SOON, WHOLE, Grain
from shoal._pool.depot import Repeats
from shoal._pool.functions import FunctionRecord, own_bytes
from shoal._pool.items import FAILED, PENDING
from shoal._settings import TaskOptions
from shoal._wire import codec
from shoal._wire import messages as m
from shoal._wire.frames import LARGE_BYTES
from shoal._wire.words import describe_call, note_task
from shoal.errors import InitializerFailed, MainGuardMissing, StartFailed

if TYPE_CHECKING:
    from shoal._pool.batching import Pace
    from shoal._pool.dispatcher import Span
    from shoal._pool.future import Future


class PackFailed(Exception):
    """Task `index` cannot be sent; the tasks before it can."""

    def __init__(self, index: int, error: BaseException) -> None:
        super().__init__(index)
        self.index = index
        self.error = error


class Attempts:
    """How often a task has run, and how many workers it took with it."""

    __slots__ = ("kills", "runs")

    def __init__(self) -> None:
        self.runs = 0
        self.kills = 0


class Job:
    """Common part of all jobs. `pace`, `grain` and `given_up` are what the dispatcher reads."""

    __slots__ = ("attempts", "fn", "given_up", "options", "pace", "record", "repeats")

    grain: Grain = SOON

    def __init__(self, fn: Callable[..., Any], record: FunctionRecord, options: TaskOptions) -> None:
        self.fn: Callable[..., Any] | None = fn  # until the job is done: it may hold much
        self.record = record
        self.options = options
        self.pace: Pace = record.pace
        self.given_up = False
        self.attempts: dict[int, Attempts] | None = None
        #: What its items had in common so far; for a job that keeps its items, so that none changes meanwhile.
        self.repeats: Repeats | None = None

    def tries(self, index: int) -> Attempts:
        """Return the count for a task that did not simply succeed."""
        if self.attempts is None:
            self.attempts = {}
        return self.attempts.setdefault(index, Attempts())

    def label(self, index: int) -> str:
        raise NotImplementedError

    def safe_label(self, index: int) -> str:
        """As `label`, for a task that may be settled, and thus forgotten, by now."""
        try:
            return self.label(index)
        except (KeyError, IndexError):
            return self.options.label or self.record.label

    def messages(self, span: Span, function_id: int, buffers: list[Any]) -> list[m.Message]:
        """Return what to send for `span`. Raises PackFailed; KeyError if it is settled by now."""
        raise NotImplementedError

    def settle(self, first: int, values: Sequence[Any]) -> None:
        """Take in the results of tasks from `first` on."""
        raise NotImplementedError

    def fail(self, index: int, error: BaseException) -> None:
        """Take in that a task failed for good."""
        raise NotImplementedError

    def unsendable(self, index: int, error: BaseException) -> None:
        """Take in that a task cannot be sent to a worker."""
        self.fail(index, error)

    def drop(self) -> None:
        """Take in that the job was given up: whoever waits for it is told."""
        raise NotImplementedError


class Task(Job):
    """One submitted call. Pickled when it is submitted, so a bad argument fails on that line."""

    __slots__ = ("buffers", "described", "future", "payload", "span")

    def __init__(
        self,
        fn: Callable[..., Any],
        record: FunctionRecord,
        options: TaskOptions,
        payload: codec.Payload,
        buffers: list[Any],
        future: Future[Any],
        described: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        super().__init__(fn, record, options)
        self.payload = payload
        self.buffers = buffers
        self.future: Future[Any] | None = future
        self.described = described
        self.span: Span | None = None

    def label(self, index: int) -> str:  # noqa: ARG002 - a job of one task
        return self.options.label or describe_call(self.record.label, *self.described)

    def messages(self, span: Span, function_id: int, buffers: list[Any]) -> list[m.Message]:
        payload = codec.shifted(self.payload, self.buffers, buffers)
        return [(m.TASK, span.id, function_id, payload)]

    def settle(self, first: int, values: Sequence[Any]) -> None:  # noqa: ARG002 - as above
        future = self._let_go()
        if future is not None:
            future._settle(values[0], None)

    def fail(self, index: int, error: BaseException) -> None:  # noqa: ARG002 - as above
        future = self._let_go()
        if future is not None:
            future._settle(None, error)

    def _let_go(self) -> Future[Any] | None:
        """Return the future and keep nothing: task and span hold each other, so what they hold would stay for long."""
        future, self.future, self.fn = self.future, None, None
        self.payload, self.buffers, self.span = b"", [], None
        self.described = (), {}
        return future

    def release(self) -> None:
        """Keep nothing: it was cancelled, and its future knows."""
        self._let_go()

    def drop(self) -> None:
        future = self._let_go()
        if future is not None:
            future._drop()


class MapJob(Job):
    """Common part of jobs of many tasks: somebody waits for the next outcome."""

    __slots__ = ("_changed", "main_is_lost", "star")

    def __init__(
        self, fn: Callable[..., Any], record: FunctionRecord, options: TaskOptions, *, star: bool, main_is_lost: bool
    ) -> None:
        super().__init__(fn, record, options)
        self.star = star
        self.main_is_lost = main_is_lost
        self._changed: threading.Condition | None = None

    def item(self, index: int) -> Any:
        raise NotImplementedError

    def take(self, start: int, stop: int) -> Sequence[Any]:
        raise NotImplementedError

    def label(self, index: int) -> str:
        item = self.item(index)
        args = tuple(item) if self.star else (item,)
        return self.options.label or describe_call(self.record.label, args, {})

    def messages(self, span: Span, function_id: int, buffers: list[Any]) -> list[m.Message]:
        items = self.take(span.start, span.stop)
        whole = codec.pack_plain(items)
        payload: Any
        before = len(buffers)
        if whole is None:
            payload = self._pack_each(span, items, buffers)
        elif not isinstance(whole, bytes) or len(whole) >= LARGE_BYTES:
            payload = None, before, 1
            buffers.append(whole)
        else:
            payload = whole
        self.pace.weigh(len(items), _pickled_bytes(payload) + sum(map(own_bytes, buffers[before:])))
        # A clock runs for each: then they are announced, and reported, one by one.
        stretch_ns = 0 if self.options.timeout is not None else int(self.grain.stretch_s * 1e9)
        return [(m.CHUNK, span.id, function_id, span.start, self.star, stretch_ns, whole is not None, payload)]

    def _pack_each(self, span: Span, items: Sequence[Any], buffers: list[Any]) -> list[codec.Payload]:
        payloads = []
        for index, item in enumerate(items, span.start):
            try:
                packed = codec.pack(item, buffers, ("the argument of", self.fn), main_is_lost=self.main_is_lost)
            except BaseException as error:
                raise PackFailed(index, error) from error
            payloads.append(packed)
        return payloads

    def condition(self) -> threading.Condition:
        """Return what `settle` and `fail` notify; made when somebody has to wait for it."""
        if self._changed is None:
            self._changed = threading.Condition()
        return self._changed

    def drop(self) -> None:
        self._notify()

    def _notify(self) -> None:
        # Whoever waits made the condition first and looked at the outcome then, so one of the two is seen.
        if self._changed is not None:
            with self._changed:
                self._changed.notify_all()


class ListJob(MapJob):
    """A map over a known sequence; results are kept in order until the end."""

    __slots__ = ("errors", "failed", "items", "results", "run_here", "runs", "settled", "unsent")

    grain = WHOLE

    def __init__(
        self,
        fn: Callable[..., Any],
        record: FunctionRecord,
        options: TaskOptions,
        items: Sequence[Any],
        *,
        star: bool,
        main_is_lost: bool,
    ) -> None:
        super().__init__(fn, record, options, star=star, main_is_lost=main_is_lost)
        self.items = items
        self.repeats = Repeats()
        self.results: list[Any] = [PENDING] * len(items)
        self.settled = 0
        self.runs: dict[int, int] = {}  # first task -> how many were settled at once, for who takes them in order
        self.errors: dict[int, BaseException] = {}
        self.failed = False  # one of them is enough to end the map
        self.run_here: Callable[[int], Any] | None = None  # runs what cannot be sent, in the caller's thread
        self.unsent: list[int] = []

    def item(self, index: int) -> Any:
        return self.items[index]

    def take(self, start: int, stop: int) -> Sequence[Any]:
        return self.items[start:stop]

    def settle(self, first: int, values: Sequence[Any]) -> None:
        self.results[first : first + len(values)] = values
        self.settled += len(values)
        self.runs[first] = len(values)
        self._notify()

    def fail(self, index: int, error: BaseException) -> None:
        _note(self, index, error)
        self.errors[index] = error
        # That no worker could be had is for whoever can do without to make up for, when the pool has done with the job.
        self.failed = self.failed or self.run_here is None or not pool_wide(error)
        self.results[index] = FAILED
        self.settled += 1
        self.runs[index] = 1
        self._notify()

    def unsendable(self, index: int, error: BaseException) -> None:
        if self.run_here is None:
            self.fail(index, error)
            return
        self.unsent.append(index)
        self.settled += 1
        self._notify()

    def finish(self) -> None:
        """Run what could not be sent, when the rest is done. The caller's thread."""
        run_here = self.run_here
        if run_here is not None:
            for index in self.unsent:
                self.results[index] = run_here(index)

    @property
    def done(self) -> bool:
        """Whether every task is settled."""
        return self.settled >= len(self.results)


class StreamJob(MapJob):
    """A map over items that keep coming; an item is forgotten when it is settled, an outcome when it is taken."""

    __slots__ = ("_items", "_ordered", "arrived", "outcomes")

    def __init__(
        self,
        fn: Callable[..., Any],
        record: FunctionRecord,
        options: TaskOptions,
        *,
        star: bool,
        ordered: bool,
        main_is_lost: bool,
    ) -> None:
        super().__init__(fn, record, options, star=star, main_is_lost=main_is_lost)
        self._ordered = ordered
        self._items: dict[int, Any] = {}
        self.outcomes: dict[int, tuple[Any, BaseException | None]] = {}
        self.arrived: deque[int] = deque()  # keys of `outcomes` in the order they came, if that matters

    def push(self, start: int, items: Sequence[Any]) -> None:
        """Hold `items` as the tasks from `start` on."""
        self._items.update(enumerate(items, start))

    def item(self, index: int) -> Any:
        return self._items[index]

    def take(self, start: int, stop: int) -> Sequence[Any]:
        return [self._items[index] for index in range(start, stop)]

    def settle(self, first: int, values: Sequence[Any]) -> None:
        for index, value in enumerate(values, first):
            del self._items[index]
            self._put(index, value, None)
        self._notify()

    def fail(self, index: int, error: BaseException) -> None:
        _note(self, index, error)
        del self._items[index]
        self._put(index, None, error)
        self._notify()

    def _put(self, index: int, value: Any, error: BaseException | None) -> None:
        self.outcomes[index] = value, error
        if not self._ordered:
            self.arrived.append(index)


def _note(job: MapJob, index: int, error: BaseException) -> None:
    """Write on an error which task it belongs to, unless it is the pool's and all tasks share it."""
    if not pool_wide(error):
        note_task(error, index, lambda: job.label(index))


def pool_wide(error: BaseException) -> bool:
    """Say whether an error is not a task's: no worker could be had."""
    return isinstance(error, StartFailed | InitializerFailed | MainGuardMissing)


def _pickled_bytes(payload: Any) -> int:
    """Return how much of a payload, or a list of payloads, is not in buffers."""
    if isinstance(payload, list):
        return sum(map(_pickled_bytes, payload))
    return len(payload) if isinstance(payload, bytes) else len(payload[0] or b"")
