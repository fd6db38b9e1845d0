"""Several processes that begin at the same instant, and say when they ended and what they saw.

Role: start, signal and gather, through files, which every library's processes can see. Owner: the case's own interpreter.

A party prepares, says so by a file, waits for the file that names the instant, and begins. The clock is the system's
monotonic one, which all processes read alike.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.kits import Kit

#: Only a hang takes this long. Seconds.
HANG_LIMIT_S = 30.0
#: How often a file is looked for, and how long after the signal they begin. Seconds.
LOOK_EVERY_S, LEAD_S = 0.002, 0.05

#: Prepares with its arguments, and returns what is to be measured; that returns what it saw.
Part = Callable[..., Callable[[], dict[str, Any] | None]]


class Cast(NamedTuple):
    """A part, and what it is given."""

    part: Part
    args: tuple[Any, ...]


class Told(NamedTuple):
    """What came of a meeting: seconds from the common start to the last end, and what each party said, in order."""

    took_s: float
    said: list[dict[str, Any]]


def meet(kit: Kit, cast: Sequence[Cast]) -> Told:
    """Run each part in a process of its own, all at once."""
    with tempfile.TemporaryDirectory(prefix="parties-") as folder:
        waits = [kit.start(take_part, folder, number, *one) for number, one in enumerate(cast)]
        for number in range(len(cast)):
            _await(Path(folder, f"{number}.ready"))
        begin = time.perf_counter() + LEAD_S
        _write(Path(folder, "go"), repr(begin))
        for wait in waits:
            wait()
        said = [json.loads(Path(folder, f"{number}.said").read_text("ascii")) for number in range(len(cast))]
    return Told(max(one["ended"] for one in said) - begin, said)


def take_part(folder: str, number: int, part: Part, args: tuple[Any, ...]) -> None:
    """Be one of the parties; runs in a process of its own."""
    run = part(*args)
    _write(Path(folder, f"{number}.ready"), "")
    begin = float(_await(Path(folder, "go")))
    while (left := begin - time.perf_counter()) > 0:
        time.sleep(left)
    said = run() or {}
    _write(Path(folder, f"{number}.said"), json.dumps({"ended": time.perf_counter(), **said}))


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="ascii")
    os.rename(part, path)  # a reader sees all of it or nothing


def _await(path: Path) -> str:
    end = time.monotonic() + HANG_LIMIT_S
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path.name} was never written")
        time.sleep(LOOK_EVERY_S)
    return path.read_text(encoding="ascii")
