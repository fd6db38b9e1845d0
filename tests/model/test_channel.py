"""A channel in every order of its accesses, with a death before any of them: every message once, in order, whole.

The writers, readers and seats are the real ones, on real bytes; only the guard is a model, which a dead owner gives up.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from shoal._os import mapping
from shoal._sync import channel_ring
from shoal._sync.channel import Reader, Writer
from shoal._sync.channel_ring import AT, CAPACITY, CLOSED, READERS, RESERVED, SENT, SLOT, STATE, Ring
from shoal.errors import ChannelClosed
from tests.model.interleave import interleavings
from tests.model.queueing import Gate, Memory, Mutex, Process, mortal

CAPACITY_HERE = 2
MANY = 400


class Byte:
    """The kind of channel here: one byte."""

    size = 1

    def write(self, view, at, value):
        view[at] = value
        return 1

    def read(self, view, at, size, out):
        assert size == 1
        return view[at]


class Guard:
    def __init__(self, gate):
        self._gate = gate

    def run(self, step):
        self._gate.enter_now()
        try:
            return step()
        finally:
            if not self._gate._process.dead:
                self._gate.leave()


class World:
    """A channel and what its readers got."""

    def __init__(self, readers):
        start = (channel_ring.SEATS + readers * channel_ring.SEAT_WORDS) * 8
        self.bytes = memoryview(bytearray(start + CAPACITY_HERE * 16))
        self.words = self.bytes.cast("Q")
        self.words[CAPACITY], self.words[SLOT] = CAPACITY_HERE, 16
        self.words[READERS], self.words[RESERVED] = readers, CAPACITY_HERE
        self.mutex = Mutex()
        self.processes = {}
        self.got = {}

    def actor(self, who, dies_at=0, *, stepping=True):
        """The ring as one process has it."""
        process = self.processes[who] = Process(who, dies_at)
        halves, address = self.bytes.cast("I"), mapping.address(self.bytes)
        cell = SimpleNamespace(
            view=self.bytes, words=lambda _at, _count, kind="Q": halves if kind == "I" else self.words, address=address
        )
        ring = Ring(cell, Byte())
        ring.guard = Guard(Gate(self.mutex, process))
        ring.me, ring.gone = lambda: who, lambda other: self.processes[other].dead
        ring.process, ring.world = process, self
        if stepping:
            ring.words, ring.view = Memory(self.words, process), Memory(self.bytes, process)
        return ring


def sending(*messages):
    def act(ring):
        ring.claim_writer()
        writer = Writer(ring)
        for message in messages:
            for _ in range(3):
                try:
                    writer.send(message, 0)
                    break
                except TimeoutError:
                    ring.bury()
                except ChannelClosed:
                    return

    return act


def receiving(tries):
    def act(ring):
        receive(ring, tries)

    return act


def receive(ring, tries):
    got = ring.world.got.setdefault(ring.process.who, [])
    try:
        seat = ring.claim_seat()
    except RuntimeError:
        return  # the one before lives
    reader = Reader(ring, seat)
    for _ in range(tries):
        try:
            got.append(reader.receive(0))
        except TimeoutError:
            pass


def check(world, *, first_readers):
    """Whoever comes later gets what is left; all of it, once, in order, save for what died with a reader on its way out."""
    sent = world.words[SENT]
    late = world.actor(90, stepping=False)
    received_by_the_dead = {seat: world.words[seat + AT] for seat in late.seats}
    passed_over = any(world.words[seat + STATE] for seat in late.seats)
    for who in first_readers:
        got = world.got.get(who, [])
        first = got[0] if got else 1
        assert got == list(range(first, first + len(got))), f"not in order, or not whole: {got}"
        assert first == 1 or len(first_readers) > len(late.seats), "it did not get the first one"
        assert len(got) <= sent
        if world.processes[who].dead and not passed_over and len(late.seats) == len(first_readers) == 1:
            world.got[90] = []
            receive(late, 5)
            rest = world.got[90]
            assert rest == list(range(sent - len(rest) + 1, sent + 1))
            assert len(rest) == sent - min(received_by_the_dead.values())
            assert 0 <= sent - len(rest) - len(got) <= 1, "a message is gone"
    assert not world.words[CLOSED]


def search(acts, *, readers=1, preemptions=0, dying=()):
    count = 0
    receivers = [who + 1 for who, act in enumerate(acts) if act.__qualname__.startswith("receiving")]
    for who in (None, *(dying or range(len(acts)))):
        for dies_at in range(1, MANY):
            died = False

            def make():
                world = World(readers)
                rings = [world.actor(one + 1, dies_at if one == who else 0) for one in range(len(acts))]

                def over():
                    nonlocal died
                    died = died or (who is not None and rings[who].process.dead)
                    check(world, first_readers=receivers)

                return [mortal(ring, act) for ring, act in zip(rings, acts, strict=True)], over

            count += interleavings(make, set(), preemptions=1 if who is None else preemptions)
            if not died:
                break
    return count


def test_every_message_comes_once_in_order_and_whole():
    assert search([sending(1, 2, 3), receiving(4)]) > 200


def test_each_of_two_readers_gets_everything():
    assert search([sending(1, 2), receiving(3), receiving(3)], readers=2) > 50


def test_a_seat_taken_again_is_never_overtaken_by_the_writer():
    """A dead reader's seat is given up by the full writer and taken by another one in every order."""
    assert search([receiving(1), sending(1, 2, 3, 4), receiving(3)], dying=(0,)) > 100


def test_the_search_finds_a_message_that_is_announced_before_it_is_there(monkeypatch):
    def too_early(self, value, timeout=None):
        ring = self._ring
        sent = ring.words[SENT]
        if sent - ring.slowest() >= ring.capacity:
            raise TimeoutError
        at = ring.start + sent % ring.capacity * ring.slot
        ring.words[SENT] = sent + 1
        ring.words[at >> 3] = ring.kind.write(ring.view, at + 8, value)

    monkeypatch.setattr(Writer, "send", too_early)
    with pytest.raises(AssertionError):
        search([sending(1, 2, 3), receiving(4)])
