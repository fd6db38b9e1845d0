"""A `shoal.Process` from within: from a fresh process to the object's `run`, and out again.

Role: what the child of one Process does before and after the user's code. Owner: that process; its main thread runs the
user's code, its watcher thread hears the program. Protocol: README.md of `_process`.

It gets the same descriptors as a worker (see `boot.py`) and is isolated and tied to the program in the same way (O1, O2).

Invariants
    S1  How `run` ended is sent before anything else of the end runs (threads, exit handlers), so it counts whatever these do.
    S2  One thread at a time reads the link: the watcher, until somebody takes it over.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from shoal._memory import page as page_module
from shoal._memory.page import ASKS, STAGE, Page
from shoal._os.interpreter import MainModule, import_main
from shoal._os.latch import StopEvent
from shoal._wire import codec, remote
from shoal._wire import messages as m
from shoal._wire.courier import Courier, forget_shared
from shoal._wire.frames import send_all
from shoal._wire.link import Link
from shoal._worker import boot

if TYPE_CHECKING:
    from shoal._memory.arena import Arena

#: Part of the memory this process may use that results under way may take.
_SHARE = 4

Handler = Callable[[m.Message, list[Any]], object]


class Body(Protocol):
    """What is run here; the Process object."""

    name: str

    def _run_here(self, solo: Solo, /) -> object:
        """Run as this process, and return what `run` does."""


class Solo:
    """This process, for the object that runs in it."""

    def __init__(self, sock: socket.socket, passing: socket.socket, page: Page) -> None:
        self.pid = os.getpid()
        self.page = page
        self.stopping = StopEvent()
        self._on_message: Handler | None = None
        self._arena: Arena | None = None
        self.link = Link(sock, Courier(passing, self._arena_now, forget_shared), partial(send_all, sock))
        self._reading = threading.Lock()
        self._taken_over = False

    def _arena_now(self) -> Arena:
        if self._arena is None:
            from shoal._memory.arena import Arena
            from shoal._os import cgroup

            self._arena = Arena(cgroup.usable_memory_bytes() // _SHARE)
        return self._arena

    # --- for the object that runs ---------------------------------------------------------------

    def looks_for_stop(self) -> None:
        """Note that the object looks whether it is to stop, so that nobody has to tell it by a signal."""
        self.page.words[ASKS] = 1

    def say_ready(self, value: object, what: codec.What) -> None:
        """Tell the program that the object is ready. Raises NotPicklable."""
        buffers: list[Any] = []
        payload = codec.pack(value, buffers, what)
        self.link.send((m.SAID_READY, payload), buffers=buffers)

    def hand_over(self, handler: Handler) -> None:
        """Have `handler` called by the watcher with each message that is not the process's own. It must not block."""
        with self._reading:
            self._on_message = handler
            self._hand_over()

    def _hand_over(self) -> None:
        while self._on_message is not None and (received := self.link.take()) is not None:
            self._on_message(*received)

    def take_over(self) -> None:
        """Have `link` read by the calling thread alone from now on (S2)."""
        with self._reading:
            self._taken_over = True
        self._wake()

    # --- the watcher ----------------------------------------------------------------------------

    def watch(self, control: int) -> None:
        """Start the thread that hears the program and sees it go."""
        self._control = socket.socket(fileno=control)
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.link.courier.on_news = self._wake
        threading.Thread(target=self._watch, name="shoal-watcher", daemon=True).start()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self._news, 1)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._news, select.POLLIN)
        data = self.link.sock.fileno()
        poll.register(data, select.POLLIN)
        while True:
            events = poll.poll()
            if any(what & select.POLLNVAL for _, what in events):
                return  # the object has closed every descriptor it found, as daemons do: it goes on alone
            ready = {fd for fd, _ in events}
            if self._taken_over:
                with contextlib.suppress(KeyError):
                    poll.unregister(data)
                ready.discard(data)
            if not (self._heard(ready) and (data not in ready or self._read())):
                break
        # The program is gone, without a word. What was started here goes with us.
        os.killpg(0, signal.SIGKILL)

    def _heard(self, ready: set[int]) -> bool:
        """Do what a byte on the control socket asks for; tell what there is to tell. False at end of file."""
        try:
            if self._news in ready:
                os.eventfd_read(self._news)
                self.link.tell()
            if self._control.fileno() not in ready:
                return True
            asked = self._control.recv(16)
        except OSError:
            return False
        if m.ASK in asked:
            self.stopping.set()
        if m.TRIM in asked and self._arena is not None:
            self._arena.trim()
        return bool(asked)

    def _read(self) -> bool:
        """Take in what was sent, unless somebody else reads. False at end of file."""
        with self._reading:
            if self._taken_over:
                return True
            alive = self.link.read_all()
            self._hand_over()
        return alive


# --- the life of the process --------------------------------------------------------------------


def run_solo(fds: dict[str, int], *, captured: bool, inherited: Body | None = None) -> NoReturn:
    """Be one Process. Never returns.

    `inherited` is the object itself, in a process that was forked from the program.
    """
    code = 1
    try:
        boot.isolate(fds, captured=captured)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # a fork copied the program's
        code = _live(fds, inherited)
    except (EOFError, ConnectionError):
        code = 0  # the program is gone: nobody to tell
    except BaseException:
        sys.excepthook(*sys.exc_info())
    _leave(code)


def _live(fds: dict[str, int], inherited: Body | None) -> int:
    """Boot, run the object, tell how that ended. Returns the exit code."""
    page = boot.open_page(fds["page"])
    passing = socket.socket(fileno=fds["passing"])
    passing.setblocking(False)
    solo = Solo(socket.socket(fileno=fds["data"]), passing, page)
    message, buffers = solo.link.receive()
    config: dict[str, Any] = message[1]
    boot.apply(config)
    name: str = config["name"]
    try:
        page.words[STAGE] = page_module.IMPORTING
        if config["main"] is not None:
            import_main(MainModule(*config["main"]))
        _take_key(config["authkey"])
        body = inherited if inherited is not None else _unpack(solo.link, config["process"], buffers)
    except BaseException as error:
        return _failed(solo, name, error, "the start of the process")
    del message, buffers, config, inherited  # what the object lets go of is to be freed
    page.words[STAGE] = page_module.SERVING
    solo.link.send((m.READY, os.getpid()))
    solo.watch(fds["control"])
    return _run(solo, body)


def _unpack(link: Link, payload: codec.Payload, buffers: list[Any]) -> Body:
    """Make the object; ask for it by value if its class cannot be found by its name here, once."""
    try:
        body: Body = codec.unpack(payload, buffers)
    except (AttributeError, ImportError) as error:
        link.send((m.UNKNOWN, remote.capture(error, "the start of the process")))
        message, buffers = link.receive()
        if message[1] is None:  # it cannot be sent by value either
            raise
        body = codec.unpack(message[1], buffers)
    return body


def _take_key(key: bytes | None) -> None:
    """Take over the key by which `multiprocessing`'s connections and managers know each other."""
    if key is not None:
        from multiprocessing import process

        process.current_process().authkey = key


def _run(solo: Solo, body: Body) -> int:
    buffers: list[Any] = []
    try:
        value = body._run_here(solo)
    except BaseException as error:
        return _failed(solo, body.name, error, "run()")
    try:
        report: m.Message = (m.RETURNED, codec.pack(value, buffers, ("the result of", body)), 0)
    except Exception as refused:  # it ended well; only whoever asks for the result is told
        buffers = []
        report = (m.RAISED, remote.capture(refused, "run()"), 0)
    _report(solo, report, buffers)
    return 0


def _failed(solo: Solo, name: str, error: BaseException, label: str) -> int:
    """Say on stderr and to the program what `run` raised, as `multiprocessing` maps it. Returns the exit code."""
    if isinstance(error, SystemExit):
        code = _exit_code(error)
    else:
        code = 1
        _print(name, error)
    _report(solo, (m.RAISED, remote.capture(error, label), code), [])
    return code


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF  # as the kernel does
    with contextlib.suppress(Exception):
        sys.stderr.write(f"{error.code}\n")
    return 1


def _print(name: str, error: BaseException) -> None:
    with contextlib.suppress(Exception):
        if type(error).__name__ == "MainGuardMissing":  # it says itself where and why
            error = error.with_traceback(None)
        text = remote.format_error(error)
        sys.stderr.write(f"Process {name}:\n{text}")


def _report(solo: Solo, message: m.Message, buffers: Sequence[Any]) -> None:
    if solo.pid != os.getpid():
        return  # a fork that `run` has made, and let come up to here
    with contextlib.suppress(OSError):  # the program is gone: nobody to tell
        solo.link.send(message, buffers=buffers)


def _leave(code: int) -> NoReturn:
    """Wait for threads that are no daemons, then end as a worker does."""
    try:
        _end_multiprocessing()
        threading._shutdown()  # type: ignore[attr-defined]
    except BaseException:
        with contextlib.suppress(BaseException):
            sys.excepthook(*sys.exc_info())
    boot.leave(code)


def _end_multiprocessing() -> None:
    """Join what `multiprocessing` started here. Its exit handler was copied by a fork, if at all (`boot.py`, O3)."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._exit_function()


def spawned(numbers: str, *, captured: bool) -> NoReturn:
    """Entry point of a Process that was started as a fresh interpreter."""
    run_solo(boot.take_descriptors(numbers), captured=captured)
