"""System calls of a program and of all below it, counted: how many, by whom, how many bytes they moved.

Role: a tracer (ptrace) for counts that do not depend on how fast the machine is. Owner: a process of its own,
`python -m tests.tracing`, which waits for whatever it traces and for nobody else's children.

The program says what is to be counted: `with tracing.phase("name")`. Outside of phases it runs at full speed, inside
each system call costs some ten microseconds more, so nothing that is timed means anything there.

Invariants
    T1  A call counts if it began and ended inside one phase. Who was asleep in one as the phase began is made to begin
        it again; who is asleep in one as it ends has not been counted.
    T2  Every thread of every descendant is traced from its first instruction, orphans too, and dies with the tracer.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import support

#: Tells the tracer where a phase begins and ends. Nobody sends it otherwise, and untraced it is ignored.
MARK = signal.SIGURG
#: How the tracer says that it is not allowed to trace here.
REFUSED = 77

#: Numbers of the calls worth telling apart. Everything else goes by its number.
_NAMES = {
    0xC000003E: {  # AUDIT_ARCH_X86_64
        0: "read", 1: "write", 7: "poll", 17: "pread64", 18: "pwrite64", 19: "readv", 20: "writev", 13: "rt_sigaction",
        44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 202: "futex", 232: "epoll_wait", 233: "epoll_ctl",
        281: "epoll_pwait", 295: "preadv", 296: "pwritev", 40: "sendfile", 9: "mmap", 11: "munmap", 25: "mremap",
        28: "madvise",
        56: "clone", 435: "clone3", 59: "execve", 270: "pselect6", 271: "ppoll", 3: "close", 257: "openat",
        319: "memfd_create", 35: "nanosleep", 230: "clock_nanosleep", 441: "epoll_pwait2", 14: "rt_sigprocmask",
        12: "brk", 62: "kill", 24: "sched_yield",
    },
    0xC00000B7: {  # AUDIT_ARCH_AARCH64
        63: "read", 64: "write", 67: "pread64", 68: "pwrite64", 65: "readv", 66: "writev", 134: "rt_sigaction",
        206: "sendto", 207: "recvfrom", 211: "sendmsg", 212: "recvmsg", 98: "futex", 21: "epoll_ctl", 22: "epoll_pwait",
        69: "preadv", 70: "pwritev", 71: "sendfile", 222: "mmap", 215: "munmap", 216: "mremap",
        233: "madvise", 220: "clone",
        435: "clone3", 221: "execve", 72: "pselect6", 73: "ppoll", 57: "close", 56: "openat", 279: "memfd_create",
        101: "nanosleep", 115: "clock_nanosleep", 441: "epoll_pwait2", 135: "rt_sigprocmask", 214: "brk", 129: "kill",
        124: "sched_yield",
    },
}  # fmt: skip
#: Calls on any descriptor: what it is decides what is counted.
_BY_TARGET = frozenset({"read", "write", "pread64", "pwrite64", "readv", "writev", "preadv", "pwritev", "sendfile"})


# --- for tests ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calls:
    """System calls of one kind: all, those that moved or found something (they returned more than 0), and how much."""

    count: int = 0
    fruitful: int = 0
    amount: int = 0

    def __add__(self, other: Calls) -> Calls:
        return Calls(self.count + other.count, self.fruitful + other.fruitful, self.amount + other.amount)


@dataclass(frozen=True, slots=True)
class Phase:
    """What was called during one phase. Roles are "program", "template", "worker" and "other"."""

    rows: tuple[tuple[str, str, str, Calls], ...]  # role, name, target, calls

    def calls(self, *names: str, role: str | None = None, target: str | None = None) -> Calls:
        """The sum over these names (all if none), of one role, on one kind of descriptor (if told)."""
        found = Calls()
        for its_role, name, its_target, calls in self.rows:
            if (not names or name in names) and role in {None, its_role} and target in {None, its_target}:
                found += calls
        return found

    def __str__(self) -> str:
        """For the message of a test that fails: every row."""
        rows = sorted(self.rows, key=lambda row: (row[0], -row[3].count))
        lines = [
            f"{role:9} {name:14} {target:9} {calls.count:7} calls, {calls.fruitful:7} fruitful, {calls.amount:12} sum"
            for role, name, target, calls in rows
        ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Traced:
    """A program that was traced to its end."""

    phases: dict[str, Phase]
    lines: list[str]


class RefusedHereError(Exception):
    """The system does not let us trace."""


def trace(script: Path, *args: object, env: dict[str, str], limit_s: float) -> Traced:
    """Run a script to its end and return what its phases called.

    Raises:
        RefusedHereError: ptrace is not to be had here.
    """
    counts = script.with_suffix(".counts")
    command = [sys.executable, "-m", "tests.tracing", str(counts), sys.executable, str(script), *map(str, args)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            output, errors = tracer.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            shown = support.dump_everything()
            tracer.kill()  # and what it traces dies with it (T2)
            output, errors = tracer.communicate()
            story = f"hung: the program ran longer than {limit_s:g} s"
            raise AssertionError(f"{story}\n{output}\n{errors}\n{shown}") from None
    if tracer.returncode == REFUSED:
        raise RefusedHereError(errors.strip().splitlines()[-1])
    if tracer.returncode:
        raise AssertionError(f"the program ended with {tracer.returncode}\n{output}\n{errors}")
    lines = output.splitlines()
    names = [line.removeprefix("phase ") for line in lines if line.startswith("phase ")]
    phases = json.loads(counts.read_text())
    assert len(names) == len(phases), f"phases {names}, counted {len(phases)}"
    made = {
        name: Phase(tuple((role, call, target, Calls(*numbers)) for role, call, target, *numbers in rows))
        for name, rows in zip(names, phases, strict=True)
    }
    return Traced(made, [line for line in lines if not line.startswith("phase ")])


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Have the system calls of this process and of all below it counted. For the traced program."""
    print(f"phase {name}", flush=True)
    signal.raise_signal(MARK)
    try:
        yield
    finally:
        signal.raise_signal(MARK)


# --- the tracer ---------------------------------------------------------------------------------

_CONT, _SYSCALL, _LISTEN, _SEIZE, _INTERRUPT, _SYSCALL_INFO = 7, 24, 0x4208, 0x4206, 0x4207, 0x420E
_STOPPED = 128  # PTRACE_EVENT_STOP
#: TRACESYSGOOD, TRACEFORK, TRACEVFORK, TRACECLONE, TRACEEXEC, EXITKILL.
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x100000
_WALL = 0x40000000
_INFO_BYTES = 88


class Tracer:
    """Follows one program and its descendants, to the end of the last."""

    def __init__(self) -> None:
        import ctypes

        self._ctypes = ctypes
        self._call = ctypes.CDLL(None, use_errno=True).ptrace
        self._call.restype = ctypes.c_long
        self._call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._info = (ctypes.c_uint64 * (_INFO_BYTES // 8))()  # struct ptrace_syscall_info
        self._raw = memoryview(self._info).cast("B")
        self._root = 0
        self._process: dict[int, int] = {}  # thread -> its process
        self._open: dict[int, tuple[str, str]] = {}  # thread -> the call it is in
        self._resume = _CONT
        self._waiting: set[int] = set()  # threads that must stop once before the phase begins
        self._marker = 0  # the thread that said so and waits
        self._counts: dict[tuple[int, str, str], list[int]] = {}
        self.phases: list[list[tuple[Any, ...]]] = []

    def _ask(self, request: int, tid: int, address: int = 0, data: Any = 0) -> bool:
        """One ptrace request. False if the thread is gone, or does not stand still any more."""
        return bool(self._call(request, tid, address, data) >= 0)

    def run(self, command: list[str]) -> int:
        """Start `command`, follow it; return its exit code."""
        code = 1
        self._root = self._start(command)
        while True:
            try:
                tid, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return code
            if os.WIFSTOPPED(status):
                self._process.setdefault(tid, _process_of(tid))
                self._stopped(tid, status)
            else:
                if tid == self._root:
                    code = os.waitstatus_to_exitcode(status)
                self._process.pop(tid, None)
                self._open.pop(tid, None)
                self._waiting.discard(tid)
            if self._marker and not self._waiting:
                marker, self._marker = self._marker, 0
                self._ask(self._resume, marker)

    def _start(self, command: list[str]) -> int:
        held, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(go)
                os.read(held, 1)
                os.execv(command[0], command)
            finally:
                os._exit(126)
        os.close(held)
        if not self._ask(_SEIZE, pid, 0, _OPTIONS):
            raise PermissionError(f"ptrace: {os.strerror(self._ctypes.get_errno())}")
        os.close(go)
        return pid

    def _stopped(self, tid: int, status: int) -> None:
        number, event = os.WSTOPSIG(status), status >> 16
        self._waiting.discard(tid)
        if number == signal.SIGTRAP | 0x80:
            self._at_call(tid)
            self._ask(self._resume, tid)
        elif event == _STOPPED and number in {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}:
            self._ask(_LISTEN, tid)  # the whole process is stopped, and stays so until it is continued
        elif event:
            self._ask(self._resume, tid)
        elif number == MARK:
            self._toggle(tid)
        else:
            self._ask(self._resume, tid, 0, number)

    # --- phases ---------------------------------------------------------------------------------

    def _toggle(self, tid: int) -> None:
        if self._resume == _CONT:
            self._resume = _SYSCALL
            self._counts = {}
            # T1: who runs or sleeps stops once, and goes on being followed.
            self._waiting = {other for other in self._process if other != tid and self._ask(_INTERRUPT, other)}
            self._marker = tid
        else:
            self._resume = _CONT
            self._open.clear()
            rows = [(self._role(pid), name, target, *n) for (pid, name, target), n in self._counts.items()]
            self.phases.append(rows)
            self._ask(_CONT, tid)

    def _role(self, pid: int) -> str:
        if pid == self._root:
            return "program"
        try:
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        except OSError:
            return "gone"
        kind = name.removeprefix("shoal-")
        return "worker" if kind.isdigit() else kind if name.startswith("shoal-") else "other"

    # --- calls ----------------------------------------------------------------------------------

    def _at_call(self, tid: int) -> None:
        if self._resume == _CONT or self._marker:
            return
        if not self._ask(_SYSCALL_INFO, tid, _INFO_BYTES, self._info):
            return
        kind = self._raw[0]
        if kind == 1:  # it begins: number and arguments
            number = self._info[3]
            arch = int.from_bytes(self._raw[4:8], sys.byteorder)
            name = _NAMES.get(arch, {}).get(number, f"call {number}")
            target = _target(tid, self._info[4]) if name in _BY_TARGET else ""
            self._open[tid] = name, target
        elif kind == 2:  # it ends: what it returned
            call = self._open.pop(tid, None)
            if call is not None:
                key = (self._process[tid], *call)
                count = self._counts.get(key)
                if count is None:
                    count = self._counts[key] = [0, 0, 0]
                count[0] += 1
                value = self._info[3]
                if 0 < value < 1 << 63:
                    count[1] += 1
                    count[2] += value


def _process_of(tid: int) -> int:
    with open(f"/proc/{tid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return tid


def _target(tid: int, fd: int) -> str:
    try:
        target = os.readlink(f"/proc/{tid}/fd/{fd}")
    except OSError:
        return "none"
    if target.startswith("/memfd:"):
        return "memory"
    kind = target.partition(":")[0]
    if kind == "anon_inode":
        return target.partition("[")[2].rstrip("]")
    return "file" if kind.startswith("/") else kind


def main(counts: str, command: list[str]) -> int:
    tracer = Tracer()
    try:
        code = tracer.run(command)
    except PermissionError as error:
        print(error, file=sys.stderr)
        return REFUSED
    Path(counts).write_text(json.dumps(tracer.phases), encoding="ascii")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
