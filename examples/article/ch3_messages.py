"""Chapter 3: processes talk through pipes, queues, channels and shared memory, and the same bytes come back."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

import shoal
from examples.article.claims import HANG_LIMIT_S, Chapter, Doing, Sizes, Verdict, seconds

LENGTHS = (0, 1, 100, 4_096, 65_536, 1 << 20)

Change = Callable[[bytes], bytes]


class Line(Protocol):
    """A way for bytes to another process and back. `there` is the child's side."""

    def send(self, message: bytes) -> None: ...

    def receive(self) -> bytes: ...

    @property
    def there(self) -> Line: ...


class PipeLine:
    """A pipe of the operating system, as multiprocessing wraps it: shoal has no other."""

    def __init__(self) -> None:
        self._ends = multiprocessing.Pipe()

    def send(self, message: bytes) -> None:
        self._ends[0].send_bytes(message)

    def receive(self) -> bytes:
        if not self._ends[0].poll(HANG_LIMIT_S):
            raise TimeoutError("nothing came through the pipe")
        return self._ends[0].recv_bytes()

    @property
    def there(self) -> Line:
        other = PipeLine.__new__(PipeLine)
        other._ends = self._ends[::-1]
        return other


class QueueLine:
    """A queue for each direction."""

    def __init__(self, out: Any, back: Any) -> None:
        self._out = out
        self._back = back

    def send(self, message: bytes) -> None:
        self._out.put(message, timeout=HANG_LIMIT_S)

    def receive(self) -> bytes:
        message: bytes = self._back.get(timeout=HANG_LIMIT_S)
        return message

    @property
    def there(self) -> Line:
        return QueueLine(self._back, self._out)


class ChannelLine:
    """A channel for each direction."""

    def __init__(self, out: Any, back: Any) -> None:
        self._out = out
        self._back = back

    def send(self, message: bytes) -> None:
        self._out.send(message, timeout=HANG_LIMIT_S)

    def receive(self) -> bytes:
        message: bytes = self._back.receive(timeout=HANG_LIMIT_S)
        return message

    @property
    def there(self) -> Line:
        return ChannelLine(self._back, self._out)


def unchanged(message: bytes) -> bytes:
    return message


def echo(line: Line, count: int, change: Change) -> list[str]:
    """Send back what comes, and return the fingerprints of what came; runs in the child."""
    seen = []
    for _ in range(count):
        message = line.receive()
        seen.append(hashlib.sha256(message).hexdigest())
        line.send(change(message))
    return seen


def messages(longest: int) -> list[bytes]:
    """Return random messages of all lengths up to the longest; the same in every run."""
    chance = random.Random(7)
    return [chance.randbytes(length) for length in (*LENGTHS, longest) if length <= longest]


def through(line: Line, sent: list[bytes], change: Change = unchanged) -> tuple[bool, float]:
    """Send messages to a child and back. Returns whether the same bytes arrived on both sides, and the seconds."""
    process = shoal.Process(target=echo, args=(line.there, len(sent), change))
    process.start()
    came: list[bytes] = []
    start = time.perf_counter()
    try:
        for message in sent:
            line.send(message)
            came.append(line.receive())
            if len(came) == 1:
                start = time.perf_counter()  # the process is there
        took_s = time.perf_counter() - start
        seen = process.result(timeout=HANG_LIMIT_S)
    finally:
        process.kill()  # it waits for more, if anything went wrong here
    return came == sent and seen == [hashlib.sha256(message).hexdigest() for message in sent], took_s


def judge(what: str, sent: list[bytes], same: bool, took_s: float) -> Verdict:
    total = sum(map(len, sent))
    outcome = "fingerprints and bytes are equal" if same else "something else came back"
    messages = f"{len(sent)} messages of 0 to {max(map(len, sent)):,} bytes, " if len(sent) > 1 else ""
    figure = f"{messages}{total / 1e6:.1f} MB each way in {seconds(took_s)}: {outcome}"
    return Verdict(f"through {what} the same bytes come back", same, figure)


def copy_over(array: Any, half: int) -> str:
    """Copy the first half of a shared array to the second; returns its fingerprint. Runs in the child."""
    array[half:] = array[:half]
    return hashlib.sha256(array[:half]).hexdigest()


def through_memory(sent: bytes, copy: Callable[[Any, int], str] = copy_over) -> tuple[bool, float]:
    """Let a child copy what is in a shared array to its second half."""
    array = shoal.empty(2 * len(sent), "uint8")
    array[: len(sent)] = np.frombuffer(sent, "uint8")
    start = time.perf_counter()
    process = shoal.Process(target=copy, args=(array, len(sent)))
    process.start()
    seen = process.result(timeout=HANG_LIMIT_S)
    took_s = time.perf_counter() - start
    return array[len(sent) :].tobytes() == sent and seen == hashlib.sha256(sent).hexdigest(), took_s


def pipe(_longest: int) -> Line:
    return PipeLine()


def queue(_longest: int) -> Line:
    return QueueLine(shoal.Queue(), shoal.Queue())


def channel(longest: int) -> Line:
    """A channel has to know how long a message may be; here it has room for one."""
    out, back = (shoal.Channel(bytes, message_bytes=longest, capacity=1) for _ in range(2))
    return ChannelLine(out, back)


WAYS: tuple[tuple[str, Callable[[int], Line]], ...] = (
    ("a pipe", pipe),
    ("a shoal.Queue", queue),
    ("a shoal.Channel", channel),
)


def run(sizes: Sizes, doing: Doing) -> Iterator[Verdict]:
    sent = messages(sizes.longest)
    for what, make in WAYS:
        doing(f"bytes through {what} and back")
        yield judge(what, sent, *through(make(sizes.longest), sent))
    doing("bytes through a shared array")
    same, took_s = through_memory(sent[-1])
    yield judge("a shared array", sent[-1:], same, took_s)


CHAPTER = Chapter(3, "Messages", "What they have to tell each other goes through pipes, queues and shared memory.", run)
