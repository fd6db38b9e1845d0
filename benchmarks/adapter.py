"""What a case may ask of any contender: open a pool, run, share, close.

Role: the two base classes that the adapters in `contenders.py` and `clusters.py` fill in.
Owner: the case's own interpreter; the harness only asks for names and reasons.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from benchmarks.machine import version_of

#: A result that takes longer than this hangs. Seconds.
HANG_LIMIT_S = 30.0


class NotApplicable(Exception):
    """The contender has no such feature; the text says what it lacks."""


class Session:
    """One open pool. Subclasses wrap one kind each."""

    #: Tasks to queue so that one of them surely goes to the slot that becomes free.
    probes = 1

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        raise NotImplementedError

    def submit_limited(self, timeout_s: float, fn: Callable[..., Any], *args: Any) -> Any:
        raise NotImplementedError

    def result(self, handle: Any) -> Any:
        return handle.result(HANG_LIMIT_S)

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run one task and wait for its result."""
        return self.result(self.submit(fn, *args))

    def submit_all(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        """Submit one by one, then gather in order. Each kind writes the loops as its user would, unwrapped."""
        raise NotImplementedError

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    def singly(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """Run one item per task, so that every worker gets some."""
        return self.submit_all(fn, items)

    def share(self, value: Any) -> Any:
        """Return what `map` is to be given, many times, instead of `value`; see `Contender.offers`."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def terminate(self) -> None:
        """Close without waiting for tasks; a task whose worker was killed may never end."""
        self.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


#: Features that few have, and what is said of those that have not; see `Contender.offers`.
RARE: Mapping[str, str] = {
    "share": "no way to hand one object to many tasks",
    "empty": "no arrays that live in shared memory",
}


class Contender:
    """A library in one configuration."""

    name: str
    #: What to call it in a table.
    title: str
    distribution: ClassVar[str | None] = None
    module: ClassVar[str | None] = None
    #: Feature it has not, and why; shown instead of a figure.
    lacks: ClassVar[Mapping[str, str]] = {}
    #: Which of the `RARE` features it has.
    offers: ClassVar[frozenset[str]] = frozenset()
    #: The program a user would write for one result: imports, and the body of a function
    #: that returns the time right after the result.
    imports: str
    body: str

    def missing(self) -> str | None:
        """Why it cannot take part, or None."""
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            return "not installed"
        return None

    def lack(self, need: str) -> str | None:
        """Why it cannot do what a case needs, or None."""
        if need in RARE and need not in self.offers:
            return RARE[need]
        return self.lacks.get(need)

    def version(self) -> str:
        return version_of(self.distribution)

    def load(self) -> None:
        """Import the library, so that what follows is not charged with it."""
        if self.module is not None:
            importlib.import_module(self.module)

    def open(self, workers: int) -> Session:
        raise NotImplementedError

    def choosing(self, workers: int) -> Session:
        """Open a pool whose `map` may stay in this process where that is better, if the library has such a thing."""
        return self.open(workers)

    def map_once(self, fn: Callable[..., Any], items: Sequence[Any], workers: int) -> str:
        """Open, map, close: a short program's only use of the library. Returns a note, or nothing."""
        with self.open(workers) as session:
            session.map(fn, items)
        return ""
