"""What crash tests have workers do: die in a chosen manner at a chosen stage.

Role: tasks, and objects that die while they are pickled or unpickled. Owner: nobody. Workers import this file, so it
imports little: a fresh worker pays for it in the time of its first task.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import pickle
import signal
import sys
import termios
import threading
import time

#: Manners of death that end a process by themselves.
ENDING = ("os._exit", "SIGKILL", "SIGSEGV", "SIGABRT")
#: Manners that raise.
RAISING = ("exception", "sys.exit", "memory error")
#: Stops the process for ever; only a timeout ends it.
STOPPING = ("SIGSTOP",)
MANNERS = ("exception", "sys.exit", "os._exit", "SIGKILL", "SIGSEGV", "SIGABRT", "SIGSTOP", "memory error")
EXIT_CODE = 3
#: So large that it cannot be in any socket's buffer as a whole.
LARGE_BYTES = 48 << 20


class Boom(Exception):
    """Raised by the manner "exception"."""


def die(manner):
    """Die here and now; returns only after a SIGSTOP that was followed by a SIGCONT."""
    if manner == "exception":
        raise Boom("boom")
    if manner == "memory error":
        bytearray(1 << 62)
    elif manner == "sys.exit":
        sys.exit(EXIT_CODE)
    elif manner == "os._exit":
        os._exit(EXIT_CODE)
    else:
        os.kill(os.getpid(), getattr(signal, manner))
        if manner != "SIGSTOP":
            time.sleep(1000)  # another thread may be the one that takes the signal


class DiesWhenPickled:
    def __init__(self, manner):
        self.manner = manner

    def __reduce__(self):
        die(self.manner)
        return DiesWhenPickled, (self.manner,)


class DiesWhenUnpickled:
    def __init__(self, manner):
        self.manner = manner

    def __reduce__(self):
        return die, (self.manner,)


# --- tasks --------------------------------------------------------------------------------------


def warm():
    """As an initializer: have this file imported and what the tasks use touched, so that the first is as short as any."""
    for value in range(10):
        square_slowly(value, 0.0001)


def echo(value):
    return value


def twice(value):
    return 2 * value


def add(one, other):
    return one + other


def pid_of_worker(_item=None):
    return os.getpid()


def run_then_die(manner):
    die(manner)


def return_what_dies_when_pickled(manner):
    return DiesWhenPickled(manner)


def return_what_dies_when_unpickled(manner):
    return DiesWhenUnpickled(manner)


def die_on_two(manner, item):
    if item == 2:
        die(manner)
    return item


def return_what_dies_on_two(manner, item):
    return DiesWhenPickled(manner) if item == 2 else item


def die_once(manner, marker):
    """Die the first time, return "alive" later: `marker` is a file that remembers."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "alive"
    die(manner)
    return "alive"


def die_if_there(manner, marker):
    """As an initializer: die as long as the file exists."""
    if os.path.exists(marker):
        die(manner)


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def wait_for_file(path, value="waited"):
    while not os.path.exists(path):
        time.sleep(0.002)
    return value


def tell_and_sleep(path, seconds):
    """Write our pid to a file, so that others know we run, then sleep."""
    with open(f"{path}.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{path}.new", path)
    time.sleep(seconds)


def burn(seconds):
    """Hold a core, not just time."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def square_slowly(value, seconds):
    burn(seconds)
    return value * value


def fail_on_sevens(value, seconds):
    burn(seconds)
    if value % 7 == 0:
        raise Boom(str(value))
    return value * value


# --- dying from the side ------------------------------------------------------------------------


def plant_death(manner, trigger):
    """Return our pid at once; a thread dies when the file `trigger` appears, whatever the worker does then."""

    def watch():
        wait_for_file(trigger)
        die(manner)

    threading.Thread(target=watch, daemon=True).start()
    return os.getpid()


def return_large_and_die_while_sending(manner):
    """Return a large result; a thread sees it under way and has the process die in the middle of it."""
    main = threading.get_ident()
    signal.signal(signal.SIGUSR2, lambda *_: die(manner))
    sockets = [int(name) for name in os.listdir("/proc/self/fd") if _is_socket(name)]

    def watch():
        while not any(_unsent_bytes(fd) for fd in sockets):
            time.sleep(0)
        if manner in RAISING:
            signal.pthread_kill(main, signal.SIGUSR2)  # raised by the main thread, out of its send()
        else:
            die(manner)

    threading.Thread(target=watch, daemon=True).start()
    # Each below what is lent, so all of it travels inside the frame.
    return [Buffered(200_000) for _ in range(LARGE_BYTES // 200_000)]


class Buffered:
    """Something that pickles as a buffer of its own."""

    def __init__(self, size):
        self.size = size

    def __reduce_ex__(self, protocol):
        return bytes, (pickle.PickleBuffer(bytearray(self.size)),)


def _is_socket(name):
    try:
        return os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    except OSError:
        return False


def _unsent_bytes(fd):
    count = bytearray(4)
    try:
        fcntl.ioctl(fd, termios.TIOCOUTQ, count)
    except OSError:
        return 0
    return int.from_bytes(count, sys.byteorder)


def die_when_leaving(manner):
    """Return our pid; die in an exit handler, when the worker has been told to go."""
    atexit.register(die, manner)
    return os.getpid()
