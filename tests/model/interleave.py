"""Run threads in every order, down to single byte codes, with a bounded number of preemptions.

Role: a scheduler that lets one thread run at a time and decides before each byte code of the code under test who goes on.
Owner: the model tests. The code under test is the real one; only its locks are replaced by `Lock` and `Condition`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Body = Callable[[], None]


class Deadlock(AssertionError):
    """No thread can go on."""


class Run:
    """One execution of some threads under one schedule."""

    current: Run | None = None

    def __init__(self, bodies: list[Body], schedule: list[int], files: set[str], *, fine: bool) -> None:
        self.trace: list[tuple[int, int, tuple[int, ...]]] = []  # (chosen, who ran before, who could)
        self._schedule = schedule
        self._files = files
        self._event = "opcode" if fine else "line"
        self._turn = [threading.Semaphore(0) for _ in bodies]
        self._blocked: dict[int, Callable[[], bool]] = {}
        self._live = list(range(len(bodies)))
        self._over = threading.Semaphore(0)
        self._ids: dict[int, int] = {}
        self.problems: list[BaseException] = []
        self._threads = [threading.Thread(target=self._body, args=(me, body)) for me, body in enumerate(bodies)]

    def go(self) -> None:
        Run.current = self
        for thread in self._threads:
            thread.start()
        self._choose(-1)
        self._over.acquire()
        for thread in self._threads:
            thread.join()
        Run.current = None
        if self.problems:
            raise self.problems[0]

    def _body(self, me: int, body: Body) -> None:
        self._ids[threading.get_ident()] = me
        self._turn[me].acquire()
        try:
            sys.settrace(self._enter)
            body()
        except BaseException as problem:
            self.problems.append(problem)
        finally:
            sys.settrace(None)
            self._live.remove(me)
            if self._live:
                self._choose(me)
            else:
                self._over.release()

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        return self._before_step

    def _before_step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == self._event:
            self.pause()
        return self._before_step

    def pause(self) -> None:
        me = self._ids[threading.get_ident()]
        if self._choose(me) != me:
            self._turn[me].acquire()

    def block_until(self, free: Callable[[], bool]) -> None:
        """Wait for another thread; a scheduled one, so it costs no time."""
        if not free():
            self._blocked[self._ids[threading.get_ident()]] = free
            self.pause()
            if self.problems:
                raise Deadlock

    def _choose(self, me: int) -> int:
        """Decide who goes on, and let it go on if that is another."""
        for thread in [one for one, free in self._blocked.items() if self.problems or free()]:
            del self._blocked[thread]
        able = tuple(one for one in self._live if one not in self._blocked)
        if not able:
            self.problems.append(Deadlock("nobody can go on"))
            self._blocked.clear()
            able = tuple(self._live)
        place = len(self.trace)
        chosen = self._schedule[place] if place < len(self._schedule) else (me if me in able else able[0])
        self.trace.append((chosen, me, able))
        if chosen != me:
            self._turn[chosen].release()
        return chosen


class Lock:
    """A lock whose waiting is scheduled."""

    def __init__(self) -> None:
        self._held = False

    def acquire(self, blocking: bool = True) -> bool:
        assert Run.current is not None
        while self._held:
            if not blocking:
                return False
            Run.current.block_until(lambda: not self._held)
        self._held = True
        return True

    def release(self) -> None:
        assert self._held
        self._held = False

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *problem: object) -> None:
        self.release()


class Condition(Lock):
    """A condition whose waiting is scheduled. Nobody wakes up without being told."""

    def __init__(self) -> None:
        super().__init__()
        self._asleep: list[list[bool]] = []

    def wait(self, timeout: float | None = None) -> None:
        assert Run.current is not None
        assert timeout is None
        told: list[bool] = []
        self._asleep.append(told)
        self.release()
        Run.current.block_until(lambda: bool(told))
        self.acquire()

    def notify_all(self) -> None:
        for told in self._asleep:
            told.append(True)
        self._asleep.clear()


def interleavings(
    make: Callable[[], tuple[list[Body], Body]], files: set[str], *, preemptions: int = 1, fine: bool = True
) -> int:
    """Run the threads `make` returns in every order; then its check. Returns the number of orders.

    Args:
        make: Called for each order; returns (thread bodies, check for the end).
        files: Source files whose code is interleaved.
        preemptions: How often a thread that could go on is made to wait.
        fine: Between byte codes; else between lines.
    """
    count = 0
    todo: list[list[int]] = [[]]
    while todo:
        schedule = todo.pop()
        bodies, check = make()
        run = Run(bodies, schedule, files, fine=fine)
        try:
            run.go()
            check()
        except AssertionError as problem:
            order = "".join(str(chosen) for chosen, _, _ in run.trace)
            raise AssertionError(f"{problem!r} in the order {order}") from problem
        count += 1
        todo += _variants(run.trace, len(schedule), preemptions)
    return count


def _variants(trace: list[tuple[int, int, tuple[int, ...]]], fixed: int, most: int) -> Iterator[list[int]]:
    used = 0
    chosen_so_far: list[int] = []
    for place, (chosen, before, able) in enumerate(trace):
        if place >= fixed:
            for other in able:
                if other != chosen and used + (before in able) <= most:
                    yield [*chosen_so_far, other]
        used += chosen != before and before in able
        chosen_so_far.append(chosen)
