"""An actor that kills its process at a chosen step of its life, once. Imported by the tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import shoal
from shoal._actors import host, wire
from shoal._wire.link import Link


def die(folder: str) -> None:
    """Kill this process, unless that was done before."""
    mark = Path(folder, "died")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class DiesWhenUnpickled:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)
        if host.here() is not None:
            die(self.folder)


class DiesWhenPickled:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        die(self.folder)
        return str, ("pickled",)


@shoal.actor(intensity=1)
class Staged:
    """Dies at `stage`; notes each call it runs in a file."""

    def __init__(self, folder: str, stage: str) -> None:
        self.folder = folder
        self.stage = stage
        self.history: list[str] = []
        if Path(folder, "died").exists():
            return
        self.arm()

    def arm(self) -> None:
        folder, stage = self.folder, self.stage
        if stage == "given-the-socket":
            host.ActorProcess._be_given_the_listener = lambda *_: die(folder)  # type: ignore[assignment,method-assign]
        elif stage == "read":
            take = Link.take

            def taken(link: Any) -> Any:
                received = take(link)
                if received is not None and received[0][0] == wire.CALL:
                    die(folder)
                return received

            Link.take = taken  # type: ignore[method-assign]
        elif stage == "taken":
            host.Host._run = lambda *_: die(folder)  # type: ignore[assignment,method-assign]
        elif stage in ("answer-torn", "answer-written"):
            write = wire.Outlet.write

            def torn(outlet: Any, pieces: Any) -> None:
                whole = b"".join(map(bytes, pieces))
                if b"answer" in whole:
                    outlet._sock.send(whole[: len(whole) // 2] if stage == "answer-torn" else whole)
                    die(folder)
                write(outlet, pieces)

            wire.Outlet.write = torn  # type: ignore[method-assign]

    def on_restart(self, obituary: Any) -> None:
        self.history.append(obituary.signal)

    def go(self, value: Any) -> Any:
        with open(Path(self.folder, "ran"), "a", encoding="utf-8") as file:
            file.write("x")
        if self.stage == "run":
            die(self.folder)
        return DiesWhenPickled(self.folder) if self.stage == "answer-pickled" else "answer"

    def told(self) -> list[str]:
        return self.history

    def on_stop(self) -> None:
        if self.stage == "stop":
            die(self.folder)


def argument(folder: str, stage: str) -> Any:
    return DiesWhenUnpickled(folder) if stage == "argument-unpickled" else 1


@shoal.actor(restart="temporary")
class Log:
    """Writes down what it is told, by whom."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def note(self, entry: Any) -> None:
        self.seen.append(entry)

    def everything(self) -> list[Any]:
        return self.seen


class Caller(shoal.Process):
    """Casts numbers, and calls now and then, until it is killed."""

    def __init__(self, log: Any, name: int) -> None:
        super().__init__()
        self.log = log
        self.caller = name

    def run(self) -> None:
        number = 0
        self.ready()
        while True:
            self.log.note.cast((self.caller, number))
            number += 1
            if number % 50 == 0:
                self.log.note.call((self.caller, number))
                number += 1
