"""Two links in one process: messages with large buffers, both ways, in order, whoever sends; an end is an end.

Real sockets, real memory.
"""

from __future__ import annotations

import socket
import threading
from functools import partial

import pytest

from shoal._memory.arena import Arena
from shoal._os import descriptors
from shoal._wire import messages as m
from shoal._wire.courier import LEND_BYTES, Courier
from shoal._wire.frames import send_all
from shoal._wire.link import Link

HELLO = m.OTHERS


@pytest.fixture
def ends():
    """Two links that face each other."""
    data, passing = descriptors.socket_pair(), descriptors.socket_pair()
    arenas, links = [], []
    for sock, beside in zip(data, passing, strict=True):
        beside.setblocking(False)
        arenas.append(Arena(64 << 20))
        courier = Courier(beside, lambda arena=arenas[-1]: arena, lambda identity: None)
        links.append(Link(sock, courier, partial(send_all, sock)))
    yield links
    for link, arena in zip(links, arenas, strict=True):
        link.courier.close()
        link.sock.close()
        arena.close()


def test_messages_arrive_in_order_with_the_buffers_of_their_frame(ends):
    one, other = ends
    one.send((HELLO, 1), (HELLO, 2), buffers=[b"small"])
    one.send((HELLO, 3))
    assert [other.receive() for _ in range(3)] == [((HELLO, 1), [b"small"]), ((HELLO, 2), [b"small"]), ((HELLO, 3), [])]


def test_a_large_buffer_is_lent_and_its_return_is_told_with_the_next_frame(ends):
    one, other = ends
    one.send((HELLO,), buffers=[bytes(LEND_BYTES)])
    message, buffers = other.receive()
    assert bytes(buffers[0]) == bytes(LEND_BYTES)
    assert not other.courier.has_news
    buffers.clear()
    del message
    assert other.courier.has_news
    other.tell()
    assert one.read()  # nothing but news: no message
    assert one.take() is None
    assert not other.courier.has_news


def test_telling_nothing_sends_nothing(ends):
    one, other = ends
    one.tell()
    with pytest.raises(BlockingIOError):
        other.read(socket.MSG_DONTWAIT)


def test_reading_all_never_blocks(ends):
    one, other = ends
    assert other.read_all() is True
    one.send((HELLO, 1))
    one.send((HELLO, 2))
    assert other.read_all() is True
    assert [other.take()[0], other.take()[0], other.take()] == [(HELLO, 1), (HELLO, 2), None]


def test_what_was_sent_before_the_end_arrives_before_it(ends):
    one, other = ends
    one.send((HELLO, 1))
    one.sock.close()
    assert other.receive() == ((HELLO, 1), [])
    with pytest.raises(EOFError, match="the other end of the link is gone"):
        other.receive()
    assert other.read_all() is False


def test_a_torn_frame_is_dropped(ends):
    one, other = ends
    one.send((HELLO, 1))
    one.sock.send(b"\x40")
    one.sock.close()
    while other.read_all():
        pass
    assert [other.take(), other.take()] == [((HELLO, 1), []), None]


def test_sending_to_nobody_is_an_os_error(ends):
    one, other = ends
    other.sock.close()
    with pytest.raises(OSError, match="Broken pipe"):
        one.send((HELLO,))


def test_frames_of_many_threads_stay_whole(ends):
    one, other = ends

    def send(thread):
        for number in range(50):
            one.send((HELLO, thread, number), buffers=[bytes([thread]) * 1000])

    threads = [threading.Thread(target=send, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    came = [other.receive() for _ in range(150)]
    for thread in threads:
        thread.join()
    assert all(bytes(buffers[0]) == bytes([message[1]]) * 1000 for message, buffers in came)
    for thread in range(3):
        assert [message[2] for message, _ in came if message[1] == thread] == list(range(50))
