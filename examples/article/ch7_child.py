"""What runs in the processes of chapter 7. Imports next to nothing, so that the start of a process is not that of numpy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any


def moment(tell: Any = None) -> float:
    """Say when this process, or thread, began to run."""
    now = time.perf_counter()
    if tell is not None:
        tell(now)
    return now


def bounce(out: Any, back: Any, trips: int, core: int) -> None:
    """Answer bytes, on the given core."""
    os.sched_setaffinity(0, {core})
    out_fd, back_fd = out.fileno(), back.fileno()
    for _ in range(trips):
        os.read(back_fd, 1)
        os.write(out_fd, b"x")


def answer(send: Callable[[Any], object], receive: Callable[[], Any], trips: int) -> None:
    """Send back what comes."""
    for _ in range(trips):
        send(receive())


def take(receive: Callable[[], Any], done: Callable[[Any], object], counts: tuple[int, ...]) -> None:
    """Take some arrays, touch both ends of each, and say so; and again."""
    for count in counts:
        for _ in range(count):
            array = memoryview(receive())
            if array[0] != array[-1]:
                raise RuntimeError("another array came out than went in")
        done(b"done")


def watch(shared: Any, receive: Callable[[], Any], send: Callable[[Any], object], count: int) -> None:
    """Touch both ends of a shared array whenever told to."""
    for _ in range(count):
        receive()
        send(b"good" if shared[0] == shared[-1] else b"bad")
