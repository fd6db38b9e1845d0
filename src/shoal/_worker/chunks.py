"""Running a chunk of a map: many items of one function, reported in stretches.

Role: the loop over the items of one CHUNK message. Owner: the worker's main thread; the watcher thread may
take back what is not claimed, through `Chunk.hand_back`.

Invariants
    K1  Items are announced one by one before anything of them is unpickled or run.
    K2  A stretch is claimed with the reporter's lock held before it runs. What is not claimed may be taken back, and of
        the stretch that runs what the loop has not fetched yet: it is cut off the very list the loop walks, and the
        walk's own position, looked at after the cut, says what was fetched before it.
    K3  Every claimed item is reported once, in order: in a PART or by a FAILED. Of the stretch that runs the watcher may
        report what is finished, with the reporter's lock held; the loop reports what that did not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from shoal._memory.page import DONE, INDEX, SPAN, STARTED, Page
from shoal._wire import codec
from shoal._wire import messages as m
from shoal._wire.frames import LARGE_BYTES, Buffer
from shoal._worker.functions import FunctionMissing, FunctionTable
from shoal._worker.reporting import DEFER_NS, Reporter

_clock = time.monotonic_ns


class Stretcher:
    """How many items make a stretch; kept by the worker from chunk to chunk."""

    def __init__(self) -> None:
        self._tried = 1  # items of the stretch that the estimate is from
        self._item_ns = 0

    def length(self, stretch_ns: int) -> int:
        """Return how many items probably take `stretch_ns`; at most eight times as many as were tried."""
        return max(1, min(stretch_ns // max(self._item_ns, 1), 8 * self._tried)) if self._item_ns else 1

    def learn(self, count: int, elapsed_ns: int, stretch_ns: int) -> None:
        """Take in what a stretch took. One that was cut short by the chunk's end tells little."""
        if count >= self._tried or elapsed_ns > stretch_ns:
            self._tried, self._item_ns = count, max(1, elapsed_ns // count)


class Chunk:
    """One CHUNK message on its way through the worker."""

    def __init__(self, message: m.Message, buffers: list[Any], page: Page, reporter: Reporter) -> None:
        _, self.span, self._function_id, self._first, self._star, self._stretch_ns, self._whole, self._payload = message
        self._buffers = buffers
        self._page = page
        self._words = page.words
        self._reporter = reporter
        self._claimed = self._first  # items below this are started, or done
        self._stop = self._first  # items from here on are not ours (yet, or any more)
        self._fn: Callable[..., Any]
        self._items: Any = ()
        #: The stretch that runs: (index of its first item, items, position, results so far), and how many of these were told.
        self._walk: tuple[int, list[Any], Iterator[Any], list[Any]] | None = None
        self._told = 0

    def run(self, functions: FunctionTable, stretcher: Stretcher) -> None:
        """Run every item that is not taken back. Raises FunctionMissing before any of them ran."""
        self._announce(self._first)
        try:
            self._fn = functions.get(self._function_id)
            self._items = codec.unpack(self._payload, self._buffers) if self._whole else self._payload
        except FunctionMissing:
            raise
        except BaseException as error:
            self._fail_first(functions.captured(error, self._function_id))
            return
        self._stop = self._first + len(self._items)
        while True:
            with self._reporter.lock:
                start = self._claimed
                stop = self._claimed = min(self._stop, start + stretcher.length(self._stretch_ns))
            if start >= stop:
                return
            began = _clock()
            self._stretch(start, stop, functions)
            stretcher.learn(stop - start, _clock() - began, self._stretch_ns)

    def hand_back(self) -> m.Message | None:
        """Give up the items that are not started; with the reporter's lock held (K2)."""
        if self._walk is not None:
            at, items, position, _ = self._walk
            fetched = _fetched(position)
            if fetched is not None:
                del items[fetched:]
                fetched = _fetched(position)  # the loop may have gone on before the cut
            # A walk at its end has announced all it fetched, and nothing else is announced before the lock is free.
            # Never more than before: one cut short by an earlier recall may have announced an item it could not fetch.
            self._claimed = min(self._claimed, at + fetched if fetched is not None else self._words[INDEX] + 1)
        if self._claimed >= self._stop:
            return None
        self._stop = self._claimed
        return (m.HANDBACK, self.span, self._stop)

    def finished(self) -> m.Message | None:
        """Return what the running stretch has finished and not told, if plain data; with the reporter's lock held (K3)."""
        if self._walk is None:
            return None
        at, _, _, results = self._walk
        new = results[self._told :]
        packed = codec.pack_plain(new) if new else None
        if not isinstance(packed, bytes) or len(packed) >= LARGE_BYTES:
            return None
        first, self._told = at + self._told, self._told + len(new)
        return (m.PART, self.span, first, len(new), True, packed, 0)

    def _announce(self, index: int) -> int:
        now = _clock()
        words = self._words
        words[STARTED] = now
        words[INDEX] = index
        words[SPAN] = self.span
        return now

    def _fail_first(self, captured: bytes) -> None:
        """The function itself fails to load. One item says so; the others go back, to say so in turn."""
        self._report((m.FAILED, self.span, self._first, captured, 0))
        self._report((m.HANDBACK, self.span, self._first + 1))

    def _report(self, message: m.Message) -> None:
        self._reporter.report(message, (), DEFER_NS, more=False)

    def _stretch(self, at: int, stop: int, functions: FunctionTable) -> None:
        while at < min(stop, self._claimed):
            results: list[Any] = []
            failure = None
            began = self._announce(at)
            with self._reporter.lock:
                items = list(self._items[at - self._first : min(stop, self._claimed) - self._first])
                position = iter(items)
                self._walk = at, items, position, results
            try:
                self._loop(position, at, results.append)
            except BaseException as error:
                failure = error
            with self._reporter.lock:
                self._walk = None
                told, self._told = self._told, 0
            elapsed = _clock() - began
            done = len(results)
            self._words[DONE] += done
            if done > told:
                # What a result took is the stretch's mean: what was told said nothing of it.
                share, last = elapsed * (done - told) // done, at + done == self._stop
                self._report_results(results[told:] if told else results, at + told, share, functions, last=last)
            at += done
            if failure is not None:
                self._words[DONE] += 1
                self._words[INDEX] = at  # K1: pickling an exception can end the process, too
                captured = functions.captured(failure, self._function_id)
                self._report((m.FAILED, self.span, at, captured, elapsed if not done else 0))
                at += 1

    def _loop(self, items: Iterator[Any], at: int, append: Callable[[Any], None]) -> None:
        fn, words = self._fn, self._words
        if not self._whole:
            for words[INDEX], payload in enumerate(items, at):
                item = codec.unpack(payload, self._buffers)
                append(fn(*item) if self._star else fn(item))
        elif self._star:
            for words[INDEX], item in enumerate(items, at):
                append(fn(*item))
        else:
            for words[INDEX], item in enumerate(items, at):
                append(fn(item))

    def _report_results(
        self, results: list[Any], at: int, elapsed: int, functions: FunctionTable, *, last: bool
    ) -> None:
        plain = codec.pack_plain(results)
        if plain is None:
            self._report_each(results, at, elapsed // len(results), functions)
            return
        out: list[Any] = []
        packed: Any = plain
        if not isinstance(plain, bytes) or len(plain) >= LARGE_BYTES:
            out, packed = [plain], (None, 0, 1)
        message = (m.PART, self.span, at, len(results), True, packed, elapsed)
        self._reporter.report(message, out, elapsed, more=not last)

    def _report_each(self, results: list[Any], at: int, each_ns: int, functions: FunctionTable) -> None:
        """Report results whose unpickling runs code, one payload each, so that one can fail alone."""
        payloads: list[codec.Payload] = []
        out: list[Buffer] = []
        start = at

        def send(stop: int) -> None:
            if payloads:
                count = stop - start
                message = (m.PART, self.span, start, count, False, payloads[:], each_ns * count)
                self._reporter.report(message, out[:], each_ns * count, more=False)
                payloads.clear()
                out.clear()

        for index, value in enumerate(results, at):
            self._words[INDEX] = index  # K1: pickling a result can end the process, too
            try:
                payloads.append(codec.pack(value, out, ("the result of", self._fn)))
            except BaseException as error:
                send(index)
                self._report((m.FAILED, self.span, index, functions.captured(error, self._function_id), each_ns))
                start = index + 1
        send(at + len(results))


def _fetched(position: Iterator[Any]) -> int | None:
    """Return how many items a list's iterator has given out; None when it has come to its end."""
    state: tuple[Any, ...] = position.__reduce__()  # type: ignore[assignment]
    return state[2] if len(state) == 3 else None
