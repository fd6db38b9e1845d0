"""A pool on paper: the real dispatcher, simulated workers, simulated time.

Role: drive `shoal._pool.dispatcher.Dispatcher` as engine, care and workers do, without any process, so that a thousand
workers fit on a desk. Owner: `scale.py` for its figures and `tests/unit/test_scale.py` for its counts.

What is modelled
    worker   runs its spans in order, a map's in stretches, and reports as `_worker/chunks.py` and `_worker/reporting.py` do
    parent   takes in one frame at a time, then hands out; that takes no simulated time, news travel `latency_s` each way
    recall   every look of `_pool/care.py`: unstarted work is taken back while others idle, held results are asked for
Left out: deaths, limits, retries, pickling, and whatever a system does to sleeping processes.

Invariants
    S1  A task is settled once; a second time is an error on the spot, one missing is an error at the end.
    S2  The same parameters give the same history.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shoal._pool import care
from shoal._pool.batching import SOON, WHOLE, Grain, Pace
from shoal._pool.dispatcher import Dispatcher, Span
from shoal._worker.chunks import Stretcher
from shoal._worker.reporting import DEFER_NS

#: From a worker to the parent or back, about what waking a sleeping process takes. Seconds.
LATENCY_S = 50e-6
#: Whoever submits single tasks keeps so many waiting, and as many per worker.
SUBMITTED_AHEAD = 1000
SUBMITTED_AHEAD_EACH = 64


class Costs:
    """What each task costs: a table of seconds, repeated for ever."""

    def __init__(self, table: Sequence[float]) -> None:
        self._sums = [0.0, *itertools.accumulate(table)]
        self._length = len(table)
        self.longest_s = max(table)

    @classmethod
    def spread(cls, mean_s: float) -> Costs:
        """From a tenth of the mean to 1.9 times the mean, in an order without rhythm."""
        return cls([mean_s * (0.1 + 1.8 * (place * 389 % 1009) / 1008) for place in range(1009)])

    @classmethod
    def skewed(cls, short_s: float, times: float = 1000.0, one_in: int = 100) -> Costs:
        """All alike but one of a hundred, which takes a thousand times as long."""
        return cls([*[short_s] * (one_in // 2), short_s * times, *[short_s] * (one_in - one_in // 2 - 1)])

    def total_s(self, count: int) -> float:
        """Return what the first `count` tasks cost together."""
        rounds, rest = divmod(count, self._length)
        return rounds * self._sums[-1] + self._sums[rest]

    def begun(self, first: int, elapsed_s: float) -> int:
        """Return how many tasks, run one after the other from `first` on, have begun after `elapsed_s` seconds."""
        rounds, rest = divmod(self.total_s(first) + elapsed_s, self._sums[-1])
        return int(rounds) * self._length + bisect_right(self._sums, rest) - first


class Work:
    """What the dispatcher takes for a job: tasks `offset..` of the run."""

    __slots__ = ("costs", "given_up", "grain", "offset", "pace", "single")

    def __init__(self, costs: Costs, pace: Pace, offset: int, *, single: bool) -> None:
        self.costs = costs
        self.pace = pace
        self.grain: Grain = SOON if single else WHOLE
        self.offset = offset
        self.single = single
        self.given_up = False


@dataclass(slots=True)
class Piece:
    """A span on its way through a worker, whose own copy of its ends it is."""

    span: int
    work: Work
    start: int
    stop: int


#: (span, first task, tasks, seconds or 0 for not known) and (span, first task), as in the messages PART and HANDBACK.
Report = tuple[int, int, int, float]
HandBack = tuple[int, int]


class Worker:
    """One simulated worker."""

    def __init__(self, number: int, pool: SimulatedPool) -> None:
        self.number = number
        self.done = 0
        self.seen: object = None
        self.unsent: list[Report] = []
        self._pool = pool
        self._queue: deque[Piece] = deque()
        self._stretcher = Stretcher()
        self._deferred_s = 0.0
        self._piece: Piece | None = None
        self._claimed = self._running = 0  # tasks of the stretch as it began, and as it will end
        self._told = 0  # of which so many were reported while it runs
        self._began_s = 0.0
        self._turn = 0  # what ends an earlier stretch is void

    def receive(self, pieces: list[Piece]) -> None:
        self._queue.extend(pieces)
        if self._piece is None:
            self._next()

    def _next(self) -> None:
        """Begin a stretch of what is at hand, or sleep."""
        piece = self._piece
        if piece is None or piece.start >= piece.stop:
            piece = self._piece = self._queue.popleft() if self._queue else None
        if piece is None:
            self._send([])
            return
        length = 1 if piece.work.single else self._stretcher.length(int(piece.work.grain.stretch_s * 1e9))
        self._claimed = min(piece.stop - piece.start, length)
        self._began_s = self._pool.now_s
        self._end_after(self._claimed)

    def _end_after(self, count: int) -> None:
        piece = self._piece
        assert piece is not None
        self._running = count
        self._turn += 1
        turn, costs, first = self._turn, piece.work.costs, piece.work.offset + piece.start
        end_s = self._began_s + costs.total_s(first + count) - costs.total_s(first)
        self._pool.at(end_s, lambda: self._ended(turn))

    def _ended(self, turn: int) -> None:
        piece = self._piece
        if turn != self._turn or piece is None:
            return
        count, elapsed_s = self._running, self._pool.now_s - self._began_s
        self.done += count
        piece.start += count
        new, self._told = count - self._told, 0
        more = bool(self._queue) if piece.work.single else piece.start < piece.stop
        if new:
            share_s = elapsed_s * new / count
            self.unsent.append((piece.span, piece.start - new, new, share_s))
            self._deferred_s += share_s
        if not more or self._deferred_s >= DEFER_NS / 1e9:
            self._send([])
        if not piece.work.single:
            self._stretcher.learn(self._claimed, int(elapsed_s * 1e9), int(piece.work.grain.stretch_s * 1e9))
        self._next()

    def _begun(self) -> int:
        """Return how many tasks of the running stretch have begun."""
        piece = self._piece
        if piece is None:
            return 0
        first = piece.work.offset + piece.start
        begun = piece.work.costs.begun(first, self._pool.now_s - self._began_s)
        return min(self._running, max(1, begun))  # the first begins with the stretch, whatever rounding says

    def position(self) -> tuple[int, int, int]:
        """Return what its page says: span and index of the task that runs, tasks done."""
        piece = self._piece
        return (piece.span, piece.start + self._begun() - 1, self.done) if piece else (0, 0, self.done)

    def holds_results(self) -> bool:
        return bool(self.unsent) or self._begun() - 1 > self._told

    def _tell(self) -> None:
        """Add what the running stretch has finished to what is to be sent."""
        piece, finished = self._piece, self._begun() - 1
        if piece is not None and finished > self._told:
            self.unsent.append((piece.span, piece.start + self._told, finished - self._told, 0.0))
            self._told = finished

    def flush(self) -> None:
        """Send what is finished."""
        self._tell()
        self._send([])

    def recall(self) -> None:
        """Send what is finished and give back what has not begun."""
        self._tell()
        back = [(piece.span, piece.start) for piece in reversed(self._queue)]
        self._pool.recalled += sum(piece.stop - piece.start for piece in self._queue)
        self._queue.clear()
        piece, begun = self._piece, self._begun()
        if piece is not None and piece.start + begun < piece.stop:
            self._pool.recalled += piece.stop - piece.start - begun
            piece.stop = piece.start + begun
            back.append((piece.span, piece.stop))
            if begun < self._running:
                self._end_after(begun)
        self._send(back)

    def _send(self, back: list[HandBack]) -> None:
        if self.unsent or back:
            reports, self.unsent = self.unsent, []
            self._deferred_s = 0.0
            self._pool.after_latency(lambda: self._pool.heard(self, reports, back))


class SimulatedPool:
    """A dispatcher and its workers in simulated time."""

    def __init__(self, workers: int, *, latency_s: float = LATENCY_S, watch: Callable[[], Any] | None = None) -> None:
        """`watch` makes a context manager in which every use of the dispatcher happens; by default it is clocked."""
        self.dispatcher = Dispatcher()
        self.now_s = 0.0
        self.spent_ns = 0  # inside the dispatcher
        self.uses = 0  # times the parent turned to it
        self.recalled = 0  # tasks taken back
        self._latency_s = latency_s
        self._watch = watch or self._clocked
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._look_due_s = math.inf
        self._quiet = 0
        self._settled = bytearray()
        self._to_come: Iterator[Work] = iter(())
        self._workers = [Worker(number, self) for number in range(workers)]
        for number in range(workers):
            self.dispatcher.worker_ready(number)

    @contextmanager
    def _clocked(self) -> Iterator[None]:
        start = time.perf_counter_ns()
        yield
        self.spent_ns += time.perf_counter_ns() - start

    # --- time -----------------------------------------------------------------------------------

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        when_s = max(when_s, self.now_s)  # rounding must not turn the clock back: frames would overtake each other
        heapq.heappush(self._events, (when_s, next(self._order), action))

    def after_latency(self, action: Callable[[], None]) -> None:
        self.at(self.now_s + self._latency_s, action)

    def run_map(self, costs: Costs, tasks: int) -> float:
        """Run one map of so many tasks; returns the simulated seconds it took."""
        work = Work(costs, Pace(), 0, single=False)

        def submit() -> None:
            self.dispatcher.add(work, 0, tasks)  # type: ignore[arg-type]

        return self._run(tasks, submit)

    def run_single(self, costs: Costs, tasks: int) -> float:
        """Run as many jobs of one task, all of one function; returns the simulated seconds they took."""
        pace = Pace()
        self._to_come = (Work(costs, pace, offset, single=True) for offset in range(tasks))
        return self._run(tasks, lambda: None)

    def _run(self, tasks: int, submit: Callable[[], None]) -> float:
        self._settled = bytearray(tasks)
        start_s = self.now_s
        with self._watch():
            submit()
        self._pump(lambda: None)
        events = self._events
        while events:
            self.now_s, _, action = heapq.heappop(events)
            action()
        if (missing := self._settled.count(0)) or self.dispatcher.has_work:
            raise RuntimeError(f"{missing} of {tasks} tasks never settled")
        return self._last_s - start_s

    # --- the parent -----------------------------------------------------------------------------

    def heard(self, worker: Worker, reports: list[Report], back: list[HandBack]) -> None:
        """Take in a worker's frame."""
        dispatcher, number = self.dispatcher, worker.number
        owners: list[Work | None] = []

        def take_in() -> None:
            for span, first, count, elapsed_s in reports:
                work: Any = dispatcher.finished(number, span, first, count)
                owners.append(work)
                if work is not None and elapsed_s:
                    work.pace.learn(count, elapsed_s)
            for span, first in back:
                dispatcher.handed_back(number, span, first)

        self._pump(take_in)
        for (_, first, count, _), work in zip(reports, owners, strict=True):
            self._settle(work, first, count)

    def _settle(self, work: Work | None, first: int, count: int) -> None:
        if work is None:
            raise RuntimeError(f"{count} tasks were done that nobody owed")
        start, stop = work.offset + first, work.offset + first + count
        if self._settled.find(1, start, stop) != -1:
            raise RuntimeError(f"one of the tasks {start} to {stop} settled twice")  # S1
        self._settled[start:stop] = b"\1" * count
        self._last_s = self.now_s

    def _pump(self, take_in: Callable[[], None]) -> None:
        """What the engine does with the dispatcher after each thing that happened."""
        self.uses += 1
        ahead = SUBMITTED_AHEAD + SUBMITTED_AHEAD_EACH * len(self._workers)
        missing = ahead - self.dispatcher.waiting
        coming = list(itertools.islice(self._to_come, missing)) if missing > 0 else []
        with self._watch():
            take_in()
            for work in coming:
                self.dispatcher.add(work, 0, 1)  # type: ignore[arg-type]
            handed = self.dispatcher.assign()
            self._look_later()
        if handed:
            self._send(handed)

    def _send(self, handed: list[tuple[int, Span]]) -> None:
        parcels: dict[int, list[Piece]] = {}
        for number, span in handed:
            parcels.setdefault(number, []).append(Piece(span.id, span.job, span.start, span.stop))  # type: ignore[arg-type]
        for number, pieces in parcels.items():
            self.after_latency(lambda worker=self._workers[number], pieces=pieces: worker.receive(pieces))  # type: ignore[misc]

    # --- care -----------------------------------------------------------------------------------

    def _look_later(self) -> None:
        """As `Care.look`."""
        dispatcher = self.dispatcher
        if not dispatcher.busy:
            return
        idle = dispatcher.idle and not dispatcher.waiting
        due_s = self.now_s + min((care.RECALL_S if idle else care.FLUSH_S) * 2**self._quiet, care._SLOWEST_S)
        if due_s + care.RECALL_S < self._look_due_s and dispatcher.loaded():
            self._look_due_s = due_s
            self.at(due_s, lambda: self._look(due_s))

    def _look(self, due_s: float) -> None:
        """As `Care._look_now`: take unstarted work back if others idle, and ask for results that were not sent."""
        if due_s != self._look_due_s:
            return
        self._look_due_s = math.inf
        with self._watch():
            idle = bool(self.dispatcher.idle) and not self.dispatcher.waiting
            loaded = self.dispatcher.loaded()
        quiet = True
        for worker in map(self._workers.__getitem__, loaded):
            now = worker.position()
            still, worker.seen = now == worker.seen, now
            quiet = quiet and still
            if idle:
                self.after_latency(worker.recall)
            elif still and worker.holds_results():
                self.after_latency(worker.flush)
        self._quiet = min(self._quiet + 1, 8) if quiet else 0
        with self._watch():
            self._look_later()


def clock_ns(uses: int = 20_000) -> float:
    """Return what the clock itself adds to each use of the dispatcher."""
    pool = SimulatedPool(1)
    for _ in range(uses):
        with pool._watch():
            pass
    return pool.spent_ns / uses


def ideal_s(costs: Costs, tasks: int, workers: int) -> float:
    """Return the least seconds any order could take."""
    return max(costs.total_s(tasks) / workers, costs.longest_s)
