"""The ledger: no block is taken twice, leases end once, the bytes add up, what a fork may see rests (L1 to L4)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal._memory.ledger import PAGE_BYTES, SLAB_BYTES, SMALLEST_BYTES, Ledger, size_class

LIMIT_BYTES = 24 << 20
MOST_SLABS = 4
#: Small blocks that share a slab, blocks with one each, and one that is half the limit.
sizes = st.sampled_from([1, SMALLEST_BYTES, SMALLEST_BYTES + 1, 300_000, SLAB_BYTES // 2 + 1, SLAB_BYTES, 12 << 20])
HOLDERS = "abc"


# --- size classes -------------------------------------------------------------------------------


@given(st.integers(0, 1 << 50))
def test_a_block_is_large_enough_in_whole_pages_and_wastes_an_eighth_at_most(nbytes):
    block = size_class(nbytes)
    assert block >= max(nbytes, SMALLEST_BYTES)
    assert block % PAGE_BYTES == 0
    assert block <= max(SMALLEST_BYTES, nbytes + nbytes // 8 + PAGE_BYTES)


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_classes_grow_with_what_is_asked_for(one, other):
    smaller, larger = sorted((one, other))
    assert size_class(smaller) <= size_class(larger)
    assert size_class(size_class(one)) == size_class(one)


def test_there_are_few_classes():
    """So that blocks are used again: eight for each doubling."""
    assert len({size_class(nbytes) for nbytes in range(1 << 20, 1 << 21, 997)}) <= 9


# --- every order of operations ------------------------------------------------------------------


class LedgerMachine(RuleBasedStateMachine):
    """The real ledger beside plain lists of who holds what."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger(LIMIT_BYTES, MOST_SLABS)
        self.held = []  # blocks we have taken and not let go of
        self.leases = {}  # (holder, number) -> block
        self.ended = []  # (holder, number) of leases that were open once
        self.spoilt = set()  # ids of blocks that a fork may see
        self.everything = []  # so that no id is used twice

    def in_use(self):
        return {id(block): block for block in [*self.held, *self.leases.values()]}

    @rule(nbytes=sizes)
    def take(self, nbytes):
        block = self.ledger.take(nbytes)
        if block is None:
            return
        assert id(block) not in self.in_use()  # L1
        assert id(block) not in self.spoilt  # L4
        assert block.slab.block_bytes == size_class(nbytes)
        self.held.append(block)

    @rule(nbytes=sizes)
    def add_slab(self, nbytes):
        before = self.ledger.slab_bytes
        slab = self.ledger.add_slab(nbytes)
        if slab is None:
            needed = size_class(nbytes) * max(1, SLAB_BYTES // size_class(nbytes))
            assert before + needed > LIMIT_BYTES or len(self.ledger.slabs) == MOST_SLABS
        else:
            self.everything.append(slab)
            assert self.ledger.slab_bytes == before + slab.nbytes
            assert slab.unused

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data):
        block = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.ledger.let_go(block)

    @precondition(lambda self: self.in_use())
    @rule(data=st.data(), holder=st.sampled_from(HOLDERS))
    def lend(self, data, holder):
        block = data.draw(st.sampled_from(list(self.in_use().values())))
        lease = self.ledger.lend(block, holder)
        assert (holder, lease) not in self.leases
        assert (holder, lease) not in self.ended
        self.leases[holder, lease] = block

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), twice=st.booleans(), forked=st.booleans())
    def give_back(self, data, twice, forked):
        holder, _ = data.draw(st.sampled_from(sorted(self.leases)))
        mine = [number for one, number in self.leases if one == holder]
        numbers = data.draw(st.lists(st.sampled_from(mine), unique=True))
        self.ledger.give_back(holder, [-number if forked else number for number in numbers] * (1 + twice))  # L2
        for number in numbers:
            block = self.leases.pop((holder, number))
            self.spoilt |= {id(block)} if forked else set()
            self.ended.append((holder, number))

    @rule(data=st.data(), holder=st.sampled_from([*HOLDERS, "stranger"]))
    def give_back_what_one_has_not(self, data, holder):
        numbers = [number for one, number in [*self.ended, *self.leases] if (holder, number) not in self.leases]
        self.ledger.give_back(holder, [*data.draw(st.lists(st.sampled_from([*numbers, 10**9]))), 10**9])

    @rule(holder=st.sampled_from([*HOLDERS, "stranger"]))
    def holder_gone(self, holder):
        self.ledger.holder_gone(holder)
        for one, number in [lease for lease in self.leases if lease[0] == holder]:
            self.spoilt.add(id(self.leases.pop((one, number))))  # what it forked may live on
            self.ended.append((one, number))
        assert self.ledger.leases_of(holder) == 0

    @rule()
    def remove_unused_slabs(self):
        used = {id(block.slab) for block in self.in_use().values()}
        for slab in self.ledger.unused_slabs():
            assert id(slab) not in used
            self.ledger.remove_slab(slab)
        assert {id(slab) for slab in self.ledger.slabs.values()} == used

    @invariant()
    def a_block_is_free_held_or_leased(self):
        in_use = self.in_use()
        for slab in self.ledger.slabs.values():
            free = {id(block) for block in slab.free}
            assert len(free) == len(slab.free)
            idle = {id(block) for block in slab.blocks} - set(in_use)
            assert free == idle - self.spoilt
            assert slab.unused == (len(idle) == len(slab.blocks))

    @invariant()
    def the_bytes_add_up(self):
        ledger = self.ledger
        assert ledger.used_bytes == sum(block.slab.block_bytes for block in self.in_use().values())
        assert ledger.slab_bytes == sum(slab.nbytes for slab in ledger.slabs.values())
        assert ledger.used_bytes <= ledger.slab_bytes <= LIMIT_BYTES
        assert len(ledger.slabs) <= MOST_SLABS  # L3

    @invariant()
    def every_lease_is_counted_once(self):
        assert self.ledger.lent == len(self.leases)
        for holder in HOLDERS:
            assert self.ledger.leases_of(holder) == sum(one == holder for one, _ in self.leases)

    def teardown(self):
        for holder in HOLDERS:
            self.ledger.holder_gone(holder)
        for block in self.held:
            self.ledger.let_go(block)
        assert (self.ledger.used_bytes, self.ledger.lent) == (0, 0)
        self.ledger.holder_gone("a")
        for slab in self.ledger.unused_slabs():
            self.ledger.remove_slab(slab)
        assert (self.ledger.slab_bytes, self.ledger.slabs) == (0, {})


LedgerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


# --- single facts -------------------------------------------------------------------------------


def test_blocks_of_a_slab_lie_side_by_side_and_never_overlap():
    slab = Ledger(LIMIT_BYTES).add_slab(300_000)
    assert [block.offset for block in slab.blocks] == [n * slab.block_bytes for n in range(len(slab.blocks))]
    assert slab.nbytes == slab.block_bytes * len(slab.blocks) <= SLAB_BYTES


def test_the_block_that_was_used_last_is_used_next():
    """Its pages are the warm ones."""
    ledger = Ledger(LIMIT_BYTES)
    ledger.add_slab(300_000)
    ledger.take(300_000)
    second = ledger.take(300_000)
    ledger.let_go(second)
    assert ledger.take(300_000) is second


def test_a_block_that_is_lent_and_let_go_of_is_not_taken():
    ledger = Ledger(LIMIT_BYTES)
    ledger.add_slab(5 << 20)
    block = ledger.take(5 << 20)
    lease = ledger.lend(block, "a")
    ledger.let_go(block)
    assert ledger.take(5 << 20) is None
    ledger.give_back("b", [lease])  # not its own
    assert ledger.take(5 << 20) is None
    ledger.give_back("a", [lease])
    assert ledger.take(5 << 20) is block


def test_a_free_block_cannot_be_lent_or_let_go_of():
    ledger = Ledger(LIMIT_BYTES)
    block = ledger.add_slab(100_000).blocks[0]
    with pytest.raises(AssertionError):
        ledger.lend(block, "a")
    with pytest.raises(AssertionError):
        ledger.let_go(block)


def test_a_block_that_a_fork_may_see_is_never_taken_again_and_its_slab_goes_when_nobody_uses_it():
    ledger = Ledger(LIMIT_BYTES)
    slab = ledger.add_slab(SLAB_BYTES // 2)
    seen, other = ledger.take(SLAB_BYTES // 2), ledger.take(SLAB_BYTES // 2)
    first, second = ledger.lend(seen, "a"), ledger.lend(seen, "b")
    for block in (seen, other):
        ledger.let_go(block)
    ledger.give_back("a", [-first])
    assert ledger.used_bytes == slab.block_bytes
    ledger.give_back("b", [second])
    assert ledger.used_bytes == 0
    assert ledger.take(SLAB_BYTES // 2) is other
    assert ledger.take(SLAB_BYTES // 2) is None
    assert ledger.unused_slabs() == []
    ledger.let_go(other)
    assert ledger.unused_slabs() == [slab]
    ledger.remove_slab(slab)
    assert ledger.slab_bytes == 0
