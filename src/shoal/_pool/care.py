"""Limits and second chances: deadlines, cancelled tasks, retries, work taken back from the busy.

Role: what is done to a worker for the sake of one task. Owner: the engine, with its lock held; timers call back here.

How one task is stopped without touching the next (used by deadlines and by cancelling):
    1  the worker is stopped (SIGSTOP), so its page cannot change any more
    2  its socket is read empty, so a task that finished in time has finished
    3  if the page still announces that very task, the worker is killed, else it is continued (SIGCONT)

Invariants
    A1  A worker is killed for a task only while it is running that task, or has hung before starting it.
    A2  The clock of a task starts when its worker announces it. A worker that announces nothing (stopped, or stuck in
        native code) is held to the time it was last heard of.
    A3  A task set aside for a retry is in exactly one place: `_aside`.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable

from shoal._memory.page import COMMITTED, DONE, INDEX, SPAN
from shoal._os import processes
from shoal._pool import autopsy
from shoal._pool.core import Core
from shoal._pool.dispatcher import Span
from shoal._pool.jobs import Job, Task
from shoal._pool.worker import WorkerHandle
from shoal._settings import BACKOFF_LIMIT_S, POISON_KILLS
from shoal.errors import Obituary, PoisonTask, TaskTimeout, WorkerDied, be_broken_process_pools

#: A worker may sit on unstarted work for this long while others idle.
RECALL_S = 0.002
#: A worker that is in one task may sit on results of those before it for about this long.
FLUSH_S = 0.01
#: Longest pause between two tries to take work back or to stop a given-up task.
_SLOWEST_S = 0.05

#: Why a worker is killed that closed its socket, most likely by its task's doing.
CLOSED_CONNECTION = "it closed its connection"
TIMED_OUT = "its task ran longer than its timeout"
GIVEN_UP = "its task was given up"

Running = tuple[int, int]
#: Makes the error of a culprit from its label and its worker's obituary.
Sentence = Callable[[str, Obituary], BaseException]


class Care:
    """Looks after single tasks of one pool."""

    def __init__(
        self,
        core: Core,
        read_worker: Callable[[WorkerHandle], bool],
    ) -> None:
        self._core = core
        self._read_worker = read_worker
        self._aside: dict[tuple[int, int], tuple[Job, int]] = {}
        self._condemned: dict[int, Running] = {}  # worker -> (span, task) it is killed for
        self._look_due = math.inf  # when to look at the busy, by `time.monotonic`
        self._quiet = 0  # looks in a row at which nobody had got any further

    # --- deadlines ------------------------------------------------------------------------------

    def watch(self, worker: WorkerHandle) -> None:
        """Check the worker's deadlines when the next may have passed."""
        if worker.state != "ready" or worker.doomed:  # one that was killed would be waited for to tell its stack
            return
        due = self._next_due(worker)
        if due is None or (worker.watched_ns and worker.watched_ns <= due[0]):
            return
        when = worker.watched_ns = due[0]
        self._core.after(max(0.0, (when - time.monotonic_ns()) / 1e9), lambda: self._check(worker, when))

    def _next_due(self, worker: WorkerHandle) -> tuple[int, Running | None] | None:
        """Return (when, whom): when to look next, and the task whose deadline that is."""
        dispatcher = self._core.dispatcher
        spans = list(dispatcher.spans_at(worker.number))
        limits = [_timeout_ns(span) for span in spans]
        timed = [limit for limit in limits if limit is not None]
        if not timed:
            return None
        limit, since, whom = limits[0], worker.heard_ns, (spans[0].id, spans[0].start)  # A2
        running = worker.page.running()
        if running is not None:
            span = dispatcher.owes(worker.number, running[0])
            if span is not None and span.start <= running[1] < span.stop:
                limit, since, whom = _timeout_ns(span), running[2], (span.id, running[1])
        # What waits behind it may start at once, and may have less time.
        soonest = time.monotonic_ns() + min(timed)
        if limit is None or soonest < since + limit:
            return soonest, None
        return since + limit, whom

    def _check(self, worker: WorkerHandle, when: int) -> None:
        if worker.watched_ns != when:
            return  # an earlier one was set after this one
        worker.watched_ns = 0
        if worker.state != "ready" or worker.doomed:
            return
        due = self._next_due(worker)
        if due is None:
            return
        when, whom = due
        if whom is not None and when <= time.monotonic_ns():
            if processes.state_letter(worker.pid or 0) != "T":
                autopsy.ask_for_stack(worker)
            self._stop_if(worker, lambda: self._overdue(worker, whom), TIMED_OUT, whom)
        self.watch(worker)

    def _overdue(self, worker: WorkerHandle, whom: Running) -> bool:
        due = self._next_due(worker)
        return due is not None and due[1] == whom and due[0] <= time.monotonic_ns()

    def _stop_if(self, worker: WorkerHandle, guilty: Callable[[], bool], why: str, whom: Running) -> None:
        """Kill the worker if `guilty()` once it cannot change any more; see the header."""
        if worker.pidfd is None or worker.pid is None:
            return
        processes.stop_and_wait(worker.pidfd, worker.pid)
        self._read_worker(worker)
        if guilty():
            self._condemned[worker.number] = whom
            worker.kill(why)
        else:
            worker.signal(signal.SIGCONT)

    # --- cancelling -----------------------------------------------------------------------------

    def announced(self, number: int, span: Span) -> int | None:
        """Return which task of `span` its worker says it is running, if any."""
        worker = self._core.workers.get(number)
        running = worker.page.running() if worker is not None and worker.state == "ready" else None
        if running is None or running[0] != span.id or not span.start <= running[1] < span.stop:
            return None
        return running[1]

    def chase(self, job: Job, pause_s: float = RECALL_S) -> None:
        """Stop what runs of a given-up job, and take back what does not run yet."""
        left = list(self._core.dispatcher.spans_of(job))
        for number, span in left:
            worker = self._core.workers.get(number)
            if worker is None or worker.doomed:
                continue
            index = self.announced(number, span)
            if index is None:
                worker.recall()
            else:
                self._stop_if(worker, lambda n=number, s=span: self._still_runs(n, s), GIVEN_UP, (span.id, index))  # type: ignore[misc]
        if not left and isinstance(job, Task):
            self._core.later.append(job.release)
        if left:
            self._core.after(pause_s, lambda: self.chase(job, min(2 * pause_s, _SLOWEST_S)))

    def _still_runs(self, number: int, span: Span) -> bool:
        owed = self._core.dispatcher.owes(number, span.id)
        return owed is not None and self.announced(number, owed) is not None

    # --- work that sits with the busy -----------------------------------------------------------

    def look(self) -> None:
        """If a worker has more than one task, look at it in a moment: the first may be a long one.

        Soon if others could take the rest, else now and then. A look nobody needs takes time from the busy.
        """
        dispatcher = self._core.dispatcher
        if not dispatcher.busy:
            return
        idle, room = self._takers()
        pause_s = min((RECALL_S if idle or room else FLUSH_S) * 2**self._quiet, _SLOWEST_S)
        due = time.monotonic() + pause_s
        if due + RECALL_S < self._look_due and dispatcher.loaded():
            self._look_due = due
            self._core.after(pause_s, lambda: self._look_now(due))

    def _takers(self) -> tuple[bool, bool]:
        """Say whether others idle, and whether others could be started, that could take work from the busy."""
        core = self._core
        if core.dispatcher.waiting:
            return False, False
        return core.dispatcher.idle > 0, core.dispatcher.ready < core.options.workers

    def _look_now(self, due: float) -> None:
        """Ask busy workers for unstarted work if others can take it, and for results they have not sent."""
        if due != self._look_due:
            return  # an earlier look took its place
        self._look_due = math.inf
        dispatcher = self._core.dispatcher
        idle, room = self._takers()
        quiet = True
        for number in dispatcher.loaded():
            worker = self._core.workers.get(number)
            if worker is None or worker.state != "ready":
                continue
            words = worker.page.words
            seen = words[SPAN], words[INDEX], words[DONE]
            still, worker.seen = seen == worker.seen, seen
            quiet = quiet and still
            if idle or (room and still):
                worker.recall()
            elif still and (words[COMMITTED] or self._holds_results(number, seen)):
                worker.flush()
        self._quiet = min(self._quiet + 1, 8) if quiet else 0
        self.look()

    def _holds_results(self, number: int, seen: tuple[int, int, int]) -> bool:
        """Say whether a worker that is in one task has not told of those before it in the same span."""
        span = self._core.dispatcher.owes(number, seen[0])
        return span is not None and span.start < seen[1] < span.stop

    # --- verdicts -------------------------------------------------------------------------------

    def verdict(self, worker: WorkerHandle, announced: Running | None) -> Running | None:
        """Return the task a death is to be blamed on: what it was killed for, else what it was running."""
        condemned = self._condemned.pop(worker.number, None)
        if condemned is not None:
            return condemned
        return None if worker.doomed and worker.doomed != CLOSED_CONNECTION else announced

    def sentence(self, worker: WorkerHandle, job: Job, index: int) -> Sentence | None:
        """Return what makes the error a culprit fails with, or None if it is tried again."""
        tries = job.tries(index)
        attempt, attempts = tries.runs + 1, 1 + job.options.retries
        timeout = job.options.timeout or 0.0
        kind: type[BaseException] = WorkerDied
        if worker.doomed == TIMED_OUT:
            self._core.counters.timeouts += 1
            kind = TaskTimeout
        else:
            tries.kills += 1
            if tries.kills >= POISON_KILLS:
                return lambda _label, obituary: PoisonTask(obituary=obituary, kills=tries.kills)
        wanted = job.options.retry_on
        if wanted is not None:
            be_broken_process_pools()  # one of them may be what is wanted
        if (wanted is None or issubclass(kind, wanted)) and self.retry(job, index):
            return None
        if kind is WorkerDied:
            return lambda _label, obituary: WorkerDied(obituary=obituary)
        return lambda label, obituary: TaskTimeout(
            task=label, timeout=timeout, attempt=attempt, attempts=attempts, obituary=obituary
        )

    def retry(self, job: Job, index: int) -> bool:
        """Set a task aside for another run after a pause; False if it has had its runs."""
        tries = job.tries(index)
        tries.runs += 1
        if tries.runs > job.options.retries or job.given_up or self._core.killed:
            return False
        import random

        self._core.counters.retried += 1
        pause_s = min(BACKOFF_LIMIT_S, job.options.backoff_s * 2 ** (tries.runs - 1)) * random.uniform(0.5, 1.0)
        key = id(job), index
        self._aside[key] = job, index
        self._core.after(pause_s, lambda: self._again(key))
        return True

    def _again(self, key: tuple[int, int]) -> None:
        entry = self._aside.pop(key, None)
        if entry is None:
            return
        job, index = entry
        span = self._core.dispatcher.add_first(job, index, index + 1)
        if isinstance(job, Task):
            job.span = span

    @property
    def has_set_aside(self) -> bool:
        return any(not job.given_up for job, _ in self._aside.values())

    def take_set_aside(self) -> list[tuple[Job, int, int]]:
        """Remove and return the tasks that wait for a retry, as (job, start, stop)."""
        taken = [(job, index, index + 1) for job, index in self._aside.values() if not job.given_up]
        self._aside.clear()
        return taken


def _timeout_ns(span: Span) -> int | None:
    timeout = span.job.options.timeout
    return None if timeout is None else int(timeout * 1e9)
