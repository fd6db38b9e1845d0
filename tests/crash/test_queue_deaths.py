"""Queues with a process killed at every step of the real code: what was put is taken once, or reported, or taken again.

Each test forks a child for each step of an operation and kills it there. See `_sync/QUEUE.md`.
"""

from __future__ import annotations

import os
import queue
import signal

import numpy as np
import pytest

import shoal
from shoal._sync import cells
from tests.crash.line_kills import children
from tests.support import HANG_LIMIT_S

#: Bytes of a buffer that gets a block.
LARGE = 1 << 17


@pytest.fixture
def word():
    """Words that the children share with the test."""
    words = cells.make(64).words(0, 8)
    yield words
    words.release()  # pytest keeps it until the audit is over


def drained(items):
    found = []
    while True:
        try:
            found.append(items.get(block=False))
        except queue.Empty:
            return found


def test_an_item_is_put_or_not_wherever_its_producer_is_killed(word):
    items = shoal.Queue()

    def put():
        items.put("one")
        word[0] = 1
        items.put(("two", 2))
        word[0] = 2

    seen = set()
    for child in children(put):
        word[0] = 0
        child.wait()
        got = drained(items)
        assert got == ["one", ("two", 2)][: len(got)]
        assert len(got) >= word[0], "put() had returned"
        seen.add(len(got))
    assert seen == {0, 1, 2}
    assert items.lost == []


def test_a_large_item_is_put_or_not_and_its_memory_returns_wherever_its_producer_is_killed():
    items = shoal.Queue(memory_limit="1MiB")  # 16 units: what is not given back is soon missed
    value = np.arange(LARGE, dtype="u1")

    seen = set()
    for child in children(lambda: items.put(value)):
        child.wait()
        got = drained(items)
        assert all((one == value).all() for one in got)
        seen.add(len(got))
        got.clear()
        items.statistics()  # looks for the dead
        assert free_units(items) >= 13
    assert seen == {0, 1}


def free_units(items):
    entries = items._core._entries()
    used = sum(held >> 32 for held in entries[1::2] if held & 0xFFFFFFFF)
    return items._core.units - used


@pytest.mark.parametrize("value", [7, ("seven", 7), np.ones(LARGE, "u1")], ids=["plain", "pickled", "large"])
def test_an_item_is_left_or_reported_wherever_its_consumer_is_killed(value, word):
    items = shoal.Queue(memory_limit="1MiB")

    def take():
        items.get()
        word[0] = 1
        items.task_done()
        word[0] = 2

    lost = 0
    ends = set()
    for child in children(take):
        word[0] = 0
        items.put(value)
        child.wait()
        reported = items.lost[lost:]
        left = drained(items)
        assert len(left) + len(reported) <= 1, "in two places"
        if word[0] == 0:
            assert len(left) + len(reported) == 1, "gone without a word"
        if word[0] == 2:
            assert not left
            assert not reported
        assert all(one.pid == child.pid for one in reported)
        lost += len(reported)
        ends.add((len(left), len(reported)))
        left.clear()
        items.statistics()
        assert free_units(items) >= 13
    assert ends == {(1, 0), (0, 1), (0, 0)}


@pytest.mark.parametrize("value", [7, np.ones(LARGE, "u1")], ids=["plain", "large"])
def test_an_item_is_taken_again_wherever_its_consumer_is_killed_before_it_is_done(value, word):
    items = shoal.Queue(ack=True, memory_limit="1MiB")

    def take():
        items.get()[()] = 0 if isinstance(value, np.ndarray) else None
        word[0] = 1
        items.task_done()
        word[0] = 2

    def take_plain():
        items.get()
        word[0] = 1
        items.task_done()
        word[0] = 2

    seen = set()
    for child in children(take if isinstance(value, np.ndarray) else take_plain):
        word[0] = 0
        items.put(value)
        child.wait()
        items.statistics()
        again = []
        try:
            again.append(items.get(block=False))
            items.task_done()
        except queue.Empty:
            pass
        assert all(np.array_equal(one, value) for one in again), "what the dead one wrote is seen"
        if word[0] == 0:
            assert again, "gone without a word"
        if word[0] == 2:
            assert not again, "taken twice"
        seen.add(len(again))
        again.clear()
    assert seen == {0, 1}
    assert items.lost == []
    assert items.statistics().unacknowledged == 0


def test_a_consumer_that_sleeps_gets_what_a_producer_put_that_was_killed_before_it_could_wake_it(word):
    items = shoal.Queue()
    answers = shoal.Queue()

    def echo():
        for item in items:
            answers.put(item)

    pid = os.fork()
    if not pid:
        try:
            echo()
        finally:
            os._exit(0)
    try:
        for child in children(lambda: items.put(1)):
            child.wait()
            items.put(2)
            got = [answers.get(timeout=HANG_LIMIT_S)]
            while got[-1] != 2:
                got.append(answers.get(timeout=HANG_LIMIT_S))
            assert got in ([1, 2], [2])
    finally:
        items.close()
        os.waitpid(pid, 0)


def test_a_loss_counts_once_wherever_the_one_that_buries_the_dead_is_killed():
    items = shoal.Queue()
    losses = 0
    sweepers = children(items.statistics)
    while True:
        items.put(0)
        take_and_die(items)
        losses += 1
        child = next(sweepers, None)
        if child is None:
            break
        child.wait()
        assert len(items.lost) == losses


def take_and_die(items):
    pid = os.fork()
    if not pid:
        items.get()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
