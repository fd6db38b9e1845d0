"""This process's connection to one actor, and what is asked over it.

Role: calls on their way out, answers on their way in. Owner: the hub of connections (`client.py`), whose thread reads; any
thread sends.

Invariants
    L1  The book and what is sent from it change with `lock` held, so numbers leave in order.
    L2  A call is settled by whoever took it out of the book (K1), without the lock: that runs code of the user.
    L3  No exception of a signal handler strikes between taking a call out of the book and its last byte, nor leaves a lock held
        that the hub's thread takes: what is half sent, or locked for ever, would be the end of all calls to come.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from shoal._actors import wire
from shoal._actors.calls import Book, Outgoing
from shoal._os.interpreter import main_module
from shoal._os.latch import Latch
from shoal._pool import interrupts
from shoal._wire import codec, remote
from shoal._wire.courier import Courier, forget_shared
from shoal._wire.link import Link
from shoal._wire.words import describe_call
from shoal.errors import ActorDied, MailboxFull

if TYPE_CHECKING:
    from shoal._memory.arena import Arena
    from shoal.errors import Obituary

#: Who waits for room hears of it when this part of the mailbox has become free.
ROOM_STEPS = 16


class Reader(Protocol):
    """Who reads the connections: the hub."""

    def arena(self) -> Arena:
        """Return the memory that large arguments go through."""

    def news(self) -> None:
        """Somebody let go of lent memory."""

    def blocked(self, connection: Connection) -> None:
        """A socket does not take more now."""


class _Condition(threading.Condition):
    """One whose lock is taken by a single step, which no signal handler can cut in two (L3)."""

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


class ActorFuture(concurrent.futures.Future[Any]):
    """The answer to a call of an actor. Works wherever a `concurrent.futures.Future` does, and can be awaited.

    Cancelling it takes the call back if it was not sent; else the call runs and its answer is dropped. What is given to
    `add_done_callback` is called by the thread that reads the answers of all actors: be quick there.
    """

    _withdraw: Callable[[], object] | None = None

    def __init__(self) -> None:
        super().__init__()
        self._condition = _Condition()
        self._there = Latch()

    def cancel(self) -> bool:
        """Give the answer up. Returns False if it is there already."""
        if self._withdraw is not None:
            self._withdraw()
        return super().cancel()

    def _invoke_callbacks(self) -> None:
        # It is settled, or cancelled: whoever waits is woken first.
        self._there.set()
        super()._invoke_callbacks()  # type: ignore[misc]

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the answer, up to `timeout` seconds; return it, or raise what the method raised."""
        if not self.done():
            self._there.wait(timeout)
        try:
            return super().result(0)
        finally:
            del self  # breaks the cycle with the traceback

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the answer, up to `timeout` seconds; return what the method raised, if it did."""
        self._there.wait(timeout)
        return super().exception(0)

    def _settled(self, timeout: float | None) -> bool:
        """Wait until it is settled; False if `timeout` seconds passed first."""
        return self._there.wait(timeout)

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
        what = (codec.ARGUMENTS, wire.Named(method))
        self.payload = codec.pack_call(args, kwargs, self.buffers, what, main_is_lost=_main_is_lost())
        # For the words of an error; what is large is not kept for that.
        self.args = args if _LIGHT.issuperset(map(type, args)) else tuple(map(_said, args))
        self.kwargs = kwargs and {name: _said(value) for name, value in kwargs.items()}

    def __str__(self) -> str:
        return describe_call(self.method, self.args, self.kwargs)

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Give the future its answer."""
        future, self.future = self.future, None
        if future is None:
            return
        future._withdraw = None
        if not future.set_running_or_notify_cancel():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)


@functools.cache
def _main_is_lost() -> bool:
    """Whether what lives in `__main__` cannot be imported elsewhere; it does not change."""
    return main_module().kind == "none"


_LIGHT = frozenset({int, float, bool, type(None), str})


def _said(value: Any) -> Any:
    return value if type(value) in _LIGHT else _Said(type(value).__name__)


class _Said:
    """Stands for an argument in the words of an error."""

    def __init__(self, word: str) -> None:
        self._word = word

    def __repr__(self) -> str:
        return f"<{self._word}>"


class Connection:
    """This process's connection to one actor."""

    def __init__(self, target: Target, hub: Reader, timeout: float | None) -> None:
        """Connect. Raises OSError, TimeoutError."""
        self.target = target
        self.book: Book[Call] = Book(target.mailbox)
        self.lock = threading.RLock()
        self._room = (
            Latch()
        )  # for who waits for room now: it is set, and another one put in its place, when there may be some
        self.run: int | None = None  # which run of the actor took it, once that is known
        self.made_at = time.monotonic()
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
            courier = Courier(ours, hub.arena, forget_shared)
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
        while True:
            with interrupts.deferred(), self.lock:  # L3
                if not wait or self.book.has_room or self.book.closed:
                    return self._offer(call)
                left = None if limit is None else limit - time.monotonic()
                if left is not None and left <= 0:
                    target = self.target
                    raise MailboxFull(actor=target.name, call=str(call), mailbox=target.mailbox, timeout=timeout or 0.0)
                self._ask_for_room()
                room = self._room
            room.wait(left)

    def _offer(self, call: Call) -> bool:
        if self.book.closed:
            return False
        self._send(self.book.offer(call))
        if call.future is not None and call.payload:  # it was not sent
            call.future._withdraw = lambda: self._withdraw(call)
        return True

    def _withdraw(self, call: Call) -> None:
        with self.lock:
            if self.book.withdraw(call):
                self._tell_room()

    def _tell_room(self) -> None:
        """Have those who wait for room look. Under the lock."""
        room, self._room = self._room, Latch()
        room.set()

    def _send(self, calls: list[Outgoing[Call]]) -> None:
        """Put on the wire what the book lets out. Under the lock; does not block."""
        for number, call in calls:
            self.link.send((wire.CALL, number, call.method, call.wants_answer, call.payload), buffers=call.buffers)
            call.payload, call.buffers = b"", []
            if call.future is not None:
                call.future._withdraw = None  # which would be a cycle
        if self.book.waiting:
            self._ask_for_room()

    def _ask_for_room(self) -> None:
        if self.book.must_ask():
            self.link.send((wire.ROOM, max(1, self.book.mailbox // ROOM_STEPS)))

    def send_last(self) -> bool:
        """Have the actor end behind what was sent; False if something still waits to be sent, or it is gone."""
        with interrupts.deferred(), self.lock:  # L3
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
        with self.lock:
            before = self.book.taken
            if kind == wire.TAKEN and not message[2]:
                self.book.heard()
            self._send(self.book.took(number))
            if kind != wire.TAKEN:
                call = self.book.answered(number)
            if self.book.taken != before:
                self._tell_room()
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
        with self.lock:
            left = self.book.lost()
            self._tell_room()
        return left


def fail(target: Target, calls: list[Call], obituary: Obituary | None) -> None:
    """Settle calls whose actor has died, or ended."""
    tally_of(target).failures += sum(call.wants_answer for call in calls)
    for call in calls:
        call.settle(None, ActorDied(actor=target.name, call=str(call), obituary=obituary))


_tallies: weakref.WeakValueDictionary[bytes, Tally] = weakref.WeakValueDictionary()
_tallies_guard = threading.Lock()


def tally_of(target: Target) -> Tally:
    """Return what this process has asked of an actor."""
    with _tallies_guard:
        tally = _tallies.get(target.address)
        if tally is None:
            tally = _tallies[target.address] = Tally()
        return tally


def _after_fork_in_child() -> None:
    global _tallies_guard
    _tallies_guard = threading.Lock()
    _tallies.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
