"""Starting a Process, and asking it to stop.

Role: from the user's object to a process that the hub watches. Owner: nobody; called in the user's thread.

Invariants
    T1  A start that fails, at whatever step, leaves nothing behind, and the object as it was.
    T2  Ctrl-C strikes while the start waits, or before or after it; then the process is killed, if it came to exist.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal._os.interpreter import answer_to_worker_name, main_module, unguarded_import, working_directory
from shoal._os.platform import check_platform
from shoal._pool import interrupts
from shoal._process import hub as hubs
from shoal._process.running import Handler, Running
from shoal._wire import codec
from shoal._wire import messages as m

if TYPE_CHECKING:
    from shoal._process.facade import Process

#: A process that has just begun gets this long to look, for the first time, whether it is to stop.
PATIENCE_S = 0.1
#: What a daemon gets, at the end of the program, for what its SIGTERM handler does.
DAEMON_GRACE_S = 1.0
#: After so long it is said for which processes the end of the program waits.
QUIET_S = 2.0


def start(process: Process) -> None:
    """Have the process made. Blocks until it exists."""
    check_platform()
    place = unguarded_import()
    if place is not None:
        from shoal.errors import MainGuardMissing

        raise MainGuardMissing(script=place)
    forked = process._shoal_method == "fork"
    buffers: list[Any] = []
    # Before anything is opened: it runs code of the user, and may fail.
    payload = None if forked else _packed(process, buffers, by_value=main_module().kind == "none")
    answer_to_worker_name()
    _at_exit_once()
    with interrupts.deferred() as shield:
        try:
            hub = hubs.enter()
        except OSError as error:
            raise hubs.refused(error) from error
        try:
            running = _ask(hub, process, payload, buffers)
            try:
                with shield.open():
                    running.known.wait()
            except BaseException:
                hub.give_up(running)  # T2
                raise
        except OSError as error:
            raise hubs.refused(error) from error
        finally:
            hubs.leave(hub)
        if running.refusal is not None:
            raise running.refusal
        process._started_as(running)


def _ask(hub: hubs.Hub, process: Process, payload: codec.Payload | None, buffers: list[Any]) -> Running:
    """Ask for the process, and send it what it is to be. Raises OSError."""
    if hub.thread is threading.current_thread():
        raise RuntimeError("a callback of a process cannot start another one: start it from a thread of your own")
    method, captured = process._shoal_method, process._shoal_capture
    running = hub.prepare(process._name, method, captured=captured)
    if payload is not None:
        copy = object.__new__(type(process))
        copy.__dict__.update(process.__dict__)  # the object itself lets go of its arguments
        running.send_by_value = lambda: _send_by_value(running, copy)
    hub.launch(running, method, process if payload is None else None, captured=captured)
    try:
        running.link.send((m.BOOT, _config(process, running, payload)), buffers=buffers)
    except BaseException:
        hub.give_up(running)  # T1
        raise
    return running


def _packed(process: Process, buffers: list[Any], *, by_value: bool) -> codec.Payload:
    """Pickle the object. Raises NotPicklable, which names the argument if it is one's fault."""
    from shoal.errors import NotPicklable

    try:
        return codec.pack_spawning(process, buffers, ("the process", process), main_is_lost=by_value, once=True)
    except NotPicklable:
        if process._target is not None:
            codec.pack_function(process._target, [], by_value=by_value, what="the target")
            codec.pack((process._args, process._kwargs), [], (codec.ARGUMENTS, process._target), main_is_lost=by_value)
        raise


def _send_by_value(running: Running, process: Process) -> None:
    """The process cannot find a class or function by its name: send the object again, in full. On the hub's thread."""
    buffers: list[Any] = []
    try:
        payload: codec.Payload | None = codec.pack(process, buffers, ("the process", process), main_is_lost=True)
    except Exception:  # it says itself what it could not find
        payload, buffers = None, []
    running.link.send((m.BOOT, payload), buffers=buffers)


def _config(process: Process, running: Running, payload: codec.Payload | None) -> dict[str, Any]:
    launcher = running.launcher
    environment = os.environ.copy()
    forked = payload is None
    main = launcher.main_in_worker
    return {
        "name": str(process._name),
        "title": str(process._name),
        "cwd": working_directory(),
        "env": None if forked or environment == launcher.environment else environment,
        "argv": [str(word) for word in sys.argv],
        "sys_path": None if forked else [str(entry) for entry in sys.path],
        "blas_threads": None,
        "main": None if main is None else (main.kind, main.name, main.path, main.init_name),
        "authkey": _authkey(process),
        "process": payload,
    }


def _authkey(process: Process) -> bytes | None:
    """Return the key for `multiprocessing` in the process; None if nobody here uses that."""
    if process._authkey is not None:
        return process._authkey
    standard = sys.modules.get("multiprocessing.process")
    return bytes(standard.current_process().authkey) if standard is not None else None


# --- asking -------------------------------------------------------------------------------------


def ask_to_stop(running: Running) -> None:
    """Ask a process to stop: by its `stopping` if it has ever looked at that, else by SIGTERM. Does not block."""
    running.stopping.note()
    running.handle.ask()
    if running.is_young:
        running.hub.after(PATIENCE_S, lambda: _insist(running))
    else:
        _insist(running)


def _insist(running: Running) -> None:
    if not running.looks_for_stop:
        running.handle.signal(signal.SIGTERM)


def at_end(running: Running, callback: Callable[[], object]) -> bool:
    """Have `callback` called when it has ended; False if it has."""
    return running.hub.at_end(running, callback)


def hand_over(running: Running, handler: Handler) -> None:
    """Have `handler` called with what the process says beside its own messages."""
    running.hub.hand_over(running, handler)


# --- the end of the program ---------------------------------------------------------------------

_registered_in = 0


def _at_exit_once() -> None:
    """Register what ends the processes, once in each process: handlers that were registered before a fork are not run."""
    global _registered_in
    if _registered_in != os.getpid():
        _registered_in = os.getpid()
        atexit.register(_end_all)


def _end_all() -> None:
    """The program ends: wait for its processes, then end its daemons; end all of them if Ctrl-C ended it, or ends this."""
    if _registered_in != os.getpid():
        return  # a fork that ends as a program does: they are not its
    try:
        if getattr(sys, "last_type", None) is not KeyboardInterrupt:
            _wait_for([process for process in _children() if not process._daemon])
        _end_now(_children())
    except KeyboardInterrupt:
        _end_now(_children())
        # End as a program ends that Ctrl-C ends; raising here would only print what an exit handler ignores.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _wait_for(processes: list[Process]) -> None:
    """Wait until they have ended; if that takes long, say once for whom, or nobody would know why the program does not end."""
    limit = time.monotonic() + QUIET_S
    for process in processes:
        process.join(max(0.0, limit - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    if late:
        names = ", ".join(f"{process._name} (pid {process.pid})" for process in late)
        them = "it" if len(late) == 1 else "them"
        with contextlib.suppress(Exception):  # there may be no such stream any more
            sys.stderr.write(f"waiting for {names} to end; daemon=True would end {them} with the program\n")
            sys.stderr.flush()
    for process in late:
        process.join()


def _children() -> list[Process]:
    from shoal._process.facade import active_children

    return active_children()


def _end_now(processes: list[Process]) -> None:
    """Ask them to end, all at once, and kill who does not."""
    for process in processes:
        process.terminate()
    limit = time.monotonic() + DAEMON_GRACE_S
    for process in processes:
        process.join(max(0.0, limit - time.monotonic()))
    for process in processes:
        process._kill("the program ends")
        process.join()
