"""How long one may wait: checked where it is said, and then a time on the clock.

Role: the `timeout` of locks, semaphores, events, conditions and barriers. Owner: nobody; pure, but for the clock.
"""

from __future__ import annotations

import time
from typing import Any, Final

#: How late one that waits may learn what a killed process did not say any more: nobody sleeps longer without a look. Seconds.
RECHECK_S: Final = 0.1
#: A time limit past this, a century, is none. Seconds.
LONGEST_S: Final = 100 * 365 * 86400.0


def seconds(timeout: float) -> float | None:
    """Return a time limit as seconds, at least 0; None if it is so long that it is none.

    Raises:
        TypeError: It is no number.
        ValueError: It is NaN.
    """
    given: Any = timeout
    if not isinstance(given, int | float):
        # Text has none; what counts as a number of another kind, as numpy's, has.
        if not hasattr(type(given), "__float__"):
            raise TypeError(f"timeout must be seconds as a number, or None for no limit, not {given!r}")
        given = float(given)
    if given > LONGEST_S:
        return None
    if given > 0:
        return float(given)
    if given <= 0:
        return 0.0
    raise ValueError(f"timeout must be seconds, or None for no limit, not {timeout!r}")


def deadline(timeout: float | None) -> float | None:
    """Return when so many seconds from now are over, on `time.monotonic`; None is never."""
    limit_s = None if timeout is None else seconds(timeout)
    return None if limit_s is None else time.monotonic() + limit_s


def left(until: float | None, most_s: float) -> float:
    """Return how many seconds are left until a deadline: from 0 to `most_s`."""
    return most_s if until is None else max(0.0, min(most_s, until - time.monotonic()))
