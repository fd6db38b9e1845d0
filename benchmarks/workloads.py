"""The functions the benchmark's tasks run. Workers import this file, so it imports next to nothing."""

from __future__ import annotations

import os
import time

#: A task that waits for a file looks this often.
LOOK_EVERY_S = 0.005


def noop(value: object = None) -> None:
    """Do nothing: what is measured is everything around it."""


def busy_100us(value: object = None) -> None:
    end = time.perf_counter() + 100e-6
    while time.perf_counter() < end:
        pass


def busy_1ms(value: object = None) -> None:
    end = time.perf_counter() + 1e-3
    while time.perf_counter() < end:
        pass


def who_after_a_nap(value: object = None) -> int:
    """Sleep long enough that every other worker gets a task too, then say which process this is."""
    time.sleep(0.05)
    return os.getpid()


def stamp(path: str) -> None:
    """Say when this task started, and in which process.

    The clock is the system's monotonic one, so the reader may compare it with its own.
    """
    text = f"{os.getpid()} {time.perf_counter()!r}"
    part = f"{path}.{os.getpid()}.part"
    with open(part, "w", encoding="ascii") as file:
        file.write(text)
    os.rename(part, path)  # a reader sees the whole stamp or none


def hold(path: str, release: str) -> None:
    """Stamp `path`, then stay in this worker until the file `release` exists."""
    stamp(path)
    while not os.path.exists(release):
        time.sleep(LOOK_EVERY_S)


def nap(seconds: float) -> None:
    time.sleep(seconds)


def burn(rounds: int) -> None:
    """Keep a processor busy for so many rounds, of which each takes some 20 ns; not for a time, which would pass anyway."""
    for _ in range(rounds):
        pass
