"""What the tests of the pool let its workers run.

Role: functions and classes a worker imports by name. Light, because every worker imports it, on the clock of its
first task. Owner: the tests.

Hand-shakes go through files, so that they work whatever was started how: a task makes a file to tell something and
looks for one to be told.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

STATE: dict[str, Any] = {}


class Gate(NamedTuple):
    """A task stops in `enter` until the test calls `open`."""

    folder: str
    name: str = "gate"

    @property
    def _entered(self) -> str:
        return os.path.join(self.folder, f"{self.name}.entered")

    @property
    def _opened(self) -> str:
        return os.path.join(self.folder, f"{self.name}.opened")

    def enter(self, value: Any = None) -> Any:
        touch(self._entered)
        while not os.path.exists(self._opened):
            time.sleep(0.001)
        return value

    def is_entered(self) -> bool:
        return os.path.exists(self._entered)

    def wait_until_entered(self) -> None:
        from tests import support

        support.eventually(self.is_entered, what=f"a task to enter {self.name}")

    def open(self) -> None:
        touch(self._opened)


class Log(NamedTuple):
    """Lines that tasks append, whole, from any process."""

    path: str

    def add(self, line: Any) -> Any:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, f"{line}\n".encode())
        finally:
            os.close(fd)
        return line

    def lines(self) -> list[str]:
        if not os.path.exists(self.path):
            return []
        with open(self.path, encoding="utf-8") as file:
            return file.read().splitlines()


def touch(path: str) -> None:
    with open(path, "w", encoding="utf-8"):
        pass


def square(x: Any) -> Any:
    return x * x


def add(x: Any, y: Any) -> Any:
    return x + y


def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def identity(value: Any) -> Any:
    return value


def nothing(*_args: Any) -> None:
    return None


def nap(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


def pid(*_args: Any) -> int:
    return os.getpid()


def fail(message: str = "no", *_rest: Any) -> None:
    raise ValueError(message)


def fail_on(x: Any, bad: Any = 3) -> Any:
    if x == bad:
        raise ValueError(f"bad {x}")
    return x


def fail_if_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"odd {x}")
    return x


def log_and_return(log: Log, x: Any) -> Any:
    log.add(x)
    return x


def die(*_args: Any, **_options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(code: int = 0) -> None:
    sys.exit(code)


def hang(*_args: Any) -> None:
    while True:
        time.sleep(60)


def hold_the_interpreter(*_args: Any) -> int:
    """Stay in C code with the interpreter's lock held, so that no Python of this process runs."""
    return sum(range(10**12))


def stop_myself(*_args: Any) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def memory_kb(*_args: Any) -> int:
    """What this process holds in memory now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def remember(value: Any) -> None:
    """An initializer."""
    STATE["value"] = value


def remembered(*_args: Any) -> Any:
    return STATE.get("value")


def fail_while(path: str) -> None:
    """An initializer that raises for as long as `path` exists."""
    if os.path.exists(path):
        raise RuntimeError("the initializer does not like this")


def die_while(path: str) -> None:
    if os.path.exists(path):
        os.kill(os.getpid(), signal.SIGKILL)


def log_start(log: Log) -> None:
    log.add(os.getpid())


def fail_times(log: Log, times: int, kind: type[BaseException] = ValueError) -> int:
    """Raise on the first `times` calls; return which call this was."""
    log.add("run")
    run = len(log.lines())
    if run <= times:
        raise kind(f"run {run}")
    return run


def die_times(log: Log, times: int) -> int:
    """Kill the worker on the first `times` calls; return which call this was."""
    log.add("run")
    run = len(log.lines())
    if run <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return run


def slow_times(log: Log, times: int) -> int:
    log.add("run")
    run = len(log.lines())
    if run <= times:
        hang()
    return run


class CountedSource:
    """An endless source that counts what was pulled from it."""

    def __init__(self) -> None:
        self.pulled = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.pulled += 1
        return self.pulled - 1


def write_pid_and_hang(path: str) -> None:
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(str(os.getpid()))
    os.rename(f"{path}.new", path)
    hang()


def hang_on_seven(n: int) -> int:
    if n == 7:
        hang()
    return n


def die_on_five(n: int) -> int:
    if n == 5:
        die()
    return n


def ignore_signals_and_hang() -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    hang()


def log_time_and_fail(path: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{time.monotonic()}\n")
    raise ValueError("run")


class SlowToLoad:
    """Takes a minute to unpickle."""

    def __reduce__(self) -> Any:
        return time.sleep, (60,)
