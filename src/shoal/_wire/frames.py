"""Frames: a list of messages and the large buffers that belong to it, on a stream socket.

Role: turn messages into bytes and bytes into messages. Owner: each end has its own reader.

Layout, little-endian
    u64 body length, u64 number of buffers, u64 length of each buffer, body, buffers
The body is `marshal` of a list of tuples: the fastest codec for ints and bytes, and safe here
because both ends are the same interpreter and every peer is a process we started.

Invariants
    F1  Bytes of two frames never mix: whoever writes holds the only right to write that socket.
    F2  A buffer is received straight into its own `bytearray`, so what is built on it is writable.
    F3  A torn frame (its sender died) is dropped whole; the frames before it count.
"""

from __future__ import annotations

import marshal
import socket
import struct
from collections.abc import Sequence
from typing import Any

from shoal._wire.messages import Message

_HEAD = struct.Struct("<QQ")
#: Most bytes asked for in one read. Large enough that a burst of results comes in few system calls.
READ_BYTES = 1 << 18
#: Bytes asked for when the last read found less. Measured: room for 256 KiB may come from the system and go back to it for
#: each read, in three calls and 12 us; room for 64 KiB is the allocator's own, and costs nothing.
LITTLE_BYTES = 1 << 16
#: A payload of at least this many bytes travels as a buffer of the frame, not inside its body.
LARGE_BYTES = 1 << 16

Buffer = bytes | bytearray | memoryview


def encode(messages: Sequence[Message], buffers: Sequence[Any] = ()) -> list[Buffer]:
    """Return the pieces of one frame, to be sent in order; the first holds head and body. A buffer may come in parts."""
    body = marshal.dumps(messages if type(messages) is list else list(messages))
    if not buffers:
        return [_HEAD.pack(len(body), 0) + body]
    parts = [parts_of(buffer) for buffer in buffers]
    sizes = struct.pack(f"<{len(parts)}Q", *(sum(view.nbytes for view in views) for views in parts))
    pieces: list[Buffer] = [_HEAD.pack(len(body), len(parts)) + sizes + body]
    pieces += [view for views in parts for view in views if view.nbytes]
    return pieces


def parts_of(buffer: Any) -> list[memoryview]:
    """Return the bytes of a buffer, in order; it has `parts`, or is one."""
    parts: list[memoryview] | None = getattr(buffer, "parts", None)
    return [memoryview(buffer).cast("B")] if parts is None else parts


class Frame:
    """One received frame: its messages and its buffers, a `bytearray` each until a `Courier` puts lent memory there."""

    __slots__ = ("buffers", "messages")

    def __init__(self, messages: list[Message], buffers: list[Any]) -> None:
        self.messages = messages
        self.buffers = buffers


class FrameReader:
    """Collects what a socket delivers into frames. One thread at a time."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._messages: list[Message] | None = None  # body read, buffers still arriving
        self._buffers: list[bytearray] = []
        self._filled = 0  # bytes present in the buffer that is arriving
        self._arriving = 0  # index of that buffer
        self._ask = LITTLE_BYTES  # how much to ask for
        self.short = False  # the last read took less than it asked for: the socket was empty then

    def read(self, sock: socket.socket, flags: int = 0) -> bool:
        """Receive once. False means end of stream.

        Raises:
            BlockingIOError: The socket (or `flags`) does not block, and nothing is there.
        """
        if self._messages is not None and not self._pending and self._filled < len(self._buffers[self._arriving]):
            target = memoryview(self._buffers[self._arriving])[self._filled :]
            target_size = target.nbytes
            count = sock.recv_into(target, 0, flags)
            target.release()
            self._filled += count
            self.short = count < target_size
        else:
            data = sock.recv(self._ask, flags)
            count = len(data)
            self._pending += data
            self.short = count < self._ask
            self._ask = LITTLE_BYTES if self.short else READ_BYTES
        return count > 0

    def frames(self) -> list[Frame]:
        """Return the frames that are complete by now, oldest first."""
        done: list[Frame] = []
        while True:
            if self._messages is None and not self._start():
                return done
            if not self._fill():
                return done
            assert self._messages is not None
            done.append(Frame(self._messages, self._buffers))
            self._messages, self._buffers = None, []

    def _start(self) -> bool:
        """Take a head and a body from the pending bytes, if they are all there."""
        pending = self._pending
        if len(pending) < _HEAD.size:
            return False
        body_size, count = _HEAD.unpack_from(pending)
        start = _HEAD.size + 8 * count
        end = start + body_size
        if len(pending) < end:
            return False
        with memoryview(pending) as view:
            self._messages = marshal.loads(view[start:end])
            sizes = struct.unpack_from(f"<{count}Q", view, _HEAD.size) if count else ()
        self._buffers = [bytearray(size) for size in sizes]
        self._arriving = self._filled = 0
        del pending[:end]
        return True

    def _fill(self) -> bool:
        """Move pending bytes into the buffers that wait for them; True when all are full."""
        while self._arriving < len(self._buffers):
            buffer = self._buffers[self._arriving]
            missing = len(buffer) - self._filled
            if missing and self._pending:
                take = min(missing, len(self._pending))
                buffer[self._filled : self._filled + take] = self._pending[:take]
                del self._pending[:take]
                self._filled += take
                missing -= take
            if missing:
                return False
            self._arriving += 1
            self._filled = 0
        return True


def send_all(sock: socket.socket, pieces: Sequence[Buffer]) -> None:
    """Send every piece on a blocking socket. Blocks until the peer took it.

    Raises:
        OSError: The peer is gone.
    """
    if len(pieces) == 1:
        sock.sendall(pieces[0])
        return
    for piece in pieces:
        sock.sendall(piece)
