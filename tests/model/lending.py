"""An arena, its owner and its borrowers: the real ledger; files, sockets, mappings, deaths and forks are models.

Role: the world of `test_arena`. Owner: that test.

The owner stores versions, lends them, takes leases back, trims. A borrower maps what it is sent, drops views in any order,
tells what it gave up some time later. Either may die at any step; a borrower may fork, and the fork sees what it saw, also when the borrower is dead. What
was written to a socket before a death can still be read. Every mapping is private: what its owner does not write is what
the file holds, so a file that is written under it shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from shoal._memory.ledger import SLAB_BYTES, Block, Ledger
from tests.model.explore import Step


@dataclass(frozen=True)
class Limits:
    """What may happen, and how often in one history."""

    stores: int = 3
    lends: int = 3
    deaths: int = 1
    owner_dies: bool = False
    forks: int = 0
    trims: int = 0
    slabs: int = 1
    #: Blocks to a slab.
    blocks: int = 2


@dataclass(frozen=True)
class Place:
    """A block of a memory file, and the version somebody expects there."""

    file: int
    index: int
    version: int


@dataclass(eq=False)
class Held:
    """A `Stored` of the owner."""

    block: Block
    place: Place


@dataclass(frozen=True)
class View:
    """A mapping; `forked` says that a child has it, too."""

    lease: int
    place: Place
    forked: bool = False


@dataclass(eq=False)
class Borrower:
    alive: bool = True
    noticed: bool = False  # the owner has seen its death
    coming: list[tuple[int, Place]] = field(default_factory=list)  # frames it has not read
    views: list[View] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)  # not told yet
    told: list[tuple[int, ...]] = field(default_factory=list)  # told, not heard yet


class World:
    """See `explore.World`."""

    def __init__(self, limits: Limits, borrowers: int = 2, ledger: type[Ledger] = Ledger) -> None:
        self.limits = limits
        self.block_bytes = SLAB_BYTES // limits.blocks
        self.ledger = ledger(limits.slabs * SLAB_BYTES)
        self.files: dict[int, list[int]] = {}  # what is in memory, for as long as anybody could look
        self.held: list[Held] = []
        self.returned: list[Block] = []  # by finalizers, not taken in yet
        self.borrowers = {name: Borrower() for name in "ab"[:borrowers]}
        self.children: list[Place] = []  # what forks of borrowers look at, for ever
        self.owner = True
        self.version = self.lends = self.deaths = self.forks = self.trims = 0

    # --- what can happen ------------------------------------------------------------------------

    def steps(self) -> tuple[list[Step], list[Step]]:
        must: list[Step] = [("release", place) for place in range(len(self.held))] if self.owner else []
        may: list[Step] = []
        for name, one in self.borrowers.items():
            must += self._steps_of(name, one)
            if one.alive and self.deaths < self.limits.deaths:
                may.append(("kill", name))
            if one.alive and one.views and self.forks < self.limits.forks:
                may.append(("fork", name))
            if self.owner and not one.noticed and self.lends < self.limits.lends:
                may += [("lend", place, name) for place in range(len(self.held))]
        if self.owner:
            if self.version < self.limits.stores:
                may.append(("store",))
            if self.trims < self.limits.trims:
                may.append(("trim",))
            if self.limits.owner_dies:
                may.append(("kill the owner",))
        return must, may

    def _steps_of(self, name: str, one: Borrower) -> Iterator[Step]:
        if one.alive:
            if one.coming:
                yield "receive", name
            for place in range(len(one.views)):
                yield "drop", name, place
            if one.given_up and self.owner:
                yield "tell", name
        elif self.owner and not one.noticed:
            yield "notice", name
        if one.told and self.owner and not one.noticed:
            yield "hear", name

    def take(self, step: Step) -> None:
        getattr(self, "_" + step[0].replace(" ", "_"))(*step[1:])

    # --- the owner ------------------------------------------------------------------------------

    def _take_in(self) -> None:
        while self.returned:
            self.ledger.let_go(self.returned.pop())

    def _store(self) -> None:
        """As `Arena.store`."""
        self.version += 1
        self._take_in()
        block = self.ledger.take(self.block_bytes)
        if block is None:
            if self.ledger.add_slab(self.block_bytes) is None:
                self._remove_unused()
                if self.ledger.add_slab(self.block_bytes) is None:
                    return
            block = self.ledger.take(self.block_bytes)
            assert block is not None
        number, index = block.slab.number, block.offset // self.block_bytes
        self.files.setdefault(number, [0] * len(block.slab.blocks))[index] = self.version
        self.held.append(Held(block, Place(number, index, self.version)))

    def _release(self, place: int) -> None:
        self.returned.append(self.held.pop(place).block)

    def _lend(self, place: int, name: str) -> None:
        self.lends += 1
        held, one = self.held[place], self.borrowers[name]
        lease = self.ledger.lend(held.block, name)
        if one.alive:
            one.coming.append((lease, held.place))

    def _hear(self, name: str) -> None:
        self.ledger.give_back(name, self.borrowers[name].told.pop(0))

    def _notice(self, name: str) -> None:
        one = self.borrowers[name]
        one.noticed = True
        one.told.clear()
        self.ledger.holder_gone(name)

    def _trim(self) -> None:
        self.trims += 1
        self._take_in()
        self._remove_unused()

    def _remove_unused(self) -> None:
        for slab in self.ledger.unused_slabs():
            self.ledger.remove_slab(slab)

    def _kill_the_owner(self) -> None:
        self.owner = False
        self.held.clear()
        self.returned.clear()

    # --- a borrower -----------------------------------------------------------------------------

    def _receive(self, name: str) -> None:
        one = self.borrowers[name]
        one.views.append(View(*one.coming.pop(0)))

    def _drop(self, name: str, place: int) -> None:
        view = self.borrowers[name].views.pop(place)
        self.borrowers[name].given_up.append(-view.lease if view.forked else view.lease)

    def _tell(self, name: str) -> None:
        one = self.borrowers[name]
        one.told.append(tuple(one.given_up))
        one.given_up.clear()

    def _kill(self, name: str) -> None:
        self.deaths += 1
        one = self.borrowers[name]
        one.alive = False
        one.coming.clear()
        one.views.clear()
        one.given_up.clear()

    def _fork(self, name: str) -> None:
        self.forks += 1
        one = self.borrowers[name]
        self.children += [view.place for view in one.views]
        one.views = [View(view.lease, view.place, forked=True) for view in one.views]

    # --- what must hold -------------------------------------------------------------------------

    def check(self) -> None:
        """Nobody ever sees another version than the one it was sent."""
        seen = [(name, view.place) for name, one in self.borrowers.items() for view in one.views]
        seen += [(name, place) for name, one in self.borrowers.items() for _, place in one.coming]
        seen += [("a fork", place) for place in self.children]
        seen += [("the owner", held.place) for held in self.held]
        for who, place in seen:
            now = self.files[place.file][place.index]
            assert now == place.version, f"{who} looks at version {place.version} and sees {now}"
        assert self.ledger.slab_bytes <= self.ledger.limit_bytes

    def check_end(self) -> None:
        """Everything has returned, and can be given back to the system."""
        if not self.owner:
            return
        self._take_in()
        assert (self.ledger.used_bytes, self.ledger.lent) == (0, 0)
        self._remove_unused()
        assert self.ledger.slab_bytes == 0

    def key(self):
        """Numbers and names do not matter, only which are the same; nor does what nobody looks at."""
        return min(repr(self._key(names)) for names in itertools.permutations(self.borrowers))

    def _key(self, names):
        label = _Labels()
        slabs = [
            (label("file", slab.number), slab.spoilt, [block.offset for block in slab.free],
             [(block.holds, block.leases, block.spoilt) for block in slab.blocks])
            for slab in self.ledger.slabs.values()
        ]  # fmt: skip

        def where(place):
            right = self.files[place.file][place.index] == place.version
            return label("file", place.file), place.index, label("version", place.version), right

        held = sorted(where(one.place) for one in self.held)
        parties = []
        for name in names:
            one = self.borrowers[name]
            parties.append((
                one.alive, one.noticed,
                [(label("lease", lease), where(place)) for lease, place in one.coming],
                [(label("lease", view.lease), where(view.place), view.forked) for view in one.views],
                sorted((label("lease", abs(lease)), lease < 0) for lease in one.given_up),
                [sorted((label("lease", abs(lease)), lease < 0) for lease in leases) for leases in one.told],
                sorted(label("lease", lease) for lease in self.ledger._leases.get(name, ())),
            ))  # fmt: skip
        returned = sorted((label("file", block.slab.number), block.offset) for block in self.returned)
        counts = self.owner, self.version, self.lends, self.deaths, self.forks, self.trims
        return slabs, held, parties, returned, sorted(where(place) for place in self.children), counts


class _Labels:
    """Small numbers for whatever is asked about, in the order of asking."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], int] = {}

    def __call__(self, kind: str, number: int) -> int:
        return self._known.setdefault((kind, number), len(self._known))
