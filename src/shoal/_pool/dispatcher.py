"""Decide which worker gets which task and what a death costs. Pure: no clocks, pipes or processes.

Role: the state of all work. Owner: `engine.Engine`, which calls it with its lock held, so nothing
here takes a lock; nothing here calls user code.

Work is counted in spans: tasks `start..stop` of one job. A submitted call is a job of one task; a map
is a job of many. A span is cut when it is handed over, so a map of a million items costs one object.

Invariants
    D1  Each unsettled task of a job is in exactly one of: backlog, in flight with one worker, set aside
        (waiting for a retry, outside the dispatcher), claimed by the caller, who runs it itself.
    D2  A worker that is not on the roster has nothing in flight.
    D3  A task settles once: what arrives under a span id that is not in flight with that very worker
        is not for anybody.
    D4  A worker runs its spans in the order given and each span from its start, so what it still owes of
        a span is always a tail of it.
    D5  A retiring worker is handed nothing.
    D6  The backlog is empty, or no ready worker is idle.

Checked by tests/model/test_dispatcher.py (every interleaving of a small configuration with one death)
and tests/unit/test_dispatcher.py.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shoal._pool.batching import PREFETCH_S, UNKNOWN_S, WAKE_S, share

if TYPE_CHECKING:
    from shoal._pool.jobs import Job

#: A span lost this often before its worker announced any task of it is blamed all the same: something
#: in it kills workers before they can say what they do.
SILENT_LOSSES = 3


class Span:
    """Tasks `start..stop` of one job, handed over together. `start` moves up as they finish."""

    __slots__ = ("cost_s", "dropped", "id", "job", "lost", "sent", "start", "stop", "worker")

    def __init__(self, job: Job, start: int, stop: int) -> None:
        self.job = job
        self.start = start
        self.stop = stop
        self.id = 0  # set when handed over
        self.cost_s = 0.0  # expected seconds per task, as assumed when handed over
        self.lost = 0  # times a worker died with it, unannounced
        self.worker: int | None = None  # who has it in flight; None while it waits
        self.sent = False  # taken by whoever encodes and sends
        self.dropped = False  # still in the backlog's queue, but counted out of it

    def __len__(self) -> int:
        return self.stop - self.start

    def __repr__(self) -> str:
        return f"Span(#{self.id} {self.start}..{self.stop})"


class Slot:
    """A worker as the dispatcher sees it."""

    __slots__ = ("allowance", "held_s", "in_flight", "number", "retiring", "tasks")

    def __init__(self, number: int, allowance: int | None) -> None:
        self.number = number
        self.allowance = allowance  # tasks it may still be given, None for no limit
        self.in_flight: dict[int, Span] = {}
        self.tasks = 0  # in all of them
        self.held_s = 0.0
        self.retiring = False


class Dispatcher:
    """The state of all work of one pool."""

    def __init__(self, max_tasks_per_worker: int | None = None, processors: int = 1 << 30) -> None:
        self._max_tasks = max_tasks_per_worker
        self._processors = processors
        self._backlog: deque[Span] = deque()
        self._slots: dict[int, Slot] = {}
        # Ordered ones, because the first of a plain dict is found by walking over all that were removed before it.
        self._idle: OrderedDict[int, Slot] = OrderedDict()  # nothing in flight, may be given work
        self._hungry: OrderedDict[int, Slot] = OrderedDict()  # something in flight, may be given more
        self._loaded: dict[int, Slot] = {}  # more than one task in flight
        self._retiring: dict[int, Slot] = {}
        self._owed = 0  # tasks in flight
        self._last_id = 0
        self.waiting = 0  # tasks in the backlog
        self._claims: dict[int, int] = {}  # id of a job -> its tasks that the caller runs itself

    # --- what others read ---------------------------------------------------------------------

    @property
    def ready(self) -> int:
        """Workers on the roster that are not retiring."""
        return len(self._slots) - len(self._retiring)

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def busy(self) -> int:
        """Workers that have something to do."""
        return len(self._slots) - len(self._idle)

    @property
    def has_work(self) -> bool:
        """Whether anything waits, is in flight or claimed."""
        return bool(self.waiting or self._owed or self._claims)

    def in_flight(self, number: int) -> int:
        """Return how many tasks worker `number` owes."""
        slot = self._slots.get(number)
        return slot.tasks if slot else 0

    def owes(self, number: int, span_id: int) -> Span | None:
        """Return the span if it is in flight with that very worker (D3)."""
        slot = self._slots.get(number)
        return slot.in_flight.get(span_id) if slot else None

    def spans_with(self, number: int) -> int:
        """Return how many spans worker `number` has in flight."""
        slot = self._slots.get(number)
        return len(slot.in_flight) if slot else 0

    def spans_at(self, number: int) -> list[Span]:
        """Return what worker `number` has in flight, in the order it runs it (D4)."""
        slot = self._slots.get(number)
        return list(slot.in_flight.values()) if slot else []

    def in_flight_jobs(self) -> list[Job]:
        """Return each job that has something in flight, once."""
        jobs = {id(span.job): span.job for slot in self._slots.values() for span in slot.in_flight.values()}
        return list(jobs.values())

    def spans_of(self, job: Job) -> Iterator[tuple[int, Span]]:
        """Yield (worker, span) for each span of `job` that is in flight."""
        for slot in self._slots.values():
            for span in slot.in_flight.values():
                if span.job is job:
                    yield slot.number, span

    # --- work comes in --------------------------------------------------------------------------

    def add(self, job: Job, start: int, stop: int) -> Span:
        """Queue tasks `start..stop` of `job` behind everything else."""
        span = Span(job, start, stop)
        self._backlog.append(span)
        self.waiting += stop - start
        return span

    def add_first(self, job: Job, start: int, stop: int) -> Span:
        """Queue them before everything else: a retry, or work that comes back."""
        span = Span(job, start, stop)
        self._put_back(span)
        return span

    def _put_back(self, span: Span) -> None:
        span.worker = None
        if span.start < span.stop and not span.job.given_up:
            self._backlog.appendleft(span)
            self.waiting += span.stop - span.start

    def claim(self, job: Job, most: int) -> tuple[int, int] | None:
        """Take up to `most` tasks of `job` off the backlog's front for the caller to run: (start, stop), or None.

        Only while no worker could: they are for who has to wait for the first one.
        """
        backlog = self._backlog
        while backlog and backlog[0].dropped:
            backlog.popleft()
        if self._slots or not backlog or backlog[0].job is not job:
            return None
        span = backlog[0]
        start, stop = span.start, min(span.stop, span.start + most)
        self._claims[id(job)] = stop - start
        self.waiting -= stop - start
        span.start = stop
        if start + most >= span.stop:
            backlog.popleft()
        return start, stop

    def unclaim(self, job: Job) -> None:
        """Take in that the caller has done what it claimed of `job`, or never will."""
        self._claims.pop(id(job), None)

    # --- workers come and go --------------------------------------------------------------------

    def worker_ready(self, number: int) -> None:
        """Put a worker on the roster; it may be given work from now on."""
        slot = Slot(number, self._max_tasks)
        self._slots[number] = slot
        self._idle[number] = slot

    def retire(self, number: int) -> None:
        """Give worker `number` nothing more (D5)."""
        slot = self._slots[number]
        slot.retiring = True
        self._retiring[number] = slot
        self._idle.pop(number, None)
        self._hungry.pop(number, None)

    def worker_gone(self, number: int, running: tuple[int, int] | None) -> tuple[Job, int] | None:
        """Take a dead worker off the roster and put back what it owed, all but the culprit.

        Args:
            number: The worker.
            running: (span id, task) it had announced and not finished, if any.

        Returns:
            The task that was running, which is now set aside (D1): the caller settles or retries it.
        """
        slot = self._slots.pop(number, None)
        if slot is None:
            return None
        self._idle.pop(number, None)
        self._hungry.pop(number, None)
        self._retiring.pop(number, None)
        self._count(slot, -slot.tasks)
        culprit: tuple[Job, int] | None = None
        for span in reversed(slot.in_flight.values()):  # reversed: putting back in front keeps the order
            index = running[1] if running and running[0] == span.id else None
            if index is None or not span.start <= index < span.stop:
                index = self._silent_loss(span, first=span is next(iter(slot.in_flight.values())))
            if index is None:
                self._put_back(span)
                continue
            culprit = span.job, index
            self._put_back(Span(span.job, index + 1, span.stop))
            self._put_back(Span(span.job, span.start, index))
        return culprit

    @staticmethod
    def _silent_loss(span: Span, *, first: bool) -> int | None:
        """Return the task to blame although none was announced, or None."""
        if first:
            span.lost += 1
        return span.start if span.lost >= SILENT_LOSSES else None

    # --- work goes out --------------------------------------------------------------------------

    def assign(self) -> list[tuple[int, Span]]:
        """Hand work to every worker that can take some; returns (worker, span) pairs to send."""
        handed: list[tuple[int, Span]] = []
        backlog = self._backlog
        filling: Slot | None = None
        while backlog and (self._idle or self._hungry):
            span = backlog[0]
            if span.dropped:
                backlog.popleft()
                continue
            useful = self._useful(span.job)
            if filling is not None and filling.held_s < WAKE_S and filling.number in self._hungry:
                slot = filling
            else:
                rather_busy = not self._idle or (self._hungry and self.busy >= useful)
                slot = filling = next(iter(self._hungry.values() if rather_busy else self._idle.values()))
            count = share(span.job.pace, span.job.grain, slot.held_s, self.waiting, useful, self._owed)
            if slot.allowance is not None:
                count = min(count, slot.allowance)
            if count == 0:  # nothing for this one now; it asks again when it has finished something
                self._hungry.pop(slot.number, None)
                continue
            handed.append((slot.number, self._hand(slot, span, count)))
        return handed

    def _useful(self, job: Job) -> int:
        """Return how many workers speed a job up. What is shorter than a wake-up does not sleep, so none beyond the processors."""
        cost_s = job.pace.cost_s
        return len(self._slots) if cost_s is None or cost_s >= WAKE_S else min(len(self._slots), self._processors)

    def _hand(self, slot: Slot, span: Span, count: int) -> Span:
        whole = count >= span.stop - span.start  # without len(): this runs for each task
        if whole:
            count = span.stop - span.start
        else:
            piece = Span(span.job, span.start, span.start + count)
            span.start += count
            span = piece
        self._last_id += 1
        span.id = self._last_id
        pace = span.job.pace
        pace.grain = span.job.grain
        pace.handed_over += 1
        pace.largest = max(pace.largest, count)
        span.cost_s = UNKNOWN_S if pace.cost_s is None else pace.cost_s
        span.worker = slot.number
        span.sent = False
        self.waiting -= count
        slot.in_flight[span.id] = span
        self._count(slot, count)
        if whole:  # only now: a signal that strikes in between must not lose it
            self._backlog.popleft()
        slot.held_s += count * span.cost_s
        self._idle.pop(slot.number, None)
        if slot.allowance is not None:
            slot.allowance -= count
            if slot.allowance <= 0:
                slot.retiring = True
                self._retiring[slot.number] = slot
        self._feed(slot)
        return span

    def _count(self, slot: Slot, change: int) -> None:
        """Keep count of what a slot owes; nothing here may cost more when there are more workers."""
        self._owed += change
        slot.tasks += change
        if slot.tasks > 1:
            self._loaded[slot.number] = slot
        else:
            self._loaded.pop(slot.number, None)

    def _feed(self, slot: Slot) -> None:
        """Note whether a slot that holds something may be given more."""
        if slot.retiring or slot.held_s > PREFETCH_S:
            self._hungry.pop(slot.number, None)
        else:
            self._hungry[slot.number] = slot

    # --- results come in ------------------------------------------------------------------------

    def finished(self, number: int, span_id: int, first: int, count: int) -> Job | None:
        """Take in that tasks `first..first+count` of a span are done.

        Returns:
            Their job, or None if they are not for anybody (D3).
        """
        slot = self._slots.get(number)
        span = slot.in_flight.get(span_id) if slot else None
        if slot is None or span is None or first != span.start or span.start + count > span.stop:
            return None
        span.start += count
        span.job.pace.tasks += count
        self._count(slot, -count)
        slot.held_s -= count * span.cost_s
        if span.start == span.stop:
            del slot.in_flight[span_id]
        self._settle_slot(slot)
        return span.job

    def handed_back(self, number: int, span_id: int, first: int) -> None:
        """Take in that worker `number` did not start, and will not start, the span from `first` on."""
        slot = self._slots.get(number)
        span = slot.in_flight.get(span_id) if slot else None
        if slot is None or span is None or not span.start <= first < span.stop:
            return
        self._count(slot, first - span.stop)
        slot.held_s -= (span.stop - first) * span.cost_s
        span.job.pace.taken_back += span.stop - first
        if slot.allowance is not None:
            slot.allowance += span.stop - first
        if first == span.start:
            del slot.in_flight[span_id]
            tail = span  # the same object: a task knows its span
        else:
            tail = Span(span.job, first, span.stop)
            span.stop = first
        self._put_back(tail)
        self._settle_slot(slot)
        self._hungry.pop(slot.number, None)  # it is stuck in something: more work when it has finished that

    def _settle_slot(self, slot: Slot) -> None:
        """Put a slot where it belongs after what it holds became less."""
        if not slot.in_flight:
            slot.held_s = 0.0
            if not slot.retiring:
                self._hungry.pop(slot.number, None)
                self._idle[slot.number] = slot
        else:
            self._feed(slot)

    def spent(self) -> list[int]:
        """Return the workers that have done all they may and owe nothing."""
        return [slot.number for slot in self._retiring.values() if not slot.in_flight]

    def loaded(self) -> list[int]:
        """Return the workers that hold more than one task."""
        return list(self._loaded)

    # --- giving up ------------------------------------------------------------------------------

    def drop(self, job: Job) -> None:
        """Forget what waits of a job. What is in flight stays until its worker is done with it."""
        for span in self._backlog:
            if span.job is job:
                self.drop_waiting(span)

    def drop_waiting(self, span: Span) -> bool:
        """Forget one span if it waits; False if a worker has it, or had it."""
        if span.worker is not None or span.dropped:
            return False
        # Taking it out of the middle of the queue would cost its length; `assign` skips it instead.
        span.dropped = True
        self.waiting -= len(span)
        return True

    def take_waiting(self) -> list[tuple[Job, int, int]]:
        """Remove and return everything that waits, as (job, start, stop)."""
        taken = [(span.job, span.start, span.stop) for span in self._backlog if not span.dropped]
        for span in self._backlog:
            span.dropped = True
        self._backlog.clear()
        self.waiting = 0
        return taken

    def cut(self, number: int, span_id: int, index: int) -> bool:
        """Take the last task, `index`, off a span: it cannot be sent. True if the caller is to settle it."""
        slot = self._slots.get(number)
        span = slot.in_flight.get(span_id) if slot else None
        if slot is None or span is None or span.stop != index + 1:
            return False
        span.stop = index
        self._count(slot, -1)
        slot.held_s -= span.cost_s
        if span.start == span.stop:
            del slot.in_flight[span_id]
        self._settle_slot(slot)
        return True
