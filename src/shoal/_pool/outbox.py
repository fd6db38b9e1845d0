"""Work on its way to the workers.

Role: hand out what the dispatcher decides, encode it, send it. Owner: the engine. `hand_out` is called with its lock held,
`send` without it, because packing the items of a map runs code of the user.

Invariants
    O1  Frames reach a worker in the order the dispatcher handed them out, a function before its first task.
    O2  What was handed out is sent, whichever of several threads comes first; none waits for another.
"""

from __future__ import annotations

import time

from shoal._pool.care import Care
from shoal._pool.core import Core
from shoal._pool.depot import Depot
from shoal._pool.dispatcher import Span
from shoal._pool.functions import Form
from shoal._pool.jobs import PackFailed
from shoal._pool.overlap import Overlaps
from shoal._pool.worker import WorkerHandle
from shoal._wire import codec
from shoal._wire import messages as m
from shoal._wire.courier import Outgoing
from shoal._wire.frames import encode


class Outbox:
    """Sends work to all workers of one pool."""

    def __init__(self, core: Core, care: Care, depot: Depot) -> None:
        self._core = core
        self._care = care
        self._depot = depot
        self._overlaps = Overlaps(core) if core.options.debug else None

    def hand_out(self) -> list[WorkerHandle]:
        """Give work to whoever can take some, with the lock held; returns whom to call `send` for."""
        dispatcher, workers = self._core.dispatcher, self._core.workers
        handed: dict[int, WorkerHandle] = {}
        for number, span in dispatcher.assign():
            worker = handed[number] = workers[number]
            worker.unsent.append(span)
            if dispatcher.spans_with(number) == len(worker.unsent):  # it was idle: its time begins now
                worker.heard_ns = time.monotonic_ns()
        return list(handed.values())

    def send(self, worker: WorkerHandle) -> None:
        """Encode and send what was handed to a worker, in order. Pickles map items, so without the lock.

        One thread at a time does so for one worker; another that comes meanwhile leaves its spans to it. So frames
        are sent in the order of the dispatcher, and a function before its first task.
        """
        while worker.unsent or worker.has_news:
            if not worker.sending.acquire(blocking=False):
                return  # whoever has it looks at `unsent` again after releasing it
            try:
                spans = []
                while worker.unsent:
                    span = worker.unsent.popleft()
                    span.sent = True
                    spans.append(span)
                self._send_or_fail(worker, spans)
            finally:
                worker.sending.release()

    def _send_or_fail(self, worker: WorkerHandle, spans: list[Span]) -> None:
        """Send spans whatever happens: a worker that was sent half of something is of no use any more (O2)."""
        try:
            self._send_spans(worker, spans)
        except BaseException as problem:
            with self._core.lock:
                worker.kill("it could not be sent its work")
                if not isinstance(problem, Exception):
                    raise  # Ctrl-C: what it owes comes back with its death
                for span in spans:
                    self._fail(worker, span, problem)
            self._core.poller.wake()

    def _fail(self, worker: WorkerHandle, span: Span, error: Exception) -> None:
        """Fail every task of a span that cannot be sent, for lack of memory say."""
        while span.start < span.stop:
            index = span.start
            if self._core.dispatcher.finished(worker.number, span.id, index, 1) is None:
                return
            self._core.counters.failed += 1
            self._core.later.append(lambda index=index: span.job.fail(index, error))  # type: ignore[misc]

    def _send_spans(self, worker: WorkerHandle, spans: list[Span]) -> None:
        messages: list[m.Message] = []
        buffers: list[Outgoing] = []
        limited = False
        for span in spans:
            limited = limited or span.job.options.timeout is not None
            if self._core.dispatcher.owes(worker.number, span.id) is not span:
                continue  # the worker died meanwhile, and the span has gone elsewhere
            form = span.job.record.form
            if form[0] not in worker.known:
                self._introduce(worker, form, messages, buffers)
            before = len(buffers)
            while span.start < span.stop:
                try:
                    if self._overlaps is not None:
                        self._overlaps.check(worker.number, span)
                    messages += span.job.messages(span, form[0], buffers)
                    if len(buffers) > before and span.job.repeats is not None:
                        self._depot.repeat(span.job.repeats, buffers, before)
                except PackFailed as failed:
                    if not self._unpackable(worker, span, failed):
                        break
                except LookupError:  # the same, in the very moment of packing
                    break
                else:
                    break
        if messages or worker.has_news:
            if worker.to_forget:
                with self._core.lock:
                    forgotten, worker.to_forget = worker.to_forget, set()
                messages += [(m.FORGET, number) for number in forgotten]
            worker.send(encode(*worker.courier.outgoing(messages, buffers)))
        if buffers:
            with self._core.lock:
                self._depot.touch()
        if limited:
            with self._core.lock:
                self._care.watch(worker)

    def _introduce(self, worker: WorkerHandle, form: Form, messages: list[m.Message], buffers: list[Outgoing]) -> None:
        number, payload, mine = form
        messages.append((m.FUNCTION, number, codec.shifted(payload, mine, buffers)))
        with self._core.lock:
            worker.known.add(number)
            worker.to_forget.discard(number)

    def _unpackable(self, worker: WorkerHandle, span: Span, failed: PackFailed) -> bool:
        """One item of a span cannot be sent: it fails, those after it go back, those before it go on.

        False if the worker has died meanwhile, and the span has gone elsewhere.
        """
        with self._core.lock:
            self._core.dispatcher.handed_back(worker.number, span.id, failed.index + 1)
            ours = self._core.dispatcher.cut(worker.number, span.id, failed.index)
            if ours:
                self._core.counters.failed += 1
                # Settled by the pump like everything else (J1).
                self._core.later.append(lambda: span.job.unsendable(failed.index, failed.error))
        self._core.poller.wake()
        return ours
