"""Nothing is written while anybody may look at it, and everything returns, whoever dies at whichever step (A1, L1 to L4).

Exhaustive: the real ledger with an owner and its borrowers, see `lending.py`; and the notes of finalizers beside the thread
that sends them, between byte codes. With real memory: `test_lending.py`.
"""

from __future__ import annotations

import pytest

import shoal._wire.courier as courier_module
from shoal._memory.ledger import Ledger
from shoal._wire.courier import Courier
from tests.model.explore import Broken, explore
from tests.model.interleave import interleavings
from tests.model.lending import Limits, World

WORLDS = {
    "one borrower": (Limits(stores=3, lends=3), 1),
    "two borrowers": (Limits(stores=2, lends=3, blocks=1), 2),
    "both may die": (Limits(stores=2, lends=2, deaths=2), 2),
    "the owner may die": (Limits(stores=3, lends=2, owner_dies=True), 1),
    "one block, again and again": (Limits(stores=3, lends=3, blocks=1), 1),
    "memory is given back meanwhile": (Limits(stores=3, lends=2, trims=2, blocks=1, slabs=2), 1),
    "a borrower forks": (Limits(stores=3, lends=2, forks=1), 1),
}


@pytest.mark.parametrize("name", WORLDS)
def test_nobody_sees_another_version_and_everything_returns(name):
    limits, borrowers = WORLDS[name]
    states = explore(World(limits, borrowers))
    print(f"{name}: {states} states")
    assert states > 500


# --- the search finds what it is for ------------------------------------------------------------


class ForgetsLeases(Ledger):
    def _maybe_free(self, block):
        if not block.holds:
            block.leases = 0
            super()._maybe_free(block)


class ForgetsTheDead(Ledger):
    def holder_gone(self, holder):
        self._leases.pop(holder, None)


class EndsLeasesTwice(Ledger):
    def give_back(self, holder, leases):
        leases = [*leases]
        super().give_back(holder, [*leases, *(lease + 1 for lease in leases)])


class UsesWhatForksSee(Ledger):
    def give_back(self, holder, leases):
        super().give_back(holder, map(abs, leases))


class UsesWhatTheDeadHad(Ledger):
    def holder_gone(self, holder):
        self.give_back(holder, list(self._leases.get(holder, ())))


@pytest.mark.parametrize(
    ("ledger", "name"),
    [
        (ForgetsLeases, "one borrower"),
        (ForgetsTheDead, "one borrower"),
        (EndsLeasesTwice, "one borrower"),
        (UsesWhatForksSee, "a borrower forks"),
        (UsesWhatTheDeadHad, "a borrower forks"),
    ],
)
def test_the_search_finds_a_ledger_that(ledger, name):
    limits, borrowers = WORLDS[name]
    with pytest.raises(Broken):
        explore(World(limits, borrowers, ledger))


class TellsBeforeItUnmaps(World):
    def _receive(self, name):
        super()._receive(name)
        self.borrowers[name].given_up.append(self.borrowers[name].views[-1].lease)


def test_the_search_finds_a_borrower_that_tells_before_it_unmaps():
    with pytest.raises(Broken):
        explore(TellsBeforeItUnmaps(*WORLDS["one borrower"]))


# --- notes of finalizers ------------------------------------------------------------------------


class Sock:
    """A socket nobody needs here."""

    def fileno(self):
        return -1


class LooksFirst(Courier):
    def _give_up(self, lease):
        quiet = not self._given_up
        self._given_up.append(lease)
        if quiet:
            self.on_news()


def note_beside_sender(kind, waiting):
    """A finalizer in one thread, the sender in another: in the end nothing waits that nobody was told of."""

    def make():
        told, sent = [], []
        courier = kind(Sock(), lambda: None, lambda _: None)
        courier._given_up.extend(range(waiting))  # announced before
        courier.on_news = lambda: told.append(1)

        def check():
            assert not courier.has_news or told
            got = [lease for head, _ in sent for message in head for lease in message[1]]
            assert sorted([*got, *courier._given_up]) == [*range(waiting), 7]

        return [lambda: courier._unmapped(7, 0), lambda: sent.append(courier.outgoing([], []))], check

    return interleavings(make, {courier_module.__file__, __file__})


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_note_is_sent_or_announced_whenever_the_finalizer_runs(waiting):
    assert note_beside_sender(Courier, waiting) > 50


def test_the_search_finds_a_finalizer_that_looks_before_it_notes():
    with pytest.raises(AssertionError):
        note_beside_sender(LooksFirst, 1)
