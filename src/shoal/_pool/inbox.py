"""What workers say, taken in.

Role: frames from a worker's socket to changes in the dispatcher and outcomes of jobs. Owner: the engine; `read` and
`heard` are called by the holder of the role with the lock held. Unpickling is appended to `core.later`.

Invariants
    I1  A result is settled only if the dispatcher says that this worker owed it (D3), so each settles once.
    I2  Nothing here unpickles: that runs code of the user, and is left to the pump.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from shoal._pool.care import Care
from shoal._pool.core import Core
from shoal._pool.depot import Depot
from shoal._pool.failures import unreadable
from shoal._pool.fleet import Fleet
from shoal._pool.functions import FunctionBook, boot_payload
from shoal._pool.jobs import Job
from shoal._pool.worker import WorkerHandle
from shoal._wire import codec, remote
from shoal._wire import messages as m
from shoal.errors import MainGuardMissing


class Inbox:
    """Takes in messages of all workers of one pool."""

    def __init__(
        self,
        core: Core,
        functions: FunctionBook,
        fleet: Fleet,
        depot: Depot,
    ) -> None:
        self._core = core
        self._functions = functions
        self._fleet = fleet
        self._depot = depot
        self.care = Care(core, self.read)

    def read(self, worker: WorkerHandle) -> bool:
        """Take in all that a worker has sent. False at end of file."""
        alive, worker.reader.short = True, False
        try:
            while alive and not worker.reader.short:  # short: the socket is empty, asking again would only tell that
                alive = worker.reader.read(worker.sock)
        except BlockingIOError:
            pass
        except OSError:
            alive = False
        for frame in worker.reader.frames():
            worker.courier.incoming(frame)
            if frame.buffers:
                self._depot.touch()
            for message in frame.messages:
                self.heard(worker, message, frame.buffers)
        worker.heard_ns = time.monotonic_ns()
        return alive

    def heard(self, worker: WorkerHandle, message: m.Message, buffers: list[Any]) -> None:
        kind = message[0]
        if kind == m.DONE:
            _, span_id, payload, elapsed_ns = message
            job: Job | None = self._core.dispatcher.finished(worker.number, span_id, 0, 1)
            if job is not None:
                job.pace.learn(1, elapsed_ns / 1e9)
                worker.tasks_done += 1
                self._functions.release(job.record)
                self._core.counters.done += 1
                if not job.given_up:
                    self._core.later.append(partial(self._settle_one, job, 0, payload, buffers))
        elif kind == m.PART:
            _, span_id, first, count, whole, payload, elapsed_ns = message
            job = self._core.dispatcher.finished(worker.number, span_id, first, count)
            if job is not None:
                if elapsed_ns:
                    job.pace.learn(count, elapsed_ns / 1e9)
                worker.tasks_done += count
                self._deliver(job, first, count, payload, buffers, whole=whole)
        elif kind == m.FAILED:
            _, span_id, index, payload, _ = message
            job = self._core.dispatcher.finished(worker.number, span_id, index, 1)
            if job is not None:
                worker.tasks_done += 1
                self._failed(job, index, payload)
        elif kind == m.HANDBACK:
            self._core.dispatcher.handed_back(worker.number, message[1], message[2])
        elif kind == m.UNKNOWN:
            self._unknown(worker, message)
        elif kind == m.READY:
            self._fleet.booted(worker, message[1])
        elif kind == m.BOOT_FAILED:
            self._boot_failed(worker, message[1], message[2])

    def _deliver(self, job: Job, first: int, count: int, payload: Any, buffers: list[Any], *, whole: bool) -> None:
        """Have results of a map unpickled and settled, by the pump, without the lock."""
        self._core.counters.done += count
        if job.given_up:
            return

        def settle() -> None:
            if not whole:
                for index, one in enumerate(payload, first):
                    self._settle_one(job, index, one, buffers)
                return
            try:  # plain data in one piece: its unpickling cannot fail
                values = codec.unpack(payload, buffers)
            except BaseException as error:  # no memory left, say
                for index in range(first, first + count):
                    job.fail(index, unreadable(job, index, error))
            else:
                job.settle(first, values)

        self._core.later.append(settle)

    def _settle_one(self, job: Job, index: int, payload: Any, buffers: list[Any]) -> None:
        """Unpickle and settle one result; by the pump, without the lock."""
        try:
            value = codec.unpack(payload, buffers)
        except BaseException as error:
            self._core.counters.done -= 1
            self._core.counters.failed += 1
            job.fail(index, unreadable(job, index, error))
        else:
            job.settle(index, (value,))

    def _failed(self, job: Job, index: int, captured: bytes) -> None:
        """A task raised. Retry it if its options name the exception, else let it fail."""
        if job.given_up:
            return

        def settle() -> None:
            error = remote.rebuild(captured)
            wanted = job.options.retry_on
            if wanted is not None and isinstance(error, wanted):
                with self._core.lock:
                    retried = self.care.retry(job, index)
                if retried:
                    self._core.poller.wake()
                    return
            self._core.counters.failed += 1
            job.fail(index, error)

        self._core.later.append(settle)

    def _unknown(self, worker: WorkerHandle, message: m.Message) -> None:
        """A worker cannot find a function by its name: send it by value, once."""
        _, span_id, index, captured, sent_id = message
        span = self._core.dispatcher.owes(worker.number, span_id)
        if span is None:
            return
        job: Job = span.job

        def resend() -> None:
            try:
                now_by_value = job.fn is not None and self._functions.by_value(job.record, job.fn)
                switched = now_by_value or job.record.form[0] != sent_id
                error: BaseException = remote.rebuild(captured)
            except Exception as refused:
                switched, error = False, refused
            with self._core.lock:
                if switched:
                    self._core.dispatcher.handed_back(worker.number, span_id, index)
                elif self._core.dispatcher.finished(worker.number, span_id, index, 1) is None:
                    return
                else:
                    self._core.dispatcher.handed_back(worker.number, span_id, index + 1)
            if not switched:
                self._core.counters.failed += 1
                job.fail(index, error)
            self._core.poller.wake()

        worker.known.discard(sent_id)
        self._core.later.append(resend)

    def _boot_failed(self, worker: WorkerHandle, stage: str, captured: bytes) -> None:
        worker.state = "stopping"
        self._fleet.full = False
        self._core.later.append(lambda: self._report_boot_failure(worker, stage, captured))

    def _report_boot_failure(self, worker: WorkerHandle, stage: str, captured: bytes) -> None:
        error = remote.rebuild(captured)
        text = str(error.__cause__ or error).strip().strip('"').strip()
        options = self._core.options
        if stage == "unknown" and options.initializer is not None:
            try:
                by_value = boot_payload(options.initializer, options.initargs, main_is_lost=True, by_value=True)
            except Exception as refused:
                error, text = refused, str(refused)
            else:
                with self._core.lock:
                    if self._fleet.send_initializer_by_value(by_value):
                        self._core.poller.wake()
                        return
        kind = "guard" if isinstance(error, MainGuardMissing) else "main" if stage == "main" else "initializer"
        with self._core.lock:
            self._fleet.boot_failed(worker, kind, f"{type(error).__name__}: {error}", text)
