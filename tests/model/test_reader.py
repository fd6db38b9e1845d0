"""What a reading caller leaves behind is dealt with on time, in every order of the threads' steps (W1, W2, W3).

The real `Reader`, `Role` and `Timers`; poller, dispatcher and clock are models. Callers read, add timers or submit, and leave;
the background thread is on its way to sleep, asleep, or woken. Time stands still while a caller can go on, so whoever sleeps past
the moment when something is due does so because nobody told it. One preemption at any byte code, or two at any line.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

import shoal._pool.reader as reader_module
import shoal._pool.role as role_module
import shoal._pool.timers as timers_module
from shoal._pool.reader import Reader
from shoal._pool.timers import Timers
from tests.model.interleave import Condition, Lock, Run, interleavings

FILES = {reader_module.__file__}
#: When the timer of a scene is due, in seconds from when it is set: sooner than the background thread looks by itself
#: after a few naps.
DUE_S = 0.02
#: What being roused takes; else a burst, which is over after a time, would go on for ever.
TICK_S = 1e-4


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Poller:
    """What `Poller` promises: `wake` is for whoever polls, and for the sleeper unless masked; `nudge` is for the sleeper."""

    def __init__(self, scene):
        self._scene = scene
        self.readable = self._nudged = self._masked = self.resting = False

    def wake(self):
        self.readable = True
        if self.resting:
            self._nudged = True

    def nudge(self):
        self._nudged = True

    def mask(self):
        if not self.resting:
            self._masked = True

    def unmask(self):
        if not self.resting:
            self._masked = False

    def rest(self):
        self.resting = True
        self._masked = True

    def stir(self):
        self.resting = False
        self._masked = False

    def close(self):
        pass

    def _roused(self):
        return self._nudged or (self.readable and not self._masked)

    def sleep(self, timeout_s):
        """Sleep until something happens; if nothing does and every caller has gone, until the time is over."""
        scene, clock = self._scene, self._scene.clock
        until = math.inf if timeout_s is None else clock.now + timeout_s
        if not self._roused():
            if scene.naps and scene.due is None and until < math.inf:  # time passes while the caller reads
                scene.naps -= 1
                clock.now = until
                return
            while (
                not self._roused() and scene.callers
            ):  # what roused it may be taken by who reads before it has its turn
                Run.current.block_until(lambda: self._roused() or scene.callers == 0)
            if not self._roused():
                if until == math.inf:
                    scene.all_quiet()
                clock.now = max(clock.now, until)
        elif scene.reader._role.taken:  # whoever reads has its turn before this one has looked very often
            Run.current.block_until(lambda: not self._roused() or not scene.reader._role.taken)
        clock.now += TICK_S
        self._nudged = False


class NoCallbacks:
    def __bool__(self):
        return False

    def run(self):
        pass

    def end(self):
        pass


class Scene:
    """A pool of which only the reader is real."""

    def __init__(self, monkeypatch, callers, naps=0):
        self.clock = Clock()
        for module in (reader_module, timers_module):
            monkeypatch.setattr(module, "time", self.clock)
        self.callers, self.naps = callers, naps
        self.poller, self.timers, self.lock = Poller(self), Timers(), Lock()
        self.dispatcher = SimpleNamespace(busy=0, idle=1, waiting=0)
        core = SimpleNamespace(
            lock=self.lock, poller=self.poller, timers=self.timers, dispatcher=self.dispatcher, cpus=2
        )
        self.reader = Reader(core, NoCallbacks(), self.pump, lambda: None, lambda: None)
        self.pumping = 0
        self.to_do = []
        self.due = self.fired_at = None
        self.arrived = self.taken_in = None

    # --- what the engine does -------------------------------------------------------------------

    def pump(self, timeout, shield=None):
        self.pumping += 1
        assert self.pumping == 1, "W1"
        if self.poller.readable and self.arrived is not None and self.taken_in is None:
            self.taken_in = self.clock.now
        self.poller.readable = False
        with self.lock:
            if self.to_do:
                self.to_do.pop(0)()
            for action in self.timers.take_due():
                action()
            self.dispatcher.waiting = 0
        self.pumping -= 1
        return True

    def set_timer(self):
        """As `Core.after`; with the lock held."""
        self.due = self.clock.now + DUE_S
        if self.timers.after(DUE_S, self.fire) and not self.reader.leads_here():
            self.poller.wake()

    def fire(self):
        self.fired_at = self.clock.now
        self.reader.closed.set()

    def all_quiet(self):
        """Nothing will ever happen again."""
        assert self.due is None, "asleep for good, with something due"
        assert not self.dispatcher.waiting, "asleep for good beside work that nobody hands out"
        assert not self.poller.readable, "asleep for good beside what nobody reads"
        self.reader.closed.set()

    # --- callers --------------------------------------------------------------------------------

    def read(self, *steps):
        """Read once for each step, in one turn; then leave."""
        self.to_do += steps
        try:
            while self.to_do and not self.reader.lead(lambda: not self.to_do, None):
                self.reader._role.follow(lambda: not self.to_do, Condition(), None)
        finally:
            self.reader._role.pass_on()
            self.callers -= 1

    def submit(self, times):
        """As `Engine.submit`, of short tasks."""
        for _ in range(times):
            with self.lock:
                self.dispatcher.waiting += 1
                if self.dispatcher.idle and not self.reader.bursting:
                    self.dispatcher.waiting = 0
            self.reader.submitted()
        self.callers -= 1

    def read_quickly(self, turns):
        """As a caller who waits for one result after the other; the last one is for nobody who waits."""
        for _ in range(turns):
            self.poller.readable = True
            while self.poller.readable:
                if not self.reader.lead(lambda: not self.poller.readable, None):
                    self.reader._role.follow(lambda: not self.poller.readable, Condition(), None)
        self.reader._role.pass_on()
        self.poller.readable = True
        self.arrived = self.clock.now
        self.callers -= 1

    def check_arrival(self):
        assert self.taken_in is not None, "what arrived last is never read"
        late_s = self.taken_in - self.arrived
        assert late_s <= 2 * reader_module._STEP_IN_S, f"read {late_s:g} s late"

    def check_timer(self):
        assert self.fired_at is not None, "the timer is lost"
        late_s = self.fired_at - self.due
        assert late_s <= reader_module._STEP_IN_S, f"{late_s:g} s late"

    def check_work(self):
        assert not self.dispatcher.waiting


@pytest.fixture(autouse=True)
def scheduled_locks(monkeypatch):
    here = SimpleNamespace(Lock=Lock, Condition=Condition, get_ident=role_module.threading.get_ident)
    monkeypatch.setattr(role_module, "threading", here)


def leaving(monkeypatch, naps):
    """A caller sets a timer, reads once more, and leaves; the background thread has had up to `naps` naps meanwhile."""

    def make():
        scene = Scene(monkeypatch, 1, naps)
        return [lambda: scene.read(scene.set_timer, lambda: None), scene.reader._background], scene.check_timer

    return make


def submitting(monkeypatch, readers):
    """One submits in a burst while others read and leave."""

    def make():
        scene = Scene(monkeypatch, 1 + readers)
        bodies = [lambda: scene.submit(3)] + [lambda: scene.read(lambda: None)] * readers
        return [*bodies, scene.reader._background], scene.check_work

    return make


@pytest.mark.parametrize("naps", [0, 4, 9])  # after nine it sleeps until it is woken
def test_a_timer_left_behind_is_on_time(monkeypatch, naps):
    assert interleavings(leaving(monkeypatch, naps), FILES, preemptions=2, fine=False) > 500


def test_a_timer_left_behind_is_on_time_whichever_byte_code_is_interrupted(monkeypatch):
    assert interleavings(leaving(monkeypatch, 9), FILES) > 100


def test_a_timer_set_while_another_caller_reads_is_on_time(monkeypatch):
    def make():
        scene = Scene(monkeypatch, 2)
        bodies = [lambda: scene.read(scene.set_timer, lambda: None), lambda: scene.read(lambda: None)]
        return [*bodies, scene.reader._background], scene.check_timer

    assert interleavings(make, FILES, fine=False) > 100


@pytest.mark.parametrize("readers", [0, 1])
def test_work_submitted_in_a_burst_is_handed_out_when_it_is_over(monkeypatch, readers):
    assert interleavings(submitting(monkeypatch, readers), FILES, preemptions=2 - readers, fine=False) > 50


def test_the_search_finds_a_caller_that_leaves_without_a_word(monkeypatch):
    monkeypatch.setattr(Reader, "_leave_timers", lambda self: None)
    with pytest.raises(AssertionError, match="late|asleep for good"):
        interleavings(leaving(monkeypatch, 9), FILES, preemptions=2, fine=False)


def test_the_search_finds_a_nap_that_does_not_look_again_who_reads(monkeypatch):
    real = Reader._nap

    def nap(reader, seconds):
        first = seconds()
        real(reader, lambda: first)

    monkeypatch.setattr(Reader, "_nap", nap)
    with pytest.raises(AssertionError, match="late|asleep for good"):
        interleavings(leaving(monkeypatch, 9), FILES, preemptions=2, fine=False)


def test_the_search_finds_a_burst_that_ends_without_a_look_at_the_work(monkeypatch):
    monkeypatch.setattr(Reader, "_leave_work", lambda self: None)
    with pytest.raises(AssertionError, match="nobody hands out"):
        interleavings(submitting(monkeypatch, 0), FILES, preemptions=2, fine=False)


def quick_turns(monkeypatch, turns):
    """One waits for a result again and again; then one arrives that nobody waits for."""

    def make():
        scene = Scene(monkeypatch, 1)
        return [lambda: scene.read_quickly(turns), scene.reader._background], scene.check_arrival

    return make


def rests(monkeypatch):
    """Return a list that tells of each search so far whether the background thread rested in it."""
    seen = []
    real = Reader._rest

    def rest(reader):
        seen.append(reader)
        real(reader)

    monkeypatch.setattr(Reader, "_rest", rest)
    return seen


@pytest.mark.parametrize(("turns", "preemptions"), [(1, 2), (4, 1), (8, 1)])
def test_what_arrives_after_quick_turns_is_read_soon(monkeypatch, turns, preemptions):
    rested = rests(monkeypatch)
    assert interleavings(quick_turns(monkeypatch, turns), FILES, preemptions=preemptions, fine=False) > 50
    assert rested or turns < reader_module._QUICK_TURNS


def test_work_left_behind_by_quick_turns_is_handed_out(monkeypatch):
    def make():
        scene = Scene(monkeypatch, 2)
        bodies = [lambda: scene.read_quickly(5), lambda: scene.submit(3)]
        return [*bodies, scene.reader._background], scene.check_work

    assert interleavings(make, FILES, fine=False) > 50


def test_the_search_finds_a_rest_without_an_end(monkeypatch):
    monkeypatch.setattr(reader_module, "_sooner", lambda look, timer: timer)
    with pytest.raises(AssertionError, match="beside what nobody reads"):
        interleavings(quick_turns(monkeypatch, 5), FILES, fine=False)
