"""Signals of a worker.

Role: the signal that asks for a stack, and a known state to start from. Owner: the worker's start-up.
"""

from __future__ import annotations

import signal

#: Asks a worker for its Python stack; the worker registers it with `faulthandler`. Real-time, so no library has it.
INTERRUPT_STACK_SIGNAL: int = signal.SIGRTMIN + 5


def reset_signals() -> None:
    """Give a fresh child known signals, whatever its parent had set. Main thread only; before `faulthandler.register`.

    SIGINT is ignored (the main program decides what Ctrl-C means), SIGPIPE too (as Python does), SIGTERM has its
    default, `INTERRUPT_STACK_SIGNAL` is ignored until registered, Python handlers a fork copied are dropped,
    the wake-up descriptor is cleared, and at last every signal is unblocked.

    Raises:
        ValueError: Not called in the main thread.
    """
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        if callable(signal.getsignal(signum)) and signum not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(INTERRUPT_STACK_SIGNAL, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
