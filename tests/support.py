"""What the tests wait with, start programs with, and look for leaks with.

Role: helpers shared by every test folder; `tests/conftest.py` turns them into fixtures. Owner: the test process.

Rules
    T1  Nobody sleeps until something has probably happened: wait for the fact with `eventually`.
    T2  A limit means "hung". Reaching one dumps every stack, of this process and of all below it.
    T3  A child tells that it is ready by printing a line; see `Program.wait_for`.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import queue
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

#: Only a hang gets this far. Seconds. Never tune it to make a test pass.
HANG_LIMIT_S = 60.0
#: How long we watch for something that must not happen. Seconds.
QUIET_S = 0.2
#: How long the kernel and the interpreter may take to put away what a test has closed. Seconds.
SETTLE_S = 5.0
#: Longest pause between two looks at a fact. Seconds.
LOOK_S = 0.01

START_METHODS = ("forkserver", "spawn", "fork")
ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"

#: Put into our environment before anything is started, so that whoever descends from us can be found by it,
#: even after its parent has died and the kernel has given it to another one.
DESCENT = f"SHOAL_TEST_RUN={os.getpid()}.{time.monotonic_ns()}"


# --- waiting ------------------------------------------------------------------------------------


def eventually(check: Callable[[], object], *, what: str, limit_s: float = HANG_LIMIT_S) -> None:
    """Wait until `check()` is true; on a hang dump every stack and fail with `what`."""
    end = time.monotonic() + limit_s
    pause_s = 0.0005
    while not check():
        if time.monotonic() > end:
            raise AssertionError(f"hung: waited {limit_s:g} s for {what}\n{dump_everything()}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LOOK_S)


def stays(check: Callable[[], object], *, what: str, quiet_s: float = QUIET_S) -> None:
    """Watch for `quiet_s` that `check()` never turns false; the one honest use of time in a test."""
    end = time.monotonic() + quiet_s
    while time.monotonic() < end:
        assert check(), f"no longer true: {what}"
        time.sleep(LOOK_S / 2)


def dump_everything() -> str:
    """Every Python stack of this process, and what each process below it is doing, as text."""
    with tempfile.TemporaryFile("w+") as page:
        faulthandler.dump_traceback(page, all_threads=True)
        page.seek(0)
        stacks = page.read()
    below = [process.describe() for process in tree_of(os.getpid())] or ["none"]
    return "\n".join(["--- stacks of this process", stacks.rstrip(), "--- processes below it", *below])


# --- processes ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """One line of the process table. `started` tells two uses of one pid apart."""

    pid: int
    parent: int
    state: str
    started: int
    name: str

    def describe(self) -> str:
        command = _read(f"/proc/{self.pid}/cmdline").replace("\0", " ").strip() or f"({self.name})"
        asleep_in = _read(f"/proc/{self.pid}/wchan")
        return f"pid {self.pid}, child of {self.parent}, state {self.state}, in {asleep_in or '?'}: {command[:200]}"


def _read(path: str) -> str:
    return _read_bytes(path).decode(errors="replace")


def _read_bytes(path: str) -> bytes:
    """A file of /proc, or nothing if its process is gone. Plain calls: the audit reads hundreds for every test."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        text = b""
        while more := os.read(fd, 1 << 16):
            text += more
    except OSError:
        pass  # it ended while we read
    finally:
        os.close(fd)
    return text


def _facts(pid: int) -> ProcessFacts | None:
    text = _read(f"/proc/{pid}/stat")
    # The name stands in brackets and may hold anything, brackets and spaces too.
    start, _, rest = text.rpartition(")")
    columns = rest.split()
    if len(columns) < 20:
        return None
    return ProcessFacts(pid, int(columns[1]), columns[0], int(columns[19]), start.partition("(")[2])


def process_table() -> dict[int, ProcessFacts]:
    """Every process of this machine by pid, zombies included."""
    facts = (_facts(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {one.pid: one for one in facts if one is not None}


def tree_of(pid: int) -> list[ProcessFacts]:
    """Every process below `pid`, of any depth, zombies included; parents before their children."""
    return _below(pid, process_table())


def _below(pid: int, table: dict[int, ProcessFacts]) -> list[ProcessFacts]:
    children: dict[int, list[ProcessFacts]] = {}
    for one in table.values():
        children.setdefault(one.parent, []).append(one)
    found: list[ProcessFacts] = []
    parents = [pid]
    while parents:
        level = [child for parent in parents for child in children.get(parent, ())]
        found += level
        parents = [child.pid for child in level]
    return found


#: Who ran before us, ourselves included, cannot come from us: (pid, start).
STRANGERS = frozenset((one.pid, one.started) for one in process_table().values())


def is_alive(pid: int) -> bool:
    """Whether `pid` still runs. A zombie does not: it only waits for its parent to look."""
    one = _facts(pid)
    return one is not None and one.state not in "ZX"


def descendants() -> list[ProcessFacts]:
    """Every process that comes from this one, even if its parent died and it was given to another.

    Those below us by parentage, and those that carry our mark in their environment: whatever was started through an
    exec after this module was imported. A zombie that is no longer below us is not ours to reap and is left out.
    """
    table = process_table()
    found = {one.pid: one for one in _below(os.getpid(), table)}
    mark = DESCENT.encode()
    for pid, one in table.items():
        stranger = pid in found or (pid, one.started) in STRANGERS or one.state in "ZX"
        if not stranger and mark in _read_bytes(f"/proc/{pid}/environ"):
            found[pid] = one
    return list(found.values())


# --- programs -----------------------------------------------------------------------------------


def program_environment(**changes: str) -> dict[str, str]:
    """The environment of a program a test starts: ours, with shoal and the tests importable."""
    path = [str(SOURCE), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"} | changes


def write_script(folder: Path, source: str, name: str = "program.py") -> Path:
    """Write `source`, without its common indentation, as a script in `folder`."""
    script = folder / name
    script.write_text(textwrap.dedent(source), encoding="utf-8")
    return script


@dataclass(slots=True)
class Program:
    """A script running as a program of its own, whose lines are read as it prints them.

    Made by the `start_script` fixture, which stops it if the test does not. Its stderr is read too: `errors()`.
    """

    process: subprocess.Popen[str]
    seen: list[str] = field(default_factory=list)
    seen_errors: list[str] = field(default_factory=list)
    _lines: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue)
    _readers: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        for target in (self._read_output, self._read_errors):
            reader = threading.Thread(target=target, name=f"reader of pid {self.pid}", daemon=True)
            reader.start()
            self._readers.append(reader)

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.seen_errors.extend(line.rstrip("\n") for line in self.process.stderr)

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for(self, start: str, *, limit_s: float = HANG_LIMIT_S) -> str:
        """Return the rest of the next line that begins with `start`; lines before it are kept in `seen`."""
        end = time.monotonic() + limit_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                story = f"hung: waited {limit_s:g} s for the program to print {start!r}"
                raise AssertionError(f"{story}\n{self.story()}\n{dump_everything()}") from None
            if line is None:
                self._lines.put(None)
                raise AssertionError(f"the program ended before it printed {start!r}\n{self.story()}")
            self.seen.append(line)
            if line.startswith(start):
                return line[len(start) :].strip()

    def send(self, text: str) -> None:
        """Write a line to the program's stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """End the program by SIGKILL and reap it; what it had started is left to itself."""
        self.process.kill()
        self.process.wait(HANG_LIMIT_S)

    def finish(self, *, limit_s: float = HANG_LIMIT_S) -> int:
        """Wait for the program's own end; return its exit code."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            story = f"hung: waited {limit_s:g} s for the program to end"
            raise AssertionError(f"{story}\n{self.story()}\n{dump_everything()}") from None
        self.drain()
        return code

    def drain(self) -> list[str]:
        """Every line the program printed; waits until nobody holds its output open."""
        for reader in self._readers:
            reader.join(HANG_LIMIT_S)
            if reader.is_alive():
                raise AssertionError(f"somebody still holds the program's output\n{self.story()}\n{dump_everything()}")
        with suppress(queue.Empty):
            while (line := self._lines.get_nowait()) is not None:
                self.seen.append(line)
            self._lines.put(None)
        return self.seen

    def errors(self) -> str:
        return "\n".join(self.seen_errors)

    def story(self) -> str:
        code = self.process.poll()
        state = "running" if code is None else f"ended with {code}"
        return "\n".join([f"program pid {self.pid} {state}; it printed:", *self.seen, "on stderr:", *self.seen_errors])

    def close(self) -> None:
        """Stop what still runs and give its descriptors back. Does not hide survivors: the leak audit sees those."""
        if self.process.poll() is None:
            self.kill()
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        for reader in self._readers:
            reader.join(SETTLE_S)
        for stream in (self.process.stdout, self.process.stderr):
            # A stream whose reader is stuck stays open: closing it would block on the reader's lock.
            if stream is not None and not any(reader.is_alive() for reader in self._readers):
                stream.close()


# --- leaks --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Footprint:
    """What this process holds at one instant, each thing with words that let a reader find it.

    shoal's template process is meant to live as long as the program, so it and its sockets are left out.
    """

    processes: dict[tuple[int, int], str]
    descriptors: dict[tuple[int, str], str]
    threads: dict[int, str]
    segments: dict[str, str]

    @classmethod
    def take(cls) -> Footprint:
        pids, fds = _long_lived()
        return cls(
            processes={
                (one.pid, one.started): f"process: {one.describe()}" for one in descendants() if one.pid not in pids
            },
            descriptors={
                (fd, target): f"descriptor {fd} -> {target}" for fd, target in _descriptors().items() if fd not in fds
            },
            threads={
                id(one): f"thread: {one.name}{' (daemon)' if one.daemon else ''}" for one in threading.enumerate()
            },
            segments=_segments(),
        )

    def beyond(self, before: Footprint) -> list[str]:
        """What is here that was not there `before`, a line each."""
        return [
            words
            for mine, theirs in (
                (self.processes, before.processes),
                (self.descriptors, before.descriptors),
                (self.threads, before.threads),
                (self.segments, before.segments),
            )
            for key, words in mine.items()
            if key not in theirs
        ]


def wait_for_no_leak(before: Footprint, *, settle_s: float = SETTLE_S) -> list[str]:
    """Return what is still here beyond `before` once things have settled; empty is good."""
    leaked = Footprint.take().beyond(before)
    if not leaked:
        return leaked
    # A pool in a reference cycle is put away by the collector, as in a program that runs on.
    gc.collect()
    end = time.monotonic() + settle_s
    pause_s = 0.001
    while (leaked := Footprint.take().beyond(before)) and time.monotonic() < end:
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.1)
    return leaked


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of this very listing is gone by now
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _segments() -> dict[str, str]:
    """Named segments of the machine, and the memory files and named segments mapped here."""
    # Semaphores there are multiprocessing's; shoal makes none, and any other program on the machine may.
    names = [name for name in _listing("/dev/shm") if not name.startswith("sem.")]
    found = {name: f"shared memory: /dev/shm/{name}" for name in names}
    for line in _read("/proc/self/maps").splitlines():
        columns = line.split(maxsplit=5)
        if len(columns) == 6 and columns[5].startswith(("/memfd:", "/dev/shm/")):
            found[f"{columns[5]} {columns[4]}"] = f"mapping: {columns[5]} (inode {columns[4]})"
    return found


def _listing(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _long_lived() -> tuple[set[int], set[int]]:
    """Pids and descriptors that live as long as the program: shoal's template, and multiprocessing's two helpers."""
    pids: set[int] = set()
    fds: set[int] = set()
    # Only what is loaded can have started anything, and the audit must not import what it audits.
    launcher = sys.modules.get("shoal._pool.launcher")
    if launcher is not None:
        pids |= set(getattr(launcher, "template_pids", set)())
        fds |= set(getattr(launcher, "template_fds", set)())
    for module, owner, pid_name, fd_names in (
        ("multiprocessing.resource_tracker", "_resource_tracker", "_pid", ("_fd",)),
        ("multiprocessing.forkserver", "_forkserver", "_forkserver_pid", ("_forkserver_alive_fd",)),
    ):
        helper = getattr(sys.modules.get(module), owner, None)
        if helper is not None:
            pids |= {getattr(helper, pid_name, None)} - {None}
            fds |= {getattr(helper, name, None) for name in fd_names} - {None}
    return pids, fds


def close_templates() -> None:
    """End shoal's template processes, if shoal was used at all."""
    launcher = sys.modules.get("shoal._pool.launcher")
    if launcher is not None and hasattr(launcher, "close_templates"):
        launcher.close_templates()


# --- the watchdog -------------------------------------------------------------------------------


class Hung(BaseException):
    """A test reached its limit. Not an Exception, so that no `except Exception` under test can swallow it."""


def watch(limit_s: float) -> Iterator[None]:
    """Fail whoever runs longer than `limit_s` with every stack. Main thread only.

    An alarm interrupts whatever Python call the main thread waits in. If it is stuck in native code the alarm is
    never answered; then, half a limit later, faulthandler writes the stacks and ends the test run.
    """

    def on_alarm(_number: int, _frame: object) -> None:
        raise Hung(f"the test hung: it ran longer than {limit_s:g} s\n{dump_everything()}")

    previous = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    faulthandler.dump_traceback_later(limit_s * 1.5, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
