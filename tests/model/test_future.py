"""A future is settled once and whoever waits for it is told, in every order of the threads' byte codes (U1, U2).

The real `Future` and `Task`, and `concurrent.futures`' own code for callbacks and waiters. Two threads with one
preemption at any byte code; three with one at any line.
"""

from __future__ import annotations

import concurrent.futures._base as base
from types import SimpleNamespace

import pytest

import shoal._pool.future as future_module
import shoal._pool.jobs as jobs_module
from shoal._pool.future import Future
from shoal._pool.jobs import Task
from tests.model.interleave import Condition, Deadlock, Lock, Run, interleavings

FILES = {future_module.__file__, jobs_module.__file__, base.__file__}
FINAL = (base.CANCELLED_AND_NOTIFIED, base.FINISHED)


class Engine:
    """What a future needs of its engine, as `_pool/engine.py` does it."""

    def __init__(self):
        self.lock = Lock()
        self.to_call = []

    def wait(self, ready, condition, timeout):
        while not ready():
            changed = condition()
            with changed:
                if not ready():
                    changed.wait()

    def cancel(self, task):
        with self.lock:
            if task.given_up or task.future is None:
                return False
            task.given_up = True
        return True

    @property
    def callbacks(self):
        return SimpleNamespace(add=self.to_call.append)


class Scene:
    """A future about to be settled, and what became of those who care."""

    current = None

    def __init__(self):
        Scene.current = self
        self.engine = Engine()
        self.future = Future(self.engine)
        self.task = Task.__new__(Task)
        self.task.given_up = False
        self.task.described = (), {}
        self.task.future, self.future._task = self.future, self.task
        self.got = []
        self.cancelled = None
        self.calls = 0
        self.waiter = None
        self.seen_done = False

    # --- threads --------------------------------------------------------------------------------

    def settle(self):
        self.task.settle(0, ("value",))

    def fail(self):
        self.task.fail(0, ValueError("no"))

    def drop(self):
        self.dropped = True
        with self.engine.lock:
            self.task.given_up = True
        self.task.drop()

    def cancel(self):
        self.cancelled = self.future.cancel()

    def result(self):
        try:
            self.got.append(self.future.result())
        except (base.CancelledError, ValueError) as error:
            self.got.append(type(error))

    def call_back(self):
        def called(future):
            assert future.done()
            self.calls += 1

        self.wants_call = True
        self.future.add_done_callback(called)

    def wait_for_all(self):
        """`concurrent.futures.wait` up to where it sleeps."""
        with base._AcquireFutures([self.future]):
            self.seen_done = self.future._state in FINAL
            if not self.seen_done:
                self.waiter = base._create_and_install_waiters([self.future], base.ALL_COMPLETED)

    wants_call = dropped = False

    def check(self):
        future = self.future
        assert future._state in FINAL
        for callback in self.engine.to_call:
            callback()
        assert self.calls == self.wants_call, f"called back {self.calls} times"
        if self.waiter is not None:
            assert self.waiter.event.is_set(), "a waiter sleeps for ever"
            assert len(self.waiter.finished_futures) == 1
        if self.cancelled is not None:
            # A pool that drops the task at the same time may let cancel() say False a moment too early.
            fits = self.cancelled == future.cancelled() or (self.dropped and not self.cancelled)
            assert fits, f"cancel() said {self.cancelled}, state {future._state}"
        if self.got:
            assert self.got == [
                base.CancelledError if future.cancelled() else ValueError if future._exception else "value"
            ]


@pytest.fixture(autouse=True)
def scheduled_locks(monkeypatch):
    monkeypatch.setattr(Future.__dict__["_condition"], "_make", Condition, raising=False)
    monkeypatch.setattr(future_module, "threading", SimpleNamespace(Condition=Condition))
    # A waiter may spin until the settling thread has taken its next step.
    stand_in = SimpleNamespace(sleep=lambda _: Run.current.block_until(lambda: Scene.current.future._state in FINAL))
    monkeypatch.setattr(future_module, "time", stand_in, raising=False)
    # Futures use the condition alone; waiters and jobs of the base module have locks of their own.
    monkeypatch.setattr(base, "threading", SimpleNamespace(Lock=Lock, Event=base.threading.Event))


def every_order(*threads, preemptions=1, fine=True):
    def make():
        scene = Scene()
        return [getattr(scene, name) for name in threads], scene.check

    count = interleavings(make, FILES, preemptions=preemptions, fine=fine)
    print(f"{' | '.join(threads)}: {count} orders")
    assert count > 50


@pytest.mark.parametrize("ending", ["settle", "fail", "drop"])
@pytest.mark.parametrize("watcher", ["result", "call_back", "wait_for_all"])
def test_whoever_waits_is_told(ending, watcher):
    every_order(ending, watcher)


@pytest.mark.parametrize("ending", ["settle", "fail", "drop"])
def test_a_cancel_and_an_ending_do_not_both_win(ending):
    every_order(ending, "cancel")


@pytest.mark.parametrize("watcher", ["result", "call_back", "wait_for_all"])
def test_three_threads_agree(watcher):
    every_order("settle", "cancel", watcher, fine=False)


def test_two_watchers_share_one_condition():
    every_order("result", "call_back", "settle", fine=False)


def test_three_preemptions_between_an_ending_and_a_callback():
    every_order("drop", "call_back", preemptions=3, fine=False)


# --- the scheduler itself -----------------------------------------------------------------------


def test_the_scheduler_finds_a_lost_update():
    def make():
        box = SimpleNamespace(value=0)

        def add():
            value = box.value
            box.value = value + 1

        def check():
            assert box.value == 2

        return [add, add], check

    with pytest.raises(AssertionError, match="in the order"):
        interleavings(make, {__file__})


def test_the_scheduler_finds_a_deadlock():
    def make():
        first, second = Lock(), Lock()

        def one():
            with first, second:
                pass

        def other():
            with second, first:
                pass

        return [one, other], lambda: None

    with pytest.raises(AssertionError, match=Deadlock.__name__):
        interleavings(make, {__file__})
    assert Run.current is None
