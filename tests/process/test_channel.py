"""Channels between threads, forks, and the workers of every start method: types, seats, waiting, closing, asyncio."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

import shoal
from tests.process import queue_tasks
from tests.support import HANG_LIMIT_S, QUIET_S, eventually


@dataclass
class Point:
    x: int
    y: float
    seen: bool = False


@dataclass
class Named:
    name: str
    tags: list[str] = field(default_factory=list)


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as made:
        yield made


def forked(body):
    """Run `body` in a forked child, and return its pid."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- types --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (bytes, [b"", b"x", bytes(4096), b"last"]),
        (Point, [Point(1, 2.5), Point(-(1 << 62), 1e300, True)]),
        (Named, [Named("a"), Named("b", ["c"] * 100)]),
    ],
)
def test_values_come_as_they_were_sent(kind, values):
    channel = shoal.Channel(kind)  # not a parameter: that would be in memory for as long as all tests run
    for value in values:
        channel.send(value)
    assert [channel.receive() for _ in values] == values


def test_arrays_come_as_they_were_sent():
    channel = shoal.Channel("f4", shape=(3, 5), capacity=3)
    sent = np.arange(15, dtype="f4").reshape(3, 5)
    channel.send(sent)
    channel.send(sent[:, ::-1])
    got, out = channel.receive(), np.zeros((3, 5), "f4")
    assert (got == sent).all()
    got[:] = 0
    assert channel.receive(out=out) is out
    assert (out == sent[:, ::-1]).all()


@pytest.mark.parametrize(
    ("kind", "wrong", "words"),
    [
        ((bytes,), "text", "carries bytes, not str"),
        (("f4", 3), np.zeros(3), "array of float32 with shape .3,., not an array of float64"),
        (("f4", 3), [1, 2, 3], "not list"),
        ((Point,), Named("a"), "carries Point, not Named"),
        ((Point,), Point("a", 1.0), "not of its type"),
    ],
    ids=str,
)
def test_another_type_is_refused_in_words(kind, wrong, words):
    channel = shoal.Channel(kind[0], shape=kind[1] if kind[1:] else None)
    with pytest.raises(TypeError, match=words):
        channel.send(wrong)
    assert channel.statistics().sent == 0


def test_a_message_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="message_bytes=11"):
        shoal.Channel(bytes, message_bytes=10).send(bytes(11))


@pytest.mark.parametrize("kind", [int, object, "f4", "O"])
def test_a_kind_that_no_channel_carries_is_refused(kind):
    with pytest.raises(TypeError):
        shoal.Channel(kind, shape=3 if kind == "O" else None)


def test_a_large_ring_takes_memory_as_it_comes_to_it():
    channel = shoal.Channel("u1", shape=1 << 20, capacity=200)
    value = np.full(1 << 20, 3, "u1")
    for _ in range(5):
        channel.send(value)
    assert all((channel.receive() == value).all() for _ in range(5))


# --- ends ---------------------------------------------------------------------------------------


def test_every_reader_gets_every_message():
    channel = shoal.Channel(bytes, readers=2)
    one, other = channel.reader(), channel.reader()
    with pytest.raises(RuntimeError, match="readers=3"):
        channel.reader()
    for value in (b"a", b"b"):
        channel.send(value)
    assert [one.receive(), one.receive()] == [other.receive(), other.receive()] == [b"a", b"b"]


def test_messages_wait_for_a_reader_that_comes_later():
    channel = shoal.Channel(bytes)
    channel.send(b"early")
    assert ended(forked(lambda: check(channel.receive(HANG_LIMIT_S) == b"early"))) == 0


def check(truth):
    assert truth


def test_a_second_writer_is_refused_while_the_first_lives():
    channel = shoal.Channel(bytes)
    channel.writer()

    def intrude():
        with pytest.raises(RuntimeError, match="has a writer already"):
            channel.send(b"x")

    assert ended(forked(intrude)) == 0


def test_the_writer_closes_and_the_readers_get_the_rest():
    channel = shoal.Channel(bytes)
    with channel.writer() as writer:
        writer.send(b"last")
    assert list(channel) == [b"last"]
    with pytest.raises(shoal.ChannelClosed, match="finished"):
        channel.receive()
    with pytest.raises(shoal.ChannelClosed):
        writer.send(b"more")


def test_the_death_of_the_writer_is_told_after_what_it_sent():
    channel = shoal.Channel(bytes)

    def send_and_die():
        channel.send(b"last words")
        os.kill(os.getpid(), signal.SIGKILL)

    child = forked(send_and_die)
    assert channel.receive(HANG_LIMIT_S) == b"last words"
    assert ended(child) == -signal.SIGKILL
    with pytest.raises(shoal.ChannelClosed, match=f"process {child}, ended"):
        channel.receive(HANG_LIMIT_S)
    channel.send(b"somebody else")
    assert channel.receive() == b"somebody else"


def test_a_reader_that_closes_holds_nobody_up():
    channel = shoal.Channel(bytes, capacity=1, readers=2)
    staying, leaving = channel.reader(), channel.reader()
    channel.send(b"1")
    with pytest.raises(TimeoutError):
        channel.send(b"2", timeout=0)
    assert staying.receive() == b"1"
    leaving.close()
    channel.send(b"2", timeout=HANG_LIMIT_S)
    staying.close()
    with pytest.raises(shoal.ChannelClosed, match="nobody reads"):
        channel.send(b"3", timeout=HANG_LIMIT_S)


def test_the_seat_of_a_dead_reader_goes_on_where_it_was():
    channel = shoal.Channel(bytes)
    for value in (b"1", b"2"):
        channel.send(value)

    def read_one_and_die():
        channel.receive()
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(forked(read_one_and_die)) == -signal.SIGKILL
    assert channel.receive(HANG_LIMIT_S) == b"2"


# --- waiting ------------------------------------------------------------------------------------


def test_a_sleeping_reader_is_woken_and_a_sleeping_writer_too(threads):
    channel = shoal.Channel(bytes, capacity=1)
    got = threads.submit(channel.receive)
    eventually(lambda: channel._reader is not None, what="the reader to come")
    channel.send(b"1")
    assert got.result(HANG_LIMIT_S) == b"1"
    channel.send(b"2")
    sending = threads.submit(channel.send, b"3")
    assert channel.receive() == b"2"
    sending.result(HANG_LIMIT_S)
    assert channel.receive() == b"3"


def test_waiting_ends_in_time():
    channel = shoal.Channel(bytes)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        channel.receive(QUIET_S)
    assert QUIET_S <= time.monotonic() - began < HANG_LIMIT_S / 2


def test_ctrl_c_in_receive_takes_nothing_away():
    channel = shoal.Channel(bytes)
    main = threading.get_ident()

    def interrupt():
        eventually(lambda: channel._reader is not None, what="the main thread to receive")
        signal.pthread_kill(main, signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        channel.receive()
    other.join()
    channel.send(b"1")
    assert channel.receive(HANG_LIMIT_S) == b"1"


def test_threads_of_one_process_share_an_end(threads):
    channel = shoal.Channel(Point, capacity=4)
    count = 500
    reading = [threads.submit(lambda: [channel.receive().x for _ in range(count)]) for _ in range(2)]
    sending = [
        threads.submit(lambda start: [channel.send(Point(start + i, 0.0)) for i in range(count)], at)
        for at in (0, count)
    ]
    got = reading[0].result(HANG_LIMIT_S) + reading[1].result(HANG_LIMIT_S)
    assert [one.result(HANG_LIMIT_S) is not None for one in sending] == [True, True]
    assert sorted(got) == list(range(2 * count))


# --- through workers, and in coroutines ---------------------------------------------------------


def test_a_channel_is_an_argument_of_tasks(pool):
    into, out = shoal.Channel("i8", shape=2, capacity=4), shoal.Channel(bytes)
    relay = pool.submit(queue_tasks.relay, {"in": into, "out": [out]})
    for value in range(20):
        into.send(np.array([value, -value]))
    assert [out.receive(HANG_LIMIT_S) for _ in range(20)] == [np.array([v, -v]).tobytes() for v in range(20)]
    into.close()
    relay.result(HANG_LIMIT_S)
    assert list(out) == []


def test_coroutines_send_and_receive_without_holding_up_the_loop():
    channel = shoal.Channel(bytes, capacity=1)

    async def produce():
        for value in range(20):
            await channel.asend(bytes([value]))
        channel.writer().close()

    async def both():
        _, got = await asyncio.gather(produce(), consume())
        return got

    async def consume():
        return [value async for value in channel]

    assert asyncio.run(both()) == [bytes([value]) for value in range(20)]


# --- threads, handlers, forks -------------------------------------------------------------------


def test_a_time_limit_holds_beside_a_thread_that_waits_without_one(threads):
    channel = shoal.Channel(bytes, capacity=1)
    reader = channel.reader()
    waiting = threads.submit(reader.receive)
    eventually(lambda: channel._ring.words[reader._seat + 2], what="the thread sleeps")
    with pytest.raises(TimeoutError):
        reader.receive(timeout=0.02)

    async def one_that_gives_up():
        async with asyncio.timeout(0.02):
            await reader.areceive()

    with pytest.raises(TimeoutError):
        asyncio.run(one_that_gives_up())
    channel.send(b"x")
    assert waiting.result(HANG_LIMIT_S) == b"x"


def test_a_handler_that_sends_while_its_thread_does_is_refused():
    channel = shoal.Channel(bytes, capacity=1)
    channel.send(b"1")
    refused = []

    def handler(*_):
        with pytest.raises(RuntimeError, match="this very thread") as caught:
            channel.send(b"x", timeout=0)
        refused.append(caught)

    before = signal.signal(signal.SIGUSR1, handler)
    me = threading.get_ident()
    later = threading.Timer(0.05, signal.pthread_kill, (me, signal.SIGUSR1))
    later.start()
    try:
        with pytest.raises(TimeoutError):
            channel.send(b"2", timeout=0.2)
    finally:
        later.join()
        signal.signal(signal.SIGUSR1, before)
    assert refused
    assert channel.receive() == b"1"
    channel.send(b"3", timeout=0)


@dataclass
class Picky:
    x: int

    def __post_init__(self):
        if self.x < 0:
            raise ValueError("negative")


def test_a_message_that_cannot_be_rebuilt_is_passed_over():
    channel = shoal.Channel(Picky, capacity=2)
    bad = Picky(1)
    bad.x = -1
    channel.send(bad)
    channel.send(Picky(2))
    with pytest.raises(ValueError, match="negative"):
        channel.receive()
    assert channel.receive() == Picky(2)
    channel.send(Picky(3), timeout=0)


def test_an_array_that_does_not_fit_into_out_is_received_all_the_same():
    channel = shoal.Channel("f4", shape=2)
    channel.send(np.ones(2, "f4"))
    with pytest.raises(ValueError, match="broadcast"):
        channel.receive(out=np.zeros(3, "f4"))
    assert channel.receive().tolist() == [1, 1]


def test_an_end_that_a_fork_inherits_is_not_its_parents():
    channel = shoal.Channel(bytes, readers=2)
    writer, reader = channel.writer(), channel.reader()
    writer.send(b"x")

    def child():
        reader.close()
        writer.close()
        with pytest.raises(RuntimeError, match="has a writer already"):
            writer.send(b"y")
        assert reader.receive(0) == b"x"  # from a seat of its own

    assert ended(forked(child)) == 0
    writer.send(b"z")
    assert [reader.receive(0), reader.receive(0)] == [b"x", b"z"]


@pytest.mark.parametrize("shape", [(-1, 2), (2.5,), ("a",)])
def test_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(ValueError, match="shape must be lengths"):
        shoal.Channel("f4", shape=shape)


def test_a_time_limit_that_is_no_number_is_refused_also_where_nobody_would_wait():
    channel = shoal.Channel(bytes)
    with pytest.raises(ValueError, match="timeout"):
        channel.send(b"x", timeout=float("nan"))
    channel.send(b"x")
    with pytest.raises(ValueError, match="timeout"):
        channel.receive(timeout=float("nan"))
