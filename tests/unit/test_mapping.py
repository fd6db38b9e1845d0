"""Mappings of memory files: they live exactly as long as somebody can see their bytes, and cost no descriptor."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import resource
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal._os import mapping, memory

PAGE = mmap.PAGESIZE


@pytest.fixture
def file():
    """A memory file of four pages."""
    fd = memory.memory_file("shoal-test-mapping", 4 * PAGE)
    yield fd
    os.close(fd)


def is_mapped(fd):
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return any(line.split()[4] == str(os.fstat(fd).st_ino) for line in maps)


def in_child(work):
    """Run `work` in a forked child; return whether it came to its end and was true."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- how long they live -------------------------------------------------------------------------


def test_a_mapping_goes_in_the_moment_its_last_view_goes(file):
    view = mapping.view(mapping.map_file(file, PAGE))
    assert is_mapped(file)
    del view
    assert not is_mapped(file)


KINDS = {
    "a slice": lambda view: view[10:20],
    "another format": lambda view: view.cast("Q"),
    "read-only": lambda view: view.toreadonly(),
    "a view of several dimensions": lambda view: view.cast("B", (2, len(view) // 2)),
    "an array": lambda view: np.frombuffer(view, np.uint8),
    "a slice of an array": lambda view: np.frombuffer(view, np.uint16)[::-3],
    "a ctypes object": lambda view: ctypes.c_int.from_buffer(view, 8),
    "a part": lambda view: mapping.part(view, 8, 16, None),
    "a slice of a slice of an array": lambda view: memoryview(np.frombuffer(view[5:], np.uint8)[7:])[1:],
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_whatever_sees_its_bytes_keeps_it(file, kind):
    view = mapping.view(mapping.map_file(file, PAGE))
    seen = kind(view)
    del view
    gc.collect()
    assert is_mapped(file)
    del seen
    assert not is_mapped(file)


def test_a_view_in_a_cycle_goes_with_the_cycle(file):
    cycle = [mapping.view(mapping.map_file(file, PAGE))]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert not is_mapped(file)


def test_the_end_is_told_once_and_after_the_bytes_are_gone(file):
    told = []
    view = mapping.view(mapping.map_file(file, PAGE, on_gone=lambda: told.append(is_mapped(file))))
    others = [view[n:] for n in range(5)]
    del view
    assert told == []
    del others
    assert told == [False]


def test_the_last_view_may_go_in_another_thread(file):
    told = []
    views = [mapping.view(mapping.map_file(file, PAGE, on_gone=lambda: told.append(threading.current_thread())))]
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    assert told == [thread]
    assert not is_mapped(file)


def test_mappings_cost_no_descriptors(file):
    before = len(os.listdir("/proc/self/fd"))
    views = [mapping.view(mapping.map_file(file, PAGE)) for _ in range(2000)]
    assert len(os.listdir("/proc/self/fd")) == before
    del views
    assert not is_mapped(file)


def test_the_descriptor_may_be_closed_at_once():
    fd = memory.memory_file("shoal-test-mapping", PAGE)
    view = mapping.view(mapping.map_file(fd, PAGE))
    os.close(fd)
    view[:3] = b"abc"
    assert bytes(view[:4]) == b"abc\0"


def test_nothing_is_said_when_the_interpreter_ends_with_mappings_alive(run_script):
    done = run_script("""
        import os
        from shoal._os import mapping, memory
        fd = memory.memory_file("shoal-test-mapping", 8192)
        kept = [mapping.view(mapping.map_file(fd, 8192, on_gone=lambda: os.getpid()))]
        kept.append(kept)
        """)
    assert (done.returncode, done.stderr) == (0, "")


# --- what is seen -------------------------------------------------------------------------------


def test_two_mappings_of_a_file_are_the_same_memory(file):
    one, other = (mapping.view(mapping.map_file(file, PAGE)) for _ in range(2))
    one[100] = 7
    assert other[100] == 7
    assert mapping.address(one) != mapping.address(other)


def test_what_is_written_to_a_private_mapping_stays_there(file):
    os.pwrite(file, b"before", 0)
    private = mapping.view(mapping.map_file(file, PAGE, private=True))
    assert bytes(private[:6]) == b"before"
    private[:6] = b"inside"
    assert os.pread(file, 6, 0) == b"before"
    assert bytes(private[:6]) == b"inside"


def test_a_mapping_may_begin_at_any_page(file):
    os.pwrite(file, b"third", 2 * PAGE)
    assert bytes(mapping.view(mapping.map_file(file, PAGE, offset=2 * PAGE))[:5]) == b"third"


def test_what_cannot_be_mapped_is_an_error_with_the_systems_words(file):
    with pytest.raises(OSError, match="cannot map"):
        mapping.map_file(-1, PAGE)
    with pytest.raises(OSError, match="Invalid argument"):
        mapping.map_file(file, PAGE, offset=1)
    assert not is_mapped(file)


def test_no_address_space_left_is_an_error(file):
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as statm:
        used = int(statm.read().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), hard))
    try:
        with pytest.raises(OSError, match="cannot map"):
            mapping.map_file(file, 1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# --- forks --------------------------------------------------------------------------------------


def test_a_forked_child_has_an_inherited_mapping_and_shares_it(file):
    view = mapping.view(mapping.map_file(file, PAGE))

    def work():
        view[0] = 9
        return True

    assert in_child(work)
    assert view[0] == 9


def test_a_forked_child_does_not_have_a_mapping_of_the_parent_alone(file):
    view = mapping.view(mapping.map_file(file, PAGE, inherited=False))
    assert in_child(lambda: not is_mapped(file))
    assert is_mapped(file)
    view[0] = 1


def test_a_child_does_not_unmap_what_has_taken_the_place_of_the_parents_mapping(file):
    told = []
    views = [mapping.view(mapping.map_file(file, PAGE, inherited=False, on_gone=lambda: told.append(1)))]
    address = mapping.address(views[0])

    def work():
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
        assert libc.mmap(ctypes.c_void_p(address), PAGE, 3, fixed, -1, 0) == address
        views.clear()
        ctypes.memset(address, 1, PAGE)  # would crash
        return not told

    assert in_child(work)


def test_forks_are_counted_in_the_parent(file):
    before = mapping.forks
    assert in_child(lambda: True)
    assert mapping.forks == before + 1


# --- finding, addressing, copying ---------------------------------------------------------------


def test_the_array_behind_any_memoryview_is_found(file):
    array = mapping.map_file(file, PAGE)
    view = mapping.view(array)
    assert mapping.mapped_array(view[5:][::2].toreadonly()) is array
    assert mapping.mapped_array(array) is array
    for other in (memoryview(b"x"), memoryview(bytearray(5)), memoryview(np.zeros(3)), None, 5):
        assert mapping.mapped_array(other) is None


def test_a_part_keeps_its_owner_as_long_as_any_view_of_it(file):
    class Owner:
        def __del__(self):
            gone.append(True)

    gone = []
    view = mapping.view(mapping.map_file(file, PAGE))
    piece = mapping.part(view, 16, 32, Owner())
    piece[0] = 5
    assert (view[16], piece.nbytes) == (5, 32)
    rest = np.frombuffer(piece, np.uint8)[3:]
    del piece
    assert not gone
    del rest
    assert gone


def test_addresses_are_those_of_numpy():
    array = np.arange(1000)
    assert mapping.address(memoryview(array).cast("B")) == array.__array_interface__["data"][0]
    assert mapping.address(memoryview(array).cast("B")[24:]) == array[3:].__array_interface__["data"][0]
    before = sys.getrefcount(array)
    view = memoryview(array)
    for _ in range(100):
        mapping.address(view)
    assert sys.getrefcount(array) == before + 1
    view.release()  # would refuse, had anybody kept it


@settings(deadline=None, max_examples=50)
@given(size=st.sampled_from([0, 1, 63, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1]), data=st.data())
def test_copies_are_whole_and_equal_is_what_has_equal_bytes(size, data):
    source = memoryview(np.random.default_rng(size).integers(0, 255, size, np.uint8)).cast("B")
    target = bytearray(size + 1)
    mapping.copy(memoryview(target)[:size], source.toreadonly())
    assert target[:size] == source
    assert target[size] == 0
    assert mapping.same(memoryview(target)[:size], source)
    assert not mapping.same(memoryview(target), source)
    if size:
        target[data.draw(st.integers(0, size - 1))] ^= 1
        assert not mapping.same(memoryview(target)[:size], source)
