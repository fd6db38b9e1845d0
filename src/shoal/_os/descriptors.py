"""Socket pairs, and passing descriptors through them.

Role: AF_UNIX mechanism. Owner: nobody; the caller closes what it gets.

Invariants
    F1  Everything made or received here is close-on-exec from its first instant.
    F2  A message whose descriptors did not fit leaves none of them open here.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Sequence

_FD_BYTES = 4


def socket_pair(buffer_bytes: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Return two connected stream sockets, close-on-exec.

    `buffer_bytes` asks for that size of send buffer on both; the kernel doubles it and caps it
    (``net.core.wmem_max``). `None` keeps the system's default.
    """
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if buffer_bytes is not None:
        for end in pair:
            # Only the sender's buffer counts on AF_UNIX, but a reader may be asked for its size too.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    return pair


def seqpacket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep message boundaries, close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_with_fds(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send all of `data` on a blocking socket, the descriptors with its first byte. They stay open here too.

    Raises:
        ValueError: `data` is empty: descriptors need a byte to travel with.
        OSError: The other end is gone, or there are more descriptors than one message takes (253).
    """
    if not data:
        raise ValueError("data must not be empty: descriptors travel with its first byte")
    packed = b"".join(fd.to_bytes(_FD_BYTES, sys.byteorder) for fd in fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)] if fds else []
    sent = sock.sendmsg([data], ancillary)
    if sent < len(data):
        sock.sendall(memoryview(data)[sent:])


def recv_with_fds(sock: socket.socket, max_bytes: int, max_fds: int) -> tuple[bytes, list[int]]:
    """Receive once: up to `max_bytes` bytes and `max_fds` descriptors, which are the caller's to close.

    Returns ``(b"", [])`` at end of file.

    Raises:
        OSError: More descriptors came than `max_fds`, or than this process may have. Those that came in are closed
            again, so nothing leaks; the bytes are lost, so the connection is of no further use.
    """
    # CMSG_LEN, not CMSG_SPACE: its padding would let one descriptor more in than asked for.
    room = socket.CMSG_LEN(max_fds * _FD_BYTES) if max_fds else 0
    data, ancillary, flags, _ = sock.recvmsg(max_bytes, room, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, packed in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(packed) - len(packed) % _FD_BYTES
            fds += memoryview(packed[:whole]).cast("i").tolist()
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            close_quietly(fd)
        raise OSError(f"a message carried more descriptors than could be received (room for {max_fds})")
    return data, fds


def set_inheritable_only(fds: Iterable[int]) -> None:
    """Make exactly `fds`, and 0 to 2 as they are, survive exec; every other descriptor becomes close-on-exec.

    For a process about to exec. A descriptor another thread opens meanwhile is not seen.

    Raises:
        OSError: One of `fds` is not open.
    """
    keep = set(fds)
    for entry in os.listdir("/proc/self/fd"):
        fd = int(entry)
        if fd > 2 and fd not in keep:
            try:
                os.set_inheritable(fd, False)
            except OSError:
                pass  # the listing's own descriptor, or one just closed
    for fd in keep:
        os.set_inheritable(fd, True)


def limit() -> int:
    """Return how many descriptors this process may have."""
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def close_quietly(fd: int) -> None:
    """Close `fd`; nothing happens if it is not open or closing it reports an error. It is gone either way.

    An attribute that a fork closes too is cleared first: between the two, another thread may open the number anew
    and fork, and the child would close what is now something else's.
    """
    try:
        os.close(fd)
    except OSError:
        pass
