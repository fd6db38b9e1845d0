"""What each library has for processes that share things and pass things on: locks, queues, pipes.

Role: let `sync.py` say `lock`, `queue`, `pipe`, `start` and mean the same everywhere. Owner: the case's own interpreter.

Each kit uses its library as that library's manual says. What is not there is `NotApplicable`, with the reason.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable
from typing import Any, Protocol

from benchmarks.adapter import HANG_LIMIT_S, NotApplicable

#: Room for items where a queue's size is in bytes and must be said.
QUEUE_BYTES = 64_000_000
#: Processes that are there before any is asked for, where a library has servers.
MOST_PROCESSES = 8


class End(Protocol):
    """One side of something that messages go both ways through."""

    def send(self, message: bytes) -> object: ...

    def receive(self) -> bytes: ...


class QueueEnd:
    """Two queues, one for each direction, seen from one side."""

    def __init__(self, there: Any, back: Any) -> None:
        self.there, self.back = there, back

    def send(self, message: bytes) -> None:
        self.there.put(message)

    def receive(self) -> bytes:
        message: bytes = self.back.get()
        return message


class Kit:
    """One library. Subclasses fill in what it has."""

    def start(self, fn: Callable[..., object], *args: Any) -> Callable[[], None]:
        """Run `fn(*args)` in a process of its own; returns what waits for its end, and raises if it did not end well."""
        raise NotImplementedError

    def lock(self) -> Any:
        """Return something with `acquire()` and `release()`."""
        raise NotApplicable("has no lock")

    def queue(self, *, large: bool = False) -> Any:
        """Return something with `put(item)` and `get()`. Items are `large` if they have a megabyte."""
        raise NotApplicable("has no queue")

    def queues(self) -> tuple[End, End]:
        """Return two queues, one there and one back, from both sides."""
        there, back = self.queue(), self.queue()
        return QueueEnd(there, back), QueueEnd(back, there)

    def pipe(self) -> tuple[End, End]:
        """Return both ends of what the library has for two processes that send each other bytes."""
        raise NotApplicable("has nothing for two processes but its queue")

    def close(self) -> None:
        """End what the library runs by itself."""

    def __enter__(self) -> Kit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _wait_for(process: Any) -> Callable[[], None]:
    def wait() -> None:
        process.join(HANG_LIMIT_S)
        if process.exitcode != 0:
            raise RuntimeError(f"a process ended with {process.exitcode}")

    return wait


# --- shoal --------------------------------------------------------------------------------------


class ChannelEnd:
    """Two channels, one for each direction, seen from one side."""

    def __init__(self, there: Any, back: Any) -> None:
        self.there, self.back = there, back

    def send(self, message: bytes) -> None:
        self.there.send(message)

    def receive(self) -> bytes:
        message: bytes = self.back.receive()
        return message


class ShoalKit(Kit):
    def __init__(self) -> None:
        self.shoal = importlib.import_module("shoal")

    def start(self, fn: Callable[..., object], *args: Any) -> Callable[[], None]:
        process = self.shoal.Process(target=fn, args=args)
        process.start()
        return _wait_for(process)

    def lock(self) -> Any:
        return self.shoal.Lock()

    def queue(self, *, large: bool = False) -> Any:
        return self.shoal.Queue()

    def pipe(self) -> tuple[End, End]:
        there, back = self.shoal.Channel(bytes), self.shoal.Channel(bytes)
        return ChannelEnd(there, back), ChannelEnd(back, there)


# --- the standard library, and what stands on it ------------------------------------------------


class PipeEnd:
    def __init__(self, connection: Any) -> None:
        self.send = connection.send_bytes
        self.receive = connection.recv_bytes


class MultiprocessingKit(Kit):
    def __init__(self) -> None:
        self.context = multiprocessing.get_context("fork")  # it makes no difference once they run

    def start(self, fn: Callable[..., object], *args: Any) -> Callable[[], None]:
        process = self.context.Process(target=fn, args=args)
        process.start()
        return _wait_for(process)

    def lock(self) -> Any:
        return self.context.Lock()

    def queue(self, *, large: bool = False) -> Any:
        return self.context.Queue()

    def pipe(self) -> tuple[End, End]:
        here, there = self.context.Pipe()
        return PipeEnd(here), PipeEnd(there)


class FasterFifoKit(MultiprocessingKit):
    def lock(self) -> Any:
        raise NotApplicable("has queues only")

    def queue(self, *, large: bool = False) -> Any:
        module = importlib.import_module("faster_fifo")
        # Its own default, a million bytes, has no room for an item of that size.
        return Patient(module.Queue(max_size_bytes=QUEUE_BYTES) if large else module.Queue())

    def pipe(self) -> tuple[End, End]:
        return Kit.pipe(self)


class Patient:
    """A queue of faster-fifo: its calls give up after ten seconds unless told otherwise."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def put(self, item: Any) -> None:
        self.queue.put(item, timeout=HANG_LIMIT_S)

    def get(self) -> Any:
        return self.queue.get(timeout=HANG_LIMIT_S)


# --- Ray ----------------------------------------------------------------------------------------


class RayKit(Kit):
    """Its queue is an actor, which has a process of its own; its processes are tasks."""

    def __init__(self) -> None:
        from benchmarks.clusters import RaySession

        self.session = RaySession(MOST_PROCESSES)

    def start(self, fn: Callable[..., object], *args: Any) -> Callable[[], None]:
        task = self.session.submit(fn, *args)
        return lambda: self.session.result(task) and None

    def lock(self) -> Any:
        raise NotApplicable("has no lock: whoever shares something asks an actor for it")

    def queue(self, *, large: bool = False) -> Any:
        return importlib.import_module("ray.util.queue").Queue(actor_options={"num_cpus": 0})

    def close(self) -> None:
        self.session.close()


#: By the contender's name.
KITS: dict[str, Callable[[], Kit]] = {
    "shoal": ShoalKit,
    "multiprocessing": MultiprocessingKit,
    "faster-fifo": FasterFifoKit,
    "ray": RayKit,
}
