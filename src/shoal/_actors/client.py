"""A process's side of its connections to actors.

Role: one connection to each actor this process calls, and the thread that reads them all. Owner: this module. Any thread calls.
Protocol: README.md.

Invariants
    L1  A connection's book and what is sent from it change with its lock held, so numbers leave in order.
    L2  A call is settled by whoever took it out of the book (K1), without the lock: that runs code of the user.
    L3  The thread waits for nobody. It lives while there are connections.
    L4  In a forked child there are no connections and no thread; its copies of the descriptors are closed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import select
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal._actors import host, wire
from shoal._actors.calls import Book, Outgoing
from shoal._os import cgroup, descriptors
from shoal._os.interpreter import main_module
from shoal._wire import codec, remote
from shoal._wire.courier import Courier
from shoal._wire.link import Link
from shoal._wire.words import describe_call
from shoal.errors import ActorDied, MailboxFull

if TYPE_CHECKING:
    from shoal._memory.arena import Arena
    from shoal.errors import Obituary

#: Who waits for room hears of it when this part of the mailbox has become free.
ROOM_STEPS = 16
#: After the last large argument the memory it went through is given back within this time. Seconds.
TRIM_S = 3.0
#: Part of the memory this process may use that arguments under way may take.
_SHARE = 4

_log = logging.getLogger("shoal")


class ActorFuture(concurrent.futures.Future[Any]):
    """The answer to a call of an actor. Works wherever a `concurrent.futures.Future` does, and can be awaited.

    Cancelling it takes the call back if it was not sent; else the call runs and its answer is dropped.
    """

    _withdraw: Callable[[], object] | None = None

    def cancel(self) -> bool:
        """Give the answer up. Returns False if it is there already."""
        if self._withdraw is not None:
            self._withdraw()
        return super().cancel()

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        return asyncio.wrap_future(self).__await__()


@dataclass(frozen=True, slots=True)
class Target:
    """An actor, for whoever calls it."""

    address: bytes
    key: bytes
    name: str
    mailbox: int


@dataclass(slots=True, weakref_slot=True)
class Tally:
    """What this process has asked of one actor. Loosely counted."""

    calls: int = 0
    casts: int = 0
    answers: int = 0
    failures: int = 0


class Call:
    """One call, from being asked for to being settled."""

    __slots__ = ("args", "buffers", "future", "kwargs", "method", "payload", "wants_answer")

    def __init__(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], future: ActorFuture | None) -> None:
        self.method = method
        self.future = future
        self.wants_answer = future is not None
        self.buffers: list[Any] = []
        lost = main_module().kind == "none"
        what = (codec.ARGUMENTS, _Named(method))
        self.payload = codec.pack((args, kwargs), self.buffers, what, main_is_lost=lost)
        # For the words of an error; what is large is not kept for that.
        light = all(type(value) in _LIGHT for value in (*args, *kwargs.values()))
        self.args: tuple[Any, ...] = args if light else tuple(_Said(type(value).__name__) for value in args)
        self.kwargs = kwargs if light else {name: _Said(type(value).__name__) for name, value in kwargs.items()}

    def __str__(self) -> str:
        return describe_call(self.method, self.args, self.kwargs)

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Give the future its answer."""
        future = self.future
        if future is None or not future.set_running_or_notify_cancel():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)


_LIGHT = frozenset({int, float, bool, type(None), str})


class _Said:
    """Stands for an argument in the words of an error."""

    def __init__(self, word: str) -> None:
        self._word = word

    def __repr__(self) -> str:
        return f"<{self._word}>"


class _Named:
    """Stands for a method in the words of an error."""

    def __init__(self, name: str) -> None:
        self.__qualname__ = name


class Connection:
    """This process's connection to one actor."""

    def __init__(self, target: Target, hub: Hub, timeout: float | None) -> None:
        """Connect. Raises OSError, TimeoutError."""
        self.target = target
        self.book: Book[Call] = Book(target.mailbox)
        self.changed = threading.Condition()  # its lock is L1's
        self.run: int | None = None  # which run of the actor took it, once that is known
        self.tally = tally_of(target)
        self._hub = hub
        self.sock = wire.connect(target.address, timeout)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            self.sock.close()
            raise
        ours.setblocking(False)
        with theirs:
            courier = Courier(ours, hub.arena, _forget_shared)
            courier.on_news = hub.news
            self.outlet = wire.Outlet(self.sock, lambda: hub.blocked(self))
            self.link = Link(self.sock, courier, self.outlet.write)
            try:
                wire.greet(self.sock, wire.CALLER, target.key, theirs.fileno())
            except OSError as gone:
                self.close()
                raise ConnectionRefusedError("it went away") from gone

    def close(self) -> None:
        """Let go of the descriptors."""
        self.outlet.close()
        self.link.courier.close()
        self.sock.close()

    # --- sending --------------------------------------------------------------------------------

    def send(self, call: Call, limit: float | None, *, wait: bool, timeout: float | None) -> bool:
        """Send a call, or keep it until there is room. False if the connection is gone: nothing was taken.

        Raises:
            MailboxFull: There was no room until the monotonic clock showed `limit`.
        """
        with self.changed:
            while wait and not self.book.has_room and not self.book.closed:
                left = None if limit is None else limit - time.monotonic()
                if left is not None and left <= 0:
                    target = self.target
                    raise MailboxFull(actor=target.name, call=str(call), mailbox=target.mailbox, timeout=timeout or 0.0)
                self._ask_for_room()
                self.changed.wait(left)
            if self.book.closed:
                return False
            if call.future is not None:
                call.future._withdraw = lambda: self._withdraw(call)
            self._send(self.book.offer(call))
            return True

    def _withdraw(self, call: Call) -> None:
        with self.changed:
            if self.book.withdraw(call):
                self.changed.notify_all()

    def _send(self, calls: list[Outgoing[Call]]) -> None:
        """Put on the wire what the book lets out. Under the lock; does not block."""
        for number, call in calls:
            self.link.send((wire.CALL, number, call.method, call.wants_answer, call.payload), buffers=call.buffers)
            call.payload, call.buffers = b"", []
        if self.book.waiting:
            self._ask_for_room()

    def _ask_for_room(self) -> None:
        if self.book.must_ask():
            self.link.send((wire.ROOM, max(1, self.book.mailbox // ROOM_STEPS)))

    def send_last(self) -> bool:
        """Have the actor end behind what was sent; False if something still waits to be sent, or it is gone."""
        with self.changed:
            if self.book.closed or self.book.waiting:
                return False
            self.link.send((wire.LAST,))
            return True

    # --- reading (the hub's thread) -------------------------------------------------------------

    def read(self) -> bool:
        """Take in what is there. False when the connection is gone."""
        try:
            alive = self.link.read_all()
        except Exception:  # a torn frame
            alive = False
        while (received := self.link.take()) is not None:
            self._heard(*received)
        return alive

    def _heard(self, message: tuple[Any, ...], buffers: list[Any]) -> None:
        kind, number = message[:2]
        if kind == wire.WELCOME:
            self.run = number
            return
        call = None
        with self.changed:
            before = self.book.taken
            if kind == wire.TAKEN and not message[2]:
                self.book.heard()
            self._send(self.book.took(number))
            if kind != wire.TAKEN:
                call = self.book.answered(number)
            if self.book.taken != before:
                self.changed.notify_all()
        if call is not None:
            self._settle(call, message, buffers)

    def _settle(self, call: Call, message: tuple[Any, ...], buffers: list[Any]) -> None:
        tally = self.tally
        tally.answers += 1
        if message[0] == wire.FAILED:
            tally.failures += 1
            call.settle(None, remote.rebuild(message[2]))
            return
        try:
            value = codec.unpack(message[2], buffers)
        except BaseException as error:
            call.settle(None, error)
        else:
            call.settle(value, None)

    def lost(self) -> list[Call]:
        """The connection is gone. Returns what is to be failed."""
        with self.changed:
            left = self.book.lost()
            self.changed.notify_all()
        return left


#: Told by a connection that is gone: the actor, which run of it took the connection, and the calls that are to fail.
Bereaved = Callable[["Target", "int | None", "list[Call]"], object]


def fail(target: Target, calls: list[Call], obituary: Obituary | None) -> None:
    """Settle calls whose actor has died, or ended."""
    tally_of(target).failures += sum(call.wants_answer for call in calls)
    for call in calls:
        call.settle(None, ActorDied(actor=target.name, call=str(call), obituary=obituary))


class Hub:
    """The connections of this process and the thread that reads them."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._by_fd: dict[int, Connection] = {}
        self._by_address: dict[bytes, Connection] = {}
        self._has_news = False
        self._arena: Arena | None = None
        self._used_arena = False
        self.thread = threading.Thread(target=self._serve, name="shoal-actors", daemon=True)
        self.thread.start()

    # --- any thread, under `_guard` -------------------------------------------------------------

    def connection(self, target: Target) -> Connection | None:
        """Return the connection to an actor, if there is one."""
        return self._by_address.get(target.address)

    def add(self, connection: Connection) -> None:
        """Read this connection from now on."""
        self._by_address[connection.target.address] = connection
        self._by_fd[connection.sock.fileno()] = connection
        self._epoll.register(connection.sock, select.EPOLLIN)

    # --- any thread -----------------------------------------------------------------------------

    def wake(self) -> None:
        """Have the thread look around."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wakeup, 1)

    def blocked(self, connection: Connection) -> None:
        """A socket does not take more now."""
        with contextlib.suppress(OSError, ValueError):
            self._epoll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)

    def news(self) -> None:
        """Somebody let go of lent memory. Also in a finalizer: takes no lock."""
        self._has_news = True
        self.wake()

    def arena(self) -> Arena:
        """Return the memory that large arguments go through."""
        with _arena_guard:
            if self._arena is None:
                from shoal._memory.arena import Arena

                self._arena = Arena(cgroup.usable_memory_bytes() // _SHARE)
        if not self._used_arena:
            self._used_arena = True
            self.wake()
        return self._arena

    # --- the thread -----------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._may_end():
            events = self._epoll.poll(TRIM_S if self._used_arena else None)
            if not events and self._arena is not None:
                self._used_arena = False
                self._arena.trim()
            for fd, what in events:
                if fd == self._wakeup:
                    os.eventfd_read(self._wakeup)
                elif (connection := self._by_fd.get(fd)) is not None:
                    try:
                        self._serve_connection(connection, what)
                    except BaseException:
                        _log.exception("shoal: unexpected failure in what reads the answers of actors")
            if self._has_news:
                self._has_news = False
                for connection in list(self._by_fd.values()):
                    connection.link.tell()
        self._close()

    def _serve_connection(self, connection: Connection, events: int) -> None:
        if events & select.EPOLLOUT and connection.outlet.flush():
            self._epoll.modify(connection.sock, select.EPOLLIN)
        if events & ~select.EPOLLOUT and not connection.read():
            self._lose(connection)

    def _lose(self, connection: Connection) -> None:
        with _guard:
            fd = connection.sock.fileno()
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)
            self._by_fd.pop(fd, None)
            if self._by_address.get(connection.target.address) is connection:
                del self._by_address[connection.target.address]
        left = connection.lost()
        connection.close()
        mourner = _bereaved.get(connection.target.address)
        bereaved = mourner() if mourner is not None else None
        if bereaved is not None:
            bereaved(connection.target, connection.run, left)
        else:
            fail(connection.target, left, None)

    def _may_end(self) -> bool:
        global _hub
        with _guard:
            if self._by_fd or _expected:
                return False
            if _hub is self:
                _hub = None
            return True

    def _close(self) -> None:
        if self._arena is not None:
            self._arena.close()
        self._epoll.close()
        wakeup, self._wakeup = self._wakeup, -1
        descriptors.close_quietly(wakeup)

    def abandon(self) -> None:
        """In a forked child: own nothing (L4)."""
        self._epoll.close()
        for connection in self._by_fd.values():
            connection.link.courier.abandon()
            connection.sock.close()
        if self._arena is not None:
            self._arena.abandon()
        descriptors.close_quietly(self._wakeup)


# --- this process -------------------------------------------------------------------------------

_guard = threading.Lock()
_arena_guard = threading.Lock()
_hub: Hub | None = None
_expected = 0  # connections that are being made; under `_guard`
_tallies: weakref.WeakValueDictionary[bytes, Tally] = weakref.WeakValueDictionary()
#: Who knows more of an actor than that a connection is gone: its owner. By address.
_bereaved: dict[bytes, weakref.WeakMethod[Bereaved]] = {}


def tally_of(target: Target) -> Tally:
    """Return what this process has asked of an actor."""
    with _guard:
        tally = _tallies.get(target.address)
        if tally is None:
            tally = _tallies[target.address] = Tally()
        return tally


def mourn(address: bytes, bereaved: Bereaved) -> None:
    """Name who is told when a connection to this actor is gone, for as long as he lives."""
    _bereaved[address] = weakref.WeakMethod(bereaved, lambda _: _bereaved.pop(address, None))


def existing(target: Target) -> Connection | None:
    """Return this process's connection to an actor, if it has one."""
    with _guard:
        return _hub.connection(target) if _hub is not None else None


def ask(target: Target, call: Call, timeout: float | None, *, wait: bool) -> None:
    """Send a call to an actor. Blocks, if `wait`, until there is room in its mailbox.

    Raises:
        MailboxFull: There was none within `timeout` seconds.
        ConnectionRefusedError: The actor has ended.
    """
    if wait and _is_here(target):
        timeout = 0.0  # nobody would make room meanwhile
    limit = None if timeout is None else time.monotonic() + timeout
    while not _connection(target, timeout).send(call, limit, wait=wait, timeout=timeout):
        pass  # it was lost in between: the next one leads to the next run, or is refused


def may_block() -> bool:
    """Whether this thread may wait for an actor: not the one that reads what actors say."""
    hub = _hub
    return hub is None or threading.current_thread() is not hub.thread


def check_may_wait(target: Target) -> None:
    """Refuse to wait for an answer that could never come."""
    if not may_block():
        raise RuntimeError("a callback of an actor's future cannot wait for an actor: do that in another thread")
    if _is_here(target):
        raise RuntimeError(f"{target.name} calls itself and would wait for ever: call the method directly, or cast")


def _is_here(target: Target) -> bool:
    """Whether the caller is a method of that very actor."""
    actor = host.here()
    return actor is not None and actor.address == target.address and actor.is_running_a_call


def _connection(target: Target, timeout: float | None) -> Connection:
    """Return the connection to an actor, made now if there is none."""
    global _hub, _expected
    with _guard:
        hub = _hub
        if hub is None:
            hub = _hub = Hub()
        found = hub.connection(target)
        if found is not None:
            return found
        _expected += 1
    try:
        made = Connection(target, hub, timeout)
    except BaseException:
        with _guard:
            _expected -= 1
        hub.wake()  # it may have nothing to do
        raise
    with _guard:
        _expected -= 1
        found = hub.connection(target)
        if found is None:
            hub.add(made)
            return made
    made.close()  # another thread was quicker
    return found


def _forget_shared(identity: bytes) -> None:
    shared = sys.modules.get("shoal._memory.shared")
    if shared is not None:
        shared.forget(identity)


def _after_fork_in_child() -> None:
    global _guard, _arena_guard, _hub, _expected
    _guard, _arena_guard = threading.Lock(), threading.Lock()
    _expected = 0
    hub, _hub = _hub, None
    _bereaved.clear()
    _tallies.clear()
    if hub is not None:
        hub.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
