"""Real couriers and real memory through random histories: every view keeps its value, whoever dies, and all returns.

One program and two workers, in one process; a worker that dies lets go of everything without a word.
"""

from __future__ import annotations

import gc
import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal._memory.arena import Arena
from shoal._os import descriptors
from tests.unit.test_courier import End, data

MIB = 1 << 20
#: Several to a slab, two to a slab, one to a slab; more than a few of the last are over the limit.
sizes = st.sampled_from([300_000, 2 * MIB, 5 * MIB])
LIMIT_BYTES = 24 * MIB
workers = st.sampled_from([0, 1])
either_way = st.booleans()


class Pair:
    """The program's end and the worker's end of one worker, and what each looks at: (view, its value)."""

    def __init__(self, arena):
        left, right = descriptors.socket_pair()
        self.program, self.worker = End(left), End(right)
        self.program.arena.close()
        self.program.arena = arena
        self.worker.arena = Arena(LIMIT_BYTES)
        self.program.peer, self.worker.peer = self.worker, self.program
        self.sent = {self.program: [], self.worker: []}  # values under way to that end
        self.views = {self.program: [], self.worker: []}

    def ends(self, to_worker):
        return (self.program, self.worker) if to_worker else (self.worker, self.program)

    def send(self, to_worker, *buffers):
        sender, taker = self.ends(to_worker)
        sender.send(*(buffer for buffer, _ in buffers))
        self.sent[taker].append([value for _, value in buffers])

    def receive(self, to_worker):
        _, taker = self.ends(to_worker)
        frames = self.sent[taker]
        for buffers, values in zip(taker.receive_all(), frames, strict=True):
            self.views[taker] += zip(buffers, values, strict=True)
        frames.clear()

    def die(self):
        """The worker ends; the program reads what it had sent, then closes."""
        self.receive(to_worker=False)
        self.worker.courier.on_news = None
        self.views[self.worker].clear()
        self.worker.courier.close()
        self.worker.arena.close()
        self.program.courier.close()
        return self.views[self.program]


class Lending(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        gc.collect()
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.arena = Arena(LIMIT_BYTES)
        self.pairs = [Pair(self.arena), Pair(self.arena)]
        self.stored = []  # (Stored, value)
        self.orphans = []  # results of workers that are dead
        self.value = 0

    def _next(self):
        self.value = self.value % 250 + 1
        return self.value

    @rule(number=workers, to_worker=either_way, nbytes=sizes, twice=st.booleans())
    def send(self, number, to_worker, nbytes, twice):
        value = self._next()
        self.pairs[number].send(to_worker, *[(data(value, nbytes), value)] * (1 + twice))

    @rule(nbytes=sizes)
    def store(self, nbytes):
        value = self._next()
        stored = self.arena.store(data(value, nbytes))
        if stored is not None:
            self.stored.append((stored, value))

    @precondition(lambda self: self.stored)
    @rule(number=workers, choice=st.randoms(use_true_random=False))
    def send_stored(self, number, choice):
        self.pairs[number].send(True, choice.choice(self.stored))

    @precondition(lambda self: self.stored)
    @rule(choice=st.randoms(use_true_random=False))
    def release(self, choice):
        self.stored.pop(choice.randrange(len(self.stored)))

    @rule(number=workers, to_worker=either_way)
    def receive(self, number, to_worker):
        self.pairs[number].receive(to_worker)

    @rule(number=workers, to_worker=either_way, choice=st.randoms(use_true_random=False), scribble=st.booleans())
    def drop(self, number, to_worker, choice, scribble):
        views = self.pairs[number].views[self.pairs[number].ends(to_worker)[1]]
        if views:
            view, _ = views.pop(choice.randrange(len(views)))
            if scribble:
                view[::4096] = bytes(len(view[::4096]))

    @rule(number=workers, to_worker=either_way)
    def tell(self, number, to_worker):
        self.pairs[number].send(to_worker)

    @rule(number=workers)
    def kill(self, number):
        self.orphans += self.pairs[number].die()
        self.pairs[number] = Pair(self.arena)

    @rule()
    def trim(self):
        self.arena.trim()

    @invariant()
    def everybody_sees_what_was_sent(self):
        views = [view for pair in self.pairs for views in pair.views.values() for view in views]
        for view, value in [*views, *self.orphans, *((stored.view(), value) for stored, value in self.stored)]:
            assert view[0] == view[len(view) // 2] == view[-1] == value

    def teardown(self):
        self.stored.clear()
        for pair in self.pairs:
            for to_worker in (True, False):
                pair.receive(to_worker)
                pair.views[pair.ends(to_worker)[1]].clear()
            for to_worker in (True, False):
                pair.send(to_worker)
                pair.receive(to_worker)
            assert pair.worker.arena.describe()["used_bytes"] == 0
        assert self.arena.used_bytes == self.arena.lent == 0
        for pair in self.pairs:
            pair.die()
        self.orphans.clear()
        self.arena.close()
        self.pairs.clear()
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == self.descriptors


Lending.TestCase.settings = settings(max_examples=15, stateful_step_count=40, deadline=None)
TestLending = Lending.TestCase
