"""Starting worker processes.

Role: the program's templates, one pool's connection to one of them, and forking directly. Owner: `Template` objects
belong to the program and are started once; a launcher belongs to one engine, or to the hub of `_process`, which calls it
with its lock held.

Invariants
    L1  A template lives as long as the program; one that died is replaced at the next start of a worker.
    L2  After a fork the child owns no template and no launcher: their descriptors are closed in it.

The first pool imports this, starts the template, and then imports the rest: nothing here needs what runs in a worker, except to
fork one directly.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from shoal._os import descriptors, processes
from shoal._os.interpreter import MainModule, interpreter_command, main_module
from shoal._os.lifeline import Lifeline
from shoal._pool import interrupts
from shoal._settings import StartMethod

_MESSAGE_BYTES = 1 << 20
#: The module of `_worker` in which a process begins: a worker of a pool, or a `shoal.Process`.
Entry = Literal["boot", "solo"]


# --- what launchers tell ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forked:
    """A worker process exists. `pidfd` is the receiver's to close."""

    token: int
    pid: int
    pidfd: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker could not be forked, this time."""

    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """No worker can ever be forked: the main module cannot be imported."""

    traceback_text: str
    missing_guard: bool


@dataclass(frozen=True, slots=True)
class TemplateLost:
    """The template died. Its workers live on; how they end cannot be learned."""


Event = Forked | Refused | Broken | TemplateLost | processes.ExitStatus


# --- the program's templates --------------------------------------------------------------------


class Template:
    """This program's end of one template process."""

    def __init__(self, method: StartMethod) -> None:
        self.owner = os.getpid()
        self.environment = dict(os.environ)
        self.main = main_module()
        self.front, theirs = descriptors.seqpacket_pair()
        try:
            self.pid = _spawn_template(theirs, lifeline().read_fd)
            self.pidfd = processes.pidfd_open(self.pid)
        except OSError:
            self.front.close()  # the template, if it exists, ends with it
            raise
        finally:
            theirs.close()
        spawning = method == "spawn"
        main = None if spawning else self.main
        command = [*interpreter_command(), "-c"] if spawning else None
        path, argv = [str(entry) for entry in sys.path], list(sys.argv)
        self._send(("hello", path, argv, main and _main_fields(main), command, _path_prelude()))

    def _send(self, message: tuple[Any, ...], fds: list[int] | None = None) -> None:
        descriptors.send_with_fds(self.front, marshal.dumps(message), fds or [])

    def connect(self) -> socket.socket:
        """Return a new client's socket. Raises OSError if the template is gone."""
        ours, theirs = descriptors.seqpacket_pair()
        with theirs:
            try:
                self._send(("client",), [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    @property
    def alive(self) -> bool:
        return self.owner == os.getpid() and not processes.wait_pidfd(self.pidfd, 0)

    def fds(self) -> set[int]:
        return {self.front.fileno(), self.pidfd}

    def close(self) -> None:
        """Let the template end; blocks until it has. In a forked child only the descriptors are closed."""
        self.front.close()
        if self.owner == os.getpid():
            if not processes.wait_pidfd(self.pidfd, 5.0):
                processes.kill_pidfd(self.pidfd, signal.SIGKILL)
            processes.reap(self.pid, block=True)
        descriptors.close_quietly(self.pidfd)


def _main_fields(main: MainModule) -> tuple[Any, ...]:
    return main.kind, main.name, main.path, main.init_name


def _path_prelude() -> str:
    """Code that lets a fresh interpreter find shoal where this one found it."""
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return f"import sys; sys.path.insert(0, {home!r}); "


def _spawn_template(front: socket.socket, lifeline_fd: int) -> int:
    """Start the template's interpreter; returns its pid."""
    code = _path_prelude() + "from shoal._worker.template import main; main(3, 4)"
    command = [*interpreter_command(), "-c", code]
    # The targets 3 and 4 may be the numbers of the sources: move those out of the way first.
    source = [os.dup(front.fileno()), os.dup(lifeline_fd)]
    high = [_above(fd, 10) for fd in source]
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        actions = [
            (os.POSIX_SPAWN_DUP2, null, 0),
            (os.POSIX_SPAWN_DUP2, high[0], 3),
            (os.POSIX_SPAWN_DUP2, high[1], 4),
        ]
        return os.posix_spawn(command[0], command, os.environ, file_actions=actions, setpgroup=0)
    finally:
        for fd in (*source, *high, null):
            descriptors.close_quietly(fd)


def _above(fd: int, least: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)


class _Lifeline:
    """The program's one lifeline. Its write end is never passed on."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.read_fd, self.write_fd = Lifeline.create()


_guard = threading.Lock()
_templates: dict[str, Template] = {}
#: Held for a fork, too: a child that got the write end of a lifeline nobody knows yet could not close it.
_lifeline_guard = threading.Lock()
_lifeline: _Lifeline | None = None


def lifeline() -> _Lifeline:
    """Return the program's lifeline, made at first use."""
    global _lifeline
    with _lifeline_guard:
        if _lifeline is None or _lifeline.owner != os.getpid():
            _lifeline = _Lifeline()
        return _lifeline


def _template(method: StartMethod) -> Template:
    with _guard:
        template = _templates.get(method)
        if template is None or not template.alive:
            if template is not None:
                _templates.pop(method).close()
            template = _templates[method] = Template(method)
        return template


def warm_up(method: StartMethod) -> None:
    """Start the template, if the method has one, without waiting for it."""
    if method != "fork":
        with contextlib.suppress(OSError):  # the first worker tries again, and tells
            _template(method)


def template_pids() -> set[int]:
    """Return the pids of this program's templates."""
    return {template.pid for template in _templates.values()}


def template_fds() -> set[int]:
    """Return the descriptors the templates and the lifeline keep open."""
    fds = set().union(*(template.fds() for template in _templates.values()))
    return fds | ({_lifeline.read_fd, _lifeline.write_fd} if _lifeline is not None else set())


def close_templates() -> None:
    """End all templates; the next pool starts new ones. Blocks until they are gone."""
    with _guard:
        while _templates:
            _templates.popitem()[1].close()


def _before_fork() -> None:
    _lifeline_guard.acquire()


def _after_fork() -> None:
    _lifeline_guard.release()


def _after_fork_in_child() -> None:
    global _guard, _lifeline, _lifeline_guard
    _guard = threading.Lock()
    _lifeline_guard = threading.Lock()
    for template in _templates.values():
        with contextlib.suppress(OSError):
            template.front.close()
        descriptors.close_quietly(template.pidfd)
    _templates.clear()
    if _lifeline is not None:
        descriptors.close_quietly(_lifeline.write_fd)
        if _becoming.worker_of is None:
            descriptors.close_quietly(_lifeline.read_fd)
        _lifeline = None


class _Becoming(threading.local):
    """What the fork that this thread is making is for; other threads may be making forks of their own."""

    worker_of: ForkLauncher | None = None


_becoming = _Becoming()
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


# --- launchers ----------------------------------------------------------------------------------


class TemplateLauncher:
    """One pool's connection to a template."""

    def __init__(self, method: StartMethod, preload: Sequence[str] = ()) -> None:
        self._method = method
        self._template = _template(method)
        self._sock = self._template.connect()
        if preload and method == "forkserver":  # after an exec nothing of it would be left
            descriptors.send_with_fds(self._sock, marshal.dumps(("preload", list(preload))), [])

    @property
    def environment(self) -> dict[str, str]:
        """The environment the workers start with, unless told otherwise."""
        return self._template.environment

    @property
    def main_in_worker(self) -> MainModule | None:
        """What each worker has to import by itself."""
        return self._template.main if self._method == "spawn" else None

    def fileno(self) -> int:
        return self._sock.fileno()

    def start(
        self,
        token: int,
        fds: list[int],
        *,
        captured: bool,
        inherited: Any,  # noqa: ARG002 - the other launcher's
        entry: Entry = "boot",
    ) -> list[Event]:
        """Ask for a process that enters there. Raises OSError if the template is gone."""
        descriptors.send_with_fds(self._sock, marshal.dumps(("fork", token, captured, entry)), fds)
        return []

    def read(self) -> list[Event]:
        """Return what the template told, without blocking."""
        events: list[Event] = []
        while True:
            try:
                if not _readable(self._sock):
                    return events
                data, fds = descriptors.recv_with_fds(self._sock, _MESSAGE_BYTES, 1)
            except OSError:
                data, fds = b"", []
            if not data:
                return [*events, TemplateLost()]
            kind, *rest = marshal.loads(data)
            if kind == "forked":
                token, pid = rest
                events.append(Forked(token, pid, fds[0]))
            elif kind == "failed":
                events.append(Refused(*rest))
            elif kind == "broken":
                events.append(Broken(*rest))
            else:
                events.append(processes.ExitStatus(*rest))

    def status(self, pid: int) -> processes.ExitStatus | None:  # noqa: ARG002 - the other launcher's is asked
        """Return None: the template tells, in its time."""
        return None

    @property
    def forking(self) -> bool:
        """False: the template forks."""
        return False

    def close(self) -> None:
        self._sock.close()


def _readable(sock: socket.socket) -> bool:
    import select

    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class ForkLauncher:
    """Workers forked from this very program, with all that it holds."""

    environment: dict[str, str] | None = None
    main_in_worker: MainModule | None = None

    @property
    def forking(self) -> bool:
        """Whether this thread is in `start`, or has come out of it as the worker."""
        return _becoming.worker_of is self

    def fileno(self) -> int:
        return -1

    def start(
        self, token: int, fds: list[int], *, captured: bool, inherited: Any, entry: Entry = "boot"
    ) -> list[Event]:
        """Fork a process, which inherits what it is to run with. Raises OSError if the system refuses."""
        # Here, not in the child: another thread may hold the import's lock at the fork.
        from shoal._worker.boot import DESCRIPTORS, run_worker

        become: Callable[..., NoReturn] = run_worker
        if entry == "solo":
            from shoal._worker.solo import run_solo as become

        processes.get_ready_to_fork()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()  # else both processes would write what is buffered
        # Python swallows what is raised in somebody's at-fork hook, so Ctrl-C must wait. And until the child leads a
        # group of its own the terminal's signals reach it, too; it drops them in `reset_signals`, then unblocks.
        with interrupts.deferred():
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            _becoming.worker_of = self
            try:
                pid = processes.fork()
                if pid == 0:
                    become(dict(zip(DESCRIPTORS, fds, strict=True)), captured=captured, inherited=inherited)
            finally:
                _becoming.worker_of = None
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            return [Forked(token, pid, processes.pidfd_open(pid))]
        except OSError:  # no descriptor left to watch it by
            os.kill(pid, signal.SIGKILL)
            processes.reap(pid, block=True)
            raise

    def read(self) -> list[Event]:
        return []

    def status(self, pid: int) -> processes.ExitStatus | None:
        """Return how a worker ended; it has ended."""
        processes.kill_group(pid, signal.SIGKILL)
        return processes.reap(pid, block=True)

    def close(self) -> None:
        pass


Launcher = TemplateLauncher | ForkLauncher


def launcher_for(method: StartMethod, preload: Sequence[str] = ()) -> Launcher:
    """Return a new launcher; its template first imports the modules `preload`.

    Raises OSError if the template cannot be started or has just died.
    """
    return ForkLauncher() if method == "fork" else TemplateLauncher(method, preload)
