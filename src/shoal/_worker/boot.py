"""From a fresh process to a serving worker, and out again.

Role: what a child does before its first task and after its last. Owner: the worker process.

A worker gets eight descriptors, whatever started it:

    data       stream socket: frames both ways
    control    stream socket: recalls from the pool; its end-of-file says that the pool is gone
    page       memory file: see `_memory/page.py`; also takes what `faulthandler` writes
    lifeline   read end of the pipe whose write end only the main program holds
    output     write end of the pipe for stdout; unused when output is not captured
    errors     the same for stderr
    null       /dev/null, to read from
    passing    stream socket: descriptors of lent memory, both ways; see `_wire/courier.py`

Invariants
    O1  Before any code of the user runs, the process leads its own group and its lifeline is armed: from then
        on the death of the main program kills it and what it started.
    O2  A worker never returns into the frames of what it was forked from; it ends by `os._exit`.
    O3  What runs at the end was registered in this process: exit handlers that a fork copied belong to whom it was forked
        from, and would put away what that one still uses.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from shoal._memory import page as page_module
from shoal._memory.page import FAULT_OFFSET, STAGE, Page
from shoal._os import interpreter, processes, signals
from shoal._os.interpreter import MainModule, import_main
from shoal._os.lifeline import Lifeline
from shoal._wire import codec, remote
from shoal._wire import messages as m
from shoal._wire.frames import Buffer
from shoal._worker.loop import Worker

#: Names of the descriptors, in the order they are passed.
DESCRIPTORS = ("data", "control", "page", "lifeline", "output", "errors", "null", "passing")

Call = tuple[Callable[..., object], tuple[Any, ...]]

_BLAS_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
)


def run_worker(fds: dict[str, int], *, captured: bool, inherited: Call | None = None) -> NoReturn:
    """Be a worker until told to stop or the pool is gone. Never returns (O2).

    `inherited` is an initializer and its arguments, for a worker that was forked from the program itself.
    """
    code = 1
    try:
        isolate(fds, captured=captured)
        worker = _start(fds, inherited)
        if worker is not None:
            worker.serve()
        code = 0
    except (EOFError, ConnectionError, BrokenPipeError):
        code = 0  # the pool is gone: nobody to tell
    except BaseException:
        sys.excepthook(*sys.exc_info())
    leave(code)


def isolate(fds: dict[str, int], *, captured: bool) -> None:
    """Cut the process loose from whatever it was forked from, and tie it to the main program (O1)."""
    interpreter.mark_worker()
    _disown_the_end()
    processes.own_group()
    Lifeline.arm(fds["lifeline"])
    processes.become_subreaper()
    processes.raise_oom_score()
    signals.reset_signals()
    _clear_standard_streams(fds)
    os.dup2(fds["null"], 0)
    if captured:
        os.dup2(fds["output"], 1)
        os.dup2(fds["errors"], 2)
    for fd in {fds[name] for name in ("null", "output", "errors")}:  # one and the same if nothing is captured
        if fd > 2:
            os.close(fd)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it lives as long as the process
    sys.stdout = _stream(1)
    sys.stderr = _stream(2)
    threading.current_thread().name = "MainThread"


def _disown_the_end() -> None:
    """Forget exit handlers and finalizers that a fork copied (O3)."""
    atexit = sys.modules.get("atexit")  # not loaded: nobody can have registered anything
    if atexit is not None:
        atexit._clear()
    weakref = sys.modules.get("weakref")
    if weakref is not None:
        for copied in list(weakref.finalize._registry):
            copied.atexit = False
        weakref.finalize._registered_with_atexit = (
            False  # else one made here would think that somebody runs it at the end
        )


def _clear_standard_streams(fds: dict[str, int]) -> None:
    """Move descriptors out of the way that have the numbers of standard streams: the program had closed those."""
    for name, fd in fds.items():
        if fd <= 2 and (name, fd) not in (("output", 1), ("errors", 2)):
            import fcntl

            fds[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _stream(fd: int) -> Any:
    # By line, so that the last lines before a crash are out.
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def open_page(fd: int) -> Page:
    """Map this process's page, and have `faulthandler` write into it."""
    page = Page(fd)
    page.words[STAGE] = page_module.BOOTING
    os.lseek(fd, FAULT_OFFSET, os.SEEK_SET)
    faulthandler.enable(fd, all_threads=True)
    faulthandler.register(signals.INTERRUPT_STACK_SIGNAL, fd, all_threads=True)
    return page


def _start(fds: dict[str, int], inherited: Call | None) -> Worker | None:
    """Boot and run the initializer; None when that failed and was reported."""
    page = open_page(fds["page"])
    sock = socket.socket(fileno=fds["data"])
    passing = socket.socket(fileno=fds["passing"])
    passing.setblocking(False)
    worker = Worker(sock, passing, page, 0)
    message, buffers = worker.first_message()
    config: dict[str, Any] = message[1]
    _watch(fds["control"], worker)
    apply(config)
    worker.spin_ns = config["spin_ns"]
    worker.arena_bytes = config["arena_bytes"]
    stage = "main"
    try:
        page.words[STAGE] = page_module.IMPORTING
        if config["main"] is not None:
            import_main(MainModule(*config["main"]))
        stage = "initializer"
        page.words[STAGE] = page_module.INITIALIZING
        if config["initializer"] is not None:
            stage = "unknown"
            function, args = config["initializer"]
            inherited = codec.unpack(function, buffers), codec.unpack(args, buffers)
            stage = "initializer"
        if inherited is not None:
            initializer, initargs = inherited
            initializer(*map(itself, initargs))
    except BaseException as error:
        failed: list[Buffer] = []
        worker.reporter.report((m.BOOT_FAILED, stage, remote.capture(error, stage)), failed, 0, more=False)
        return None
    page.words[STAGE] = page_module.SERVING
    worker.reporter.report((m.READY, os.getpid()), (), 0, more=False)
    return worker


def itself(given: Any) -> Any:
    """Return the object of a shared handle, which a fork inherits as it is; anything else as it is."""
    shared = sys.modules.get("shoal._memory.shared")
    return given.value if shared is not None and isinstance(given, shared.Shared) else given


def apply(config: dict[str, Any]) -> None:
    """Take over the main program's surroundings as they are now, not as they were when the template began."""
    if config["env"] is not None:
        os.environ.clear()
        os.environ.update(config["env"])
    if config["blas_threads"] is not None:
        for name in _BLAS_VARIABLES:
            os.environ.setdefault(name, str(config["blas_threads"]))
    sys.argv[:] = config["argv"]
    if config["sys_path"] is not None:
        sys.path[:] = config["sys_path"]
    with contextlib.suppress(OSError):  # it may be gone, or closed to us
        if config["cwd"] is not None:
            os.chdir(config["cwd"])
    processes.name_process(config["title"])


def _watch(control: int, worker: Worker) -> None:
    """Start the thread that answers recalls and sees the pool go."""
    sock = socket.socket(fileno=control)

    def watch() -> None:
        while True:
            try:
                asked = sock.recv(16)
                if not asked:
                    break
                if m.TRIM in asked:
                    worker.trim()
                if m.RECALL in asked:
                    worker.recall()
                elif m.FLUSH in asked:
                    worker.flush()
            except OSError:
                break
        # The pool is gone, without a word. What the task started goes with us.
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="shoal-watcher", daemon=True).start()


def leave(code: int) -> NoReturn:
    """End as a program ends: exit handlers run, streams are flushed; then no frame below us runs (O2)."""
    import atexit

    try:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
    finally:
        os._exit(code)


def spawned(numbers: str, *, captured: bool) -> NoReturn:
    """Entry point of a worker that was started as a fresh interpreter."""
    run_worker(take_descriptors(numbers), captured=captured)


def take_descriptors(numbers: str) -> dict[str, int]:
    """Return the descriptors that a fresh interpreter was started with, by name; whatever it starts gets none of them."""
    fds = dict(zip(DESCRIPTORS, map(int, numbers.split(",")), strict=True))
    for fd in fds.values():
        if fd > 2:
            os.set_inheritable(fd, False)
    return fds
