"""What the benchmarks read from /proc."""

from __future__ import annotations

import os

import pytest

from benchmarks import machine, procs


def test_pss_is_read_in_bytes():
    assert (
        procs.parse_pss("5566-7788 ---p 0 00:00 0 [rollup]\nRss:  100 kB\nPss:   12 kB\nPss_Dirty: 1 kB\n") == 12 * 1024
    )


def test_a_process_without_pages_has_no_pss_line():
    with pytest.raises(ValueError, match="Pss"):
        procs.parse_pss("")


def test_a_part_of_the_pss_is_read_by_its_name():
    assert procs.parse_pss("Pss:   12 kB\nPss_Shmem:   8 kB\n", "Pss_Shmem") == 8 * 1024


def test_memory_that_no_longer_changes_is_settled():
    looks = iter([100_000, 200_000, 300_000, 300_100])
    assert procs.settled(lambda: next(looks)) == 300_100


def test_the_machine_has_memory_to_spare():
    assert procs.machine_bytes("MemAvailable") > 1 << 20
    with pytest.raises(ValueError, match="Mem"):
        procs.machine_bytes("MemNoSuch")


def test_a_process_that_has_left_weighs_nothing():
    assert procs.pss_bytes([2**22 + 1]) == 0


def test_nobody_carries_a_mark_that_was_never_given():
    assert procs.marked("a mark that was never given") == []


def test_this_process_weighs_something():
    assert procs.pss_bytes([os.getpid()]) > 1_000_000


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor : 0\nmodel name\t: Fast 9000\n\nprocessor : 1\nmodel name\t: Other\n", "Fast 9000"),
        ("processor : 0\nHardware : Board X\n", "Board X"),
    ],
)
def test_cpu_model_is_the_first_name_given(text, name):
    assert machine.cpu_model(text) == name


def test_memory_is_shown_in_gib():
    assert machine.memory_gib("MemTotal:       16777216 kB\nMemFree: 1 kB\n") == pytest.approx(16.0)


def test_steal_is_the_share_of_time_the_host_took():
    before = [100, 0, 0, 100, 0, 0, 0, 10, 50, 0]
    after = [150, 0, 0, 130, 0, 0, 0, 30, 90, 0]
    assert machine.steal_share(before, after) == pytest.approx(0.2)


def test_steal_is_zero_when_no_time_passed():
    assert machine.steal_share([1] * 10, [1] * 10) == 0.0


def test_an_unknown_distribution_has_an_unknown_version():
    assert machine.version_of("no-such-distribution-anywhere") == "unknown"
