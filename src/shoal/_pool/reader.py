"""Who reads the sockets of a pool.

Role: has one thread at a time pump: a caller that waits for a result reads for itself, which saves waking another thread;
a thread that submits one task after the other reads now and then; when neither is there, the background thread reads, and
serves callbacks and timers. Owner: `engine.Engine`.

Invariants
    W1  Only the holder of the role pumps.
    W2  After `bursting` has become false somebody pumps, so what was not handed out in the burst is.
    W3  While the background thread sleeps, either nothing is due, or it wakes when it is, or somebody else counts: whoever
        leaves with something due wakes it if it would sleep longer.
    W4  While the background thread rests, because callers come and go so quickly that each of them would wake it, it looks
        every `_STEP_IN_S`, and rests on only if they still do: what arrives when they have gone waits no longer than that.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from shoal._pool import interrupts
from shoal._pool.callbacks import Callbacks
from shoal._pool.core import Core
from shoal._pool.role import Role

#: Submits that follow each other within this time are a burst: the submitting thread reads for itself, because
#: waking the background thread for each result would cost more than the result.
BURST_S = 100e-6
#: How often it reads during a burst.
BURST_READ_S = 500e-6
#: After a burst the background thread takes over within this time.
BURST_OVER_S = 1e-3
#: After the end, whoever still waits looks again this often: what it waits for is being told by another thread.
_LAST_WORDS_S = 0.01
#: A waiting caller looks this long before it sleeps, while a processor has nothing else to do: waking up costs more.
SPIN_S = 50e-6
#: While a caller reads, the background thread looks after this time, and twice as late each time, whether it left: a caller that
#: reads in short turns need not wake it then (W3). After the last it sleeps until it is woken.
_STEP_IN_S = 0.01
_STEP_IN_LATEST_S = 1.0
#: So many turns of callers within `_STEP_IN_S` are enough to rest, if one woke the background thread: a worker may answer one before it has masked what it reads.
_QUICK_TURNS = 1
#: What it leaves alone when it was woken for what another thread is about to read.
_GIVE_WAY_S = 50e-6


class Pump(Protocol):
    """Waits for something to happen up to so many seconds, deals with all that has, and says whether anything did."""

    def __call__(self, timeout: float | None, shield: interrupts.Shield = ..., /) -> bool: ...


class Reader:
    """The threads that read for one pool. Any thread may call anything unless it says otherwise."""

    def __init__(
        self,
        core: Core,
        callbacks: Callbacks,
        pump: Pump,
        check_open: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._core = core
        self._callbacks = callbacks
        self._pump = pump
        self._check_open = check_open
        self._on_end = on_end
        self.closed = threading.Event()  # the pool has ended
        self.interrupted = False  # by Ctrl-C, while it waited
        self._foreign = False
        self._role = Role()
        self._stepping_in = 0.0  # when the background thread looks by itself, by `time.monotonic`
        self._submitted = 0.0  # when the last task was submitted
        self._read = 0.0  # when somebody last read
        self._leads = 0  # how many times a caller has begun to read
        self._seen = 0  # `_leads` as it was when the background thread began to count
        self._count_until = 0.0  # when it begins anew, by `time.monotonic`
        self.bursting = False  # tasks are submitted one after the other, and whoever does so reads
        # Weak, so that it goes in the thread itself, not when the collector finds us: see `program` for why.
        self._thread: Callable[[], threading.Thread | None] = lambda: None

    def start(self) -> None:
        """Start the background thread."""
        thread = threading.Thread(target=self._background, name="shoal-pool", daemon=True)
        self._thread = weakref.ref(thread)
        thread.start()

    def after_fork(self) -> None:
        """In a forked child: nobody reads. Takes no lock: its holder may not exist here."""
        self._foreign = True
        self._role = Role()

    # --- a thread that submits ------------------------------------------------------------------

    def submitted(self) -> None:
        """Take in that this thread submitted a task, and read if it submits one after the other."""
        now, before = time.monotonic(), self._submitted
        self._submitted = now
        if now - before < BURST_S:
            self._read_now_and_then(now)

    def in_burst(self) -> None:
        """As after a submit of many in a row."""
        self._submitted = now = time.monotonic()
        self._read_now_and_then(now)

    def _read_now_and_then(self, now: float) -> None:
        if not self.bursting:
            self._read = now
            self._core.poller.mask()
            self.bursting = True  # after masking: the background thread unmasks whenever it finds this set for too long
            self._core.poller.nudge()
        elif now - self._read > BURST_READ_S:
            with interrupts.deferred() as shield:
                if self._role.take():
                    try:
                        if not self.closed.is_set():
                            self._pump(0.0, shield)
                    finally:
                        self._role.leave()
                        self._leave_timers()
            self._read = time.monotonic()

    # --- a thread that waits --------------------------------------------------------------------

    def leads_here(self) -> bool:
        """Whether this thread reads; then it also counts the time for what is due later."""
        return self._role.mine

    def wait(
        self,
        ready: Callable[[], bool],
        condition: Callable[[], threading.Condition],
        timeout: float | None,
    ) -> None:
        """Block until `ready()` or `timeout` seconds passed, reading the sockets meanwhile if nobody else does.

        `condition` returns what is notified when `ready` may have become true; it is only asked for if somebody
        else is reading.
        """
        limit = None if timeout is None else time.monotonic() + timeout
        try:
            while not ready():
                if self._foreign:
                    self._check_open()
                if limit is not None and time.monotonic() >= limit:
                    return
                if self._role.mine:  # unpickling code that waits: read on from here
                    self._pump(_left(limit))
                elif self.closed.is_set():
                    changed = condition()
                    with changed:
                        if not ready():
                            changed.wait(_LAST_WORDS_S)
                elif not self.lead(ready, limit):
                    self._role.follow(ready, condition(), _left(limit))
        finally:
            self._role.pass_on()

    def lead(self, ready: Callable[[], bool], limit: float | None) -> bool:
        """Read until `ready()` or `limit`. False if another thread has the role."""
        try:
            # The shield goes around the role, so that no signal strikes between taking it and giving it back.
            with interrupts.deferred() as shield:
                if not self._role.take():
                    return False
                self._leads += 1
                try:
                    self._read_until(ready, limit, shield)
                finally:
                    self.bursting = False
                    self._core.poller.unmask()
                    self._role.leave()
                    self._leave_timers()
                    self._leave_work()
            if self._callbacks and threading.current_thread() is not self._thread():
                self._callbacks.give_time()
        except KeyboardInterrupt:
            self.interrupted = True
            raise
        return True

    def _leave_timers(self) -> None:
        """Leave what is due later to the background thread, which has not been counting. Woken only if it would be late."""
        due_s = self._core.timers.wait_s()
        if due_s is not None and time.monotonic() + due_s + _STEP_IN_S < self._stepping_in:
            self._core.poller.wake()

    def _leave_work(self) -> None:
        """Have what was not handed out in a burst handed out (W2). A submit queues first and then asks whether there is a burst."""
        dispatcher = self._core.dispatcher
        if dispatcher.waiting and dispatcher.idle:
            self._core.poller.wake()

    def _spin_s(self) -> float:
        return (
            SPIN_S if self._core.dispatcher.busy < self._core.cpus else 0.0
        )  # else it would take the time from a worker

    def _read_until(self, ready: Callable[[], bool], limit: float | None, shield: interrupts.Shield) -> None:
        if self.closed.is_set():
            return
        self._core.poller.mask()
        spin_until = time.monotonic() + self._spin_s()
        while not ready() and not self.closed.is_set():
            now = time.monotonic()
            if limit is not None and now >= limit:
                return
            if self._pump(0.0 if now < spin_until else _left(limit), shield):
                spin_until = time.monotonic() + self._spin_s()

    def join(self) -> None:
        """Read until the pool has ended, and wait for the background thread. Blocks."""
        if self._role.mine:
            return  # unpickling code that closes its own pool: it ends when that is done
        while not self.closed.is_set():
            if not self.lead(self.closed.is_set, None):
                self.closed.wait(0.01)
        thread = self._thread()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # --- the background thread ------------------------------------------------------------------

    def _background(self) -> None:
        """Read when nobody waits; serve callbacks, timers and deaths."""
        core = self._core
        pause_s: float | None = _STEP_IN_S
        leads = 0
        while not self.closed.is_set():
            if self.bursting:
                core.poller.sleep(BURST_OVER_S)
                if time.monotonic() - self._submitted > BURST_OVER_S:
                    self.bursting = False
                    core.poller.unmask()
                    self._leave_work()
            elif core.poller.resting:
                self._rest()
            elif self._role.taken:
                if leads != self._leads:  # they come and go: looking often costs less than being woken by each
                    leads, pause_s = self._leads, _STEP_IN_S
                # Asked again when `_stepping_in` is set: whoever left in between did not see it (W3).
                early = self._nap(lambda s=pause_s: s if self._role.taken else 0.0)  # type: ignore[misc]
                if early and self._role.taken:  # whoever reads has yet to mask what there is, and may wait for the GIL
                    time.sleep(_GIVE_WAY_S)
                    self._seen, self._count_until = self._leads, time.monotonic() + _STEP_IN_S
                    core.poller.rest()
                pause_s = 2 * pause_s if pause_s and pause_s < _STEP_IN_LATEST_S else None
            else:
                pause_s = _STEP_IN_S
                self._nap(core.timers.wait_s)
                if self._turns_are_quick():
                    core.poller.rest()
                elif not self._in_burst_now() and self._role.take():
                    try:
                        if not self.closed.is_set():
                            self._pump(0.0)
                    finally:
                        self._role.leave()
            self._callbacks.run()
        self._role.await_last()
        core.poller.close()
        self._role.leave()
        self._on_end()
        self._callbacks.end()

    def _turns_are_quick(self) -> bool:
        """Count the turns of callers, anew every `_STEP_IN_S`, and say whether there were many."""
        now, turns = time.monotonic(), self._leads - self._seen
        if now < self._count_until and turns < _QUICK_TURNS:
            return False
        long_ago = now > self._count_until + _STEP_IN_S
        self._seen, self._count_until = self._leads, now + _STEP_IN_S
        return turns >= _QUICK_TURNS and not long_ago

    def _rest(self) -> None:
        """Sleep while callers come and go, unless one of them wants this thread; look now and then whether they do (W4)."""
        poller, timers = self._core.poller, self._core.timers
        poller.rest()  # again: who was just leaving may have unmasked it
        until = self._count_until
        self._nap(lambda: _sooner(max(0.0, until - time.monotonic()), timers.wait_s()))
        if self._role.take():
            try:
                if not self.closed.is_set():
                    self._pump(0.0)
            finally:
                self._role.leave()
        if time.monotonic() >= until and not self._turns_are_quick():
            poller.stir()

    def _nap(self, seconds: Callable[[], float | None]) -> bool:
        """Sleep until there is something to read and nobody reads it, or a nudge, or so many seconds passed; False if those."""
        self._stepping_in = math.inf  # before looking at the timers: whoever adds one and then leaves has to wake us
        with self._core.lock:
            wait_s = seconds()
        if wait_s is not None:
            self._stepping_in = time.monotonic() + wait_s
        self._core.poller.sleep(wait_s)
        early = time.monotonic() < self._stepping_in
        self._stepping_in = 0.0
        return early

    def _in_burst_now(self) -> bool:
        return self.bursting  # asked again because another thread may have changed it


def _left(limit: float | None) -> float | None:
    return None if limit is None else max(0.0, limit - time.monotonic())


def _sooner(one: float, other: float | None) -> float:
    return one if other is None else min(one, other)
