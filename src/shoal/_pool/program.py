"""What the end of the program, and a fork of it, do to its pools.

Role: handlers of the process, registered once. Owner: the process; every engine is on the list until it has ended.

Rejected
    a `WeakSet`   its callback is Python code that runs wherever the garbage collector does; a Ctrl-C that strikes in
                  there is swallowed by Python
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal._pool.engine import Engine

#: Every engine of this process that has not ended. Its own thread keeps it alive until then, anyway.
engines: set[Engine] = set()


def _forget_all() -> None:
    while engines:
        engines.pop().forget()


os.register_at_fork(after_in_child=_forget_all)


@atexit.register
def _end_all() -> None:
    """The program ends: finish what was asked for, as `concurrent.futures` does, unless Ctrl-C ended it, or ends this."""
    interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
    open_now = [engine for engine in list(engines) if not engine.closed.is_set()]
    try:
        for engine in open_now:
            engine.begin_close(kill=interrupted or engine.reader.interrupted)
            engine.join()
    except KeyboardInterrupt:
        for engine in open_now:
            engine.begin_close(kill=True)
            engine.join()
        # End as a program ends that Ctrl-C ends; raising here would only print what an exit handler ignores.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
