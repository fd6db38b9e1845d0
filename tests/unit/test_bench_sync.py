"""The locks' and queues' benchmark: who has what, and that the parties of a meeting begin together."""

from __future__ import annotations

import threading
import time

import pytest

from benchmarks import parties, sync
from benchmarks.adapter import NotApplicable
from benchmarks.kits import KITS, FasterFifoKit, Kit, MultiprocessingKit
from benchmarks.parties import Cast, Told, meet

ROWS = {row.key for row in sync.SUITE.rows()}


class Threads(Kit):
    """Parties as threads, so that a unit test starts no process."""

    def start(self, fn, *args):
        thread = threading.Thread(target=fn, args=args)
        thread.start()
        return thread.join


def began(seconds):
    def run():
        now = time.perf_counter()
        return {"began": now, "slept": seconds}

    return run


def test_every_contender_has_a_kit():
    assert set(sync.SUITE.contenders) == set(KITS)


def test_what_a_library_has_not_is_said():
    with pytest.raises(NotApplicable, match="queues only"):
        FasterFifoKit().lock()
    with pytest.raises(NotApplicable, match="nothing for two"):
        FasterFifoKit().pipe()


def test_parties_begin_together_and_are_told_apart(monkeypatch):
    monkeypatch.setattr(parties, "LEAD_S", 0.003)
    monkeypatch.setattr(parties, "LOOK_EVERY_S", 0.0002)
    told = meet(Threads(), [Cast(began, (1,)), Cast(began, (2,))])
    assert [said["slept"] for said in told.said] == [1, 2]
    assert abs(told.said[0]["began"] - told.said[1]["began"]) < 5
    assert 0 <= told.took_s < 10


def test_a_pipe_of_the_standard_library_goes_both_ways():
    here, there = MultiprocessingKit().pipe()
    here.send(b"question")
    assert there.receive() == b"question"
    there.send(b"answer")
    assert here.receive() == b"answer"


def test_the_fewest_and_the_longest_wait_are_told_of_a_crowd(monkeypatch):
    said = [{"count": 30, "longest": 0.002}, {"count": 10, "longest": 0.25}]
    monkeypatch.setattr(sync, "CROWDS", (2,))
    monkeypatch.setattr(sync, "meet", lambda kit, cast: Told(1.0, said))
    monkeypatch.setattr(sync, "kit_of", lambda contender: MultiprocessingKit())
    figures = sync.crowd(None, {"seconds": 2.0})
    assert figures == {"crowd_2": 20.0, "fair_2": 0.5, "waited_2": 250.0}
    assert set(figures) <= ROWS


def test_who_is_asked_for_a_lock_counts_and_times(monkeypatch):
    said = sync.contending(threading.Lock(), 0.002)()
    assert said["count"] > 0
    assert 0 <= said["longest"] < 1
