"""Who holds which block of an arena. Pure: no memory, no descriptors, no clocks.

Role: size classes, free blocks, holds and leases. Owner: one `Arena`, which calls it with its lock held.

A block is a piece of a slab; a slab is one memory file cut into blocks of one size class. The arena's own process holds a
block while it may yet send it; a lease is the right of one other process to read it. A block is free when nobody holds it
and no lease is open.

Invariants
    L1  A block is free, or held, or leased; only a free block is taken.
    L2  A lease ends once: given back by its holder, or with its holder.
    L3  Slabs never take more than `limit_bytes` together, and there are never more than `most_slabs`.
    L4  A block that a fork of its borrower may still see is not used again; its slab is dropped when nobody else uses it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

#: Blocks are multiples of this, so that each can be mapped by itself.
PAGE_BYTES = 4096
#: Smallest block: less than that is cheaper to send.
SMALLEST_BYTES = 64 << 10
#: Smaller blocks share a slab of about this size, to save descriptors; larger ones have one each.
SLAB_BYTES = 4 << 20


def size_class(nbytes: int) -> int:
    """Return the block size for `nbytes`: eight classes for each doubling, so at most an eighth is wasted."""
    nbytes = max(nbytes, SMALLEST_BYTES)
    step = max(PAGE_BYTES, (1 << (nbytes - 1).bit_length()) >> 4)
    return -(-nbytes // step) * step


class Slab:
    """One memory file and which of its blocks are free."""

    __slots__ = ("block_bytes", "blocks", "free", "number", "spoilt")

    def __init__(self, number: int, block_bytes: int) -> None:
        self.number = number
        self.spoilt = 0  # blocks that are out of use for good
        self.block_bytes = block_bytes
        count = max(1, SLAB_BYTES // block_bytes)
        self.blocks = [Block(self, index) for index in range(count)]
        self.free = self.blocks[::-1]  # the last is taken first: it was used last, so its pages are warm

    @property
    def nbytes(self) -> int:
        return self.block_bytes * len(self.blocks)

    @property
    def unused(self) -> bool:
        return len(self.free) + self.spoilt == len(self.blocks)


class Block:
    """A piece of a slab."""

    __slots__ = ("holds", "leases", "offset", "slab", "spoilt", "warm")

    def __init__(self, slab: Slab, index: int) -> None:
        self.slab = slab
        self.offset = index * slab.block_bytes
        self.holds = 0  # by the arena's own process
        self.leases = 0  # by others
        self.spoilt = False
        self.warm = 0  # bytes from its start that have memory behind them


class Ledger:
    """All slabs, holds and leases of one arena."""

    def __init__(self, limit_bytes: int, most_slabs: int = 1 << 20) -> None:
        self.limit_bytes = limit_bytes
        self.most_slabs = most_slabs
        self.slabs: dict[int, Slab] = {}
        self.slab_bytes = 0
        self.used_bytes = 0
        self._by_class: dict[int, list[Slab]] = {}
        self._leases: dict[Hashable, dict[int, Block]] = {}  # holder -> its open leases
        self._last = 0

    # --- blocks ---------------------------------------------------------------------------------

    def take(self, nbytes: int) -> Block | None:
        """Hold a free block of the right class, the warmest first; None if there is none."""
        for slab in self._by_class.get(size_class(nbytes), ()):
            if slab.free:
                block = slab.free.pop()
                block.holds = 1
                self.used_bytes += slab.block_bytes
                return block
        return None

    def add_slab(self, nbytes: int) -> Slab | None:
        """Add a slab for blocks of `nbytes`; None if it would pass the limit (L3)."""
        self._last += 1
        slab = Slab(self._last, size_class(nbytes))
        if self.slab_bytes + slab.nbytes > self.limit_bytes or len(self.slabs) >= self.most_slabs:
            return None
        self.slabs[slab.number] = slab
        self._by_class.setdefault(slab.block_bytes, []).append(slab)
        self.slab_bytes += slab.nbytes
        return slab

    def unused_slabs(self) -> list[Slab]:
        """Return the slabs of which every block is free."""
        return [slab for slab in self.slabs.values() if slab.unused]

    def spoilt_slabs(self) -> list[Slab]:
        """Return the unused slabs with blocks that are out of use: keeping them warm is of little use."""
        return [slab for slab in self.slabs.values() if slab.spoilt and slab.unused]

    def remove_slab(self, slab: Slab) -> None:
        """Forget an unused slab."""
        assert slab.unused
        del self.slabs[slab.number]
        peers = self._by_class[slab.block_bytes]
        peers.remove(slab)
        if not peers:
            del self._by_class[slab.block_bytes]
        self.slab_bytes -= slab.nbytes

    def let_go(self, block: Block) -> None:
        """End one hold of the arena's own process."""
        assert block.holds > 0
        block.holds -= 1
        self._maybe_free(block)

    def _maybe_free(self, block: Block) -> None:
        if not block.holds and not block.leases:
            self.used_bytes -= block.slab.block_bytes
            if block.spoilt:
                block.slab.spoilt += 1
            else:
                block.slab.free.append(block)

    # --- leases ---------------------------------------------------------------------------------

    def lend(self, block: Block, holder: Hashable) -> int:
        """Open a lease for `holder` and return its number."""
        assert block.holds or block.leases
        self._last += 1
        block.leases += 1
        self._leases.setdefault(holder, {})[self._last] = block
        return self._last

    def give_back(self, holder: Hashable, leases: Iterable[int]) -> None:
        """End leases of `holder`; those it does not have are ignored (L2). A lease below zero spoils its block (L4)."""
        mine = self._leases.get(holder, {})
        for lease in leases:
            block = mine.pop(abs(lease), None)
            if block is not None:
                block.leases -= 1
                block.spoilt = block.spoilt or lease < 0
                self._maybe_free(block)
        if not mine:
            self._leases.pop(holder, None)

    def holder_gone(self, holder: Hashable) -> None:
        """End every lease of a holder that has died: what it forked may live on, so the blocks are spoilt (L4)."""
        self.give_back(holder, [-lease for lease in self._leases.get(holder, ())])

    def leases_of(self, holder: Hashable) -> int:
        """Return how many leases `holder` has open."""
        return len(self._leases.get(holder, ()))

    @property
    def lent(self) -> int:
        """How many leases are open."""
        return sum(map(len, self._leases.values()))
