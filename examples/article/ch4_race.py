"""Chapter 4: without a lock updates get lost; with one none does, even if its holder is killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import shoal
from examples.article.claims import HANG_LIMIT_S, Chapter, Doing, Sizes, Verdict, seconds

PROCESSES = 4
#: How long we look for a lost update: with one processor they are rare. Seconds.
LOOK_S = 10.0
#: After so long nobody would call it waiting. Seconds.
PATIENCE_S = 0.5


# --- a counter ----------------------------------------------------------------------------------


def add(counter: Any, times: int, lock: Any, ready: Any) -> None:
    """Add 1 so many times; runs in each of the children."""
    ready.wait(HANG_LIMIT_S)  # all begin together
    for _ in range(times):
        with lock:
            counter[0] += 1


class Count(NamedTuple):
    """What a counter should be, what it is, and how long that took."""

    due: int
    found: int
    took_s: float


def count(times: int, lock: Any) -> Count:
    """Let some processes add to one number in shared memory."""
    counter, ready = shoal.zeros(1, "int64"), shoal.Barrier(PROCESSES + 1)
    processes = [shoal.Process(target=add, args=(counter, times, lock, ready)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    ready.wait(HANG_LIMIT_S)
    start = time.perf_counter()
    for process in processes:
        process.result(timeout=HANG_LIMIT_S)
    took_s = time.perf_counter() - start
    for process in processes:
        process.close()
    return Count(PROCESSES * times, int(counter[0]), took_s)


def lost_without(times: int, lock: Any) -> Verdict:
    """Add until updates get lost."""
    end = time.monotonic() + LOOK_S
    found = count(times, lock)
    while found.found == found.due and time.monotonic() < end:
        found = count(times, lock)
    lost = found.due - found.found
    figure = f"{PROCESSES} processes added 1 {found.due:,} times: {found.found:,} arrived, {lost:,} were lost"
    return Verdict("an unlocked counter loses updates", lost > 0, figure)


def none_lost_with(times: int, lock: Any) -> Verdict:
    """Add under a lock."""
    found = count(times, lock)
    figure = f"{found.found:,} of {found.due:,} arrived, {seconds(found.took_s / found.due)} for each"
    return Verdict("a locked one loses none", found.found == found.due, figure)


# --- a holder that is killed --------------------------------------------------------------------


class Holder(shoal.Process):
    """Takes money from one account, and is killed before it reaches the other."""

    def __init__(self, lock: Any, accounts: Any) -> None:
        super().__init__()
        self.lock = lock
        self.accounts = accounts

    def run(self) -> None:
        self.lock.acquire()
        self.accounts[0] -= 10
        self.ready()
        time.sleep(HANG_LIMIT_S)  # killed in here
        self.accounts[1] += 10
        self.lock.release()


class Found(NamedTuple):
    """What the next owner of the lock found."""

    killed: int
    got: bool
    abandoned_by: int | None
    total: int
    took_s: float


def after_a_kill(lock: Any) -> Found:
    """Kill the holder of a lock between two stores, take the lock, and repair what it guards."""
    accounts = shoal.full(2, 50, "int64")
    holder = Holder(lock, accounts)
    holder.start()
    holder.wait_ready(HANG_LIMIT_S)
    pid = holder.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    start = time.perf_counter()
    hold = lock.acquire(timeout=PATIENCE_S)
    took_s = time.perf_counter() - start
    abandoned_by = getattr(hold, "abandoned_by", None)
    if abandoned_by is not None:
        accounts[1] = 100 - accounts[0]  # what the dead one meant to do
    total = int(accounts.sum())
    if hold:
        lock.release()
    holder.join(HANG_LIMIT_S)
    return Found(pid, bool(hold), abandoned_by, total, took_s)


def survives(lock: Any, doing: Doing) -> Verdict:
    found = after_a_kill(lock)
    doing("the same with multiprocessing.Lock")
    told = (
        "was told nothing" if found.abandoned_by is None else f"was told that process {found.abandoned_by} died with it"
    )
    figure = (
        f"process {found.killed} was killed by kill -9 with the lock in its hand; the next owner had it after "
        f"{seconds(found.took_s)}, {told}, and repaired the sum: {found.total} of 100"
    )
    if not found.got:
        figure = f"the lock of process {found.killed}, which was killed, was not to be had within {PATIENCE_S} s"
    holds = found.got and found.abandoned_by == found.killed and found.total == 100
    return Verdict(
        "a holder killed by kill -9 is survived, and the next owner is told", holds, figure + standard_lock()
    )


def standard_lock() -> str:
    """Say what becomes of multiprocessing.Lock when its holder is killed."""
    context = multiprocessing.get_context("fork")
    lock, here = context.Lock(), context.Event()

    def hold() -> None:
        lock.acquire()
        here.set()
        time.sleep(HANG_LIMIT_S)

    process = context.Process(target=hold, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that a program with threads forks
        process.start()
    here.wait(HANG_LIMIT_S)
    process.kill()
    process.join()
    got = lock.acquire(timeout=PATIENCE_S)
    return f" (multiprocessing.Lock: {'had' if got else 'still not to be had'} after {PATIENCE_S} s)"


def run(
    sizes: Sizes,
    doing: Doing,
    make_lock: Callable[[], Any] = shoal.Lock,
    no_lock: Callable[[], Any] = contextlib.nullcontext,
) -> Iterator[Verdict]:
    doing("a counter without a lock")
    yield lost_without(sizes.unlocked, no_lock())
    doing("a counter with a lock")
    yield none_lost_with(sizes.locked, make_lock())
    doing("a lock whose holder is killed")
    yield survives(make_lock(), doing)


CHAPTER = Chapter(4, "The race", "Whoever shares memory has to take turns, and may die while it is his turn.", run)
