"""The engine: everything that happens in a pool, happening.

Role: moves tasks and results between callers, the dispatcher and the workers' sockets. Owner: `executor.Pool`; the
engine outlives it until the work is done.

Who reads the sockets: one thread at a time, which has the *role*, see `role.py`. A caller that waits for a result
reads for itself, which saves waking another thread; when nobody waits, the background thread reads.

Invariants
    N1  Nothing under `core.lock` blocks or runs code of the user; see `core.py`.
    N2  What the dispatcher hands over is sent before the handing thread does anything that may not return.
    N3  Only the holder of the role reads sockets, runs timers and changes the fleet by what it finds.
    N4  In a forked child the engine owns nothing and refuses everything.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures._base import LOGGER
from typing import Any

from shoal._os.interpreter import answer_to_worker_name, main_module
from shoal._pool import interrupts, program
from shoal._pool.batching import WAKE_S
from shoal._pool.callbacks import Callbacks
from shoal._pool.core import Core
from shoal._pool.deaths import Deaths
from shoal._pool.depot import Depot
from shoal._pool.fleet import Fleet
from shoal._pool.functions import BootPayload, FunctionBook, boot_payload
from shoal._pool.future import Future
from shoal._pool.inbox import Inbox
from shoal._pool.jobs import Job, Task
from shoal._pool.outbox import Outbox
from shoal._pool.reader import Reader
from shoal._pool.worker import WorkerHandle
from shoal._settings import PoolOptions, TaskOptions
from shoal._wire import codec
from shoal.errors import PoolClosed


class Engine:
    """One running pool."""

    def __init__(self, options: PoolOptions) -> None:
        # At a prompt `__main__` grows: even a fork of this program may be older than what is named now.
        self.main_is_lost = main_module().kind == "none"
        boot = self._boot_payload(options)  # may refuse; nothing is open yet
        answer_to_worker_name()
        self.core = Core(options)
        self.callbacks = Callbacks(self.core.poller.nudge)
        self.reader = Reader(
            self.core, self.callbacks, self._pump, self.check_open, lambda: program.engines.discard(self)
        )
        self.core.pumps_here = self.reader.leads_here
        self.wait, self.closed = self.reader.wait, self.reader.closed
        self.foreign = False
        self.abandoned = False
        self.started = time.monotonic()
        self.functions = FunctionBook(main_is_lost=self.main_is_lost)
        self._asked: deque[Callable[[], None]] = deque()  # for the pump, from any thread
        self.depot = Depot(self.core, lambda worker: self.outbox.send(worker))  # noqa: PLW0108 - made after it
        self.fleet = Fleet(
            self.core,
            self.depot,
            boot,
            lambda worker: self.core.dispatcher.worker_ready(worker.number),
            lambda worker: self.inbox.read(worker),  # noqa: PLW0108 - the inbox is made after the fleet
            lambda worker: self.deaths.gone(worker),  # noqa: PLW0108 - as above
            lambda worker: self.deaths.buried(worker),  # noqa: PLW0108 - as above
            lambda *why: self.deaths.hopeless(*why),  # noqa: PLW0108 - as above
        )
        self.inbox = Inbox(self.core, self.functions, self.fleet, self.depot)
        self.care = self.inbox.care
        self.outbox = Outbox(self.core, self.care, self.depot)
        self.deaths = Deaths(self.core, self.inbox)
        try:
            self.reader.start()
        except RuntimeError as refused:  # no room for a thread, or the program is ending
            self.fleet.close()
            self.depot.close()
            self.core.poller.close()
            raise OSError(errno.EAGAIN, f"no room for another thread: {refused}") from refused
        program.engines.add(self)

    def _boot_payload(self, options: PoolOptions) -> BootPayload | None:
        """Pickle the initializer and its arguments; a forked worker inherits them instead."""
        if options.initializer is None or options.start_method == "fork":
            return None
        return boot_payload(options.initializer, options.initargs, main_is_lost=self.main_is_lost)

    # --- work comes in --------------------------------------------------------------------------

    def call(self, fn: Callable[..., Any], args: Any, kwargs: Any, options: TaskOptions) -> Future[Any]:
        """Pickle a call, queue it, and return its future. Any thread."""
        record = self.functions.record(fn)
        buffers: list[Any] = []
        payload = codec.pack_call(args, kwargs, buffers, (codec.ARGUMENTS, fn), main_is_lost=self.main_is_lost)
        if buffers:
            self.check_open()
            self.depot.keep(buffers)
        future: Future[Any] = Future(self)
        future._task = task = Task(fn, record, options, payload, buffers, future, (args, kwargs))
        self.submit(task)
        return future

    def submit(self, task: Task) -> None:
        """Queue a task and send what can be sent. Any thread."""
        core = self.core
        handed: list[WorkerHandle] = []
        try:
            with core.lock:
                self.check_open()
                fleet = self.fleet
                fleet.allow(core.options.workers)
                core.counters.submitted += 1
                task.span = core.dispatcher.add(task, 0, 1)
                # Who is busy gets more when it reports, several tasks to a frame. In a burst short ones are handed out by the
                # read that comes every half millisecond, so that not each of them wakes a worker.
                if core.dispatcher.idle and not (self.reader.bursting and (task.pace.cost_s or WAKE_S) < WAKE_S):
                    handed = self.outbox.hand_out()
                if not fleet.full:
                    fleet.keep_strength()
            if task.buffers:
                with interrupts.deferred():  # copying large data takes its time
                    self._send(handed)
            elif handed:
                self._send(handed)
        except (KeyboardInterrupt, SystemExit):
            self._catch_up()
            raise
        self.reader.submitted()

    def submit_many(self, job: Job, start: int, stop: int, workers: int | None = None) -> None:
        """Queue tasks `start..stop` of a job; start up to `workers` workers for them, None is all there may be. Any thread."""
        handed: list[WorkerHandle] = []
        try:
            with self.core.lock:
                self.check_open()
                self.fleet.allow(workers or self.core.options.workers)
                self.core.counters.submitted += stop - start
                self.core.dispatcher.add(job, start, stop)
                handed = self.outbox.hand_out()
                self.fleet.keep_strength()
            with interrupts.deferred():  # pickling items takes its time
                self._send(handed)
        except (KeyboardInterrupt, SystemExit):
            self._catch_up()
            raise

    def vacancies(self) -> tuple[int, int]:
        """Return how many workers could begin something at once, and how many more could be started. Any thread."""
        with self.core.lock:
            idle = 0 if self.core.dispatcher.waiting else self.core.dispatcher.idle
            return idle, self.core.options.workers - self.fleet.serving

    def claim(self, job: Job, most: int) -> tuple[int, int] | None:
        """Take up to `most` tasks of a job for the caller to run while no worker is ready: (start, stop). Any thread.

        The caller gives them to `settle_claimed`. None: workers are ready, or nothing waits, or something else comes first.
        """
        self.reader.in_burst()  # reading here costs less than a background thread that wants to run between the caller's tasks
        with interrupts.deferred(), self.core.lock:  # a signal that raises must not tear the count
            return None if self.core.closing else self.core.dispatcher.claim(job, most)

    def settle_claimed(self, job: Job, start: int, stop: int, values: Sequence[Any]) -> None:
        """Take in the results of claimed tasks. Any thread."""
        with interrupts.deferred():
            with self.core.lock:
                self.core.dispatcher.unclaim(job)
                self.core.counters.done += stop - start
                self.core.later.append(lambda: job.settle(start, values))  # by the pump, like everything else (J1)
            self.core.poller.wake()

    def _send(self, workers: list[WorkerHandle]) -> None:
        for worker in workers:
            self.outbox.send(worker)

    def check_open(self) -> None:
        """Raise `PoolClosed` if no work is taken any more."""
        if not (self.foreign or self.core.closing):
            return
        if self.foreign:
            raise PoolClosed(
                reason="this pool belongs to another process: a fork cannot use it; open a pool in this process"
            )
        raise PoolClosed(reason="the pool is closed: it takes no work after shutdown()")

    def _catch_up(self) -> None:
        """A signal struck while work was handed over: send what was not sent; who cannot be trusted starts over (N2)."""
        with self.core.lock:
            workers = list(self.core.workers.values())
            for worker in workers:
                for span in self.core.dispatcher.spans_at(worker.number):
                    if not span.sent and span not in worker.unsent:
                        worker.kill("it was interrupted while it was handed work")
        for worker in workers:
            self.outbox.send(worker)

    # --- what happens -------------------------------------------------------------------------------

    def _pump(self, timeout: float | None, shield: interrupts.Shield = interrupts.NO_SHIELD) -> bool:
        """Wait for something to happen, and deal with all that has. With the role. True if anything did."""
        core = self.core
        if timeout != 0.0:
            due_s = core.timers.wait_s()
            timeout = due_s if timeout is None else timeout if due_s is None else min(timeout, due_s)
        with shield.open():
            events = core.poller.poll(timeout)
        with core.lock:
            for fd, what in events:
                handler = core.poller.handler(fd)
                if handler is not None:
                    _guarded(handler, what)
            for action in core.timers.take_due():
                _guarded(action)
            while self._asked:
                _guarded(self._asked.popleft())
            handed = self.outbox.hand_out()
            _guarded(self._tidy)
        for worker in handed:
            _guarded(self.outbox.send, worker)
        while core.later:  # one at a time: what waits in it for another result reads on, and takes the next
            _guarded(core.later.popleft())
        if core.closing:
            self._maybe_end()
        return bool(events)

    def _tidy(self) -> None:
        """Keep the fleet at strength after what just happened."""
        core = self.core
        if self.abandoned:
            core.closing = True
        for number in core.dispatcher.spent() if core.options.max_tasks_per_worker else ():
            worker = core.workers[number]
            if worker.state == "ready":
                core.dispatcher.worker_gone(number, None)
                self.fleet.stop(worker)
        self.fleet.keep_strength()
        self.care.look()
        self.depot.look()
        forgotten = self.functions.take_forgotten()
        if forgotten:
            for worker in core.workers.values():
                gone = worker.known.intersection(forgotten)
                worker.known -= gone
                worker.to_forget |= gone
            self.depot.news()

    # --- giving up ------------------------------------------------------------------------------

    def cancel(self, task: Task) -> bool:
        """Give a task up. False if it is settled, or about to be. Any thread."""
        if self.foreign:
            return False
        with self.core.lock:
            if task.given_up or task.future is None:
                return False
            task.given_up = True
            self.core.counters.cancelled += 1
            waited = task.span is None or self.core.dispatcher.drop_waiting(task.span)
            if not waited:
                self._asked.append(lambda: self.care.chase(task))
        if waited:
            task.release()  # what it holds may be large
        self.core.poller.wake()
        return True

    def give_up(self, job: Job) -> None:
        """Give up what is left of a job: what waits is dropped, what runs is stopped. Any thread."""
        if self.foreign:
            return
        with self.core.lock:
            if job.given_up:
                return
            job.given_up = True
            self.core.dispatcher.drop(job)
            self.core.dispatcher.unclaim(job)
            if any(True for _ in self.core.dispatcher.spans_of(job)):
                self._asked.append(lambda: self.care.chase(job))
        job.drop()
        self.functions.release(job.record)
        self.core.poller.wake()

    def is_running(self, task: Task) -> bool:
        """Say whether a worker has announced this task. Any thread."""
        with self.core.lock:
            return any(
                self.care.announced(number, span) is not None for number, span in self.core.dispatcher.spans_of(task)
            )

    # --- the end --------------------------------------------------------------------------------

    def begin_close(self, *, cancel: bool = False, kill: bool = False) -> None:
        """Take no more work; end when the rest is done, or at once. Any thread."""
        if self.foreign or self.closed.is_set():
            return
        cancelled: list[tuple[Any, int, int]] = []
        with self.core.lock:
            self.core.closing = True
            if cancel or kill:
                cancelled = self.core.dispatcher.take_waiting() + self.care.take_set_aside()
            if kill:
                self._asked.append(self._kill_everything)
            for job, start, stop in cancelled:
                job.given_up = True
                self.core.counters.cancelled += stop - start
        for job, _, _ in cancelled:
            job.drop()
        self.core.poller.wake()

    def _kill_everything(self) -> None:
        for job in self.core.dispatcher.in_flight_jobs():
            job.given_up = True
            self.core.counters.cancelled += 1
            self.core.later.append(job.drop)
        self.core.killed = True
        for job, _, _ in self.care.take_set_aside():
            job.given_up = True
            self.core.later.append(job.drop)
        self.fleet.kill_all("the pool was ended")

    def abandon_later(self) -> None:
        """The pool object is gone. Safe in a finalizer: takes no lock."""
        self.abandoned = True
        self.core.poller.wake()

    def _maybe_end(self) -> None:
        """When closing and nothing is left to do: stop the workers, then end."""
        core = self.core
        with core.lock:
            if self.closed.is_set() or core.dispatcher.has_work or self.care.has_set_aside or core.later:
                return
            if self.deaths.pending or self._asked:
                return
            self.fleet.stop_all()
            if core.workers:
                return
            self.fleet.close()
            self.depot.close()
            core.timers.clear()  # what they would have done is nobody's concern any more, and they hold tasks
            self.closed.set()
        core.poller.wake()

    def join(self) -> None:
        """Block until the pool has ended and its thread too."""
        if not self.foreign:
            self.reader.join()

    def forget(self) -> None:
        """In a forked child: own nothing (N4). Takes no lock: its holder may not exist here."""
        self.foreign = True
        self.core.lock = threading.Lock()
        self.reader.after_fork()
        self.functions.after_fork()
        self.fleet.abandon()
        self.depot.abandon()
        self.core.poller.close()


def _guarded(action: Callable[..., object], *args: object) -> None:
    """Call `action`. Whatever it raises is logged: one mishap must not end the thread that serves everybody."""
    try:
        action(*args)
    except BaseException:
        LOGGER.exception("shoal: unexpected failure in the pool")
