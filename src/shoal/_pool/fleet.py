"""The workers of one pool: started, kept at strength, told to stop, buried.

Role: everything about processes; nothing about tasks. Owner: the engine, which calls it with its lock held and is
called back through `on_ready`, `on_gone` and `on_hopeless`.

A worker's life
    spare     the process exists, or is being made; it was told nothing
    starting  it was sent its boot message: it imports, runs the initializer
    ready     it said so; it is on the dispatcher's roster
    stopping  it was sent STOP, or is being replaced after it has had all the tasks it may have
    dead      its process is gone; the handle stays until its exit status came or STATUS_WAIT_S passed

Invariants
    G1  Never more than `options.workers` workers are starting or ready; at most one is spare.
    G2  A worker's descriptors are closed exactly once, by `_bury`.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shoal._memory.page import STAGE
from shoal._os import processes
from shoal._os.interpreter import working_directory
from shoal._pool import interrupts
from shoal._pool import launcher as launchers
from shoal._pool.care import CLOSED_CONNECTION
from shoal._pool.core import Core
from shoal._pool.depot import Depot, forget_shared
from shoal._pool.failures import explain_refusal
from shoal._pool.functions import BootPayload
from shoal._pool.worker import WorkerHandle
from shoal._wire import messages as m
from shoal._wire.frames import Buffer, encode

if TYPE_CHECKING:
    from shoal._worker.boot import Call

#: The exit status comes from the template, usually within a millisecond of the death.
STATUS_WAIT_S = 1.0
#: A worker that was told to stop may take this long for its exit handlers.
STOP_GRACE_S = 5.0
#: A worker that closed its socket and lives on gets this long to end by itself.
_EOF_GRACE_S = 0.1
#: How often a worker that is starting is looked at.
START_LOOK_S = 1.0
#: Looks after which a process that has not even begun is given up.
STILLBORN_LOOKS = 5
#: Deaths before READY, one after the other, after which we stop trying.
START_TRIES = 3
#: A pool at full strength makes its spare after this time, so that short-lived pools do not pay for one.
_SPARE_AFTER_S = 0.1
#: After a failed start that does no harm, the next try waits this long.
_PAUSE_S = 1.0
#: How long a worker looks for its next task before it sleeps.
SPIN_NS = 50_000


class Fleet:
    """All worker processes of one pool."""

    def __init__(
        self,
        core: Core,
        depot: Depot,
        boot_payload: BootPayload | None,
        on_ready: Callable[[WorkerHandle], None],
        on_readable: Callable[[WorkerHandle], bool],
        on_gone: Callable[[WorkerHandle], None],
        on_buried: Callable[[WorkerHandle], None],
        on_hopeless: Callable[[str, str, str | None], None],
    ) -> None:
        self._core = core
        self._depot = depot
        self._initializer = boot_payload
        self._on_ready = on_ready
        self._on_readable = on_readable
        self._on_gone = on_gone
        self._on_buried = on_buried
        self._on_hopeless = on_hopeless
        self._numbers = itertools.count()
        self._launcher: launchers.Launcher | None = None
        options = core.options
        self._inherited: Call | None = None
        if options.start_method == "fork" and options.initializer is not None:
            self._inherited = options.initializer, options.initargs
        self._tokens: dict[int, WorkerHandle] = {}
        self._by_pid: dict[int, WorkerHandle] = {}
        self._failed_starts = 0
        self._generation = 0  # failed starts reported so far
        self._by_value = False  # the initializer is sent by value
        self._spare_due = False
        self._paused = False
        self.full = False  # every worker there may be is starting or ready
        self._allowed = 0  # how many there may be; raised to what was asked for
        self._launching: WorkerHandle | None = None

    # --- strength -------------------------------------------------------------------------------

    def _count(self, *states: str) -> int:
        return sum(worker.state in states for worker in self._core.workers.values())

    @property
    def serving(self) -> int:
        """Workers that are starting or ready."""
        return self._count("starting", "ready")

    def allow(self, workers: int) -> None:
        """Let there be up to `workers` workers, if there may be fewer until now."""
        if workers > self._allowed:
            self._allowed = workers
            self.full = False

    def keep_strength(self) -> None:
        """Start workers for work that waits and has nobody; make a spare when all are there."""
        core = self._core
        if self._paused or self.full or self._failed_starts >= START_TRIES or not core.dispatcher.waiting:
            return
        serving = self.serving
        starting = self._count("starting")
        want = min(self._allowed - serving, core.dispatcher.waiting - core.dispatcher.idle - starting)
        if want > 0:
            with interrupts.deferred():  # a worker that is half made would be waited for at the end, for ever
                for _ in range(want):
                    if not self._enlist():
                        return
                    serving += 1
        self.full = serving >= self._allowed
        if self.full and core.options.spare and not self._spare_due and not core.closing and not self._count("spare"):
            self._spare_due = True
            core.after(_SPARE_AFTER_S, self._make_spare)

    def boot_failed(self, worker: WorkerHandle, kind: str, reason: str, text: str | None) -> None:
        """A worker could not boot. One told to boot before the last such report tells nothing new: what was
        submitted since deserves a try of its own.
        """
        if worker.generation == self._generation:
            self._generation += 1
            self._on_hopeless(kind, reason, text)

    def fail(self, kind: str, reason: str, hint: str | None) -> None:
        """No worker could be had. With others at work that is no disaster: try again later."""
        if self._count("ready") or (kind == "start" and self._count("starting")):
            self._paused = True
            self._core.after(_PAUSE_S, self._unpause)
        else:
            self._on_hopeless(kind, reason, hint)

    def _refused(self, error: OSError) -> None:
        self.fail("start", *explain_refusal(error))

    def _unpause(self) -> None:
        self._paused = False

    def _make_spare(self) -> None:
        self._spare_due = False
        if not self._core.closing and not self._count("spare") and self._core.workers:
            self._start()

    def _enlist(self) -> bool:
        """Bring one more worker to work: the spare one, or a new one."""
        spare = next((one for one in self._core.workers.values() if one.state == "spare"), None)
        if spare is not None and _stopped(spare):
            self.stop(spare)
            spare = None
        worker = spare or self._start()
        if worker is None:
            return False
        message, buffers = self._boot_message(worker)
        worker.state = "starting"
        worker.generation = self._generation
        self._core.after(START_LOOK_S, lambda: self._look_at(worker, looks=1, stopped=False))
        worker.send(encode(*worker.courier.outgoing([message], buffers)))
        return True

    def _look_at(self, worker: WorkerHandle, *, looks: int, stopped: bool) -> None:
        """See whether a worker that is starting still can.

        One found stopped (SIGSTOP) at two looks in a row is killed and replaced: two, so that a batch system that
        stops and continues a whole job does no harm. So is one whose process exists and does nothing at all: a fork
        of a program with threads may have inherited a lock that nobody will ever release.
        """
        if worker.state != "starting":
            return
        found = _stopped(worker)
        if found and stopped:
            worker.kill("it was stopped while it started")
        elif looks >= STILLBORN_LOOKS and worker.pid is not None and not worker.page.words[STAGE]:
            worker.kill("it never began")
        else:
            self._core.after(START_LOOK_S, lambda: self._look_at(worker, looks=looks + 1, stopped=found))

    def _start(self) -> WorkerHandle | None:
        """Have a process made. Returns its handle, or None after saying why not."""
        core = self._core
        try:
            worker = WorkerHandle(
                next(self._numbers),
                self._depot.arena,
                lambda identity: forget_shared(core, identity),
                captured=core.options.capture != "inherit",
            )
        except OSError as error:
            self._refused(error)
            return None
        core.workers[worker.number] = worker
        self._tokens[worker.number] = worker
        worker.courier.on_news = self._depot.news
        worker.on_blocked = self._blocked
        worker.on_drained = self._drained
        try:
            events = self._launch(worker)
        except OSError as error:
            self._forget(worker)
            self._refused(error)
            return None
        worker.close_theirs()
        core.counters.workers_started += 1
        core.poller.add(worker.sock.fileno(), lambda events: self._data(worker, events))
        for output in worker.outputs:
            core.poller.add(output.fd, lambda _events, output=output: self._printed(output))  # type: ignore[misc]
        for event in events:
            self._happened(event)
        return worker

    def _launch(self, worker: WorkerHandle) -> list[launchers.Event]:
        """Ask the launcher, getting a new one if its template is gone."""
        self._launching = worker
        passed = list(worker.passed)
        passed.insert(3, launchers.lifeline().read_fd)
        captured = self._core.options.capture != "inherit"
        for last in (False, True):
            try:
                if self._launcher is None:
                    self._launcher = launchers.launcher_for(self._core.options.start_method)
                    if self._launcher.fileno() >= 0:
                        self._core.poller.add(self._launcher.fileno(), self._told)
                return self._launcher.start(worker.number, passed, captured=captured, inherited=self._inherited)
            except (BrokenPipeError, ConnectionError):
                self._drop_launcher()
                if last:
                    raise
        raise AssertionError("unreachable")

    def _drop_launcher(self) -> None:
        if self._launcher is not None:
            self._core.poller.remove(self._launcher.fileno())
            self._launcher.close()
            self._launcher = None

    def _boot_message(self, worker: WorkerHandle) -> tuple[m.Message, list[Buffer]]:
        launcher = self._launcher
        environment = os.environ.copy()
        forked = self._core.options.start_method == "fork"
        main = launcher.main_in_worker if launcher is not None else None
        function, args, buffers = self._initializer or (None, None, [])
        config: dict[str, Any] = {
            "title": f"shoal-{worker.number}",
            "cwd": working_directory(),
            "env": environment if launcher is None or environment != launcher.environment else None,
            "argv": [str(word) for word in sys.argv],
            "sys_path": None if forked else [str(entry) for entry in sys.path],
            "blas_threads": max(1, self._core.cpus // self._core.options.workers),
            "spin_ns": SPIN_NS if 1 < self._core.cpus >= self._core.options.workers else 0,
            "arena_bytes": self._depot.limit_bytes // self._core.options.workers,
            "main": None if main is None else (main.kind, main.name, main.path, main.init_name),
            "initializer": None if function is None else (function, args),
        }
        return (m.BOOT, config), buffers

    # --- what happens to a worker ---------------------------------------------------------------

    def _told(self, _events: int) -> None:
        if self._launcher is not None:
            for event in self._launcher.read():
                self._happened(event)

    def _happened(self, event: launchers.Event) -> None:
        match event:
            case launchers.Forked(token, pid, pidfd):
                worker = self._tokens.pop(token, None)
                if worker is None:
                    if pid not in self._by_pid:  # given up meanwhile; else it was ready before its template said so
                        processes.kill_pidfd(pidfd, signal.SIGKILL)
                    os.close(pidfd)
                    return
                self._know(worker, pid, pidfd)
            case launchers.Refused(token, reason):
                worker = self._tokens.pop(token, None)
                if worker is not None:
                    self._forget(worker)
                self.fail("start", f"the system refused another process ({reason})", None)
            case launchers.Broken(text, guard):
                for worker in list(self._tokens.values()):
                    self._forget(worker)
                self.fail("guard" if guard else "main", text, None)
            case launchers.TemplateLost():
                self._drop_launcher()
                for worker in list(self._by_pid.values()):
                    worker.orphaned = True
                    if worker.state == "dead":
                        self._bury(worker)
            case processes.ExitStatus(pid=pid):
                worker = self._by_pid.pop(pid, None)
                if worker is not None:
                    worker.status = event
                    if worker.state == "dead":
                        self._bury(worker)

    def _know(self, worker: WorkerHandle, pid: int, pidfd: int) -> None:
        worker.pid, worker.pidfd = pid, pidfd
        self._by_pid[pid] = worker
        if worker.doomed:  # it was to be killed before it was known
            worker.kill(worker.doomed)
        self._core.poller.add(pidfd, lambda _events: self.gone(worker))

    def send_initializer_by_value(self, payload: BootPayload) -> bool:
        """Use `payload` from now on, because workers cannot find the initializer by name. False if it was in use."""
        if self._by_value:
            return False
        self._by_value = True
        self._initializer = payload
        return True

    def booted(self, worker: WorkerHandle, pid: int) -> None:
        """Take in that a worker is ready for tasks."""
        if worker.pid is None:  # its template has not told yet, or died before it could
            self._tokens.pop(worker.number, None)
            try:
                self._know(worker, pid, processes.pidfd_open(pid))
            except OSError:
                return  # dead again; end-of-file follows
        self._failed_starts = 0
        if worker.state == "starting":
            worker.state = "ready"
            self._on_ready(worker)

    def _data(self, worker: WorkerHandle, events: int) -> None:
        if events & select.EPOLLOUT:
            worker.drain()
        if not events & ~select.EPOLLOUT:
            return
        if not self._on_readable(worker):  # end of file
            self._core.poller.remove(worker.sock.fileno())
            if worker.pid is None:
                self._core.after(_EOF_GRACE_S, lambda: self._never_came(worker))
            else:
                self._core.after(_EOF_GRACE_S, lambda: worker.kill(CLOSED_CONNECTION))

    def _never_came(self, worker: WorkerHandle) -> None:
        if worker.pid is None and worker.state != "dead":
            self._tokens.pop(worker.number, None)
            self.gone(worker)

    def _blocked(self, worker: WorkerHandle) -> None:
        self._core.poller.change(worker.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _drained(self, worker: WorkerHandle) -> None:
        self._core.poller.change(worker.sock.fileno(), select.EPOLLIN)

    def _printed(self, output: Any) -> None:
        lines = output.read()
        if lines is None:
            self._core.poller.remove(output.fd)
        elif lines:
            self._core.later.append(lambda: output.forward(lines))

    # --- ends -----------------------------------------------------------------------------------

    def gone(self, worker: WorkerHandle) -> None:
        """Take in that a worker's process has ended."""
        if worker.state == "dead":
            return
        if worker.pidfd is not None:
            self._core.poller.remove(worker.pidfd)
        self._on_readable(worker)  # what it sent before counts
        self._core.poller.remove(worker.sock.fileno())
        self.full = False
        was_starting = worker.state == "starting"
        expected = worker.state in ("stopping", "spare")
        worker.state = "dead"
        if not expected:
            self._core.counters.workers_lost += 1
        if was_starting:
            self._failed_starts += 1
        for output in worker.outputs:
            self._core.poller.remove(output.fd)
            rest = output.rest()
            if rest:
                self._core.later.append(lambda output=output, rest=rest: output.forward(rest))  # type: ignore[misc]
        self._on_gone(worker)
        if worker.status is None and worker.pid is not None and self._launcher is not None:
            worker.status = self._launcher.status(worker.pid)
        if worker.status is None and worker.pid is not None and not worker.orphaned:
            self._core.after(STATUS_WAIT_S, lambda: self._bury(worker))
        else:
            self._bury(worker)

    def _bury(self, worker: WorkerHandle) -> None:
        if self._core.workers.pop(worker.number, None) is None:
            return
        if worker.pid is not None:
            self._by_pid.pop(worker.pid, None)
        if worker.status is not None:
            self._core.counters.cpu_s += worker.status.cpu_s
        self._on_buried(worker)
        worker.close()
        # Not while some are still starting: they may yet come up, and one that does resets the count.
        if self._failed_starts >= START_TRIES and not self._count("starting"):
            self._failed_starts = 0
            how = f"the last one {_ending(worker)}"
            kind = "initializer" if self._core.options.initializer is not None else "start"
            self.fail(kind, f"{START_TRIES} workers died while they started; {how}", None)

    def _forget(self, worker: WorkerHandle) -> None:
        """Drop a worker that never came to be."""
        self._tokens.pop(worker.number, None)
        self._core.workers.pop(worker.number, None)
        self._core.poller.remove(worker.sock.fileno())
        for output in worker.outputs:
            self._core.poller.remove(output.fd)
        worker.close()

    def stop(self, worker: WorkerHandle) -> None:
        """Ask a worker to leave; kill it if it does not."""
        self.full = False
        if worker.state in ("spare", "starting") or _stopped(worker):  # nothing of the user's is lost
            if worker.pid is None:  # the template is busy, importing the main module perhaps: nobody waits for that
                self._forget(worker)
                return
            worker.state = "stopping"
            worker.kill("the pool ends")
            return
        worker.state = "stopping"
        worker.send(encode([(m.STOP,)]))
        self._core.after(STOP_GRACE_S, lambda: worker.kill("it did not stop"))

    def stop_all(self) -> None:
        """Ask every worker to leave."""
        for worker in list(self._core.workers.values()):
            if worker.state in ("spare", "starting", "ready"):
                self.stop(worker)

    def kill_all(self, why: str) -> None:
        """Kill every worker at once."""
        for worker in list(self._core.workers.values()):
            if worker.pid is None:
                self._forget(worker)
            elif worker.state != "dead":
                worker.state = "stopping"
                worker.kill(why)

    def close(self) -> None:
        """Close what is left; every worker is buried. What the user gave is let go of."""
        self._drop_launcher()
        self._initializer = self._inherited = None
        self._core.options = replace(self._core.options, initializer=None, initargs=())

    def abandon(self) -> None:
        """In a forked child: close every descriptor, touch nothing else."""
        became = self._launching if self._launcher is not None and self._launcher.forking else None
        for worker in self._core.workers.values():
            worker.abandon(keep_theirs=worker is became)
        if self._launcher is not None:
            self._launcher.close()


def _stopped(worker: WorkerHandle) -> bool:
    # Not "t": that is a debugger at work.
    return worker.pid is not None and processes.state_letter(worker.pid) == "T"


def _ending(worker: WorkerHandle) -> str:
    status = worker.status
    if status is None or (status.code is None and status.signal is None):
        return "ended in a way that could not be learned"
    if status.signal is not None:
        return f"was killed by {processes.signal_name(status.signal)}"
    return f"exited with code {status.code}"
