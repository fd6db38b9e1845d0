"""Socket pairs and descriptor passing; memory files."""

from __future__ import annotations

import os
import socket

import pytest

from shoal._os import descriptors, memory


@pytest.fixture(params=["stream", "seqpacket"])
def pair(request):
    make = descriptors.socket_pair if request.param == "stream" else descriptors.seqpacket_pair
    left, right = make()
    with left, right:
        yield left, right


@pytest.fixture
def files():
    """Five descriptors of memory files, closed afterwards."""
    fds = [memory.anonymous_file(f"file-{number}") for number in range(5)]
    yield fds
    for fd in fds:
        os.close(fd)


def open_fds():
    return set(os.listdir("/proc/self/fd"))


def test_pairs_are_close_on_exec_and_hang_up_is_end_of_file(pair):
    left, right = pair
    assert not left.get_inheritable()
    assert not right.get_inheritable()
    left.close()
    assert descriptors.recv_with_fds(right, 10, 2) == (b"", [])


def test_buffer_size_is_asked_of_the_kernel():
    with_default = descriptors.socket_pair()
    asked = descriptors.socket_pair(8192)
    sizes = [end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for end in (with_default[0], *asked)]
    for end in (*with_default, *asked):
        end.close()
    assert sizes == [sizes[0], 16384, 16384]


def test_descriptors_arrive_as_the_same_files_and_close_on_exec(pair, files):
    left, right = pair
    descriptors.send_with_fds(left, b"two", files[:2])
    data, fds = descriptors.recv_with_fds(right, 100, 2)
    try:
        assert data == b"two"
        assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(fd).st_ino for fd in files[:2]]
        assert not any(os.get_inheritable(fd) for fd in fds)
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("room", [0, 1, 2, 3, 4])
def test_a_cut_short_message_leaks_no_descriptor(pair, files, room):
    """Even room for one must not take two: the padding of a control message would let it."""
    left, right = pair
    before = open_fds()
    descriptors.send_with_fds(left, b"five", files)
    with pytest.raises(OSError, match="more descriptors than could be received"):
        descriptors.recv_with_fds(right, 100, room)
    assert open_fds() == before


def test_data_without_descriptors_takes_the_same_way(pair):
    left, right = pair
    descriptors.send_with_fds(left, b"plain", [])
    assert descriptors.recv_with_fds(right, 100, 3) == (b"plain", [])


def test_descriptors_need_a_byte_to_travel_with(pair, files):
    with pytest.raises(ValueError, match="must not be empty"):
        descriptors.send_with_fds(pair[0], b"", files)


def test_closing_quietly_takes_what_is_not_open():
    descriptors.close_quietly(1 << 20)
    descriptors.close_quietly(-1)


def test_a_memory_file_is_zero_bytes_of_its_size_close_on_exec():
    fd = memory.memory_file("page", 10000)
    try:
        assert not os.get_inheritable(fd)
        assert memory.read_all(fd) == bytes(10000)
    finally:
        os.close(fd)


def test_a_mapping_outlives_its_descriptor_and_shares_its_bytes():
    fd = memory.memory_file("page", 4096)
    other = memory.map_shared(fd, 4096)
    with memory.map_shared(fd, 4096) as page, other:
        os.close(fd)
        page[:5] = b"hello"
        assert other[:5] == b"hello"


def test_reading_all_does_not_move_the_writers_offset():
    fd = memory.anonymous_file("report")
    try:
        os.write(fd, b"x" * 100_000)
        assert memory.read_all(fd) == b"x" * 100_000
        os.write(fd, b"end")
        assert memory.read_all(fd).endswith(b"xend")
    finally:
        os.close(fd)


def test_impossible_sizes_are_refused_and_leak_nothing():
    before = open_fds()
    with pytest.raises(OSError):
        memory.memory_file("negative", -1)
    with pytest.raises(ValueError, match="above 0"):
        memory.map_shared(0, 0)
    assert open_fds() == before
