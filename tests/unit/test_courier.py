"""Two couriers in one process: what is lent is seen, comes back, and is never lost or mixed up, however little is left.

Real memory, real sockets, real descriptors; what runs out is used up for real, too.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
from contextlib import contextmanager

import pytest

from shoal._memory import ledger as ledger_module
from shoal._memory import segments
from shoal._memory.arena import Arena
from shoal._os import descriptors
from shoal._wire import courier as courier_module
from shoal._wire import messages as m
from shoal._wire.courier import LEND_BYTES, Courier
from shoal._wire.frames import FrameReader, encode

MIB = 1 << 20
SIZE = LEND_BYTES + 5000
HELLO = (m.DONE, 1, b"", 0)


class Stream:
    """The bytes of the frames under way, for a reader."""

    def __init__(self):
        self.data = bytearray()

    def recv(self, size, flags=0):
        taken = bytes(self.data[:size])
        del self.data[:size]
        return taken

    def recv_into(self, target, size=0, flags=0):
        taken = self.recv(target.nbytes)
        target[: len(taken)] = taken
        return len(taken)


class End:
    """One process: its arena, its courier, what comes to it."""

    def __init__(self, sock):
        sock.setblocking(False)
        self.arena = Arena(256 * MIB)
        self.told = []  # shared segments the other end has let go of
        self.news = 0
        self.courier = Courier(sock, lambda: self.arena, self.told.append)
        self.courier.on_news = self.on_news
        self.incoming, self.reader = Stream(), FrameReader()
        self.peer = None

    def on_news(self):
        self.news += 1

    def pieces(self, *buffers):
        return encode(*self.courier.outgoing([HELLO], list(buffers)))

    def send(self, *buffers):
        for piece in self.pieces(*buffers):
            self.peer.incoming.data += piece

    def receive(self):
        """Take in everything that was sent; return the buffers of the last frame."""
        return (self.receive_all() or [None])[-1]

    def receive_all(self):
        """Take in everything that was sent; return the buffers of each frame."""
        frames = []
        while self.incoming.data:
            self.reader.read(self.incoming)
            frames += self.reader.frames()
        for frame in frames:
            self.courier.incoming(frame)
            assert frame.messages == [HELLO]
        return [frame.buffers for frame in frames]

    def store(self, fill, nbytes=SIZE):
        return self.arena.store(data(fill, nbytes))

    def close(self):
        self.courier.close()
        self.arena.close()


@pytest.fixture
def ends():
    """The program's end and a worker's."""
    left, right = descriptors.socket_pair()
    program, worker = End(left), End(right)
    program.peer, worker.peer = worker, program
    yield program, worker
    program.close()
    worker.close()
    gc.collect()
    assert (program.arena.used_bytes, worker.arena.used_bytes) == (0, 0)


@pytest.fixture
def program(ends):
    return ends[0]


@pytest.fixture
def worker(ends):
    return ends[1]


def data(fill, nbytes=SIZE):
    return memoryview(bytes([fill]) * nbytes)


def descriptors_open():
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def few_descriptors(left):
    """Every descriptor there may be is taken, but for `left`."""
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, old[1]))
    taken = []
    try:
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        for _ in range(left):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, old)


def fill_socket(sock):
    """Leave no room for another descriptor."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    count = 0
    try:
        while True:
            sock.send(b"x")
            count += 1
    except BlockingIOError:
        return count


# --- lending ------------------------------------------------------------------------------------


def test_large_buffers_are_lent_and_small_ones_travel(program, worker):
    small, large = data(1, 1000), data(2)
    pieces = program.pieces(small, large, program.store(3))
    assert sum(map(len, pieces)) < 2000
    worker.incoming.data += b"".join(pieces)
    assert [bytes(buffer) for buffer in worker.receive()] == [bytes(small), bytes(large), bytes(data(3))]
    assert program.arena.lent == 2


@pytest.mark.parametrize("nbytes", [LEND_BYTES - 1, LEND_BYTES, LEND_BYTES + 1])
def test_the_threshold_is_exact(program, worker, nbytes):
    program.send(data(1, nbytes))
    assert program.arena.lent == (nbytes >= LEND_BYTES)
    assert bytes(worker.receive()[0]) == bytes(data(1, nbytes))


def test_a_lease_ends_when_the_last_view_is_gone_and_the_owner_heard_of_it(program, worker):
    program.send(data(1))
    buffers = worker.receive()
    part = memoryview(buffers[0])[10:20]
    buffers.clear()
    assert (worker.news, worker.courier.has_news) == (0, False)
    assert bytes(part) == b"\1" * 10
    del part
    assert (worker.news, worker.courier.has_news) == (1, True)
    assert program.arena.used_bytes > 0
    worker.send()
    program.receive()
    assert (program.arena.used_bytes, program.arena.lent) == (0, 0)
    assert not worker.courier.has_news


def test_what_arrives_is_the_receivers_own(program, worker):
    argument = program.store(1)
    program.send(argument)
    program.send(argument)
    first = worker.receive()[0]
    first[:100] = data(9, 100)
    assert argument.view() == data(1)
    program.send(argument)
    second = worker.receive()[0]
    assert second == data(1)
    assert first[:101] == bytes(data(9, 100)) + b"\1"


def test_memory_is_written_again_only_after_the_news_of_it(program, worker):
    held = []
    for fill in range(30):
        worker.send(data(fill))
        held.append(program.receive()[0])
    assert [bytes(view) for view in held] == [bytes(data(fill)) for fill in range(30)]
    most = worker.arena.held_bytes
    for fill in range(30, 300):
        held[fill % 30].release()
        held[fill % 30] = None
        program.send()
        worker.receive()
        worker.send(data(fill % 251))
        held[fill % 30] = program.receive()[0]
    assert [view[0] for view in held] == [fill % 251 for fill in range(270, 300)]
    assert worker.arena.held_bytes == most


def test_one_stored_buffer_goes_to_many_and_returns_from_each(program, worker):
    left, right = descriptors.socket_pair()
    other, taker = End(left), End(right)
    other.peer, other.arena = taker, program.arena
    stored = program.store(4)
    program.send(stored, stored)
    other.send(stored)
    del stored
    first, second = worker.receive(), taker.receive()
    assert [bytes(view) for view in (*first, *second)] == [bytes(data(4))] * 3
    assert program.arena.lent == 3
    other.courier.close()  # that worker has died
    assert program.arena.lent == 2
    taker.courier.close()
    taker.arena.close()
    second.clear()


def test_results_outlive_their_worker_and_its_courier(program, worker):
    worker.send(data(5))
    result = program.receive()[0]
    worker.courier.close()
    program.courier.close()
    worker.arena.close()
    worker.arena = Arena(MIB)
    assert result == data(5)
    del result
    assert program.news == 0  # nobody is left to tell


def test_what_lies_unread_in_the_socket_returns_with_the_death_of_the_reader(program, worker):
    before = descriptors_open()
    program.send(data(1), data(2))
    worker.courier.close()
    assert program.arena.lent == 2
    program.courier.close()
    assert (program.arena.lent, program.arena.used_bytes) == (0, 0)
    assert descriptors_open() <= before


def test_descriptors_are_not_kept_for_what_is_mapped(program, worker):
    worker.send(data(1))
    held = [program.receive()[0]]
    before = descriptors_open()
    for fill in range(12):
        worker.send(data(fill))
        held.append(program.receive()[0])
    assert descriptors_open() - before <= 1  # a second slab of the sender's
    held.clear()


# --- many, and too many -------------------------------------------------------------------------


def test_a_frame_of_many_buffers_with_a_descriptor_each_does_not_block(program, worker, monkeypatch):
    """More than one message may carry (253), and more than the socket takes (277)."""
    monkeypatch.setattr(ledger_module, "SLAB_BYTES", 1)  # each block a file of its own
    worker.send(*[data(n % 251, LEND_BYTES) for n in range(300)])
    buffers = program.receive()
    assert all(view == data(n % 251, LEND_BYTES) for n, view in enumerate(buffers))
    del buffers


def test_buffers_of_one_slab_need_one_descriptor(program, worker):
    seen = []
    real = descriptors.send_with_fds
    stored = [program.store(n) for n in range(8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descriptors, "send_with_fds", lambda sock, data, fds: (seen.extend(fds), real(sock, data, fds)))
        program.send(*stored)
    assert len(seen) == 1
    assert [view[0] for view in worker.receive()] == list(range(8))


def test_what_cannot_be_lent_because_the_socket_is_full_travels_inside(program, worker):
    unread = fill_socket(program.courier._sock)
    program.send(data(1), program.store(2))
    assert program.arena.lent == 0
    worker.courier._sock.recv(unread)  # what this test has put there
    assert [bytes(view) for view in worker.receive()] == [bytes(data(1)), bytes(data(2))]
    program.send(data(3))
    assert program.arena.lent == 1
    assert worker.receive()[0] == data(3)


def test_what_travels_inside_is_not_written_over_before_it_is_sent(program, worker):
    """The pieces of a frame may wait for the socket long after the stored buffer was let go of."""
    unread = fill_socket(program.courier._sock)
    pieces = program.pieces(program.store(1))
    later = [program.store(fill) for fill in range(2, 20)]
    worker.courier._sock.recv(unread)
    worker.incoming.data += b"".join(pieces)
    assert worker.receive()[0] == data(1)
    del later, pieces


def test_over_the_limit_everything_travels_inside(program, worker):
    program.arena = Arena(0)
    program.send(*[data(n) for n in range(20)])
    assert [view[0] for view in worker.receive()] == list(range(20))
    assert program.arena.held_bytes == 0


def test_beyond_the_mappings_a_process_may_have_data_is_copied_and_the_lease_ends_at_once(program, worker, monkeypatch):
    monkeypatch.setattr(courier_module, "MOST_MAPPINGS", courier_module._mappings + 1)
    program.send(data(1), data(2), data(3))
    buffers = worker.receive()
    assert [bytes(view) for view in buffers] == [bytes(data(fill)) for fill in (1, 2, 3)]
    buffers[1][:10] = buffers[2][:10] = bytes(10)  # writable, too
    worker.send()
    program.receive()
    assert program.arena.lent == 1
    del buffers


# --- descriptors run out ------------------------------------------------------------------------


@pytest.mark.parametrize("left", range(6))
def test_with_few_descriptors_what_arrives_is_right_or_says_so_and_all_returns(program, worker, left):
    program.send(data(0))
    worker.receive()
    stored = [program.store(n, LEND_BYTES << n) for n in range(1, 4)]  # of three slabs
    program.send(*stored)
    with few_descriptors(left):
        buffers = worker.receive()
    assert all(isinstance(one, OSError) or one == data(n, LEND_BYTES << n) for n, one in enumerate(buffers, 1))
    assert not isinstance(buffers[0], OSError)  # the one kept in reserve is for this
    buffers.clear()
    stored.clear()
    worker.send()
    program.receive()
    assert (program.arena.lent, program.arena.used_bytes) == (0, 0)
    program.send(data(7), data(8, 2 * MIB))  # each descriptor still belongs to its frame
    assert [view[0] for view in worker.receive()] == [7, 8]


@pytest.mark.parametrize("left", range(3))
def test_a_sender_without_descriptors_sends_inside_the_frame(program, worker, left):
    with few_descriptors(left):
        program.send(data(1, MIB), data(2, 2 * MIB), data(3, 3 * MIB))
    assert [view[0] for view in worker.receive()] == [1, 2, 3]


# --- shared segments ----------------------------------------------------------------------------


def test_a_shared_segment_is_passed_once_and_is_the_same_memory_everywhere(program, worker):
    view = segments.create(SIZE)
    identity = segments.find(view).id
    before = descriptors_open()
    for _ in range(3):
        program.send(view)
        theirs = worker.receive()[0]
        assert segments.find(theirs) is segments.find(view)
    assert descriptors_open() - before <= 1  # the reserve
    theirs[5:6] = b"x"
    assert view[5] == ord("x")
    assert program.arena.lent == 0
    del view, theirs
    worker.courier._kept.clear()  # as in another process, where this is another mapping
    assert program.news == 1
    program.send()
    worker.receive()
    assert worker.told == [identity]


def test_a_shared_segment_that_could_not_be_received_arrives_next_time(program, worker):
    """Descriptors run out once: that use fails, later ones do not."""
    view = segments.create(SIZE)
    view[:] = data(6)
    with few_descriptors(0):
        program.send(view)
        arrived = worker.receive()[0]
    assert isinstance(arrived, OSError) or arrived == data(6)
    for _ in range(3):
        program.send(view)
        arrived = worker.receive()[0]
        worker.send()  # what it has to say about it, if anything
        program.receive()
    assert arrived == data(6)
    del arrived, view
    worker.courier._kept.clear()


def test_a_part_of_a_segment_is_data_like_any_other(program, worker):
    view = segments.create(2 * SIZE)
    program.send(view[:SIZE])
    theirs = worker.receive()[0]
    theirs[0:1] = b"x"
    assert view[0] == 0
    assert program.arena.lent == 1
    del theirs, view


# --- news ---------------------------------------------------------------------------------------


def test_each_wave_of_news_is_announced(program, worker):
    for wave in range(1, 4):
        program.send(data(1), data(2), data(3))
        worker.receive().clear()
        assert worker.news >= wave
        worker.send()
        program.receive()
        assert program.arena.lent == 0
    assert not worker.courier.has_news


def test_news_of_leases_that_ended_already_is_ignored(program, worker):
    program.send(data(1))
    worker.receive().clear()
    worker.send()
    program.arena.holder_gone(program.courier)
    program.send(data(2))
    buffers = worker.receive()
    program.receive()
    assert program.arena.lent == 1
    buffers.clear()
