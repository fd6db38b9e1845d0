"""Programs that use shoal and are ended from outside, and the search for what they leave.

Role: shared by `test_main_dies.py` and the long runs in `tests/stress`. Owner: the test process.

Whatever descends from a program carries its mark in the environment, whoever its parent is by now.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from tests import support

#: The main program is gone: this long may anything of it live on. Seconds.
GONE_S = 1.0
MARK = "SHOAL_TEST_PROGRAM"

#: Every kind of grandchild a task can leave. `daemon` leaves the group and the session, twice forked.
BREEDER = """
import os, subprocess, sys, threading, time
import shoal

def breed(kinds):
    if "subprocess" in kinds:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    if "shell" in kinds:
        subprocess.Popen("sleep 1000 | sleep 1000", shell=True)
    if "fork" in kinds and os.fork() == 0:
        time.sleep(1000)
    if "daemon" in kinds and os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    time.sleep(1000)

def short(number):
    time.sleep(0.001)
    return number

if __name__ == "__main__":
    method, kinds = sys.argv[1], sys.argv[2].split(",")
    print("begun", flush=True)
    with shoal.Pool(3, start_method=method) as pool:
        pool.submit(breed, kinds)
        print("submitted", flush=True)
        with shoal.Pool(1, start_method=method) as other:
            while True:
                list(pool.imap(short, range(100), ordered=False))
                other.submit(short, 1).result()
                print("round", flush=True)
"""


def grandchildren(start_method):
    """What a task may start there. A daemon of a forked worker is not ours to find: the program must not be its reaper."""
    return "subprocess,shell,fork" if start_method == "fork" else "subprocess,shell,fork,daemon"


class Victim:
    """A running program that is to be ended."""

    def __init__(self, folder, source, *args):
        self.mark = uuid.uuid4().hex
        script = support.write_script(Path(folder), source, f"victim-{self.mark}.py")
        self.output = tempfile.TemporaryFile("w+")
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(script), *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.errors,
            cwd=folder,
            env=support.program_environment(**{MARK: self.mark}),
            start_new_session=True,
        )

    def printed(self):
        return _text(self.output)

    def complained(self):
        return _text(self.errors)

    def wait_for(self, line):
        support.eventually(
            lambda: line in self.printed().splitlines() or self.process.poll() is not None,
            what=f"the program: {line!r}",
        )
        assert self.process.poll() is None, f"the program ended: {self.complained()}"

    def end(self, signum=signal.SIGKILL, *, group=False):
        """Send the signal and wait for the program's end; return the seconds that took."""
        began = time.monotonic()
        if group:
            os.killpg(self.process.pid, signum)
        else:
            self.process.send_signal(signum)
        self.process.wait(support.HANG_LIMIT_S)
        return time.monotonic() - began

    def survivors(self):
        """Whatever descends from the program and is not a zombie."""
        mark = f"{MARK}={self.mark}".encode()
        return [
            one
            for one in support.process_table().values()
            if one.state not in "ZX" and mark in support._read_bytes(f"/proc/{one.pid}/environ")
        ]

    def assert_gone(self, limit_s=GONE_S):
        """Within the limit nobody is left. Whoever is gets killed, so that one failure stays one."""
        end = time.monotonic() + limit_s
        while (left := self.survivors()) and time.monotonic() < end:
            time.sleep(0.005)
        if left:
            told = "\n".join(one.describe() for one in left)
            for one in left:
                os.kill(one.pid, signal.SIGKILL)
            raise AssertionError(f"{limit_s:g} s after the program's end these live on:\n{told}\n{self.complained()}")

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for one in self.survivors():
            os.kill(one.pid, signal.SIGKILL)
        self.output.close()
        self.errors.close()


def _text(file):
    return os.pread(file.fileno(), 1 << 20, 0).decode(errors="replace")


def kill_at_moments(folder, start_method, moments, *, signum=signal.SIGKILL):
    """Run one breeding program after the other and end each at one of `moments`, in seconds from its start."""
    segments = support._listing("/dev/shm")
    for moment in moments:
        victim = Victim(folder, BREEDER, start_method, grandchildren(start_method))
        try:
            time.sleep(moment)  # not to wait for anything: the moment is what is tested
            victim.end(signum)
            assert victim.process.returncode == -signum, f"at {moment:.3f} s: {victim.complained()}"
            victim.assert_gone()
        finally:
            victim.close()
    assert set(support._listing("/dev/shm")) <= set(segments)
