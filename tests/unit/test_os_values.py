"""Pure parts of `_os`: names, records, parsing, and what its import pulls in."""

from __future__ import annotations

import os
import pickle
import signal

import pytest

from shoal._os import interpreter, platform, processes, signals
from shoal.errors import UnsupportedPlatform


@pytest.mark.parametrize(
    ("signum", "name"),
    [
        (signal.SIGKILL, "SIGKILL"),
        (signal.SIGRTMIN, "SIGRTMIN"),
        (signal.SIGRTMIN + 2, "SIGRTMIN+2"),
        (signal.SIGRTMAX, "SIGRTMAX"),
        (77, "signal 77"),
    ],
)
def test_signals_are_named(signum, name):
    assert processes.signal_name(signum) == name


def test_the_stack_signal_is_a_real_time_one():
    assert signal.SIGRTMIN < signals.INTERRUPT_STACK_SIGNAL < signal.SIGRTMAX


@pytest.mark.parametrize("name", [b"python3", b"a b", b"a) R (b", b")))", b""])
def test_a_process_name_cannot_fool_the_parser(name):
    assert processes.stat_fields(b"42 (" + name + b") S 7 8\n") == [b"S", b"7", b"8"]


@pytest.mark.parametrize(
    "record",
    [processes.ExitStatus(1, None, 9, 4096, 0.5), interpreter.MainModule("file", path="/a.py")],
    ids=lambda record: type(record).__name__,
)
def test_records_are_values(record):
    assert pickle.loads(pickle.dumps(record)) == record
    assert hash(pickle.loads(pickle.dumps(record))) == hash(record)
    assert record != 1
    assert type(record).__name__ in repr(record)
    with pytest.raises(AttributeError, match="immutable"):
        setattr(record, type(record).__match_args__[0], 2)


@pytest.mark.parametrize(
    ("release", "version"),
    [("5.10.0-28-amd64", (5, 10)), ("6.18.44", (6, 18)), ("5.4-rc1", (5, 4)), ("odd", (0, 0)), ("", (0, 0))],
)
def test_kernel_releases_are_read(release, version):
    assert platform.kernel_version(release) == version


def test_this_platform_passes():
    platform.check_platform()


@pytest.mark.parametrize(("system", "release"), [("darwin", "23.1.0"), ("linux", "5.9.16"), ("linux", "4.4.0")])
def test_other_platforms_are_refused_with_what_they_lack(system, release):
    reason = platform.missing(system, release)
    assert reason is not None
    assert "needs Linux 5.10 or later" in reason
    assert isinstance(UnsupportedPlatform(reason=reason), ImportError)


def test_whole_groups_that_are_not_ours_are_never_signalled():
    for pgid in (-1, 0, 1):
        with pytest.raises(ValueError, match="above 1"):
            processes.kill_group(pgid, 0)


def test_the_gone_are_an_answer():
    gone = 1 << 22  # above the largest pid
    assert processes.state_letter(gone) is None
    assert processes.memory_rss_bytes(gone) is None
    assert processes.cpu_s(gone) is None
    assert processes.children_of(gone) == []
    assert processes.peek_exit(gone)
    assert processes.reap(gone, block=True) == processes.ExitStatus(gone, None, None, 0, 0.0)
    assert not processes.kill_group(gone, signal.SIGKILL)


def test_we_can_be_looked_at():
    pid = os.getpid()
    assert processes.state_letter(pid) == "R"
    assert processes.memory_rss_bytes(pid) > 1 << 20
    assert processes.cpu_s(pid) > 0
