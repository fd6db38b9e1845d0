"""A timer that a reading caller leaves behind is dealt with on time, in every order of the threads' steps (W1, W2).

The real `Reader`, `Role` and `Timers`; the poller and the clock are models. Callers read, add timers and leave; the background
thread is on its way to sleep, asleep, or woken. Time stands still while any caller can go on, so whoever sleeps past the
time when something is due sleeps because nobody told it. One preemption at any byte code, two at any line.
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
from tests.model.interleave import Condition, Deadlock, Lock, Run, interleavings

FILES = {reader_module.__file__}
#: When the timer of a scene is due, in seconds of the model's clock: later than the background thread looks by itself.
DUE_S = 0.02


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


class Poller:
    """What `Poller` promises: `wake` is for whoever polls, and for who sleeps unless it is masked; `nudge` is for who sleeps."""

    def __init__(self, scene):
        self.scene = scene
        self.readable = self.nudged = self.masked = False

    def wake(self):
        self.readable = True

    def nudge(self):
        self.nudged = True

    def mask(self):
        self.masked = True

    def unmask(self):
        self.masked = False

    def close(self):
        pass

    def roused(self):
        return self.nudged or (self.readable and not self.masked)

    def sleep(self, timeout_s):
        """Sleep until something happens; if nothing does and all callers have gone, until the time is over."""
        scene = self.scene
        if self.roused():
            self.nudged = False
            return
        until = math.inf if timeout_s is None else scene.clock.now + timeout_s
        if scene.naps and scene.due is None and until < math.inf:  # the time passes while the caller reads
            scene.naps -= 1
            scene.clock.now = until
            return
        Run.current.block_until(lambda: self.roused() or scene.callers == 0)
        if not self.roused():
            assert until < math.inf, "asleep for good, with something due"
            scene.clock.now = max(scene.clock.now, until)
        self.nudged = False


class Scene:
    """A pool of which only the reader is real. Each caller reads a few times, and then leaves."""

    def __init__(self, monkeypatch, callers, naps):
        self.clock = Clock()
        for module in (reader_module, timers_module):
            monkeypatch.setattr(module, "time", self.clock)
        self.callers, self.naps = callers, naps
        self.poller = Poller(self)
        self.timers = Timers()
        self.lock = Lock()
        core = SimpleNamespace(
            lock=self.lock, poller=self.poller, timers=self.timers, dispatcher=SimpleNamespace(busy=0)
        )
        callbacks = SimpleNamespace(run=lambda: None, end=lambda: None, __bool__=lambda: False)
        self.reader = Reader(core, callbacks, self.pump, lambda: None)
        self.reader._callbacks = Callbacks()
        self.pumping = 0
        self.to_do = []
        self.due = self.fired_at = None

    def after(self, delay_s):
        """As `Core.after`, by whoever has the lock."""
        if self.timers.after(delay_s, self.fire):
            self.poller.wake()

    def fire(self):
        self.fired_at = self.clock.now
        self.reader.closed.set()

    def pump(self, timeout, shield=None):
        self.pumping += 1
        assert self.pumping == 1, "W1"
        self.poller.readable = False
        with self.lock:
            if self.to_do:
                self.to_do.pop(0)()
            for action in self.timers.take_due():
                action()
        self.pumping -= 1
        return True

    def caller(self, *steps):
        """Read once for each step, in one turn; then leave."""
        self.to_do += steps
        try:
            while self.to_do and not self.reader.lead(lambda: not self.to_do, None):
                self.reader._role.follow(lambda: not self.to_do, Condition(), None)
        finally:
            self.reader._role.pass_on()
            self.callers -= 1

    def check(self):
        assert self.fired_at is not None, "the timer is lost"
        late_s = self.fired_at - self.due
        assert late_s <= reader_module._STEP_IN_S, f"{late_s:g} s late"


class Callbacks:
    def __bool__(self):
        return False

    def run(self):
        pass

    def end(self):
        pass


@pytest.fixture(autouse=True)
def scheduled_locks(monkeypatch):
    here = SimpleNamespace(Lock=Lock, Condition=Condition, get_ident=role_module.threading.get_ident)
    monkeypatch.setattr(role_module, "threading", here)


def leaving(monkeypatch, naps):
    """A caller adds a timer, reads once more, and leaves; the background thread has napped `naps` times."""

    def make():
        scene = Scene(monkeypatch, 1, naps)
        def add():
            scene.due = scene.clock.now + DUE_S
            scene.after(DUE_S)
        return [lambda: scene.caller(add, lambda: None), scene.reader._background], scene.check

    return make

@pytest.mark.parametrize("naps", [0, 1, 4, 8, 9])
def test_x(monkeypatch, naps):
    print(interleavings(leaving(monkeypatch, naps), FILES, preemptions=2, fine=False))
