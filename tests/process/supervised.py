"""What the tests of supervisors and actors run in processes. Imported by them."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import shoal


class Waits(shoal.Process):
    """Says that it is ready, then waits to be told to stop."""

    def __init__(self, word: Any = None) -> None:
        super().__init__()
        self.word = word

    def run(self) -> None:
        self.ready(self.word)
        self.stopping.wait()


class Stubborn(shoal.Process):
    """Is ready, looks at `stopping`, and does not stop."""

    def run(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.stopping.is_set()
        self.ready()
        while True:
            time.sleep(60)


class NeverReady(shoal.Process):
    def run(self) -> None:
        self.stopping.wait()


class DiesBeforeReady(shoal.Process):
    def run(self) -> None:
        os._exit(7)


class RaisesBeforeReady(shoal.Process):
    def run(self) -> None:
        raise RuntimeError("no camera")


def sleeps() -> None:
    while True:
        time.sleep(60)


def ends(code: int = 0) -> None:
    sys.exit(code)


def answer() -> int:
    return 42


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
