"""Races on shared arrays, found while they can still be prevented: for pools with `debug=True`.

Role: which running task was given which writable part of a shared array. Owner: the outbox; any thread that sends.

Invariants
    X1  A task is sent only if no task in flight with another worker was given an overlapping writable part.
    X2  What has finished claims nothing: a claim counts while the dispatcher says that its worker still owes the task.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from shoal._pool.core import Core
from shoal._pool.dispatcher import Span
from shoal._pool.jobs import MapJob, PackFailed, Task
from shoal.errors import OverlappingWrites


class _Claim(NamedTuple):
    worker: int
    span: Span
    place: int
    extents: list[Any]


class Overlaps:
    """The claims of one pool's tasks."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._claims: list[_Claim] = []

    def check(self, worker: int, span: Span) -> None:
        """Note what the tasks of `span` may write. Looks through their arguments, so without the engine's lock.

        Raises:
            PackFailed: One of them may write what a task in flight elsewhere may write.
        """
        arrays = sys.modules.get("shoal._memory.arrays")
        if arrays is None:  # nobody has made or received a shared array
            return
        for index, given in list(_arguments(span)):
            extents = arrays.find_writable((span.job.fn if span.job.record.named is None else None, given))
            if not extents:
                continue
            with self._lock:
                self._claims = [claim for claim in self._claims if self._counts(claim)]
                for claim in self._claims:
                    pair = self._overlap(arrays, claim, extents) if claim.worker != worker else None
                    if pair is not None:
                        raise PackFailed(index, self._error(arrays, span, index, claim, pair))
                self._claims.append(_Claim(worker, span, index, extents))

    def _counts(self, claim: _Claim) -> bool:
        owed = self._core.dispatcher.owes(claim.worker, claim.span.id)  # X2
        return owed is claim.span and owed.start <= claim.place < owed.stop

    @staticmethod
    def _overlap(arrays: Any, claim: _Claim, extents: list[Any]) -> tuple[Any, Any] | None:
        return next(((a, b) for a in claim.extents for b in extents if arrays.overlap(a, b)), None)

    @staticmethod
    def _error(arrays: Any, span: Span, index: int, claim: _Claim, pair: tuple[Any, Any]) -> OverlappingWrites:
        theirs, ours = pair
        return OverlappingWrites(
            task=span.job.safe_label(index),
            other=claim.span.job.safe_label(claim.place),
            array=arrays.describe(ours),
            ranges=(arrays.bounds(ours), arrays.bounds(theirs)),
        )


def _arguments(span: Span) -> Iterator[tuple[int, Any]]:
    job = span.job
    if isinstance(job, Task):
        yield 0, job.described
    elif isinstance(job, MapJob):
        try:
            yield from enumerate(job.take(span.start, span.stop), span.start)
        except KeyError:  # settled meanwhile
            return
