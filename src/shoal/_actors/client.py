"""The actors this process calls: its connections to them, and the thread that reads them all.

Role: finds or makes the connection for a call, hears answers and ends. Owner: this module. Any thread calls.
Protocol: README.md.

Invariants
    L3  The thread waits for nobody. It lives while there are connections.
    L4  In a forked child there are no connections and no thread; its copies of the descriptors are closed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal._actors import host
from shoal._actors.connection import Call, Connection, Target, fail
from shoal._os import cgroup, descriptors
from shoal._pool import interrupts

if TYPE_CHECKING:
    from shoal._memory.arena import Arena

#: After the last large argument the memory it went through is given back within this time. Seconds.
TRIM_S = 3.0
#: Part of the memory this process may use that arguments under way may take.
_SHARE = 4

_log = logging.getLogger("shoal")

#: Told of a connection that is gone, and of the calls that are to fail.
Bereaved = Callable[[Connection, list[Call]], object]


class Reminder:
    """Something to do at a time of the monotonic clock, unless it is cancelled."""

    def __init__(self, at: float, action: Callable[[], object]) -> None:
        self.at = at
        self.action: Callable[[], object] | None = action

    def cancel(self) -> None:
        """Not to be done any more. Any thread."""
        self.action = None


class Hub:
    """The connections of this process and the thread that reads them."""

    def __init__(self) -> None:
        """Raises OSError when descriptors or threads are short; nothing stays open then."""
        self._epoll = select.epoll()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._by_fd: dict[int, Connection] = {}
        self._by_address: dict[bytes, Connection] = {}
        self._has_news = False
        self._later: deque[Callable[[], object]] = deque()
        self._reminders: list[Reminder] = []  # the thread's
        self._arena: Arena | None = None
        self._used_arena = False
        self.thread = threading.Thread(target=self._serve, name="shoal-actors", daemon=True)
        try:
            self.thread.start()
        except RuntimeError as refused:  # no room for a thread, or the program is ending
            self._close()
            raise BlockingIOError(11, f"no room for another thread: {refused}") from refused

    # --- any thread, under `_guard` -------------------------------------------------------------

    def connection(self, target: Target) -> Connection | None:
        """Return the connection to an actor, if there is one."""
        return self._by_address.get(target.address)

    def add(self, connection: Connection) -> None:
        """Read this connection from now on."""
        self._by_address[connection.target.address] = connection
        self._by_fd[connection.sock.fileno()] = connection
        self._epoll.register(connection.sock, select.EPOLLIN)

    def drop(self, connection: Connection) -> None:
        """Give this connection to no more calls."""
        if self._by_address.get(connection.target.address) is connection:
            del self._by_address[connection.target.address]

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
            events = self._epoll.poll(self._patience_s())
            if not events and self._used_arena and self._arena is not None:
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
            self._do_what_is_due()
        self._close()

    def _patience_s(self) -> float | None:
        """Return how long to wait for something to happen."""
        times = [one.at - time.monotonic() for one in self._reminders]
        times += [TRIM_S] * self._used_arena
        return max(0.0, min(times)) if times else None

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        due = [one for one in self._reminders if one.at <= now]
        self._reminders = [one for one in self._reminders if one.at > now and one.action is not None]
        self._later.extend(one.action for one in due if one.action is not None)
        while self._later:
            try:
                self._later.popleft()()
            except BaseException:
                _log.exception("shoal: unexpected failure in what tells of the deaths of actors")

    def later(self, action: Callable[[], object]) -> None:
        """Have something done in the thread. Any thread."""
        self._later.append(action)
        self.wake()

    def remind(self, reminder: Reminder) -> None:
        """Have something done in time. In the thread."""
        self._reminders.append(reminder)

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
            self.drop(connection)
        left = connection.lost()
        connection.close()
        mourner = _bereaved.get(connection.target.address)
        bereaved = mourner() if mourner is not None else None
        if bereaved is not None:
            bereaved(connection, left)
        else:
            fail(connection.target, left, None)

    def _may_end(self) -> bool:
        global _hub
        with _guard:
            self._reminders = [one for one in self._reminders if one.action is not None]
            if self._by_fd or _expected or self._later or self._reminders:
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
#: Who knows more of an actor than that a connection is gone: its owner. By address.
_bereaved: dict[bytes, weakref.WeakMethod[Bereaved]] = {}


def mourn(address: bytes, bereaved: Bereaved) -> None:
    """Name who is told when a connection to this actor is gone, for as long as he lives."""
    _bereaved[address] = weakref.WeakMethod(bereaved, lambda _: _bereaved.pop(address, None))


def existing(target: Target) -> Connection | None:
    """Return this process's connection to an actor, if it has one."""
    with _guard:
        return _hub.connection(target) if _hub is not None else None


def remind(delay_s: float, action: Callable[[], object]) -> Reminder:
    """Have something done by the thread in so many seconds. Called by the thread itself, so it is there."""
    reminder = Reminder(time.monotonic() + delay_s, action)
    hub = _hub
    assert hub is not None
    hub.remind(reminder)
    return reminder


def do_later(action: Callable[[], object]) -> None:
    """Have something done by the thread, or here if there is none. No other thread: at the end of a program none can be made."""
    with _guard:
        hub = _hub
        if hub is not None:
            hub.later(action)
    if hub is None:
        action()


def retire(target: Target, run: int | None) -> None:
    """That run, or the actor for good (None), is known to be gone: its connection takes no more calls.

    What it has brought is still read, up to its end; so the next call leads to the next run, or is refused, at once.
    """
    with _guard:
        connection = _hub.connection(target) if _hub is not None else None
        if connection is not None and run in (None, connection.run):
            _hub.drop(connection)  # type: ignore[union-attr]


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
    return hub is None or threading.get_ident() != hub.thread.ident


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
    found = existing(target)
    if found is not None:
        return found
    with (
        interrupts.deferred() as shield
    ):  # a thread that is struck as it starts another one may leave that waiting for ever
        return _connected(target, timeout, shield)


def _connected(target: Target, timeout: float | None, shield: interrupts.Shield) -> Connection:
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
        with shield.open():
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


def _after_fork_in_child() -> None:
    global _guard, _arena_guard, _hub, _expected
    _guard, _arena_guard = threading.Lock(), threading.Lock()
    _expected = 0
    hub, _hub = _hub, None
    _bereaved.clear()
    if hub is not None:
        hub.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
