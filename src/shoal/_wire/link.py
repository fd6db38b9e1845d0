"""A link: messages with large buffers and shared memory in them, both ways between this program and one process.

Role: one end of a data socket and of the socket for descriptors beside it. Owner: whoever made it; `send` is for any thread,
`read` for one thread at a time.

A message is a tuple, its first element a kind from `messages.py`; each comes with the buffers of its frame, which
`codec.unpack` wants together with a payload of it.

Invariants
    L1  Frames are written in the order in which the courier numbered their descriptors: both happen under `_sending`.
    L2  What a finalizer gives up is told with the next frame, or by `tell`; nothing is sent from a finalizer.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from shoal._wire.courier import Courier
from shoal._wire.frames import Buffer, FrameReader, encode
from shoal._wire.messages import Message

#: A message and the buffers of its frame.
Received = tuple[Message, list[Any]]


class Link:
    """One end. `write` puts the pieces of one frame on the socket, whole or not at all."""

    def __init__(
        self,
        sock: socket.socket,
        courier: Courier,
        write: Callable[[Sequence[Buffer]], object],
        reader: FrameReader | None = None,
    ) -> None:
        self.sock = sock
        self.courier = courier
        self._write = write
        self._reader = reader if reader is not None else FrameReader()
        self._sending = threading.Lock()
        self._queue: deque[Received] = deque()

    def send(self, *messages: Message, buffers: Sequence[Any] = ()) -> None:
        """Send messages in one frame. Blocks as `write` does.

        Raises:
            OSError: `write` raised it: the other end is gone.
        """
        with self._sending:  # L1
            self._write(encode(*self.courier.outgoing(messages, buffers)))

    def tell(self) -> None:
        """Send what the courier has to tell, if there is anything (L2)."""
        if self.courier.has_news:
            self.send()

    def read(self, flags: int = 0) -> bool:
        """Receive once, and queue the messages that are complete. False at end of file.

        Raises:
            BlockingIOError: The socket (or `flags`) does not block, and nothing is there.
        """
        alive = self._reader.read(self.sock, flags)
        for frame in self._reader.frames():
            self.courier.incoming(frame)
            self._queue.extend((message, frame.buffers) for message in frame.messages)
        return alive

    def read_all(self) -> bool:
        """Receive all that is there, without blocking. False at end of file."""
        try:
            while self.read(socket.MSG_DONTWAIT):
                if self._reader.short:
                    return True
        except BlockingIOError:
            return True
        except OSError:  # the other end died with something of ours unread: the same as end of file
            pass
        return False

    def take(self) -> Received | None:
        """Return the oldest message that was read and not taken, or None. Does not block."""
        try:
            return self._queue.popleft()
        except IndexError:
            return None

    def receive(self) -> Received:
        """Return the next message. Blocks.

        Raises:
            EOFError: The other end is gone.
        """
        while True:
            received = self.take()
            if received is not None:
                return received
            if not self.read():
                raise EOFError("the other end of the link is gone")

    def after_fork(self) -> None:
        """In a forked child: whoever held the lock is not here."""
        self._sending = threading.Lock()
