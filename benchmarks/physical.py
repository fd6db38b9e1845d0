"""What the machine itself can do, measured in the same run as the contenders.

No pool can wake a worker faster than the kernel wakes a process, or copy faster than memcpy. Rows of
the tables name one of these figures as their limit.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.model import Case, Row
from benchmarks.workloads import busy_100us, noop

#: Only a hang takes this long. Seconds.
HANG_LIMIT_S = 20.0
#: A process that waits is surely asleep, and its core idle, after this long. Seconds.
ASLEEP_AFTER_S = 300e-6

CASE = Case(
    key="physical",
    function="benchmarks.physical:measure",
    rows=(
        Row("memcpy_warm", "memcpy of 100 MB into warm pages", "GB/s", higher_is_better=True),
        Row("memcpy_cold", "memcpy of 100 MB into fresh pages", "GB/s", higher_is_better=True),
        Row("ping_plain", "socket pair, round trip, both sides asleep in the kernel", "µs"),
        Row("ping_spin", "socket pair, round trip, both sides spinning", "µs"),
        Row("wake_eventfd", "eventfd, from waking a sleeping process to its running", "µs"),
        Row("wake_futex", "futex, from waking a sleeping process to its running", "µs"),
        Row("loop_items", "plain loop over 1,000,000 no-op calls in one process", "items/s", higher_is_better=True),
        Row("loop_two", "two plain loops in two forked processes", "items/s", higher_is_better=True),
        Row("share", "10,000 tasks of 100 µs in two forked loops, share of the ideal", "", higher_is_better=True),
        Row("python_start", "bare interpreter, start to end of an empty program", "ms"),
        Row("fork", "fork of this small process and its exit", "ms"),
    ),
    full={"copies": 5, "trips": 2000, "items": 1_000_000, "tasks": 10_000, "starts": 5, "megabytes": 100},
    quick={"copies": 3, "trips": 500, "items": 300_000, "tasks": 2_000, "starts": 3, "megabytes": 50},
    limit_s=60.0,
)


def measure(contender: object, params: Mapping[str, Any]) -> dict[str, float]:
    """Measure every limit once; takes about two seconds."""
    trips = params["trips"]
    warm, cold = memcpy(params["megabytes"] * 1_000_000, params["copies"])
    return {
        "memcpy_warm": warm,
        "memcpy_cold": cold,
        "ping_plain": ping_pong(_plain_echo, _plain_trip, trips),
        "ping_spin": ping_pong(_spin_echo, _spin_trip, trips) if len(os.sched_getaffinity(0)) > 1 else math.nan,
        "wake_eventfd": eventfd_wake(trips // 4),
        "wake_futex": futex_wake(trips // 4),
        "loop_items": params["items"] / _timed(lambda: plain_loop(noop, params["items"])),
        "loop_two": params["items"] / two_processes(noop, params["items"]),
        "share": params["tasks"] * 100e-6 / 2 / two_processes(busy_100us, params["tasks"]),
        "python_start": statistics.median(_timed(_start_python) for _ in range(params["starts"])) * 1e3,
        "fork": statistics.median(_timed(_fork_and_wait) for _ in range(params["starts"] * 4)) * 1e3,
    }


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


# --- copying ------------------------------------------------------------------------------------


def memcpy(size: int, copies: int) -> tuple[float, float]:
    """Return (GB/s into pages written before, GB/s into pages the kernel must first provide)."""
    source = mmap.mmap(-1, size)
    data = memoryview(source)
    data[:] = b"\1" * size
    warm_target = memoryview(mmap.mmap(-1, size))
    warm_target[:] = data
    warm, cold = [], []
    for _ in range(copies):
        warm.append(_timed(lambda: warm_target.__setitem__(slice(None), data)))
        fresh = memoryview(mmap.mmap(-1, size))
        cold.append(_timed(lambda target=fresh: target.__setitem__(slice(None), data)))  # type: ignore[misc]
        del fresh
    return size / statistics.median(warm) / 1e9, size / statistics.median(cold) / 1e9


# --- waking -------------------------------------------------------------------------------------


def ping_pong(
    echo: Callable[[socket.socket, int], None], trip: Callable[[socket.socket, int], None], trips: int
) -> float:
    """Return the microseconds of one byte's way to a forked process and back."""
    ours, theirs = socket.socketpair()
    ours.settimeout(HANG_LIMIT_S)
    warm_up = trips // 10
    with ours, theirs, forked(lambda: echo(theirs, trips + warm_up)):
        trip(ours, warm_up)
        return _timed(lambda: trip(ours, trips)) / trips * 1e6


def _plain_trip(sock: socket.socket, trips: int) -> None:
    sock.setblocking(True)
    for _ in range(trips):
        sock.send(b"x")
        sock.recv(1)


def _plain_echo(sock: socket.socket, trips: int) -> None:
    for _ in range(trips):
        sock.recv(1)
        sock.send(b"x")


def _spin_receive(sock: socket.socket) -> None:
    end = time.monotonic() + HANG_LIMIT_S
    while True:
        try:
            sock.recv(1)
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError("the other side of the socket pair is gone") from None
        else:
            return


def _spin_trip(sock: socket.socket, trips: int) -> None:
    sock.setblocking(False)
    for _ in range(trips):
        sock.send(b"x")
        _spin_receive(sock)


def _spin_echo(sock: socket.socket, trips: int) -> None:
    sock.setblocking(False)
    for _ in range(trips):
        _spin_receive(sock)
        sock.send(b"x")


_FUTEX_NUMBERS = {"x86_64": 202, "aarch64": 98}
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def eventfd_wake(wakes: int) -> float:
    """Return the microseconds from writing an eventfd to a sleeping process running again."""
    handle = os.eventfd(0)
    try:
        return _wake(wakes, lambda _: os.eventfd_read(handle), lambda: os.eventfd_write(handle, 1))
    finally:
        os.close(handle)


def futex_wake(wakes: int) -> float:
    """Return the microseconds from waking a futex to the sleeper running again; NaN if its number is unknown.

    A wake-up cannot be lost: the sleeper names the value it saw, and the kernel does not put it to
    sleep if the word has changed since.
    """
    number = _FUTEX_NUMBERS.get(platform.machine())
    if number is None:
        return math.nan
    word = ctypes.c_uint32.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
    address = ctypes.byref(word)
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    slice_of_wait = _Timespec(1, 0)  # a bound only, should the other side be gone

    def sleep(turn: int) -> None:
        while word.value < turn:
            syscall(number, address, _FUTEX_WAIT, turn - 1, ctypes.byref(slice_of_wait), None, 0)

    def wake() -> None:
        word.value += 1
        syscall(number, address, _FUTEX_WAKE, 1, None, None, 0)

    return _wake(wakes, sleep, wake)


def _wake(wakes: int, sleep: Callable[[int], object], wake: Callable[[], object]) -> float:
    """Wake a forked process again and again, each time long enough after it fell asleep.

    Both sides read the same monotonic clock, so one way can be measured; a round trip would find the
    other side still awake.
    """
    if len(os.sched_getaffinity(0)) < 2:  # we spin meanwhile
        return math.nan
    page = mmap.mmap(-1, mmap.PAGESIZE)
    turn, woken_at = ctypes.c_uint64.from_buffer(page, 0), ctypes.c_double.from_buffer(page, 8)

    def sleeper() -> None:
        for number in range(1, wakes + 1):
            sleep(number)
            woken_at.value = time.perf_counter()
            turn.value = number

    taken = []
    with forked(sleeper):
        for number in range(1, wakes + 1):
            _spin_until(time.perf_counter() + ASLEEP_AFTER_S)
            start = time.perf_counter()
            wake()
            end = start + HANG_LIMIT_S
            while turn.value < number:
                if time.perf_counter() > end:
                    raise TimeoutError("the process to be woken is gone")
            taken.append(woken_at.value - start)
    return statistics.median(taken) * 1e6


def _spin_until(end: float) -> None:
    while time.perf_counter() < end:
        pass


# --- running ------------------------------------------------------------------------------------


def plain_loop(fn: Callable[[object], object], count: int) -> list[object]:
    return [fn(item) for item in range(count)]


def two_processes(fn: Callable[[object], object], count: int) -> float:
    """Return the seconds two forked processes need for half of the calls each, forks included."""
    start = time.perf_counter()
    with forked(lambda: plain_loop(fn, count // 2)), forked(lambda: plain_loop(fn, count - count // 2)):
        pass
    return time.perf_counter() - start


def _start_python() -> None:
    subprocess.run([sys.executable, "-c", "pass"], check=True, timeout=HANG_LIMIT_S)


def _fork_and_wait() -> None:
    with forked(lambda: None):
        pass


class forked:  # noqa: N801 - used like a function
    """Run `action` in a forked process; leaving the block waits for its end."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action

    def __enter__(self) -> None:
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._action()
            finally:
                os._exit(0)

    def __exit__(self, *_: object) -> None:
        os.waitpid(self._pid, 0)
