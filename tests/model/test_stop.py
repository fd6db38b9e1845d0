"""How one task is stopped without touching the next: deadlines and cancelling, by the real `Care` and the real worker.

The pool looks at a page that moves while it is read, stops the worker some steps later, reads what it sent, looks again
and kills it or lets it go on. Exhaustive: every step at which the look begins, ways the worker moves between the three
loads of that look, and every step at which the stop takes effect. The clock counts steps.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

import shoal._pool.care as care_module
import shoal._pool.dispatcher as dispatcher_module
import shoal._worker.chunks as chunks_module
import shoal._worker.loop as loop_module
from shoal._memory.page import COMMITTED, INDEX, SPAN, STARTED
from tests.model.mortal import LIMIT_S, STEP_NS, Job, Mortal, user_code

#: A stop takes effect within this many steps; enough for the next two tasks to have begun.
LONGEST_STOP = 12
LIMIT_STEPS = round(LIMIT_S * 1e9) // STEP_NS


def slow_at_two(key):
    """A task of one step, but for the second: that takes longer than the limit."""
    for _ in range(LIMIT_STEPS + 3 if key == 2 else 1):
        user_code(key)
    return key


def call(key, *, timed=False):
    return Job([key], [key], single=True, timed=timed)


def chunk(*keys, timed=False):
    return Job(list(keys), list(keys), single=False, timed=timed)


PROGRAMS = {
    "calls": lambda: [call(1, timed=True), call(2, timed=True), call(3), call(4, timed=True)],
    "untimed call before a timed one": lambda: [call(2), call(3, timed=True), call(4)],
    "timed chunk": lambda: [chunk(1, 2, 3, timed=True), call(4)],
    "untimed chunk between": lambda: [call(1, timed=True), chunk(3, 4, 2, 5), call(6, timed=True)],
}


class Pump:
    """The pool's thread, let run while the worker stands still between two of its steps."""

    def __init__(self, mortal, act, look_at, gaps, stop_at):
        self.mortal, self._act = mortal, act
        self._turns = [look_at, look_at + gaps[0], look_at + sum(gaps)]
        self._stop_at = stop_at
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._next = self._turns.pop(0)
        self._rushing = self.over = False
        self.stopped = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        mortal.on_step = self._between_steps
        mortal.on_idle = self.finish

    def _run(self):
        self._go.acquire()
        try:
            self._act()
        finally:
            self.over = True
            self._back.release()

    def _between_steps(self):
        if threading.current_thread() is self._thread:
            return  # a recall: the worker's watcher moves while the pool waits
        while not self.over and self.mortal.steps >= self._next:
            self._go.release()
            self._back.acquire()

    def _wait_for(self, step):
        if self.mortal.steps < step and not self._rushing:
            self._next = step
            self._back.release()
            self._go.acquire()

    def load(self, place):
        """Read one word of a page that may move between two loads."""
        if not self.stopped and place != SPAN and self._turns:
            self._wait_for(self._turns.pop(0))
        return self.mortal.page.words[place]

    def stop(self, pidfd, pid):
        self._wait_for(self._stop_at)
        self.stopped = True
        return True

    def finish(self):
        """Let the pool end what it is at, with the worker idle."""
        self._rushing, self._next = True, 0
        self._between_steps()

    def close(self):
        self.finish()
        self._thread.join()


class Handle:
    """What `Care` needs of a worker's handle."""

    number, state, watched_ns, pid, pidfd, heard_ns = 0, "ready", 0, 1, 1, 10**15
    doomed = None

    def __init__(self, pump, mortal):
        self._pump, self._mortal = pump, mortal
        self.page = self

    def running(self):
        span, index, started = (self._pump.load(place) for place in (SPAN, INDEX, STARTED))
        return (span, index, started) if span else None

    def kill(self, why):
        assert self._pump.stopped, "A1: killed without looking"
        self.doomed = why
        self.unsent = self._mortal.page.words[COMMITTED]
        self._mortal.die()

    def signal(self, signum):
        self._pump.stopped = False
        return True

    def recall(self):
        if not self._mortal.worker.reporter.lock.locked():
            self._mortal.worker.recall()


class Life:
    """One worker's life with one act of the pool in it."""

    def __init__(self, program, act, look_at, gaps, stop_at, monkeypatch):
        self.mortal = mortal = Mortal(slow_at_two, PROGRAMS[program](), dies_at=0)
        self.pump = Pump(mortal, lambda: act(self), look_at, gaps, stop_at)
        self.handle = Handle(self.pump, mortal)
        core = SimpleNamespace(
            workers={0: self.handle}, dispatcher=mortal.dispatcher, after=lambda delay_s, action: None
        )
        self.care = care_module.Care(core, self._read)
        mortal.verdict = lambda announced: self.care.verdict(self.handle, announced)
        clock = self._now
        monkeypatch.setattr(care_module, "time", SimpleNamespace(monotonic_ns=clock))
        monkeypatch.setattr(loop_module, "_clock", clock)
        monkeypatch.setattr(chunks_module, "_clock", clock)
        monkeypatch.setattr(
            care_module, "processes", SimpleNamespace(stop_and_wait=self.pump.stop, state_letter=lambda pid: "T")
        )

    @property
    def dispatcher(self):
        return self.mortal.dispatcher

    def _now(self):
        return self.mortal.steps * STEP_NS

    def _read(self, handle):
        assert self.pump.stopped
        self.mortal.hear()
        return True

    def live(self):
        try:
            self.mortal.live()
        finally:
            self.pump.close()


def check_deadline(life):
    life.care._check(life.handle, life.handle.watched_ns)


def cancel(key):
    def act(life):
        (job,) = [job for job in life.mortal.jobs if key in job.keys]
        job.given_up = True
        life.dispatcher.drop(job)
        life.care.chase(job)

    return act


@pytest.fixture
def lives(monkeypatch):
    monkeypatch.setattr(dispatcher_module, "share", lambda pace, grain, held_s, waiting, workers, owed: waiting)

    def every_life(program, act):
        """Yield every life of `program` in which the pool acts once."""
        whole = Mortal(slow_at_two, PROGRAMS[program](), dies_at=0)
        whole.live()
        for look_at in range(1, whole.steps + 1):
            for gaps in ((0, 0), (1, 0), (0, 1), (2, 1)):
                for stop_at in range(look_at + sum(gaps), min(whole.steps, look_at + LONGEST_STOP) + 1):
                    life = Life(program, act, look_at, gaps, stop_at, monkeypatch)
                    life.live()
                    life.fate = f"look at {look_at}, moves {gaps}, stopped at {stop_at}"
                    yield life

    return every_life


def settled_once(life):
    mortal = life.mortal
    given_up = {key for job in mortal.jobs if job.given_up for key in job.keys}
    keys = {key for job in mortal.jobs for key in job.keys} - given_up
    everywhere = [*mortal.settled, *({mortal.culprit} - {None}), *mortal.requeued]
    assert sorted(key for key in everywhere if key not in given_up) == sorted(keys), life.fate
    assert mortal.returned - given_up <= set(mortal.settled) | mortal.handed_back, life.fate


def running(mortal):
    """Return whose code the worker was in when it was killed, or had just left."""
    return None if mortal.begun in mortal.settled else mortal.begun


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_deadline_kills_only_the_task_that_is_over_it(program, lives):
    kills = total = 0
    for life in lives(program, check_deadline):
        total += 1
        settled_once(life)
        mortal = life.mortal
        if life.handle.doomed is None:
            assert mortal.culprit is None
            assert not mortal.requeued
            continue
        kills += 1
        assert running(mortal) in (None, mortal.culprit), f"{life.fate}: {mortal.begun} was running"
        # Nobody: it ended at its deadline without having sent that yet, and nothing else had begun.
        assert mortal.culprit is not None or life.handle.unsent, f"{life.fate}: killed for what is done"
        assert mortal.culprit in (None, 2), f"{life.fate}: only that one takes too long, blamed {mortal.culprit}"
    print(f"{program}: {total} lives, {kills} killed")
    assert (kills > 0) == (program in ("calls", "timed chunk"))


@pytest.mark.parametrize(
    ("program", "key"), [("calls", 2), ("calls", 3), ("timed chunk", 2), ("untimed chunk between", 4)]
)
def test_cancelling_kills_only_what_was_cancelled(program, key, lives):
    kills = total = 0
    for life in lives(program, cancel(key)):
        total += 1
        settled_once(life)
        mortal = life.mortal
        if life.handle.doomed is not None:
            kills += 1
            (job,) = [job for job in mortal.jobs if key in job.keys]
            assert running(mortal) in (None, *job.keys), f"{life.fate}: {mortal.begun} was running"
            assert mortal.culprit is None or mortal.culprit in job.keys
    print(f"{program}, {key}: {total} lives, {kills} killed")
    assert kills
