"""Channels with a process killed at every step of the real code: messages arrive whole, in order, and nobody waits for the dead.

Each test forks a child for each step of an operation and kills it there. See `_sync/CHANNEL.md`.
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

import shoal
from tests.crash.line_kills import children
from tests.support import HANG_LIMIT_S

MESSAGES = [b"one" * 9, b"two" * 5]


def test_messages_arrive_whole_and_in_order_wherever_their_writer_is_killed():
    channel = shoal.Channel(bytes)

    def send():
        for message in MESSAGES:
            channel.send(message)

    ends = set()
    for child in children(send):
        child.wait()
        got = []
        with pytest.raises((TimeoutError, shoal.ChannelClosed)):
            while True:
                got.append(channel.receive(0.01))
        assert got == MESSAGES[: len(got)]
        ends.add(len(got))
    assert ends == {0, 1, 2}


def test_a_reader_that_is_killed_loses_at_most_what_it_received_and_holds_nobody_up():
    channel = shoal.Channel(bytes, capacity=2)

    def receive():
        channel.receive(HANG_LIMIT_S)

    writer = channel.writer()
    sent = 0
    for child in children(receive):
        while channel.statistics().sent - min(channel.statistics().received) < 2:
            writer.send(bytes([sent % 256]))
            sent += 1
        child.wait()
        before = channel.statistics()
        assert before.received[0] in (before.sent - 2, before.sent - 1)
    with pytest.raises(shoal.ChannelClosed, match="nobody reads"):  # the last reader has ended, too
        for _ in range(3):
            writer.send(b"", timeout=HANG_LIMIT_S)


def test_a_writer_that_waits_goes_on_when_one_of_two_readers_is_killed():
    channel = shoal.Channel(bytes, capacity=1, readers=2)
    mine, gate = channel.reader(), shoal.Channel(bytes)

    def read_one_and_stop():
        channel.receive(HANG_LIMIT_S)
        gate.send(b"")
        signal.pause()

    pid = os.fork()
    if not pid:
        try:
            read_one_and_stop()
        finally:
            os._exit(1)
    channel.send(b"both")
    gate.receive(HANG_LIMIT_S)
    assert mine.receive(HANG_LIMIT_S) == b"both"
    channel.send(b"mine", HANG_LIMIT_S)
    with ThreadPoolExecutor(1) as beside:
        sending = beside.submit(channel.send, b"after", HANG_LIMIT_S)
        assert mine.receive(HANG_LIMIT_S) == b"mine"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        sending.result(HANG_LIMIT_S)
    assert mine.receive(HANG_LIMIT_S) == b"after"
