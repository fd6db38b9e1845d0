"""What the Processes of the tests run: importable, so that every start method finds it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import shoal


class Adder(shoal.Process):
    """The usual subclass: state from `__init__`, work in `run`."""

    def __init__(self, first, second, **options):
        super().__init__(**options)
        self.first = first
        self.second = second

    def run(self):
        return self.first + self.second


class Patient(shoal.Process):
    """Says that it is ready, then works until it is asked to stop."""

    def run(self):
        self.ready(os.getpid())
        while not self.stopping.wait(0.5):
            pass
        return "stopped"


class Stubborn(shoal.Process):
    """Looks whether it is to stop, and goes on."""

    def run(self):
        self.stopping.is_set()
        self.ready()
        while True:
            time.sleep(100)


class Tidy(shoal.Process):
    """Knows nothing of `stopping`: cleans up in a handler of SIGTERM."""

    def run(self):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        self.ready()
        time.sleep(100)


class Hider(shoal.Process):
    """Has attributes of its own under the names of what only shoal's class has."""

    def __init__(self, **options):
        super().__init__(**options)
        self.result = self.ready = self.stop = self.obituary = self.stopping = "mine"

    def run(self):
        return [self.result, self.ready, self.stop, self.obituary, self.stopping]


class Parent(shoal.Process):
    """Starts a Process itself."""

    def __init__(self, child_target, **options):
        super().__init__(**options)
        self.child_target = child_target

    def run(self):
        child = shoal.Process(target=self.child_target, start_method=self._shoal_method)
        child.start()
        return child.name, child.result(), child.pid


def identify():
    me = shoal.current_process()
    return me.name, me.pid, me.daemon, os.getpid(), os.getppid(), os.getpgid(0), me.is_alive(), repr(me)


def echo(value=None):
    return value


def both(*args, **kwargs):
    return args, kwargs


def fail(error):
    raise error


def leave(code):
    sys.exit(code)


def vanish(code):
    os._exit(code)


def say(text, stream="stdout"):
    print(text, file=getattr(sys, stream))


def wait_forever():
    while True:
        time.sleep(100)


def wait_ready_forever():
    shoal.current_process().ready()
    wait_forever()


def die(signum):
    os.kill(os.getpid(), signum)
    time.sleep(100)


def leave_a_thread(path):
    """Return while a thread that is no daemon has something left to do."""

    def work():
        time.sleep(0.05)
        with open(path, "w") as file:
            file.write("done")

    threading.Thread(target=work).start()


def ignore_sigterm_and_wait():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait_ready_forever()


def catch_ctrl_c():
    try:
        shoal.current_process().ready()  # in here: it may strike before this returns
        time.sleep(100)
    except KeyboardInterrupt:
        return "interrupted"
    return "never"


def total(array):
    array[0] = 99  # a private view: the caller's does not change
    return float(array.sum()), array


def fill(shared):
    shared[:] = 7


def unpicklable():
    return threading.Lock()


class Explosive:
    """Explodes where it is unpickled."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return fail, (self.error,)


def bring_explosive():
    return Explosive(LookupError("boom"))


def put_and_send(queue, pipe):
    queue.put("from the queue")
    pipe.send("from the pipe")


def key_of_multiprocessing():
    import multiprocessing

    return bytes(multiprocessing.current_process().authkey)


def close_everything():
    os.closerange(3, 1024)
    time.sleep(0.05)  # the watcher looks meanwhile
    return "lost"


def fork_and_let_both_return():
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return "parent" if pid else "child"


def drop_then_wait(holder):
    holder.clear()
    wait_ready_forever()


def say_and_die(text):
    print(text)
    os.kill(os.getpid(), signal.SIGKILL)


def start_a_sleeper_and_wait():
    import subprocess

    sleeper = subprocess.Popen(["sleep", "1000"])
    shoal.current_process().ready(sleeper.pid)
    wait_forever()


def start_a_process_and_wait():
    process = shoal.Process(target=wait_forever, start_method="fork")
    process.start()
    shoal.current_process().ready(process.pid)
    wait_forever()


def map_in_a_pool(numbers):
    with shoal.Pool(1) as pool:
        return list(pool.map(square, numbers))


def square(number):
    return number * number


def result_of_a_process(value):
    process = shoal.Process(target=echo, args=(value,))
    process.start()
    return process.result()


class Struck(BaseException):
    """What a signal handler raises."""


class LooksAndIsStruck(shoal.Process):
    """Looks at `stopping` under a storm of handlers that raise; then says that it is ready, and waits for it."""

    def run(self):
        def handle(*_):
            raise Struck

        signal.signal(signal.SIGALRM, handle)
        end = time.monotonic() + 0.5
        number = 0
        while time.monotonic() < end:
            number += 1
            try:
                signal.setitimer(signal.ITIMER_REAL, (number % 97 + 1) * 3e-6)
                while True:
                    self.stopping.wait(0.00002)
            except Struck:
                pass
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        self.ready(number)
        self.stopping.wait()
        return "stopped"


def raise_what_cannot_travel():
    raise ValueError(threading.Lock())
