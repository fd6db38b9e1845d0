"""Chapter 7: what processes cost: to start, to switch between, to talk; beside multiprocessing and a thread."""

from __future__ import annotations

import multiprocessing
import os
import queue
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

import shoal
from examples.article.ch7_child import answer, bounce, moment, take, watch
from examples.article.claims import HANG_LIMIT_S, Chapter, Doing, Figure, Figures, Sizes, Verdict, middle

METHODS = ("forkserver", "spawn", "fork")
MESSAGE = b"0123456789abcdef" * 4
LARGE_BYTES = 8 << 20
#: What is as quick as the other may take so many times longer in one run, on a machine with other things to do.
MARGIN = 1.5
#: How often everybody has a turn; the best of them counts.
ROUNDS = 3
#: Arrays that go first, while memory is new and processes start.
WARM_UP = 6


@contextmanager
def quiet_fork() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that a program with threads forks
        yield


# --- starting -----------------------------------------------------------------------------------


def start_of_ours(method: Any) -> float:
    process = shoal.Process(target=moment, start_method=method)
    start = time.perf_counter()
    process.start()
    return float(process.result(timeout=HANG_LIMIT_S)) - start


def start_of_theirs(method: str) -> float:
    context: Any = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=moment, args=(there.send,))
    with quiet_fork():
        start = time.perf_counter()
        process.start()
    began = here.recv() if here.poll(HANG_LIMIT_S) else float("nan")
    process.join()
    return float(began) - start


def start_of_thread() -> float:
    began: list[float] = []
    thread = threading.Thread(target=moment, args=(began.append,))
    start = time.perf_counter()
    thread.start()
    thread.join()
    return began[0] - start


def starts(times: int) -> Figures:
    """Return from `start()` to the first line of `run()`, in milliseconds."""
    found: dict[tuple[str, Any], list[float]] = {}
    for method in METHODS:
        for _ in range(times if method == "spawn" else 3 * times):
            found.setdefault((f"shoal.Process, {method}", "ours"), []).append(start_of_ours(method))
            found.setdefault((f"multiprocessing.Process, {method}", "standard"), []).append(start_of_theirs(method))
    found["a thread", "thread"] = [start_of_thread() for _ in range(10 * times)]
    figures = (Figure(*who, middle(taken) * 1e3) for who, taken in found.items())
    return Figures("from start() to the first line of run()", "ms", tuple(figures))


# --- switching ----------------------------------------------------------------------------------


@contextmanager
def on_one_core() -> Iterator[int]:
    """Stay on one core for a while; who is started meanwhile by this thread has to be told, too."""
    before = os.sched_getaffinity(0)
    core = min(before)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)


def _switch_us(out: Any, back: Any, trips: int) -> float:
    taken, clock, out_fd, back_fd = [], time.perf_counter, out.fileno(), back.fileno()
    for _ in range(trips):
        start = clock()
        os.write(out_fd, b"x")
        os.read(back_fd, 1)
        taken.append(clock() - start)
    return statistics.median(taken) / 2 * 1e6


def switches(trips: int) -> Figures:
    """Return what it takes until another on the same core runs, when this one waits: half of a byte there and back."""
    found = []
    for title, make in (("processes", shoal.Process), ("threads", threading.Thread)):
        (back, answer), (question, out) = multiprocessing.Pipe(duplex=False), multiprocessing.Pipe(duplex=False)
        with on_one_core() as core:
            other: Any = make(target=bounce, args=(answer, question, trips, core))
            other.start()
            found.append(
                Figure(f"between {title}", "ours" if title == "processes" else "thread", _switch_us(out, back, trips))
            )
            other.join()
        for end in (back, answer, question, out):
            end.close()
    return Figures("a switch to another on the same core, and the byte that asks for it", "µs", tuple(found))


# --- talking ------------------------------------------------------------------------------------


class Way(NamedTuple):
    """How two talk: what the one here calls, and what the one there does. `start` runs `there` beside this thread."""

    title: str
    kind: Any
    send: Callable[[Any], object]
    receive: Callable[[], Any]
    start: Callable[..., Any]
    there: tuple[Callable[[Any], object], Callable[[], Any]]


def in_process(function: Callable[..., object], *args: Any) -> Any:
    process = shoal.Process(target=function, args=args)
    process.start()
    return process


def in_fork(function: Callable[..., object], *args: Any) -> Any:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=function, args=args)
    with quiet_fork():
        process.start()
    return process


def in_thread(function: Callable[..., object], *args: Any) -> Any:
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


def small_ways() -> list[Way]:
    """Return who passes small messages, and how."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    ways = [
        Way(
            "multiprocessing.Pipe",
            "standard",
            here.send_bytes,
            here.recv_bytes,
            in_fork,
            (there.send_bytes, there.recv_bytes),
        )
    ]
    one, other = shoal.Channel(bytes), shoal.Channel(bytes)
    ways.insert(0, Way("shoal.Channel", "ours", one.send, other.receive, in_process, (other.send, one.receive)))
    makers = (
        ("shoal.Queue", "ours", shoal.Queue, in_process),
        ("multiprocessing.Queue", "standard", context.Queue, in_fork),
    )
    for title, kind, make, start in (*makers, ("a thread, queue.SimpleQueue", "thread", queue.SimpleQueue, in_thread)):
        out, back = make(), make()  # type: ignore[var-annotated]
        ways.append(Way(title, kind, out.put, back.get, start, (back.put, out.get)))
    return ways


def trip_us(way: Way, trips: int) -> float:
    other = way.start(answer, *way.there, trips)
    taken, clock = [], time.perf_counter
    for _ in range(trips):
        start = clock()
        way.send(MESSAGE)
        way.receive()
        taken.append(clock() - start)
    other.join(HANG_LIMIT_S)
    return statistics.median(taken) * 1e6


def trips_there_and_back(trips: int) -> Figures:
    found: dict[tuple[str, Any], list[float]] = {}
    for _ in range(ROUNDS):
        for way in small_ways():
            found.setdefault((way.title, way.kind), []).append(trip_us(way, trips // ROUNDS))
    figures = tuple(Figure(*who, min(taken)) for who, taken in found.items())
    return Figures(f"{len(MESSAGE)} bytes there and back", "µs", figures)


# --- carrying -----------------------------------------------------------------------------------


def large_ways() -> list[Way]:
    """Return who carries arrays of some megabytes one way, and how; the way back only says that it is done."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    channel: Any = shoal.Channel("uint8", shape=(LARGE_BYTES,), capacity=4)
    shoal_queue: Any = shoal.Queue(4)
    their_queue, done = context.Queue(4), context.SimpleQueue()
    ours = shoal.Channel(bytes)
    again = shoal.Channel(bytes)
    return [
        Way("shoal.Channel of arrays", "ours", channel.send, ours.receive, in_process, (ours.send, channel.receive)),
        Way("shoal.Queue", "ours", shoal_queue.put, again.receive, in_process, (again.send, shoal_queue.get)),
        Way("multiprocessing.Pipe", "standard", here.send_bytes, done.get, in_fork, (done.put, there.recv_bytes)),
        Way("multiprocessing.Queue", "standard", their_queue.put, done.get, in_fork, (done.put, their_queue.get)),
    ]


def carried(way: Way, count: int) -> float:
    """Return the gigabytes a second of so many arrays."""
    done, receive = way.there
    other = way.start(take, receive, done, (WARM_UP, count))
    array: Any = np.ones(LARGE_BYTES, "uint8")

    def carry(arrays: int) -> float:
        start = time.perf_counter()
        for _ in range(arrays):
            way.send(array)
        way.receive()
        return time.perf_counter() - start

    carry(WARM_UP)
    taken_s = carry(count)
    other.join(HANG_LIMIT_S)
    return count * LARGE_BYTES / taken_s / 1e9


def written_in_place(count: int) -> float:
    """Return the same for an array that both have, into which each is copied; a channel tells the other, and back."""
    shared, tell, done = shoal.empty(LARGE_BYTES, "uint8"), shoal.Channel(bytes), shoal.Channel(bytes)
    other = in_process(watch, shared, tell.receive, done.send, WARM_UP + count)
    array: Any = np.ones(LARGE_BYTES, "uint8")

    def write(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            shared[:] = array
            tell.send(b"look")
            done.receive()
        return time.perf_counter() - start

    write(WARM_UP)
    taken_s = write(count)
    other.join(HANG_LIMIT_S)
    return count * LARGE_BYTES / taken_s / 1e9


def gigabytes(count: int) -> Figures:
    found: dict[tuple[str, Any], list[float]] = {}
    for _ in range(ROUNDS):
        for way in large_ways():
            found.setdefault((way.title, way.kind), []).append(carried(way, count))
        found.setdefault(("shoal.empty, written in place", "ours"), []).append(written_in_place(count))
    figures = tuple(Figure(*who, max(taken)) for who, taken in found.items())
    return Figures(f"arrays of {LARGE_BYTES >> 20} MiB to another process", "GB/s", figures, higher_is_better=True)


# --- the claims ---------------------------------------------------------------------------------


def judge_starts(found: Figures) -> Iterator[Verdict]:
    by = {figure.title: figure.value for figure in found.figures}
    ours, theirs, thread = by["shoal.Process, forkserver"], by["multiprocessing.Process, forkserver"], by["a thread"]
    yield Verdict(
        "a thread starts sooner than any process",
        thread == min(by.values()),
        f"{thread:.3g} ms beside {min(value for name, value in by.items() if name != 'a thread'):.3g} ms and more",
    )
    yield Verdict(
        "a clean process starts no later than multiprocessing's",
        ours <= MARGIN * theirs,
        f"forkserver: shoal {ours:.3g} ms, multiprocessing {theirs:.3g} ms",
    )


def judge_switches(found: Figures) -> Verdict:
    processes, threads = (figure.value for figure in found.figures)
    return Verdict(
        "a switch between processes costs no more than between Python's threads",
        processes <= MARGIN * threads,
        f"{processes:.3g} µs between processes, {threads:.3g} µs between threads",
    )


def judge_pair(found: Figures, ours: str, theirs: str, claim: str) -> Verdict:
    """Compare two of the figures."""
    by = {figure.title: figure.value for figure in found.figures}
    ratio = by[ours] / by[theirs]
    holds = ratio * MARGIN >= 1 if found.higher_is_better else ratio <= MARGIN
    figure = f"{ours} {by[ours]:.3g} {found.unit}, {theirs} {by[theirs]:.3g} {found.unit}: {ratio:.2g} x"
    return Verdict(claim, holds, figure)


def run(sizes: Sizes, doing: Doing) -> Iterator[Verdict | Figures]:
    doing("starting processes and threads")
    found = starts(sizes.starts)
    yield from judge_starts(found)
    yield found
    doing("switching between processes, and between threads, on one core")
    found = switches(sizes.trips)
    yield judge_switches(found)
    yield found
    doing("messages there and back")
    found = trips_there_and_back(sizes.trips)
    yield judge_pair(found, "shoal.Channel", "multiprocessing.Pipe", "a channel answers no later than a pipe")
    yield judge_pair(found, "shoal.Queue", "multiprocessing.Queue", "a queue answers no later than multiprocessing's")
    yield found
    doing("large arrays")
    found = gigabytes(sizes.large)
    yield judge_pair(
        found, "shoal.Queue", "multiprocessing.Queue", "a queue carries arrays no slower than multiprocessing's"
    )
    yield judge_pair(
        found,
        "shoal.empty, written in place",
        "multiprocessing.Pipe",
        "shared memory carries arrays no slower than a pipe",
    )
    yield found


CHAPTER = Chapter(7, "Overhead", "Processes cost something: to start, to switch between, to talk.", run)
