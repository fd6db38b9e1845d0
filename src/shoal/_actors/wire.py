"""What travels between callers and an actor: addresses, greetings, messages, and bytes that a socket does not take at once.

Role: both ends of a connection agree here. Owner: nobody. Protocol: README.md.

Messages, on a link each (`_wire/link.py`)
    to the actor
        (CALL, number, method, wants_answer, payload)            payload: (args, kwargs)
        (ROOM, step)                                             answered by TAKEN at once, and by another when `step` more
                                                                 were taken than that says
        (LAST,)                                                  the owner: end when all before this is done
    from the actor
        (WELCOME, run, pid)                                      first: which run of the actor this is
        (ANSWER, number, payload)
        (FAILED, number, payload)                                payload: an error
        (TAKEN, number, more)                                    this call, and all before it, left the mailbox;
                                                                 more: another TAKEN follows by itself

Greetings, the first bytes of a connection; a descriptor comes with them
    CALLER   key   + one end of the socket for the descriptors of large data
    LISTENER key   + the socket that callers connect to; to a run that has just begun, from the owner
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from _operator import _compare_digest  # what `hmac` has it from; that one would load all of `hashlib`
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from shoal._os import descriptors
from shoal._wire import messages as m
from shoal._wire.frames import Buffer

CALL: Final = m.OTHERS
LAST: Final = m.OTHERS + 1
WELCOME: Final = m.OTHERS + 2
ANSWER: Final = m.OTHERS + 3
FAILED: Final = m.OTHERS + 4
TAKEN: Final = m.OTHERS + 5
ROOM: Final = m.OTHERS + 6

CALLER: Final = b"shoal-caller-1\0\0"
LISTENER: Final = b"shoal-listener-1"
_GREETING = struct.Struct("16s32s")
_CREDENTIALS = struct.Struct("3i")

#: Connections that may wait for an actor that runs a long method, or is being restarted. The system allows 4096 as it comes.
BACKLOG = 4096


def new_address() -> bytes:
    """Return a name for a socket, in the kernel only, that nobody can guess."""
    return b"\0shoal-" + os.urandom(16).hex().encode()


def new_key() -> bytes:
    """Return what a caller has to know."""
    return os.urandom(32)


def listen(address: bytes, backlog: int = BACKLOG) -> socket.socket:
    """Return a socket that listens there. Raises OSError if somebody else does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(address)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def connect(address: bytes, timeout: float | None = None) -> socket.socket:
    """Return a connection to whoever listens there, if that is a process of our user.

    Raises:
        ConnectionRefusedError: Nobody listens.
        TimeoutError: For `timeout` seconds too many others were waiting, too.
    """
    limit = None if timeout is None else time.monotonic() + timeout
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(address)
            if not is_ours(sock):
                raise ConnectionRefusedError("another user's process listens there")
        except BlockingIOError:  # the backlog is full
            sock.close()
            if limit is not None and time.monotonic() >= limit:
                raise TimeoutError(f"no connection within {timeout} s") from None
            time.sleep(0.005)
        except BaseException:
            sock.close()
            raise
        else:
            return sock


def is_ours(sock: socket.socket) -> bool:
    """Whether the other end is a process of our user."""
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(packed)
    return bool(uid == os.geteuid())


def greet(sock: socket.socket, kind: bytes, key: bytes, fd: int) -> None:
    """Say who we are and pass a descriptor; it stays open here. Raises OSError."""
    descriptors.send_with_fds(sock, _GREETING.pack(kind, key), (fd,))


def take_greeting(sock: socket.socket, kind: bytes, key: bytes) -> int | None:
    """Read a greeting, which is there; returns its descriptor, or None if it is not what it should be. Raises OSError."""
    data, fds = descriptors.recv_with_fds(sock, _GREETING.size, 1)
    if len(data) == _GREETING.size and fds:
        said, its_key = _GREETING.unpack(data)
        if said == kind and _compare_digest(its_key, key) and is_ours(sock):
            return fds[0]
    for fd in fds:
        os.close(fd)
    return None


class Named:
    """Stands for a method in the words of an error."""

    def __init__(self, name: str) -> None:
        self.__qualname__ = name


class Outlet:
    """The way out of a socket that does not block. What it does not take at once is kept, in order, and sent by `flush`.

    Nothing raises when the other end is gone: whoever reads the socket sees that.
    """

    def __init__(self, sock: socket.socket, on_blocked: Callable[[], object]) -> None:
        self._sock = sock
        self._on_blocked = on_blocked
        self._left: deque[memoryview] = deque()
        self._lock = threading.Lock()
        self._closed = False

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Send, or keep for later. Does not block."""
        with self._lock:
            if self._closed:
                return
            views = [memoryview(piece).cast("B") for piece in pieces]
            blocked = bool(self._left)
            self._left.extend(views)
            if not blocked and not self._push():
                # The caller's memory may change before the rest is sent.
                self._left = deque(memoryview(bytes(view)) for view in self._left)
                self._on_blocked()
            elif blocked:
                for _ in views:
                    self._left.pop()
                self._left.extend(memoryview(bytes(view)) for view in views)

    def flush(self) -> bool:
        """Send what was kept, as far as that goes; True if all is sent."""
        with self._lock:
            return self._push()

    def _push(self) -> bool:
        left = self._left
        try:
            while left:
                sent = self._sock.send(left[0])
                if sent < left[0].nbytes:
                    left[0] = left[0][sent:]
                else:
                    left.popleft()
        except BlockingIOError:
            return False
        except OSError:
            left.clear()
            self._closed = True
        return True

    def drain(self, limit: float) -> None:
        """Send all, waiting until the monotonic clock shows `limit` at most."""
        while not self.flush():
            left_s = limit - time.monotonic()
            if left_s <= 0:
                return
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT)
            poll.poll(left_s * 1000)

    def close(self) -> None:
        """Take nothing more."""
        with self._lock:
            self._closed = True
            self._left.clear()
