"""What the tests of supervisors and actors run in processes. Imported by them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

import shoal


class Waits(shoal.Process):
    """Says that it is ready, then waits to be told to stop."""

    def __init__(self, word: Any = None) -> None:
        super().__init__()
        self.word = word

    def run(self) -> None:
        self.ready(self.word)
        self.stopping.wait()


class Stubborn(shoal.Process):
    """Is ready, looks at `stopping`, and does not stop."""

    def run(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.stopping.is_set()
        self.ready()
        while True:
            time.sleep(60)


class NeverReady(shoal.Process):
    def run(self) -> None:
        self.stopping.wait()


class DiesBeforeReady(shoal.Process):
    def run(self) -> None:
        os._exit(7)


class RaisesBeforeReady(shoal.Process):
    def run(self) -> None:
        raise RuntimeError("no camera")


def sleeps() -> None:
    while True:
        time.sleep(60)


def ends(code: int = 0) -> None:
    sys.exit(code)


def answer() -> int:
    return 42


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@shoal.actor
class Counter:
    """Counts; tells what happened to it."""

    def __init__(self, start: int = 0) -> None:
        self.value = start
        self.restarted_by: str | None = None

    def on_restart(self, obituary: Any) -> None:
        self.restarted_by = None if obituary is None else obituary.signal

    def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    def get(self) -> int:
        return self.value

    def history(self) -> str | None:
        return self.restarted_by

    def fail(self, text: str) -> None:
        raise ValueError(text)

    def leave(self, code: int) -> None:
        os._exit(code)

    def ask_to_exit(self) -> None:
        sys.exit(3)


@shoal.actor(mailbox=2)
class Slow:
    """Answers when a file is there; writes down what it ran."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.seen: list[Any] = []

    def wait(self, word: Any) -> Any:
        self.seen.append(word)
        _touch(self.folder, f"begun-{word}")
        while not os.path.exists(os.path.join(self.folder, f"go-{word}")):
            time.sleep(0.002)
        return word

    def note(self, word: Any) -> None:
        self.seen.append(word)

    def everything(self) -> list[Any]:
        return self.seen

    def on_stop(self) -> None:
        with open(os.path.join(self.folder, "stopped"), "w", encoding="utf-8") as file:
            file.write(repr(self.seen))


def _touch(folder: str, name: str) -> None:
    open(os.path.join(folder, name), "w", encoding="utf-8").close()


@shoal.actor
class Keeper:
    """Holds what it is given."""

    def __init__(self, *held: Any, **named: Any) -> None:
        self.held = held
        self.named = named

    def first(self) -> Any:
        return self.held[0]

    def put(self, value: Any) -> None:
        self.held = (value,)

    def double(self, value: Any) -> Any:
        return value * 2

    def write(self, array: Any, value: float) -> None:
        array[:] = value

    def locked(self, lock: Any) -> bool:
        return not lock.acquire(timeout=0.05)

    def call_other(self, other: Any, amount: int) -> int:
        return other.add.call(amount)

    def call_itself(self, me: Any) -> Any:
        return me.first.call()

    def cast_to_itself(self, me: Any, value: Any) -> None:
        me.put.cast(value)

    def starts(self, start: int) -> int:
        with Counter(start) as inner:
            return inner.add.call(1)

    def private_lock(self) -> Any:
        return threading.Lock()


@shoal.actor
class Fails:
    def __init__(self, how: str) -> None:
        if how == "raise":
            raise RuntimeError("no engine")
        os._exit(5)


def use_counter(counter: Any, times: int) -> list[int]:
    return [counter.add.call(1) for _ in range(times)]


def cast_in_order(slow: Any, name: str, count: int) -> None:
    for number in range(count):
        slow.note.cast((name, number))


def stop_it(counter: Any) -> str:
    try:
        counter.stop()
    except RuntimeError as error:
        return str(error)
    return "stopped"


def is_it_alive(counter: Any) -> bool:
    return counter.is_alive


def call_and_tell(counter: Any) -> tuple[str, Any]:
    try:
        return "answered", counter.get.call()
    except shoal.ActorDied as died:
        return "died", died.obituary


class Fragile:
    """To be made one of actors by a test."""

    def die(self) -> None:
        os._exit(7)

    async def later(self) -> None:
        pass
