"""Watch, signal and reap processes.

Role: thin calls around pidfds, process groups, wait4 and /proc/<pid>. Owner: nobody; no state but a lock.

Invariants
    P1  Whoever may meet a reused pid uses a pidfd; the functions that take a pid say what they rely on.
    P2  A process that is gone is an answer, never an exception.
    P3  `gone` says so only if it is certain: what cannot be found out counts as alive.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import threading
import time

#: Pause between two looks at a process's state; a stop takes tens of microseconds. Seconds.
_LOOK_AGAIN_S = 0.0002

_PR_SET_CHILD_SUBREAPER = 36
_FORK_WARNS = sys.version_info >= (3, 12)


class ExitStatus:
    """How a process ended. Immutable; equal by value.

    Written out because `dataclasses` would double the import time of this module (O1).

    Attributes:
        pid: Its process id.
        code: What it exited with, or `None`.
        signal: Number of the signal that killed it, or `None`. Both are `None` if somebody else reaped it.
        peak_rss_bytes: Its largest resident memory, or that of a child it had reaped, whichever is larger; 0 if unknown.
        cpu_s: Seconds of user and system time it used, with the children it had reaped; 0.0 if unknown.
    """

    __slots__ = ("code", "cpu_s", "peak_rss_bytes", "pid", "signal")
    __match_args__ = ("pid", "code", "signal", "peak_rss_bytes", "cpu_s")

    pid: int
    code: int | None
    signal: int | None
    peak_rss_bytes: int
    cpu_s: float

    def __init__(self, pid: int, code: int | None, signal: int | None, peak_rss_bytes: int, cpu_s: float) -> None:
        for name, value in zip(self.__match_args__, (pid, code, signal, peak_rss_bytes, cpu_s), strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"ExitStatus is immutable: cannot set {name}")

    def _values(self) -> tuple[int, int | None, int | None, int, float]:
        return self.pid, self.code, self.signal, self.peak_rss_bytes, self.cpu_s

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, ExitStatus) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in zip(self.__match_args__, self._values(), strict=True))
        return f"ExitStatus({inside})"

    def __reduce__(self) -> tuple[object, ...]:
        return ExitStatus, self._values()


# --- pidfds and signals -------------------------------------------------------------------------


def fork() -> int:
    """Fork. The warning newer Pythons give when threads run is kept quiet: the caller has decided.

    Raises:
        OSError: The system has no room for another process.
    """
    if not _FORK_WARNS:
        return os.fork()
    import warnings

    with _quiet, warnings.catch_warnings():  # it restores what it found: two threads in it would leave ours behind
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _another_may_have_been_forking() -> None:
    global _quiet
    _quiet = threading.Lock()


_quiet = threading.Lock()
os.register_at_fork(after_in_child=_another_may_have_been_forking)


def pidfd_open(pid: int) -> int:
    """Return a close-on-exec descriptor of process `pid`; readable once it has ended.

    It is of the right process only if `pid` cannot have been reused: our unreaped child, or a pid its own
    unreaping parent told us.

    Raises:
        ProcessLookupError: No such process.
        OSError: No descriptors left.
    """
    return os.pidfd_open(pid)


def kill_pidfd(pidfd: int, signum: int) -> bool:
    """Send `signum` to the process; return False if it is gone. True for a zombie: it is still there to be reaped."""
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        return False
    return True


def kill_group(pgid: int, signum: int) -> bool:
    """Send `signum` to every process of group `pgid`; return False if there is none.

    The number cannot have been reused while the leader is unreaped or any member lives: kill first, reap after.

    Raises:
        ValueError: `pgid` is not above 1: 0 would be our own group, and 1 everybody's.
        PermissionError: None of its members may be signalled by us.
    """
    if pgid <= 1:
        raise ValueError(f"pgid must be above 1, not {pgid}")
    try:
        os.killpg(pgid, signum)
    except ProcessLookupError:
        return False
    return True


def own_group() -> None:
    """Make this process the leader of a process group of its own. Nothing happens if it leads its session."""
    try:
        os.setpgid(0, 0)
    except PermissionError:
        pass  # a session leader already leads its group


def signal_name(signum: int) -> str:
    """Return ``"SIGKILL"``, ``"SIGRTMIN+2"`` for a real-time signal, or ``"signal 77"`` for one without a name."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        if signal.SIGRTMIN < signum < signal.SIGRTMAX:
            return f"SIGRTMIN+{signum - signal.SIGRTMIN}"
        return f"signal {signum}"


# --- ends ---------------------------------------------------------------------------------------


def wait_pidfd(pidfd: int, timeout_s: float | None) -> bool:
    """Wait until the process has ended; return False if `timeout_s` seconds (`None`: no limit) passed first.

    Works for any process, not only for children, and does not reap. Zero only looks.
    """
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        # poll() counts in milliseconds and Python rounds up, so it is not early.
        if poll.poll(None if left_s is None else left_s * 1000):
            return True
        if deadline is not None and time.monotonic() >= deadline:
            return False


def reap(pid: int, *, block: bool) -> ExitStatus | None:
    """Collect child `pid`; return `None` if it still runs and `block` is False.

    A process that is not our child, or that somebody else has reaped, gives a status with neither code nor signal.
    After this the pid may be reused: signal its group before.
    """
    try:
        got, status, usage = os.wait4(pid, 0 if block else os.WNOHANG)
    except ChildProcessError:
        return ExitStatus(pid, None, None, 0, 0.0)
    if got == 0:
        return None
    return ExitStatus(
        pid=pid,
        code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        peak_rss_bytes=usage.ru_maxrss * 1024,
        cpu_s=usage.ru_utime + usage.ru_stime,
    )


def peek_exit(pid: int) -> bool:
    """Has child `pid` ended? Does not reap it. True also if it is not, or no longer, our child."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


# --- about ourselves ----------------------------------------------------------------------------


def become_subreaper() -> None:
    """Become the new parent of descendants whose parents die, from now on. Loads `ctypes`; not for workers.

    Raises:
        OSError: The kernel refused.
    """
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    prctl.restype = ctypes.c_int
    if prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl(PR_SET_CHILD_SUBREAPER)")


def get_ready_to_fork() -> None:
    """Load what `become_subreaper` needs, for those that are forked from this process one after the other."""
    import ctypes  # noqa: F401 - as said


def name_process(text: str) -> None:
    """Name this process for `ps` and `top`; the kernel keeps 15 bytes. Does nothing if it is not allowed to."""
    # The same as prctl(PR_SET_NAME) in the main thread, without loading ctypes.
    _write_proc("/proc/self/comm", text.encode()[:15])


def raise_oom_score(delta: int = 500) -> None:
    """Offer this process to the kernel's out-of-memory killer first: raise its score by `delta`, 1000 at most.

    Never lowers it, and does nothing if it is not allowed to.

    Raises:
        ValueError: `delta` is negative.
    """
    if delta < 0:
        raise ValueError(f"delta must not be negative, not {delta}")
    text = _read_proc("/proc/self/oom_score_adj")
    if text is not None:
        _write_proc("/proc/self/oom_score_adj", str(min(1000, int(text) + delta)).encode())


# --- identity -----------------------------------------------------------------------------------


def start_time(pid: int) -> int | None:
    """Return when process `pid` started, in clock ticks since the machine did; `None` if it has ended or cannot be seen.

    With the pid this names one process for ever: a reused pid has another start. A zombie has ended.
    """
    fields = _stat(f"/proc/{pid}/stat")
    return None if fields is None or _ended(fields) else int(fields[19])


def _ended(fields: list[bytes]) -> bool:
    # A leader that has left its other threads behind is a zombie, too, but what they hold is not free.
    return fields[0] in (b"Z", b"X") and int(fields[17]) <= 1


def gone(pid: int, start: int) -> bool:
    """Has the process of this `identity` ended? Of any user's; about 10 microseconds."""
    fields = _stat(f"/proc/{pid}/stat")
    if fields is not None:
        return _ended(fields) or int(fields[19]) != start != 0
    try:
        os.kill(pid, 0)  # no descriptor to look with, or no right to: only the number can tell (P3)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def identity() -> tuple[int, int]:
    """Return this process's (pid, start time); always the same, with 0 for a start that could not be found out."""
    global _identity
    if _identity is None:
        pid = os.getpid()
        _identity = (pid, start_time(pid) or 0)
    return _identity


def _become_another() -> None:
    global _identity
    _identity = None


_identity: tuple[int, int] | None = None
os.register_at_fork(after_in_child=_become_another)


# --- about others, from /proc -------------------------------------------------------------------


def _read_proc(path: str) -> bytes | None:
    """Return the file, or `None` if the process is gone, we may not look, or have no descriptor left to look with."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    except ProcessLookupError:  # it died between open and read
        return None
    finally:
        os.close(fd)


def _write_proc(path: str, data: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EROFS):
            return
        raise
    try:
        os.write(fd, data)
    except PermissionError:
        pass
    finally:
        os.close(fd)


def stat_fields(text: bytes) -> list[bytes]:
    """Return the fields of a /proc/<pid>/stat text after the name: [0] is the state, [1] the parent's pid.

    The name stands in parentheses and may itself hold spaces and parentheses, so it ends at the *last* one.
    """
    return text[text.rindex(b")") + 1 :].split()


def _stat(path: str) -> list[bytes] | None:
    text = _read_proc(path)
    return stat_fields(text) if text else None


def state_letter(pid: int) -> str | None:
    """Return the state of `pid` as `ps` shows it (R, S, D, T, t, Z, X, I), or `None` if there is no such process."""
    fields = _stat(f"/proc/{pid}/stat")
    return fields[0].decode() if fields else None


def stop_and_wait(pidfd: int, pid: int, limit_s: float = 0.02) -> bool:
    """Send SIGSTOP and wait until every thread stands still; return whether they do.

    False if the process is gone or ended, or if `limit_s` seconds passed (a thread in an uninterruptible wait
    stops only after it). It stays stopped, or will stop: SIGCONT or SIGKILL is the caller's.
    `pid` must be the process of `pidfd`.
    """
    if not kill_pidfd(pidfd, signal.SIGSTOP):
        return False
    deadline = time.monotonic() + limit_s
    while True:
        states = _thread_states(pid)
        alive = states - {"Z", "X"}
        if not alive:
            return False
        if alive <= {"T", "t"}:
            return not wait_pidfd(pidfd, 0)
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_AGAIN_S)


def _thread_states(pid: int) -> set[str]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return set()
    stats = (_stat(f"/proc/{pid}/task/{thread}/stat") for thread in threads)
    return {fields[0].decode() for fields in stats if fields}


def memory_rss_bytes(pid: int) -> int | None:
    """Return the resident memory of `pid` now, or `None` if it is gone. A zombie has 0."""
    text = _read_proc(f"/proc/{pid}/statm")
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") if text else None


def cpu_s(pid: int) -> float | None:
    """Return the seconds of user and system time `pid` has used, in steps of a clock tick, or `None` if it is gone."""
    fields = _stat(f"/proc/{pid}/stat")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else None


def children_of(pid: int) -> list[int]:
    """Return the pids of the children of `pid`, zombies included; empty if it is gone.

    A snapshot: children that come or go meanwhile may be missed.
    """
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return []
    texts = [_read_proc(f"/proc/{pid}/task/{thread}/children") for thread in threads]
    if all(text is None for text in texts):
        return _children_by_scan(pid)  # a kernel built without that file
    return sorted({int(child) for text in texts if text for child in text.split()})


def _children_by_scan(pid: int) -> list[int]:
    wanted = str(pid).encode()
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return sorted(one for one in pids if (fields := _stat(f"/proc/{one}/stat")) and fields[1] == wanted)
