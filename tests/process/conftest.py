"""Hand-shakes with tasks, opened again whatever a test does, so that closing the pool never waits for them."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.process import pool_tasks


@pytest.fixture
def make_gate(tmp_path: Path) -> Iterator[Callable[[str], pool_tasks.Gate]]:
    """Makes gates by name. Ask for it after `pool` or `pool_factory`: it is taken down before them."""
    made: list[pool_tasks.Gate] = []

    def make(name: str) -> pool_tasks.Gate:
        made.append(pool_tasks.Gate(str(tmp_path), name))
        return made[-1]

    yield make
    for gate in made:
        gate.open()


@pytest.fixture
def gate(make_gate: Callable[[str], pool_tasks.Gate]) -> pool_tasks.Gate:
    return make_gate("gate")


@pytest.fixture
def log(tmp_path: Path) -> pool_tasks.Log:
    return pool_tasks.Log(str(tmp_path / "log"))


@pytest.fixture
def make(start_method: str) -> Iterator[Callable[..., Any]]:
    """Makes Processes of this start method, `make(kind, *args, **options)` or `make(target=...)`; kills who still runs."""
    import shoal

    made: list[Any] = []

    def build(kind: Any = shoal.Process, *args: Any, **options: Any) -> Any:
        made.append(kind(*args, **{"start_method": start_method} | options))
        return made[-1]

    yield build
    for process in made:
        if process._shoal_run is not None and process._parent_pid == os.getpid():
            shoal.Process.kill(process)
            shoal.Process.join(process)
            process.close()


@pytest.fixture
def start(make: Callable[..., Any]) -> Callable[..., Any]:
    """As `make`, and starts them."""

    def begin(*args: Any, **options: Any) -> Any:
        process = make(*args, **options)
        process.start()
        return process

    return begin


@pytest.fixture
def starved() -> Callable[[int], Any]:
    """A context in which only so many descriptors can be opened; gives a function that counts those opened in it."""

    @contextmanager
    def starve(room: int) -> Iterator[Callable[[], int]]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        fillers: list[int] = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + room + 2, hard))
            with suppress(OSError):
                while True:
                    fillers.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            while len(fillers) > 0 and room > 0:
                os.close(fillers.pop())
                room -= 1
            full = _open_now(hard)
            yield lambda: _open_now(hard) - full
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in fillers:
                os.close(fd)

    return starve


def _open_now(hard: int) -> int:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return len(os.listdir("/proc/self/fd"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
