"""The steps of the queue in every order, with a death before any access: nothing lost that is not reported, nothing doubled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from shoal._sync import queue_layout as at
from shoal._sync.queue_core import Core
from tests.model.interleave import interleavings
from tests.model.queueing import UNITS, Actor, World, mortal

Act = Callable[[Actor], object]

#: A record so large that the fourth one needs another chunk.
BULKY = at.INLINE_BYTES

#: Steps a process has at most here; deaths are tried up to the last one it comes to.
MANY = 400


def small(*items: int) -> Act:
    return lambda one: [one.put(item) for item in items]


def bulky(*items: int) -> Act:
    return lambda one: [one.put(item, BULKY) for item in items]


def large(*items: int) -> Act:
    return lambda one: [one.put_large(item) for item in items]


def taking(count: int) -> Act:
    return lambda one: one.takes(count)


def sweeping(one: Actor) -> None:
    one.core.sweep(one.world.gone)


def check(world: World) -> None:
    """Each item that was put is in exactly one place: with a living consumer, done with by a dead one, or lost, or left."""
    lost = world.settle()
    words = world.words
    dead = [who for who in world.got if world.processes[who].dead]
    living = Counter(item for who, items in world.got.items() if who not in dead for item in items)
    in_dead_hands = {item for who in dead for item in world.got[who]}
    assert not [item for item, count in living.items() if count > 1], f"taken twice: {living}"
    assert set(world.put) <= set(living) | in_dead_hands | set(lost_items(world, lost)), "lost without a word"
    assert set(living) | in_dead_hands <= set(world.begun), "made of nothing"
    if world.ack:
        assert not lost
        assert set(world.put) <= set(living) | set(world.done), "not acknowledged, and not taken again"
    else:
        assert not set(living) & in_dead_hands, "taken twice"
        assert not set(living) & set(lost_items(world, lost)), "reported as lost, and is not"
        accounted = sum(living.values()) + len(in_dead_hands | set(lost_items(world, lost)))
        assert accounted == words[at.PUT] == words[at.TAKEN], "the counts are wrong"
    for items in world.got.values():
        assert items == sorted(items) or world.ack, "out of order"
    for gate in world.mutexes:
        assert gate.free()
    assert_memory_is_free(world)


def lost_items(world: World, lost: list[int]) -> list[int]:
    """One producer puts 1, 2, 3 ..., so an item is its number."""
    return lost


def assert_memory_is_free(world: World) -> None:
    """All units but that of the current chunk can be had."""
    core = world.survivor.core
    core._new_chunk(world.words[at.PUT_AT + (world.words[at.PUT] & 1)])  # notes what was left behind
    free = at.find_gap(core._entries(), UNITS + 1, world.words[at.TAKEN], core._pinned())
    used = [held for held in core._entries()[1::2] if held & at.OWNER_MASK]
    assert len(used) <= 3, f"memory is gone: {core._entries()}, {free}"
    assert all(held & at.OWNER_MASK == at.CHUNK for held in used), f"a block is gone: {core._entries()}"


def orders(
    acts: list[Act], dying: int, dies_at: int, *, preemptions: int, core: type[Core], ack: bool
) -> tuple[int, bool]:
    """Run the acts in every order with that death; returns how many orders, and whether anybody came to it."""
    died = False

    def make():
        world = World(ack=ack, core=core)
        actors = [world.add(who + 1, dies_at if who == dying else 0) for who in range(len(acts))]
        for actor in actors:
            actor.place()

        def over() -> None:
            nonlocal died
            died = died or actors[dying].process.dead
            check(world)

        return [mortal(actor, act) for actor, act in zip(actors, acts, strict=True)], over

    return interleavings(make, set(), preemptions=preemptions), died


def search(
    acts: list[Act], *, preemptions: int = 1, core: type[Core] = Core, ack: bool = False, dying: tuple[int, ...] = ()
) -> int:
    """Every order without a death, and with one before any access of any process (or of those that are said)."""
    count, _ = orders(acts, 0, 0, preemptions=preemptions, core=core, ack=ack)
    for who in dying or range(len(acts)):
        for dies_at in range(1, MANY):
            more, died = orders(acts, who, dies_at, preemptions=preemptions, core=core, ack=ack)
            count += more
            if not died:
                break
    return count


def test_nothing_is_lost_or_doubled_between_a_producer_and_a_consumer():
    assert search([small(1, 2), taking(3)]) > 1000


def test_two_consumers_never_take_the_same_item():
    assert search([taking(1), taking(1), small(1, 2)], preemptions=0) > 100


def test_a_sweep_that_dies_does_not_count_a_loss_twice():
    def first_take_then_die(one: Actor) -> None:
        one.take()
        one.process.dies_at = one.process.steps + 1
        one.process.step()

    acts: list[Act] = [small(1, 2), first_take_then_die, sweeping, sweeping]
    for dies_at in range(1, MANY):
        _, died = orders(acts, 2, dies_at, preemptions=0, core=Core, ack=False)
        if not died:
            break


def test_chunks_come_back():
    assert search([bulky(1, 2, 3, 4), taking(4)], preemptions=0) > 50


def test_blocks_come_back():
    assert search([large(1, 2), taking(2)]) > 1000


def test_an_unacknowledged_item_is_taken_again():
    assert search([small(1, 2), taking(2)], ack=True) > 1000


def test_blocks_of_unacknowledged_items_stay():
    assert search([large(1, 2), taking(2)], ack=True, preemptions=0) > 50


def test_nobody_sleeps_beside_an_item():
    """Without a death there is no recheck here, and nobody needs one: two would sleep for ever, which is a deadlock."""
    consumer: Act = lambda one: one.take_or_sleep()
    producer: Act = lambda one: [one.put_and_ring(item) for item in (1, 2)]
    count, _ = orders([consumer, producer, consumer], 0, 0, preemptions=1, core=Core, ack=False)
    assert count > 100
    assert search([consumer, lambda one: one.put_and_ring(1)], dying=(1,), preemptions=0) > 20


# --- a model that finds nothing proves nothing --------------------------------------------------


class CommitsBeforeTheClaim(Core):
    """Takes an item before it has said who has it."""

    def take(self, mine):
        words, number = self.words, self.words[at.TAKEN]
        if number != words[at.PUT]:
            words[at.TAKE_AT + (~number & 1)] = words[at.TAKE_AT + (number & 1)] + 16
            place = words[at.TAKE_AT + (number & 1)]
            words[at.TAKEN] = number + 1
            words[mine.place + at.CLAIM] = number + 1
            mine.stash = at.PICKLED, self._view[place + 8 : place + 16].tobytes(), -1
            return True
        return False


class ForgetsNoAttempt(Core):
    """Believes the claim of one who was killed before the commit."""

    def _forget_attempt(self, number):
        pass


class FreesWhatWaits(Core):
    """Frees every block of a dead producer, those in the queue as well."""

    def _free_blocks(self, owner, *, forked):
        for unit in range(UNITS):
            if self.words[self._table + 2 * unit + 1] & at.OWNER_MASK == owner:
                self.words[self._table + 2 * unit + 1] = 0
        return True


def large_then_another_uses_the_memory(one: Actor) -> None:
    sweeping(one)
    one.put_large(2, 2)


@pytest.mark.parametrize(
    ("acts", "core"),
    [
        ([small(1, 2), taking(3)], CommitsBeforeTheClaim),
        ([small(1, 2), taking(2), taking(2)], ForgetsNoAttempt),
        ([large(1), large_then_another_uses_the_memory, taking(2)], FreesWhatWaits),
    ],
    ids=lambda value: getattr(value, "__name__", "acts"),
)
def test_the_search_finds_a_step_in_the_wrong_place(acts, core):
    with pytest.raises(AssertionError):
        search(acts, core=core, preemptions=0)


def test_the_search_finds_a_producer_that_looks_for_sleepers_too_early():
    def producer(one: Actor) -> None:
        asleep = one.core.words[at.TAKERS]
        one.put(1)
        if asleep:
            one.world.wake()

    with pytest.raises(AssertionError, match="nobody can go on"):
        search([lambda one: one.take_or_sleep(), producer], dying=(1,))
