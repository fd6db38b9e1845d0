"""The arena with real memory, in one process: filled, lent, used again, given back; what happens when memory is short."""

from __future__ import annotations

import gc
import mmap
import os
import resource
import threading
from contextlib import contextmanager

import pytest

from shoal._memory import ledger as ledger_module
from shoal._memory.arena import Arena

KIB = 1 << 10
MIB = 1 << 20
#: Address space without memory behind it; `mmap` has no name for it.
MAP_NORESERVE = 0x4000
#: Several such blocks share a slab; a large one has a slab of its own.
SIZE = 300 * KIB
LARGE = 3 * MIB


def data(fill, nbytes=SIZE):
    return memoryview(bytes([fill]) * nbytes)


def memory_files():
    """Descriptors and mappings of arenas in this process."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        mapped = sum("/memfd:shoal-arena" in line for line in file)
    named = [_target(name) for name in os.listdir("/proc/self/fd")]
    return sum("/memfd:shoal-arena" in name for name in named), mapped


def _target(name):
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""


def read(fd, offset, nbytes):
    return os.pread(fd, nbytes, offset)


@contextmanager
def limited(which, soft):
    old = resource.getrlimit(which)
    resource.setrlimit(which, (soft, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, old)


@pytest.fixture
def arena():
    gc.collect()  # what other tests left in cycles is not ours
    made = Arena(64 * MIB)
    yield made
    for holder in "ab":
        made.holder_gone(holder)
    made.close()


# --- storing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [1, 4095, 4096, SIZE, SIZE + 1, LARGE, 4 * MIB, 4 * MIB + 1])
def test_what_is_stored_can_be_read_here_and_through_the_descriptor(arena, nbytes):
    stored = arena.store(data(7, nbytes))
    assert stored.nbytes == nbytes
    assert stored.view() == data(7, nbytes)
    _, fd, offset = arena.lend(stored, "a")
    assert read(fd, offset, nbytes) == bytes(data(7, nbytes))
    assert offset % mmap.PAGESIZE == 0


def test_parts_lie_one_behind_the_other(arena):
    for fill in (1, 2):  # into fresh memory, then into warm
        parts = [data(fill, 5), data(fill + 1, SIZE), data(fill + 2, 4097), memoryview(b"")]
        stored = arena.store(*parts)
        assert bytes(stored.view()) == b"".join(parts)
        del stored


def test_nothing_is_written_over_while_it_is_held_or_lent(arena):
    first = arena.store(data(1))
    _, fd, offset = arena.lend(first, "a")
    del first
    others = [arena.store(data(fill)) for fill in range(2, 40)]
    assert read(fd, offset, SIZE) == bytes(data(1))
    assert all(stored.view() == data(fill) for fill, stored in enumerate(others, 2))


def test_memory_is_used_again_once_nobody_has_it(arena):
    for fill in range(50):
        stored = arena.store(data(fill, LARGE))
        lease, fd, offset = arena.lend(stored, "a")
        assert read(fd, offset, LARGE) == bytes(data(fill, LARGE))
        del stored
        assert arena.used_bytes > 0
        arena.give_back("a", [lease])
        assert arena.used_bytes == 0
    assert arena.held_bytes < 2 * LARGE
    assert memory_files() == (1, 1)


def test_a_shorter_content_does_not_show_the_longer_one_before_it(arena):
    arena.store(data(9))
    shorter = arena.store(data(1, SIZE - 5000))
    assert shorter.view() == data(1, SIZE - 5000)
    longer = arena.store(data(2, SIZE + 4000))  # beyond what was ever written of that block
    assert longer.view() == data(2, SIZE + 4000)


def test_a_lease_ends_once_whoever_ends_it(arena):
    stored = arena.store(data(1))
    leases = [arena.lend(stored, holder)[0] for holder in "aab"]
    assert arena.lent == 3
    arena.give_back("a", leases[:1] * 3)
    arena.give_back("b", leases[:2])
    assert arena.lent == 2
    arena.holder_gone("a")
    arena.holder_gone("a")
    assert arena.lent == 1
    del stored
    assert arena.used_bytes > 0
    arena.holder_gone("b")
    assert (arena.lent, arena.used_bytes) == (0, 0)


def test_figures_are_told_together(arena):
    stored = arena.store(data(1))
    arena.lend(stored, "a")
    assert arena.describe() == {"held_bytes": arena.held_bytes, "used_bytes": arena.used_bytes, "lent": 1}


# --- limits -------------------------------------------------------------------------------------


def test_beyond_the_limit_nothing_is_stored_and_nothing_is_left_behind():
    before = memory_files()
    arena = Arena(5 * MIB)
    assert arena.store(data(1, 6 * MIB)) is None
    assert (arena.used_bytes, arena.held_bytes) == (0, 0)
    held = arena.store(data(1, LARGE))
    assert arena.store(data(2, LARGE)) is None
    assert held.view() == data(1, LARGE)
    del held
    assert arena.store(data(3, LARGE)).view() == data(3, LARGE)
    arena.close()
    assert memory_files() == before


def test_warm_memory_of_another_size_makes_room_under_the_limit():
    arena = Arena(5 * MIB)
    arena.store(data(1, 4 * MIB))
    assert arena.store(data(2)).view() == data(2)
    assert arena.held_bytes <= 5 * MIB
    arena.close()


def test_an_arena_without_any_room_stores_nothing():
    arena = Arena(0)
    assert arena.store(data(1)) is None
    arena.close()


def test_short_memory_while_writing_gives_the_block_back(arena):
    """RLIMIT_FSIZE stands for it: the write fails with an error, as it does without memory."""
    first = arena.store(data(1))
    with limited(resource.RLIMIT_FSIZE, first.nbytes + 64 * KIB):
        assert arena.store(data(2)) is None  # a block behind the first: its write fails, half done perhaps
        assert arena.used_bytes == first.block.slab.block_bytes
        assert first.view() == data(1)
    assert arena.store(data(3)).view() == data(3)
    assert arena.held_bytes == first.block.slab.nbytes


def test_short_memory_for_a_new_slab_leaves_no_descriptor(arena):
    before = memory_files()
    with limited(resource.RLIMIT_FSIZE, 4096):
        assert arena.store(data(1)) is None
    assert (memory_files(), arena.held_bytes) == (before, 0)
    assert arena.store(data(1)) is not None


def test_without_descriptors_nothing_is_stored_and_later_it_is(arena):
    taken = []
    with limited(resource.RLIMIT_NOFILE, max(map(int, os.listdir("/proc/self/fd"))) + 8):
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        try:
            assert arena.store(data(1)) is None
            assert arena.held_bytes == 0
        finally:
            for fd in taken:
                os.close(fd)
        assert arena.store(data(1)).view() == data(1)


def test_more_than_the_machine_has_is_refused_before_it_is_touched():
    arena = Arena(1 << 60)
    with mmap.mmap(-1, 1 << 44, flags=mmap.MAP_PRIVATE | MAP_NORESERVE, prot=mmap.PROT_READ) as nothing:
        with memoryview(nothing) as view:
            assert arena.store(view) is None
    assert arena.held_bytes == 0
    arena.close()


# --- giving back --------------------------------------------------------------------------------


def test_trim_gives_back_what_nobody_uses_and_nothing_else(arena):
    kept = arena.store(data(1, LARGE))
    lent = arena.store(data(2, LARGE))
    lease, fd, offset = arena.lend(lent, "a")
    del lent
    arena.store(data(3, 4 * MIB))
    assert memory_files() == (3, 3)
    arena.trim()
    assert memory_files() == (2, 2)
    assert kept.view() == data(1, LARGE)
    assert read(fd, offset, LARGE) == bytes(data(2, LARGE))
    arena.give_back("a", [lease])
    del kept
    arena.trim()
    assert (memory_files(), arena.held_bytes) == ((0, 0), 0)


def test_a_slab_with_one_used_block_stays(arena):
    stored = [arena.store(data(fill)) for fill in range(3)]
    del stored[::2]
    arena.trim()
    assert stored[0].view() == data(1)
    assert arena.store(data(5)).view() == data(5)


def test_after_close_nothing_is_taken_in_and_what_is_held_goes_with_its_last_use(arena):
    held = arena.store(data(1))
    arena.store(data(2, LARGE))
    arena.close()
    assert memory_files() == (1, 1)
    for nbytes in (SIZE, LARGE, 10 * MIB):  # the first would fit into the slab that is still held
        assert arena.store(data(3, nbytes)) is None
    assert held.view() == data(1)
    _, fd, offset = arena.lend(held, "late")
    assert read(fd, offset, SIZE) == bytes(data(1))
    del held
    arena.holder_gone("late")
    arena.close()
    assert (arena.used_bytes, memory_files()) == (0, (0, 0))


def test_an_arena_that_nobody_closed_takes_its_memory_with_it():
    before = memory_files()
    arena = Arena(64 * MIB)
    arena.store(data(1))
    del arena
    assert memory_files() == before


def test_what_was_lent_is_still_there_for_who_took_it_when_the_arena_is_closed_and_gone():
    arena = Arena(64 * MIB)
    stored = arena.store(data(1))
    _, fd, offset = arena.lend(stored, "a")
    theirs = os.dup(fd)
    arena.close()
    del arena, stored
    assert read(theirs, offset, SIZE) == bytes(data(1))
    os.close(theirs)


def test_an_arena_that_was_abandoned_takes_nothing_in_and_closes_its_descriptors():
    """As in a forked child: the mappings are not there, so they must not be touched either."""
    before = memory_files()
    arena = Arena(64 * MIB)
    held = [arena.store(data(1)), arena.store(data(2))]
    del held[1:]  # a free block, warm: in the child it would be written through the mapping
    arena.abandon()
    assert memory_files()[0] == before[0]
    assert arena.store(data(3)) is None
    assert arena.store(data(3, LARGE)) is None
    del held, arena


# --- finalizers and threads ---------------------------------------------------------------------


def test_a_finalizer_gives_a_block_back_even_while_the_arena_is_locked(arena):
    """It may run inside any allocation of any thread, the arena's own code included (A3)."""

    class Cycle:
        def __init__(self, stored):
            self.me, self.stored = self, stored

    Cycle(arena.store(data(1)))
    stored = [arena.store(data(2))]
    with arena._lock:
        gc.collect()
        stored.clear()
    assert arena.used_bytes == 0


def test_threads_that_store_at_once_never_share_a_block(arena):
    wrong = []

    def work(fill):
        for step in range(60):
            stored = arena.store(data(fill, SIZE + step * 1000))
            if stored is None or stored.view() != data(fill, SIZE + step * 1000):
                wrong.append(fill)
            del stored
            if step % 20 == fill:
                arena.trim()

    threads = [threading.Thread(target=work, args=(fill,)) for fill in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert arena.used_bytes == 0


def test_closing_while_others_store_loses_nothing_of_theirs():
    """They get a block or None, never an error, and never somebody else's file."""
    for _ in range(20):
        arena = Arena(64 * MIB)
        problems = []

        def work(arena=arena, problems=problems):
            try:
                for _ in range(20):
                    stored = arena.store(data(5, LARGE))
                    if stored is not None and stored.view() != data(5, LARGE):
                        problems.append("content")
            except Exception as problem:
                problems.append(problem)

        thread = threading.Thread(target=work)
        thread.start()
        arena.close()
        thread.join()
        assert not problems
        arena.close()


def test_small_blocks_share_a_descriptor(arena):
    stored = [arena.store(data(1)) for _ in range(ledger_module.SLAB_BYTES // SIZE - 1)]
    assert memory_files() == (1, 1)
    assert len({arena.lend(one, "a")[1] for one in stored}) == 1
