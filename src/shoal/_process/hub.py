"""The hub: the one thread that watches all processes this program has started.

Role: has processes made, reads what they say and print, learns how they ended. Owner: this module; there is a hub from the
first start on until the last process has ended. Protocol: README.md beside this file.

Invariants
    H1  State is read and changed with `lock` held, for moments; code of the user (pickling, handlers, callbacks, writing to its
        streams) runs on the hub's thread, or on the caller's, without it.
    H2  A process is in `_asked` until it exists, in `_running` from being asked for until it is buried; a hub with neither,
        and with nobody about to ask, ends and leaves nothing behind.
    H3  In a forked child no hub exists; the child closes its copies of the descriptors.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures._base import LOGGER
from functools import partial
from typing import TYPE_CHECKING, Any

from shoal._os import cgroup, processes
from shoal._pool import autopsy
from shoal._pool import launcher as launchers
from shoal._pool.failures import start_error, start_refused
from shoal._pool.poller import Poller
from shoal._pool.timers import Timers
from shoal._pool.worker import WorkerHandle
from shoal._process.running import Handler, Parcel, Running
from shoal._settings import StartMethod
from shoal._wire import messages as m

if TYPE_CHECKING:
    from shoal._memory.arena import Arena
    from shoal._pool.output import OutputTail

#: The exit status comes from the template, usually within a millisecond of the death.
STATUS_WAIT_S = 1.0
#: News for a process that nothing else is sent to is told within this time.
NEWS_S = 0.05
#: After the last large argument the memory it went through is given back within this time.
TRIM_S = 3.0
#: What a template loads once, so that no process has to.
_PRELOAD = ("shoal._worker.solo", "shoal._process.facade")
#: Part of the memory this process may use that arguments under way may take.
_SHARE = 4


class Hub:
    """The processes of this program."""

    def __init__(self) -> None:
        """Raises OSError when descriptors or threads are short; nothing stays open then."""
        self.lock = threading.Lock()
        self.poller = Poller()
        self.ended = False
        self.expected = 0  # starts under way; under `_guard`
        self._timers = Timers()
        self._later: deque[Callable[[], object]] = deque()
        self._numbers = itertools.count()
        self._running: dict[int, Running] = {}
        self._asked: dict[int, Running] = {}  # by token, their number
        self._by_pid: dict[int, Running] = {}
        self._launchers: dict[StartMethod, launchers.Launcher] = {}
        self._becoming: Running | None = None  # the one whose start is forking
        self._arena: Arena | None = None
        self._arena_guard = threading.Lock()
        self._news_due = self._trim_due = self._trimming = False
        self.thread = threading.Thread(target=self._serve, name="shoal-hub", daemon=True)
        try:
            self.thread.start()
        except RuntimeError as refused:  # no room for a thread, or the program is ending
            self.poller.close()
            raise BlockingIOError(11, f"no room for another thread: {refused}") from refused

    # --- starting -------------------------------------------------------------------------------

    def prepare(self, name: str, method: StartMethod, *, captured: bool) -> Running:
        """Make what a process needs on this side. Raises OSError."""
        with self.lock:
            number = next(self._numbers)
            launcher = self._launcher(method)
        forgotten: list[bytes] = []
        forget = partial(self._forget_shared, forgotten)
        handle = WorkerHandle(number, self.arena, forget, captured=captured, name=name)
        running = Running(name, handle, launcher, self, forgotten)
        handle.courier.on_news = self._news
        handle.on_blocked = self._blocked
        handle.on_drained = self._drained
        return running

    def _launcher(self, method: StartMethod) -> launchers.Launcher:
        launcher = self._launchers.get(method)
        if launcher is None:
            launcher = self._launchers[method] = launchers.launcher_for(method, preload=_PRELOAD)
            if launcher.fileno() >= 0:
                self.poller.add(launcher.fileno(), lambda _events: self._told(method))
        return launcher

    def launch(self, running: Running, method: StartMethod, inherited: Any, *, captured: bool) -> None:
        """Ask for the process. `running.known` is set when it exists, or cannot. Raises OSError."""
        handle = running.handle
        with self.lock:
            self._running[handle.number] = self._asked[handle.number] = running
            try:
                for last in (False, True):
                    try:
                        running.launcher = self._launcher(method)
                        self._becoming = running
                        events = running.launcher.start(
                            handle.number,
                            _passed(handle, captured=captured),
                            captured=True,
                            inherited=inherited,
                            entry="solo",
                        )
                        break
                    except (BrokenPipeError, ConnectionError):
                        self._lose(method)
                        if last:
                            raise
            except OSError:
                self._forget(running)
                raise
            finally:
                self._becoming = None
            handle.close_theirs()
            self.poller.add(handle.sock.fileno(), lambda events: self._data(running, events))
            for output in handle.outputs:
                self.poller.add(output.fd, lambda _events, output=output: self._printed(output))  # type: ignore[misc]
            for event in events:
                self._happened(event)

    def give_up(self, running: Running) -> None:
        """Nobody wants a process that was asked for any more: kill it, once it exists. Any thread."""
        with self.lock:
            running.handle.kill("its start was given up")  # at once, or when it is known

    def _forget(self, running: Running) -> None:
        """Drop a process that never came to be."""
        number = running.handle.number
        self._asked.pop(number, None)
        self._running.pop(number, None)
        self.poller.remove(running.handle.sock.fileno())
        for output in running.handle.outputs:
            self.poller.remove(output.fd)
        running.handle.close()

    def _refuse(self, running: Running, error: Exception) -> None:
        self._forget(running)
        running.refusal = error
        running.known.set()

    # --- what launchers tell --------------------------------------------------------------------

    def _told(self, method: StartMethod) -> None:
        launcher = self._launchers.get(method)
        for event in launcher.read() if launcher is not None else ():
            if isinstance(event, launchers.TemplateLost):
                self._lose(method)
            else:
                self._happened(event)

    def _happened(self, event: launchers.Event) -> None:
        match event:
            case launchers.Forked(token, pid, pidfd):
                running = self._asked.pop(token, None)
                if running is None:  # it was given up
                    processes.kill_pidfd(pidfd, signal.SIGKILL)
                    os.close(pidfd)
                    return
                running.know(pid, pidfd)
                self._by_pid[pid] = running
                if running.handle.doomed:  # it was to be killed before it was known
                    running.handle.kill(running.handle.doomed)
                self.poller.add(pidfd, partial(self._ended, running))
                running.known.set()
            case launchers.Refused(token, reason):
                running = self._asked.get(token)
                if running is not None:
                    why = f"the system refused another process ({reason})"
                    self._refuse(running, start_error("start", why, None, what="process"))
            case launchers.Broken(text, guard):
                for running in list(self._asked.values()):
                    self._refuse(running, start_error("guard" if guard else "main", text, None, what="process"))
            case processes.ExitStatus(pid=pid):
                running = self._by_pid.pop(pid, None)
                if running is not None:
                    running.handle.status = event
                    if not running.alive:
                        self._bury(running)

    def _lose(self, method: StartMethod) -> None:
        """A template died: how its processes end cannot be learned any more."""
        launcher = self._launchers.pop(method, None)
        if launcher is None:
            return
        self.poller.remove(launcher.fileno())
        launcher.close()
        for running in list(self._running.values()):
            if running.launcher is not launcher or running is self._becoming:
                continue
            if running.handle.number in self._asked:
                why = "the process they are forked from has died"
                self._refuse(running, start_error("start", why, "start it again", what="process"))
            running.handle.orphaned = True
            if not running.alive:
                self._bury(running)

    # --- what processes say ---------------------------------------------------------------------

    def _data(self, running: Running, events: int) -> None:
        if events & select.EPOLLOUT:
            running.handle.drain()
        if events & ~select.EPOLLOUT and not self._read(running):
            self.poller.remove(running.handle.sock.fileno())  # it closed its end, or has ended, which is seen elsewhere

    def _read(self, running: Running) -> bool:
        alive = running.link.read_all()
        while (received := running.link.take()) is not None:
            self._heard(running, *received)
        return alive

    def _heard(self, running: Running, message: m.Message, buffers: list[Any]) -> None:
        kind = message[0]
        if kind == m.READY:
            running.booted = True
            running.stirred = time.monotonic()
            running.send_by_value = None
        elif kind == m.UNKNOWN:
            send, running.send_by_value = running.send_by_value, None
            self._later.append(send or (lambda: running.link.send((m.BOOT, None))))
        elif kind == m.SAID_READY:
            running.said_ready = Parcel(message, buffers)
            running.stirred = time.monotonic()
            running.heard.set()
        elif kind in (m.RETURNED, m.RAISED):
            running.outcome = Parcel(message, buffers)
        elif running.on_message is not None:
            self._later.append(partial(running.on_message, message, buffers))
        else:
            running.unheard.append((message, buffers))

    def hand_over(self, running: Running, handler: Handler) -> None:
        """Have `handler` called with what is not the process's own, on the hub's thread. Any thread."""
        with self.lock:
            running.on_message = handler
            unheard, running.unheard = running.unheard, []
            self._later.extend(partial(handler, *received) for received in unheard)
        self.poller.wake()

    def _printed(self, output: OutputTail) -> None:
        lines = output.read()
        if lines is None:
            self.poller.remove(output.fd)
        elif lines:
            self._later.append(lambda: output.forward(lines))

    def _blocked(self, handle: WorkerHandle) -> None:
        self.poller.change(handle.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _drained(self, handle: WorkerHandle) -> None:
        self.poller.change(handle.sock.fileno(), select.EPOLLIN)

    # --- ends -----------------------------------------------------------------------------------

    def _ended(self, running: Running, _events: int) -> None:
        """A process has ended: take what it left, and bury it once its exit status is known, or will never be."""
        handle = running.handle
        if handle.pidfd is None or not running.is_gone:
            return  # the event was of another descriptor that had this number a moment ago
        running.alive = False
        self.poller.remove(handle.pidfd)
        self._read(running)  # what it sent before counts
        self.poller.remove(handle.sock.fileno())
        for output in handle.outputs:
            self.poller.remove(output.fd)
            rest = output.rest()
            if rest:
                self._later.append(lambda output=output, rest=rest: output.forward(rest))  # type: ignore[misc]
        if handle.status is None:
            handle.status = running.launcher.status(running.pid)
        if handle.status is None and not handle.orphaned:
            self._timers.after(STATUS_WAIT_S, lambda: self._bury(running))
        else:
            self._bury(running)

    def _bury(self, running: Running) -> None:
        if self._running.pop(running.handle.number, None) is None:
            return
        self._by_pid.pop(running.pid, None)
        running.close(_oom_watch())
        self._later.append(lambda: self._tell_end(running))  # behind the last lines it printed

    def _tell_end(self, running: Running) -> None:
        with self.lock:
            running.ended.set()
            callbacks, running.at_end = running.at_end, []
        running.heard.set()
        for callback in callbacks:
            _guarded(callback)

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Have `action` called in so many seconds, with the lock held, if the hub is still there. Any thread but the hub's."""
        with self.lock:
            self._timers.after(delay_s, action)
        self.poller.wake()

    def at_end(self, running: Running, callback: Callable[[], object]) -> bool:
        """Have `callback` called when it has ended; False if it has. Any thread."""
        with self.lock:
            if running.ended.is_set():
                return False
            running.at_end.append(callback)
            return True

    # --- memory ---------------------------------------------------------------------------------

    def arena(self) -> Arena:
        """Return the memory that large arguments go through. Any thread."""
        with self._arena_guard:
            if self._arena is None:
                from shoal._memory.arena import Arena

                self._arena = Arena(cgroup.usable_memory_bytes() // _SHARE)
        if not self._trim_due:
            self._trim_due = True
            self.poller.wake()
        return self._arena

    def _look_at_memory(self) -> None:
        """Set the clocks for what is due."""
        if self._news_due:
            self._news_due = False
            self._timers.after(NEWS_S, self._tell)
        if self._trim_due and not self._trimming:
            self._trimming = True
            self._timers.after(TRIM_S, self._trim)

    def _trim(self) -> None:
        self._trim_due = self._trimming = False
        if self._arena is not None:
            self._arena.trim()
        for running in self._running.values():
            running.handle.trim()

    def _news(self) -> None:
        """Somebody let go of lent memory. Any thread, also in a finalizer: takes no lock."""
        if not self._news_due:
            self._news_due = True
            self.poller.wake()

    def _tell(self) -> None:
        for running in self._running.values():
            if running.link.courier.has_news:
                self._later.append(running.link.tell)

    def _forget_shared(self, forgotten: list[bytes], identity: bytes) -> None:
        """A process has let go of a shared segment: drop the object made from it, which may run code of the user."""
        forgotten.append(identity)
        import sys

        shared = sys.modules.get("shoal._memory.shared")
        if shared is not None:
            self._later.append(lambda: shared.forget(identity))

    # --- the thread -----------------------------------------------------------------------------

    def _serve(self) -> None:
        _oom_watch()  # here, beside the start that waits for its process
        while not self._may_end():
            self._deal_with(self.poller.poll(self._timers.wait_s()))
        self._close()

    def _deal_with(self, events: list[tuple[int, int]]) -> None:
        """Do what is due. Not in `_serve`, whose variables would hold on to what is done while it sleeps."""
        with self.lock:
            for fd, what in events:
                handler = self.poller.handler(fd)
                if handler is not None:
                    _guarded(handler, what)
            for action in self._timers.take_due():
                _guarded(action)
            self._look_at_memory()
        while self._later:
            _guarded(self._later.popleft())

    def _may_end(self) -> bool:
        """End if there is nothing left to watch (H2)."""
        global _hub
        if self._running or self._later:
            return False
        with _guard:
            if self.expected or self._running:
                return False
            self.ended = True
            if _hub is self:
                _hub = None
            return True

    def _close(self) -> None:
        for launcher in self._launchers.values():
            launcher.close()
        if self._arena is not None:
            self._arena.close()
        self.poller.close()
        self._timers = Timers()  # what is in them would keep us, and be kept by us

    def abandon(self) -> None:
        """In a forked child: own nothing (H3). Takes no lock: its holder may not exist here."""
        for running in self._running.values():
            running.abandon(becomes_us=running is self._becoming and running.launcher.forking)
        for launcher in self._launchers.values():
            launcher.close()
        if self._arena is not None:
            self._arena.abandon()
        self.poller.close()


def _guarded(action: Callable[..., object], *args: object) -> None:
    """Call `action`. Whatever it raises is logged: one mishap must not end the thread that serves everybody."""
    try:
        action(*args)
    except BaseException:
        LOGGER.exception("shoal: unexpected failure in the hub of processes")


def _passed(handle: WorkerHandle, *, captured: bool) -> list[int]:
    """Return the descriptors for the process, in their order; what it prints goes where ours does, if it is not captured."""
    passed = list(handle.passed)
    passed.insert(3, launchers.lifeline().read_fd)
    if not captured:
        for place, stream in ((4, 1), (5, 2)):
            # If the program closed it, output goes nowhere; the number may be something else's by now, closed at an exec.
            with contextlib.suppress(OSError):
                if os.get_inheritable(stream):
                    passed[place] = stream
    return passed


@functools.cache
def _oom_watch() -> autopsy.OomWatch:
    return autopsy.OomWatch()


# --- the one hub of this program ----------------------------------------------------------------

_guard = threading.Lock()
_hub: Hub | None = None


def enter() -> Hub:
    """Return the hub, which will not end before `leave`. Raises OSError when descriptors or threads are short."""
    global _hub
    with _guard:
        if _hub is None:
            _hub = Hub()
        _hub.expected += 1
        return _hub


def leave(hub: Hub) -> None:
    """The start is over: the hub may end if nothing runs."""
    with _guard:
        hub.expected -= 1
    if not hub._running:
        hub.poller.wake()


def refused(error: OSError) -> Exception:
    """Return what a start fails with that the system refused."""
    return start_refused(error, what="process")


def _after_fork_in_child() -> None:
    global _guard, _hub
    _guard = threading.Lock()
    hub, _hub = _hub, None
    if hub is not None:
        hub.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
