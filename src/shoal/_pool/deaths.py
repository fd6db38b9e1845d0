"""What the death of a worker, or of all of them, does to the work.

Role: settle what a dead worker owed; fail what waits when no worker can be had. Owner: the engine, with its lock held. Texts
that show the user's objects are made later, without it: `repr` is code of the user.

Invariants
    V1  A task that a worker's death is blamed on gets its error, or its retry, once the exit status is known or has
        been waited for; everything else the worker owed was put back at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shoal._pool import autopsy
from shoal._pool.core import Core
from shoal._pool.failures import start_error
from shoal._pool.inbox import Inbox
from shoal._pool.jobs import Job
from shoal._pool.worker import WorkerHandle
from shoal._wire import messages as m
from shoal.errors import Obituary

#: Obituaries kept for `statistics()`.
_KEPT = 100


class Deaths:
    """Deals with the dead of one pool."""

    def __init__(self, core: Core, inbox: Inbox) -> None:
        self._core = core
        self._inbox = inbox
        self._care = inbox.care
        self._oom = autopsy.OomWatch()
        self._culprits: dict[int, tuple[Job, int]] = {}  # worker -> whom its obituary goes to

    @property
    def pending(self) -> bool:
        """Whether a task still waits for its worker's exit status."""
        return bool(self._culprits)

    def gone(self, worker: WorkerHandle) -> None:
        """A worker's process ended and its socket is read empty: settle what it owed."""
        for message in worker.page.journal():
            if message[0] in (m.DONE, m.PART, m.FAILED):
                self._inbox.heard(worker, message, [])
        running = worker.page.running()
        announced = (running[0], running[1]) if running else None
        owed = self._core.dispatcher.in_flight(worker.number)
        culprit = self._core.dispatcher.worker_gone(worker.number, self._care.verdict(worker, announced))
        if culprit is not None:
            owed -= 1
            self._culprits[worker.number] = culprit
        self._core.counters.requeued += owed

    def buried(self, worker: WorkerHandle) -> None:
        """The exit status is there, or will never be: tell whoever waits for it."""
        culprit = self._culprits.pop(worker.number, None)
        if culprit is not None:
            self._blame(worker, *culprit)
        elif worker.doomed is None and worker.status is not None and worker.status.code != 0:
            self._note(autopsy.obituary(worker, self._oom, attempt=None, attempts=None))

    def _note(self, obituary: Obituary) -> None:
        deaths = self._core.counters.deaths
        deaths.append(obituary)
        del deaths[:-_KEPT]

    def _blame(self, worker: WorkerHandle, job: Job, index: int) -> None:
        """A task's worker died, by the task's fault or by ours for its sake."""
        attempt = job.tries(index).runs + 1
        facts = autopsy.obituary(worker, self._oom, attempt=attempt, attempts=1 + job.options.retries)
        sentence: Callable[[str, Obituary], BaseException] | None = None
        if not job.given_up:
            sentence = self._care.sentence(worker, job, index)
        failed = sentence is not None
        self._core.counters.failed += failed

        def tell() -> None:
            label = job.safe_label(index)
            obituary = replace(facts, task=label)
            self._note(obituary)
            if sentence is not None:
                job.fail(index, sentence(label, obituary))

        self._core.later.append(tell)

    def hopeless(self, kind: str, reason: str, text: str | None) -> None:
        """No worker can be had: everything that waits fails with why."""
        error = start_error(kind, reason, text)
        waiting = self._core.dispatcher.take_waiting() + self._care.take_set_aside()

        def fail() -> None:
            for job, start, stop in waiting:
                self._core.counters.failed += stop - start
                for index in range(start, stop):
                    job.fail(index, error)

        self._core.later.append(fail)
        self._core.poller.wake()
