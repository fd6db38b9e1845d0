"""Thousands of kills of producers and consumers at random instants, and every item accounted for.

Role: repetition; `make stress` only. Owner: pytest.
"""

from __future__ import annotations

import os
import queue
import random
import signal
import time
from collections import Counter

import numpy as np
import pytest

import shoal
from shoal._sync import cells

pytestmark = pytest.mark.hang_limit(900)

KILLS = 2_000
PRODUCERS = CONSUMERS = 2
#: Longest life of a process. Seconds.
LIFE_S = 0.02
#: Longest wait for an item of a consumer that has nothing else to do. Seconds.
PATIENCE_S = 5.0


class Child:
    """A forked process with a diary of its own in shared memory: what it had done when it was killed."""

    def __init__(self, body) -> None:
        self.diary = cells.make(64).words(0, 8)
        self.pid = os.fork()
        if not self.pid:
            try:
                body(self.diary)
            finally:
                os._exit(0)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def item(number: int, large: bool):
    return np.full(1 << 17, number % 251, "u1") if large else number


def producing(items, large):
    def body(diary):
        number = 0
        while True:
            number += 1
            items.put(item(number, large))
            diary[0] = number

    return body


def consuming(items, ack):
    def body(diary):
        while True:
            got = items.get()
            assert isinstance(got, int) or (got == got[0]).all(), "not whole"
            diary[0] += 1
            del got
            if ack:
                items.task_done()
                diary[1] += 1

    return body


def storm(items, *, large, ack, kills, seed):
    """Kill until enough have died; returns (put at least, put at most, got, acknowledged) by the diaries."""
    dice = random.Random(seed)
    makers = [lambda: producing(items, large)] * PRODUCERS + [lambda: consuming(items, ack)] * CONSUMERS
    living = [Child(make()) for make in makers]
    totals = Counter()

    def bury(place):
        one = living[place]
        one.kill()
        if place < PRODUCERS:
            totals["put"] += one.diary[0]
            totals["producers"] += 1
        else:
            totals["got"] += one.diary[0]
            totals["done"] += one.diary[1]
            totals["consumers"] += 1
        one.diary.release()

    for _ in range(kills):
        time.sleep(dice.random() * LIFE_S)  # the storm itself: not a wait for anything
        place = dice.randrange(len(living))
        bury(place)
        living[place] = Child(makers[place]())
    for place in range(len(living)):
        bury(place)
    return totals


def left_in(items):
    count = 0
    while True:
        try:
            items.get(block=False)
            count += 1
            if items._ack:
                items.task_done()
        except queue.Empty:
            return count


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("seed", range(2))
def test_every_item_is_taken_lost_or_left(large, seed):
    items = shoal.Queue(200 if not large else 8, memory_limit="16MiB")
    totals = storm(items, large=large, ack=False, kills=KILLS // 2, seed=seed)
    left = left_in(items)
    before = items.statistics()
    assert before.put == before.taken
    # A producer may have been killed between its last put and its diary; a consumer between get and diary.
    assert totals["put"] <= before.put <= totals["put"] + totals["producers"]
    taken_by_the_dead = before.put - left
    assert totals["got"] <= taken_by_the_dead <= totals["got"] + totals["consumers"]
    assert before.lost <= totals["consumers"], "more were lost than consumers died"
    assert taken_by_the_dead - totals["got"] <= before.lost, "gone without a word"
    assert_goes_on(items)


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_every_item_is_acknowledged_or_taken_again(large):
    items = shoal.Queue(200 if not large else 8, ack=True, memory_limit="16MiB")
    totals = storm(items, large=large, ack=True, kills=KILLS // 2, seed=3)
    left = left_in(items)
    after = items.statistics()
    assert after.lost == after.unacknowledged == 0
    assert totals["done"] + left <= after.put <= totals["done"] + totals["consumers"] + left
    assert_goes_on(items)


def assert_goes_on(items):
    """The memory is all there, and an item goes through."""
    for _ in range(20):
        items.put(np.zeros(4 << 20, "u1"), timeout=PATIENCE_S)
        assert items.get(timeout=PATIENCE_S).nbytes == 4 << 20
        if items._ack:
            items.task_done()
