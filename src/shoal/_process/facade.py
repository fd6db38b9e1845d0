"""`shoal.Process`: the surface.

Role: what the user subclasses, starts and waits for; in the child, the object that runs. Owner: the user. Safe from any
thread, but for `start`, which one thread calls.

Imported by every child that unpickles such an object, so it imports little; what makes and starts processes is imported by
`__init__` and `start`.

Invariants
    P1  Until it is started an object is plain data, so it pickles; from then on `_shoal_run` is what this program knows of it.
    P2  Whatever `multiprocessing` lets a subclass assign to, it may assign to here: what is ours beyond that is found on the
        class, and an attribute of the same name hides it without breaking anything.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shoal._os.interpreter import unguarded_import

if TYPE_CHECKING:
    from shoal._process.running import Handler, Running
    from shoal._settings import CaptureMode, StartMethod
    from shoal._wire.link import Link
    from shoal._worker.solo import Solo
    from shoal.errors import Obituary

T = TypeVar("T")

#: A process that is gone is buried within about a millisecond; its template may be busy, or dead.
_BURIAL_S = 5.0


class _Attribute(Generic[T]):
    """A property that an attribute of the object may hide (P2)."""

    def __init__(self, get: Callable[[Any], T]) -> None:
        self._get = get
        self.__doc__ = get.__doc__

    def __get__(self, instance: Any, owner: type) -> T:
        return self._get(instance) if instance is not None else self  # type: ignore[return-value]


class Process:
    """A process that runs `run`, which calls `target` unless a subclass overrides it.

    Everything `multiprocessing.Process` has, with the same meaning, and: `result`, `obituary`, `stop`, `ready` and
    `wait_ready`. It dies with this program, whatever ends that, and takes along what it started.

    Args:
        group: None; here for the sake of `threading.Thread`.
        target: Called by `run`. Lambdas, closures and what stands in a notebook will do.
        name: Its name; without one the class and a number, ``"Camera-1"``, and ``"Camera-1:2"`` in a process of that.
        args: Positional arguments of `target`.
        kwargs: Keyword arguments of `target`.
        daemon: End it when the program ends, instead of waiting for it. None: as the process that makes it.
        start_method: ``"forkserver"``, ``"spawn"`` or ``"fork"``; None is the first, or what SHOAL_START_METHOD says.
        capture: Take what it prints line by line, write it to this program's streams with the name in front, and keep the
            last lines for its obituary; also ``"prefix"``. Otherwise, or with ``"inherit"``, it writes where this program does.
    """

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
        *,
        daemon: bool | None = None,
        start_method: StartMethod | None = None,
        capture: bool | CaptureMode = False,
    ) -> None:
        from shoal._process.checks import check
        from shoal._settings import start_method_or_default

        check(None if type(self) is Process else type(self), group, name, daemon, capture)

        maker = _here.current
        self._identity: tuple[int, ...] = (*maker._identity, next(_here.numbers))
        self._parent_pid: int | None = os.getpid()
        self._target = target
        self._args = tuple(args)
        self._kwargs = dict(kwargs)
        self._name = name or f"{type(self).__name__}-{':'.join(map(str, self._identity))}"
        self._daemon: bool = maker._daemon if daemon is None else bool(daemon)
        self._authkey: bytes | None = maker._authkey
        self._closed = False
        self._shoal_method = start_method_or_default(start_method)
        self._shoal_capture = capture in (True, "prefix")
        self._shoal_run: Running | None = None

    def run(self) -> object:
        """Call the target. Override it to run something else; what it returns is the `result`."""
        if self._target:
            return self._target(*self._args, **self._kwargs)
        return None

    # --- starting -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process, once. Returns when it exists; `run` begins a little later.

        Raises:
            NotPicklable: The object cannot be sent to another process (not under fork).
            StartFailed: The system refused, or the main script cannot be imported.
            MainGuardMissing: This runs while the process of another one imports the main script.
        """
        self._check_open()
        # A copy of a started one, back from where it was sent, has nothing left to run.
        assert self._shoal_run is None and "_args" in vars(self), "cannot start a process twice"  # noqa: PT018
        assert self._parent_pid == os.getpid(), "can only start a process object created by current process"
        from shoal._pool import launcher

        if unguarded_import() is None:  # else `start` says so
            launcher.warm_up(self._shoal_method)  # first: it starts beside what is imported here next
        from shoal._process.starting import start

        start(self)

    def _started_as(self, running: Running) -> None:
        """Take in what has come of the start."""
        self._shoal_run = running
        _here.children[running] = self
        self._on_exit(partial(_here.children.pop, running, None))
        # What it holds may be large, or hold the object in turn.
        del self._target, self._args, self._kwargs

    def _check_open(self) -> None:
        try:
            closed = self._closed
        except AttributeError:
            raise RuntimeError("Process.__init__() was not called: call super().__init__() first") from None
        if closed:
            raise ValueError("process object is closed")

    def _started(self, what: str) -> Running:
        """Return what is known of the running process. `what` is what can only be done with one of ours."""
        self._check_open()
        assert self._parent_pid == os.getpid(), f"can only {what} a child process"
        assert self._shoal_run is not None, f"can only {what} a started process"
        return self._shoal_run

    # --- waiting --------------------------------------------------------------------------------

    def join(self, timeout: float | None = None) -> None:
        """Wait until the process has ended, or `timeout` seconds have passed."""
        running = self._started("join")
        running.ended.wait(_seconds(timeout))

    def is_alive(self) -> bool:
        """Whether the process runs: from `start` until it has ended."""
        self._check_open()
        if self is _here.current:
            return True
        assert self._parent_pid == os.getpid(), "can only test a child process"
        return self._shoal_run is not None and not self._ended(self._shoal_run)

    def _ended(self, running: Running) -> bool:
        """Whether it has ended; then everything about it is known."""
        if not running.ended.is_set():
            if not running.is_gone:
                return False
            # The end is about to be told; a handler on the very thread that tells it must not wait for it.
            if threading.current_thread() is not running.hub.thread:
                running.ended.wait(_BURIAL_S)
        return running.ended.is_set()

    def result(self, timeout: float | None = None) -> Any:
        """Wait until the process has ended; return what `run` returned, or raise what it raised.

        The exception is the original one, with the remote traceback as its cause. The value is unpickled once, by the first
        call.

        Raises:
            TimeoutError: It has not ended within `timeout` seconds.
            ProcessDied: It ended without a result: it was killed, or called ``os._exit``.
            RemoteError: `run` asked to exit (``sys.exit``), or raised what cannot be rebuilt here.
            NotPicklable: What `run` returned cannot be sent.
        """
        running = self._started("have the result of")
        if not running.ended.wait(_seconds(timeout)):
            raise TimeoutError(f"{self._name} has not ended within {timeout} s")
        return running.result(self._name)

    def ready(self, value: object = None) -> None:
        """Say, from within `run`, that the process is ready for what it is there for. `wait_ready` returns `value`."""
        self._solo("ready() is for the process itself to call").say_ready(value, ("what is ready in", self))

    def wait_ready(self, timeout: float | None = None) -> Any:
        """Wait until the process has called `ready`, and return the value it gave.

        Raises:
            TimeoutError: `timeout` seconds passed.
            ProcessDied: It died before.
            RuntimeError: It ended without saying that it is ready. What `run` raised, if it did, is raised as it is.
        """
        running = self._started("wait for")
        if not running.heard.wait(_seconds(timeout)):
            raise TimeoutError(f"{self._name} has not said that it is ready within {timeout} s")
        if running.said_ready is not None:
            return running.ready_value(self._name)
        running.result(self._name)
        raise RuntimeError(f"{self._name} ended without saying that it is ready")

    # --- ending ---------------------------------------------------------------------------------

    @_Attribute
    def stopping(self) -> threading.Event:
        """Within `run`: an event that is set when the process is asked to stop. Look at it, or wait for it, now and then.

        A process that has never looked is asked by SIGTERM instead. In the program that started it: whether it was asked, and
        setting it asks.
        """
        if self is _here.current and _here.solo is not None:
            _here.solo.looks_for_stop()
            return _here.solo.stopping
        if self._shoal_run is not None:
            return self._shoal_run.stopping
        from shoal._process.checks import not_ours

        return not_ours(self._name)

    def stop(self, grace: float | None = 5.0) -> bool:
        """Ask the process to stop, wait up to `grace` seconds, then kill it and what it started. Blocks until it has ended.

        Returns whether it ended by itself.
        """
        running = self._started("stop")
        self._ask_to_stop()
        if running.ended.wait(_seconds(grace)):
            return True
        self._kill("it did not stop", ask_where=True)
        running.ended.wait()
        return False

    def _ask_to_stop(self) -> None:
        """Ask, without waiting."""
        from shoal._process.starting import ask_to_stop

        running = self._started("stop")
        if not self._ended(running):
            ask_to_stop(running)

    def terminate(self) -> None:
        """Send it SIGTERM: without a handler it ends at once. Nothing happens if it has ended."""
        self._signal("SIGTERM")

    def interrupt(self) -> None:
        """Send it SIGINT: `run` gets a KeyboardInterrupt, as on Ctrl-C."""
        self._signal("SIGINT")

    def _signal(self, name: str) -> None:
        import signal

        self._started("signal").handle.signal(signal.Signals[name])

    def kill(self) -> None:
        """Send it SIGKILL. What it started goes with it."""
        self._kill("it was killed by kill()")

    def _kill(self, why: str, *, ask_where: bool = False) -> None:
        """As `kill`; `ask_where` has it write its stack for the obituary first, which takes up to 15 ms."""
        running = self._started("kill")
        if ask_where:
            running.ask_where()
        running.handle.kill(why)

    def close(self) -> None:
        """Let go of all that is kept of an ended process; using the object after that is a ValueError."""
        running = self._shoal_run
        if running is not None and self._parent_pid == os.getpid():
            if not self._ended(running):
                raise ValueError(
                    "Cannot close a process while it is still running. You should first call join() or terminate()."
                )
            running.forget()
            self._shoal_run = None
        self._closed = True

    # --- about it -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its name, for people; need not be unique."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        assert isinstance(name, str), "name must be a string"
        self._name = name

    @property
    def daemon(self) -> bool:
        """Whether the end of the program ends it, instead of waiting for it. Before `start` only it can be set."""
        return self._daemon

    @daemon.setter
    def daemon(self, daemonic: bool) -> None:
        assert self._shoal_run is None, "process has already started"
        from shoal._process.checks import check_daemon

        check_daemon(daemonic)
        self._daemon = bool(daemonic)

    @property
    def authkey(self) -> bytes:
        """The key by which `multiprocessing`'s connections and managers know the processes of one program."""
        if self._authkey is None:
            from multiprocessing import process

            return bytes(process.current_process().authkey)
        return self._authkey

    @authkey.setter
    def authkey(self, authkey: bytes) -> None:
        self._authkey = bytes(authkey)

    @property
    def ident(self) -> int | None:
        """Its process id; None before it is started."""
        self._check_open()
        if self is _here.current:
            return os.getpid()
        return self._shoal_run.pid if self._shoal_run is not None else None

    pid = ident

    @property
    def exitcode(self) -> int | None:
        """What it exited with, or minus the number of the signal that killed it; None until it has ended."""
        self._check_open()
        if self._shoal_run is None or not self._ended(self._shoal_run):
            return None
        return self._shoal_run.exitcode

    @property
    def sentinel(self) -> int:
        """A descriptor that is readable once it has ended, for `multiprocessing.connection.wait` and `select`."""
        self._check_open()
        sentinel = self._shoal_run.sentinel if self._shoal_run is not None else None
        if sentinel is None:
            raise ValueError("process not started")
        return sentinel.fd

    @_Attribute
    def obituary(self) -> Obituary | None:
        """How it died; None while it runs, and if `run` returned and it exited with 0."""
        self._check_open()
        if self._shoal_run is None or not self._ended(self._shoal_run):
            return None
        return self._shoal_run.obituary

    def __repr__(self) -> str:
        running: Running | None = self.__dict__.get("_shoal_run")
        code = None
        if self is _here.current:
            status = "started"
        elif self._closed:
            status = "closed"
        elif self._parent_pid != os.getpid():
            status = "unknown"
        elif running is None:
            status = "initial"
        else:
            status = "stopped" if self._ended(running) else "started"
            code = running.exitcode
        words = [type(self).__name__, f"name={self._name!r}"]
        words += [f"pid={running.pid}"] if running is not None else []
        words += [f"parent={self._parent_pid}", status]
        words += [f"exitcode={_code_in_words(code)}"] if code is not None else []
        return f"<{' '.join([*words, 'daemon'] if self._daemon else words)}>"

    # --- for what stands on it ------------------------------------------------------------------

    def _on_exit(self, callback: Callable[[], object]) -> None:
        """Have `callback` called once, on the hub's thread, when the process has ended and all about it is known.

        It must not block, nor start a process. If that has happened already it is called here and now.
        """
        from shoal._process.starting import at_end

        if not at_end(self._started("watch"), callback):
            callback()

    def _link(self) -> Link:
        """The link to a process of ours; in the process itself, the other end."""
        if self is _here.current and _here.solo is not None:
            return _here.solo.link
        return self._started("talk to").link

    def _on_message(self, handler: Handler) -> None:
        """Have `handler(message, buffers)` called with what arrives on the link beside the process's own messages.

        What came before is handed over first. Here it is called on the hub's thread, in the process itself on the watcher's;
        it must not block. A process that rather reads in its main thread calls `_solo().take_over()`.
        """
        if self is _here.current and _here.solo is not None:
            _here.solo.hand_over(handler)
        else:
            from shoal._process.starting import hand_over

            hand_over(self._started("listen to"), handler)

    def _solo(self, refusal: str = "only within the process") -> Solo:
        """The process from within, for the object that runs in it."""
        solo = _here.solo if self is _here.current else None
        assert solo is not None, refusal
        return solo

    def _run_here(self, solo: Solo) -> object:
        """Be this process's object, and run. Called in the child, once."""
        from shoal._worker.boot import itself

        _here.become(self, solo)
        # A fork inherits handles of shared objects as they are; every other way has put the objects in their place.
        self._args = tuple(map(itself, self._args))
        self._kwargs = {name: itself(value) for name, value in self._kwargs.items()}
        return self.run()


def _seconds(timeout: float | None) -> float | None:
    """Return what to wait for; what is below zero counts as zero, what no clock can count as no limit."""
    return None if timeout is None or timeout > threading.TIMEOUT_MAX else max(0.0, timeout)


def _code_in_words(code: int) -> str:
    import signal

    try:
        return f"-{signal.Signals(-code).name}" if code < 0 else str(code)
    except ValueError:
        return str(code)


class _Main(Process):
    """The process that no Process object has started."""

    def __init__(self) -> None:
        self._identity = ()
        self._name = "MainProcess"
        self._parent_pid = None
        self._daemon = False
        self._authkey = None
        self._closed = False
        self._shoal_run = None

    def close(self) -> None:
        """Nothing: there is nothing to let go of."""


class _Here:
    """This process: which object runs in it, and what that has started."""

    def __init__(self) -> None:
        self.current: Process = _Main()
        self.solo: Solo | None = None
        self.numbers = itertools.count(1)
        self.children: dict[Running, Process] = {}

    def become(self, process: Process, solo: Solo) -> None:
        self.current, self.solo = process, solo
        self.numbers = itertools.count(1)
        self.children = {}
        process._shoal_run = None
        standard = sys.modules.get("multiprocessing.process")
        if standard is not None:  # what logs the name of the process asks there
            standard.current_process().name = process._name
        program = sys.modules.get("shoal._pool.program")
        if program is not None:  # a fork took its exit handler along, and the start of this process dropped it
            import atexit

            atexit.register(program._end_all)


_here = _Here()


def _after_fork_in_child() -> None:
    _here.children = {}  # those of the parent


os.register_at_fork(after_in_child=_after_fork_in_child)


def current_process() -> Process:
    """Return the Process object that runs in this process; in the program itself, one that stands for it."""
    return _here.current


def active_children() -> list[Process]:
    """Return the processes this one has started and that still run. Those that have ended are joined."""
    return [process for running, process in list(_here.children.items()) if not process._ended(running)]
