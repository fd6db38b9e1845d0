"""An actor from within: its process, its mailbox, its calls.

Role: what runs in the process of one run of an actor. Owner: that process. The main thread runs the methods, one after the
other, and when there is nothing to run it takes in connections and messages itself: no other thread has to be woken for a
call. A deputy, the thread "shoal-mailbox", does so while a method takes long. Protocol: README.md.

Invariants
    H1  Messages of one connection are put into the mailbox, taken out and run in the order in which they were sent.
    H2  A message is run at most once: it is taken out before it is run, and what was not run when the process dies is not
        sent again by anybody.
    H3  What stands behind the order to end is not run.
    H4  An answer is sent when the method has returned, whole or, if the process dies, not at all.
    H5  Who takes in messages has `_role`; it alone changes `_connections` and reads sockets. The main thread gets it from the
        deputy at once, by waking it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NoReturn

from shoal._actors import wire
from shoal._process.facade import Process
from shoal._wire import codec, remote
from shoal._wire.courier import Courier, forget_shared
from shoal._wire.link import Link
from shoal._wire.messages import Message

if TYPE_CHECKING:
    from shoal._memory.arena import Arena
    from shoal._settings import CaptureMode, StartMethod
    from shoal.errors import Obituary

#: A method that has run for so long has its messages taken in by the deputy. Seconds.
DEPUTY_S = 0.01
#: After so many looks of the deputy at which no method had run since the last one, it sleeps until one does.
QUIET_LOOKS = 20
#: For how long answers may take to leave when the actor ends. Seconds.
FLUSH_S = 5.0


class ActorProcess(Process):
    """The process of one run of an actor."""

    def __init__(
        self,
        cls: type,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        name: str,
        method: StartMethod | None,
        capture: bool | CaptureMode,
    ) -> None:
        super().__init__(name=name, daemon=True, start_method=method, capture=capture)
        self._actor_class = cls
        self._actor_args = args, kwargs
        self._actor_run = 1
        self._actor_key = b""
        self._actor_address = b""  # of the actor
        self._actor_door = b""  # where this run is given the listening socket
        self._actor_last: Obituary | None = None

    def run(self) -> object:
        """Make the instance, then serve its callers until it is told to end."""
        stopping = self.stopping  # from now on it is not told by a signal
        door = wire.listen(self._actor_door, 8)
        args, kwargs = self._actor_args
        del self._actor_args  # the instance may keep them, or let them go
        instance = make_instance(self._actor_class, args, kwargs)
        del args, kwargs
        if self._actor_run > 1 and hasattr(instance, "on_restart"):
            instance.on_restart(self._actor_last)
        self.ready()
        with door:
            listener = self._be_given_the_listener(door)
        host = Host(instance, listener, self)
        threading.Thread(target=_end_when_told, args=(stopping, host), name="shoal-stop", daemon=True).start()
        host.serve()
        return None

    def _be_given_the_listener(self, door: socket.socket) -> socket.socket:
        while True:
            sock, _ = door.accept()
            with sock:
                if not wire.is_ours(sock):
                    continue
                with contextlib.suppress(OSError):
                    fd = wire.take_greeting(sock, wire.LISTENER, self._actor_key)
                    if fd is not None:
                        return socket.socket(fileno=fd)

    def arena(self) -> Arena:
        """The memory that large answers go through."""
        return self._solo()._arena_now()


def make_instance(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return ``cls(*args, **kwargs)`` as it would be if the class were no actor's."""
    new = _own_new(cls)
    instance = object.__new__(cls) if new is None else new(cls, *args, **kwargs)
    if isinstance(instance, cls):
        cls.__init__(instance, *args, **kwargs)
    return instance


def _own_new(cls: type) -> Any:
    """Return the `__new__` that the class, or one it comes from, has written, below what makes it one of actors."""
    for base in cls.__mro__[:-1]:
        written = vars(base).get("__shoal_new__" if "__shoal_options__" in vars(base) else "__new__")
        if written is not None:
            return written.__get__(None, cls)
    return None


def _end_when_told(stopping: threading.Event, host: Host) -> None:
    stopping.wait()
    host.end()


class Connection:
    """One caller's process, as the actor sees it."""

    def __init__(self, sock: socket.socket, host: Host) -> None:
        self.sock = sock
        self.link: Link | None = None  # once it has greeted
        self.taken = 0  # the last of its calls that was taken out of the mailbox; the main thread's
        self.tell_at: int | None = None  # somebody waits for that one to be taken
        self.outlet = wire.Outlet(sock, lambda: host.blocked(self))

    def close(self) -> None:
        self.outlet.close()
        if self.link is not None:
            self.link.courier.close()
        self.sock.close()


#: A call in the mailbox: whose it is, the message, the buffers of its frame. None: the order to end.
Entry = tuple[Connection, Message, list[Any]] | None


class Host:
    """The actor's side of all connections, and its mailbox."""

    def __init__(self, instance: Any, listener: socket.socket, process: ActorProcess) -> None:
        global _host
        self._instance = instance
        self._listener = listener
        self._process = process
        self._mailbox: deque[Entry] = deque()
        self._connections: dict[int, Connection] = {}
        self._epoll = select.epoll()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._has_news = False
        self._ending = False
        self._main = threading.get_ident()
        self._role = threading.Lock()
        self._begun = 0  # methods that were begun; the main thread's
        self._running = False  # a method runs; the main thread's
        self._dozes = True  # the deputy sleeps until it is woken
        self._alarm = threading.Event()
        listener.setblocking(False)
        self._epoll.register(listener, select.EPOLLIN)
        self._epoll.register(self._wakeup, select.EPOLLIN)
        _host = self

    @property
    def address(self) -> bytes:
        """Where callers find the actor."""
        return self._process._actor_address

    @property
    def is_running_a_call(self) -> bool:
        """Whether the calling thread is the one that runs the methods."""
        return threading.get_ident() == self._main

    # --- the main thread ------------------------------------------------------------------------

    def serve(self) -> None:
        """Run calls until the order to end is next."""
        threading.Thread(target=self._deputise, name="shoal-mailbox", daemon=True).start()
        while True:
            if self._ending:
                self._take_in_the_rest()
            if not self._mailbox:
                self._take_role()
                try:
                    if not self._mailbox and not self._ending:  # the deputy may have taken something in, just now
                        self._take_in(None)
                finally:
                    self._role.release()
                continue
            entry = self._mailbox.popleft()
            if entry is None:
                break
            self._begun += 1
            self._running = True
            if self._dozes:
                self._alarm.set()
            self._run(*entry)
            self._running = False
            del entry  # what is lent returns with the last reference
        on_stop = getattr(self._instance, "on_stop", None)
        try:
            if on_stop is not None:
                on_stop()
        finally:
            self._send_what_is_left()

    def _take_role(self) -> None:
        if not self._role.acquire(blocking=False):
            self._wake()  # H5
            self._role.acquire()

    def _take_in_the_rest(self) -> None:
        """Put the end behind all that was sent until now, by whomever (H3)."""
        self._ending = False
        self._take_role()
        try:
            self._accept()
            for connection in list(self._connections.values()):
                self._serve_connection(connection, select.EPOLLIN)
        finally:
            self._role.release()
        self._ending = False  # a second order, among what was read
        self._mailbox.append(None)

    def _send_what_is_left(self) -> None:
        limit = time.monotonic() + FLUSH_S
        self._take_role()
        try:
            for connection in self._connections.values():
                connection.outlet.drain(limit)
        finally:
            self._role.release()

    def _run(self, connection: Connection, message: Message, buffers: list[Any]) -> None:
        _, number, method, wants_answer, payload = message
        link = connection.link
        assert link is not None
        connection.taken = number
        tell_at = connection.tell_at  # looked at behind the store above, as `_tell_room` looks at that behind its own
        if tell_at is not None and number >= tell_at:
            connection.tell_at = None
            link.send((wire.TAKEN, number, False))
        out: list[Any] = []
        try:
            args, kwargs = codec.unpack(payload, buffers)
            value = self._method(method)(*args, **kwargs)
            del args, kwargs
            if type(value) is CoroutineType:
                _refuse_coroutine(value, method)
            if not wants_answer:
                return
            answer: Message = (wire.ANSWER, number, codec.pack(value, out, ("the result of", wire.Named(method))))
        except BaseException as error:
            trace = error.__traceback__
            if trace is not None and trace.tb_next is not None:
                error.__traceback__ = trace.tb_next  # this frame tells the user nothing
            if not wants_answer:
                self._complain(method, error)
                return
            out = []
            answer = (wire.FAILED, number, remote.capture(error, method))
        link.send(answer, buffers=out)

    def _method(self, name: str) -> Callable[..., Any]:
        found = None if name.startswith("_") else getattr(self._instance, name)
        if not callable(found):
            raise AttributeError(f"{type(self._instance).__name__} has no method {name!r}")  # noqa: TRY004 - as Python says it
        return found  # type: ignore[no-any-return]

    def _complain(self, method: str, error: BaseException) -> None:
        """Nobody waits for the answer: say on stderr what a cast raised."""
        with contextlib.suppress(BaseException):
            sys.stderr.write(f"{self._process.name}: {method}(), cast by a caller who waits for no answer, raised\n")
            sys.stderr.write(remote.format_error(error))

    # --- taking in (with the role) --------------------------------------------------------------

    def end(self) -> None:
        """Have the actor end when what was sent until now is done. Any thread."""
        self._ending = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wakeup, 1)

    def blocked(self, connection: Connection) -> None:
        """A socket does not take more now. Any thread."""
        with contextlib.suppress(OSError, ValueError):
            self._epoll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)

    def _news(self) -> None:
        # In a finalizer, perhaps: no locks.
        self._has_news = True
        self._wake()

    def _take_in(self, timeout: float | None) -> None:
        """Wait for something to happen, and take it in."""
        for fd, events in self._epoll.poll(timeout):
            if fd == self._listener.fileno():
                self._accept()
            elif fd == self._wakeup:
                os.eventfd_read(self._wakeup)
            elif (connection := self._connections.get(fd)) is not None:
                self._serve_connection(connection, events)
        if self._has_news:
            self._has_news = False
            for connection in self._connections.values():
                if connection.link is not None:
                    connection.link.tell()

    def _deputise(self) -> None:
        """Look now and then whether a method takes long; then take in messages in the main thread's place."""
        seen, quiet = -1, 0
        while True:
            if quiet >= QUIET_LOOKS:
                self._doze()
                quiet = 0
            time.sleep(DEPUTY_S)
            begun = self._begun
            if self._running and begun == seen:
                quiet = 0
                with self._role:
                    while self._running and self._begun == begun and self._take_in_or_log():
                        pass
            quiet = quiet + 1 if begun == seen else 0
            seen = begun

    def _take_in_or_log(self) -> bool:
        """As the deputy: whatever is raised is logged, and it begins anew; nobody else would take in what is sent meanwhile."""
        try:
            self._take_in(DEPUTY_S)
        except BaseException:
            import logging

            logging.getLogger("shoal").exception("shoal: unexpected failure in what takes in the calls of an actor")
            return False
        return True

    def _doze(self) -> None:
        """Sleep until a method is begun: the flag first, then a look, so that one of the two threads sees the other."""
        self._alarm.clear()
        self._dozes = True
        if not self._running:
            self._alarm.wait()
        self._dozes = False

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # nobody there any more, or no descriptors left: later
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                self._connections[sock.fileno()] = Connection(sock, self)
                self._epoll.register(sock, select.EPOLLIN)

    def _serve_connection(self, connection: Connection, events: int) -> None:
        if events & select.EPOLLOUT and connection.outlet.flush():
            self._epoll.modify(connection.sock, select.EPOLLIN)
        if not events & ~select.EPOLLOUT:
            return
        try:
            alive = self._read(connection) if connection.link is not None else self._greeted(connection)
        except Exception:  # a torn frame, or nonsense
            alive = False
        if not alive:
            self._forget(connection)

    def _greeted(self, connection: Connection) -> bool:
        try:
            fd = wire.take_greeting(connection.sock, wire.CALLER, self._process._actor_key)
        except BlockingIOError:
            return True
        if fd is None:
            return False
        passing = socket.socket(fileno=fd)
        passing.setblocking(False)
        courier = Courier(passing, self._process.arena, forget_shared)
        courier.on_news = self._news
        connection.link = Link(connection.sock, courier, connection.outlet.write)
        connection.link.send((wire.WELCOME, self._process._actor_run, os.getpid()))
        return self._read(connection)

    def _read(self, connection: Connection) -> bool:
        link = connection.link
        assert link is not None
        alive = link.read_all()
        while (received := link.take()) is not None:
            message, buffers = received
            if message[0] == wire.CALL:
                self._mailbox.append((connection, message, buffers))
            elif message[0] == wire.ROOM:
                self._tell_room(connection, link, message[1])
            elif message[0] == wire.LAST:
                self._ending = True
        return alive

    def _tell_room(self, connection: Connection, link: Link, step: int) -> None:
        """Say what was taken, and have the main thread say it when `step` more were."""
        known = connection.taken
        connection.tell_at = known + step
        if connection.taken >= known + step:  # it passed in between, and may have seen nothing to tell
            connection.tell_at = None
            link.send((wire.TAKEN, connection.taken, False))
        else:
            link.send((wire.TAKEN, known, True))

    def _forget(self, connection: Connection) -> None:
        """A caller is gone. What it had sent is run all the same."""
        fd = connection.sock.fileno()
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(fd)
        self._connections.pop(fd, None)
        connection.close()

    def abandon(self) -> None:
        """In a forked child: nothing of this is ours."""
        self._epoll.close()
        self._listener.close()
        for connection in self._connections.values():
            if connection.link is not None:
                connection.link.courier.abandon()
            connection.sock.close()
        os.close(self._wakeup)


def _refuse_coroutine(value: CoroutineType[Any, Any, Any], method: str) -> NoReturn:
    value.close()  # else Python warns that nobody awaited it
    raise TypeError(
        f"{method}() is an async method, which actors do not support: make it a plain one (def), which may call asyncio.run()"
    )


#: The actor that this process is.
_host: Host | None = None


def here() -> Host | None:
    """Return the actor that this process is, if it is one."""
    return _host


def _after_fork_in_child() -> None:
    global _host
    host, _host = _host, None
    if host is not None:
        host.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
