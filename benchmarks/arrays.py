"""The functions the data benchmark's tasks run, and the arrays they keep in their worker.

Role: imported by workers, so it imports NumPy and nothing else of weight.
Owner: each worker of its own copy of `_kept`, which a case's workers fill before anything is measured.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

#: Long enough that the other worker takes the next task. Seconds.
NAP_S = 0.05

#: Arrays by kind ("plain" or "shared"), made before the clock starts. Results are slices of them.
_kept: dict[str, Any] = {}


def marked_array(nbytes: int) -> Any:
    """Return an array of float64 whose pages are all there, with ends that `ends` recognises."""
    array = np.ones(nbytes // 8)
    array[-1] = 2.0
    return array


def ends(array: Any) -> float:
    """Touch both ends and nothing between."""
    return float(array[0]) + float(array[-1])


def read_all(array: Any) -> float:
    """Read every byte. Returns what `ends` would, so that callers check both alike."""
    return float(array.sum()) - (array.size - 2)


def hello(_: object) -> int:
    """Make sure that this worker has imported all of this, and stay until the other is asked too. Returns the pid."""
    time.sleep(NAP_S)
    return os.getpid()


def prepare(wanted: tuple[str, int]) -> int:
    """Make this worker's array of that kind and size, and stay until the other is asked too. Returns the pid."""
    kind, nbytes = wanted
    if kind not in _kept or _kept[kind].nbytes != nbytes // 8 * 8:
        if kind == "shared":
            import shoal

            array: Any = shoal.empty(nbytes // 8)
            array[:] = 1.0
            array[-1] = 2.0
        else:
            array = marked_array(nbytes)
        _kept[kind] = array
    time.sleep(NAP_S)
    return os.getpid()


def give(kind: str, nbytes: int) -> Any:
    """Return the last `nbytes` of the array that `prepare` made in this worker."""
    array = _kept[kind]
    return array if array.nbytes == nbytes else array[-(nbytes // 8) :]
