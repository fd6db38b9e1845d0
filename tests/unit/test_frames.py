"""However a stream is cut into reads, the same frames come out (F1 to F3)."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal._wire import frames as frames_module
from shoal._wire.frames import LARGE_BYTES, FrameReader, encode, send_all

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=8,
)
messages = st.lists(st.tuples(st.integers(1, 30), plain), min_size=1, max_size=4)
buffers = st.lists(st.binary(max_size=300), max_size=4)


class Stream:
    """A socket that gives what is there in reads of chosen sizes."""

    def __init__(self, data, sizes):
        self.data, self.sizes = data, sizes

    def _take(self, most):
        size = min(most, self.sizes.pop(0) if self.sizes else most)
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    def recv(self, size, flags=0):
        return self._take(size)

    def recv_into(self, target, size, flags=0):
        data = self._take(target.nbytes)
        target[: len(data)] = data
        return len(data)


def bytes_of(pieces):
    return b"".join(bytes(piece) for piece in pieces)


def read_all(stream, reader=None):
    reader = reader or FrameReader()
    found = []
    while stream.data:
        assert reader.read(stream)
        found += reader.frames()
    return found


def plainly(frames):
    return [(frame.messages, [bytes(buffer) for buffer in frame.buffers]) for frame in frames]


@given(st.lists(st.tuples(messages, buffers), max_size=4), st.lists(st.integers(1, 400), max_size=60))
def test_any_cutting_of_the_stream_gives_the_same_frames(sent, sizes):
    data = b"".join(bytes_of(encode(*one)) for one in sent)
    assert plainly(read_all(Stream(data, sizes))) == sent


@given(messages, buffers, st.lists(st.integers(1, 40), max_size=30))
def test_reading_on_before_taking_frames_changes_nothing(message, parts, sizes):
    data = bytes_of(encode(message, parts)) * 3
    stream, reader = Stream(data, sizes), FrameReader()
    while stream.data:
        assert reader.read(stream)
    assert plainly(reader.frames()) == [(message, parts)] * 3


@settings(max_examples=30)
@given(messages, buffers, st.data())
def test_a_torn_frame_is_dropped_and_the_ones_before_it_count(message, parts, data):
    whole = bytes_of(encode(message, parts))
    cut = data.draw(st.integers(0, len(whole) - 1))
    stream, reader = Stream(whole + whole[:cut], []), FrameReader()
    assert plainly(read_all(stream, reader)) == [(message, parts)]
    assert not reader.read(stream)
    assert reader.frames() == []


def test_reader_that_is_asked_again_with_a_full_buffer_does_not_report_the_end():
    data = bytes_of(encode([(1,)], [b"x" * 1000]))
    stream, reader = Stream(data + bytes_of(encode([(2,)])), [len(data) - 400, 400]), FrameReader()
    assert reader.read(stream)
    assert reader.frames() == []
    assert reader.read(stream)  # straight into the buffer, which is full now
    assert reader.read(stream), "there is another frame"
    assert [frame.messages for frame in reader.frames()] == [[(1,)], [(2,)]]


def test_end_of_stream_is_told():
    assert not FrameReader().read(Stream(b"", []))


def test_a_short_read_is_noticed():
    reader = FrameReader()
    reader.read(Stream(bytes_of(encode([(1,)])), []))
    assert reader.short
    reader.read(Stream(b"\0" * frames_module.READ_BYTES, []))
    assert not reader.short


def test_received_buffers_are_writable_and_their_own():
    shared = b"abc" * 100
    (frame,) = read_all(Stream(bytes_of(encode([(1,)], [shared, shared])), []))
    frame.buffers[0][:3] = b"xyz"
    assert bytes(frame.buffers[1]) == shared


@pytest.mark.parametrize("count", [0, 1, 3])
def test_empty_buffers_keep_their_place(count):
    parts = [b"", b"full", b""][:count]
    (frame,) = read_all(Stream(bytes_of(encode([(1,)], parts)), []))
    assert [bytes(part) for part in frame.buffers] == parts


def test_buffers_are_sent_without_a_copy():
    large = bytearray(LARGE_BYTES)
    pieces = encode([(1,)], [large])
    assert pieces[1].obj is large


def test_frames_cross_a_real_socket_however_large():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        pieces = encode([("large",)], [b"z" * 3_000_000, b"", b"end"])
        left = memoryview(bytes_of(pieces))
        reader, found = FrameReader(), []
        while not found:
            try:
                left = left[ours.send(left) :] if left else left
            except BlockingIOError:
                pass
            assert reader.read(theirs)
            found = reader.frames()
        assert found[0].messages == [("large",)]
        assert bytes(found[0].buffers[0]) == b"z" * 3_000_000
        send_all(theirs, encode([("back",)], [b"1", b"2"]))
        while not (back := reader.frames()):
            assert reader.read(ours)
        assert plainly(back) == [([("back",)], [b"1", b"2"])]
