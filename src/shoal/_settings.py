"""Options, each checked in one place.

Role: frozen option objects and the checks behind them. Owner: nobody; plain data, no side effects.

Invariants
    S1  An option object that exists is valid: every check is in a `__post_init__` or a `parse_*`.
    S2  A bad value is refused with its name, its value and what would be right; never clamped.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

StartMethod = Literal["forkserver", "spawn", "fork"]
ErrorMode = Literal["raise", "return", "skip"]
CaptureMode = Literal["prefix", "inherit"]

#: Start method of whoever does not name one; for running a whole test suite over another method.
START_METHOD_VARIABLE = "SHOAL_START_METHOD"
#: Runs of one task that may end in a worker's death before it counts as poison.
POISON_KILLS = 3
#: First pause before a retry, in seconds; it doubles with each further retry.
BACKOFF_S = 0.05
#: Longest pause before a retry, in seconds.
BACKOFF_LIMIT_S = 30.0
#: A time limit past this, a century, is none: what clocks and polls count in would overflow. In seconds.
LONGEST_S = 100 * 365 * 86400.0

_UNITS = {"": 1, "b": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {f"{unit}b": size for unit, size in _UNITS.items() if unit not in ("", "b")}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def parse_bytes(name: str, value: int | str) -> int:
    """Return `value` in bytes: an int, or text such as ``"512MiB"`` or ``"2 GB"``.

    Raises:
        ValueError: The text is not a size, or the size is not positive.
        TypeError: `value` is neither int nor str.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f'{name} must be bytes as an int, or text like "2GiB", not {value!r}')
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(f'{name}={value!r} is not a size; write it like "2GiB", "500MB" or 1048576')
        # In whole numbers: a float would round large sizes.
        whole, _, decimals = match[1].partition(".")
        size = int(int(whole + decimals) * _UNITS[match[2].lower()] // 10 ** len(decimals))
    else:
        size = value
    if size <= 0:
        raise ValueError(f"{name} must be positive, not {value!r}")
    return size


def check_timeout(name: str, value: float | None) -> float | None:
    """Return `value` if it is a time limit: seconds above zero, or None for no limit."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be seconds as a number, or None for no limit, not {value!r}")
    if not value > 0:  # NaN too
        raise ValueError(f"{name} must be above 0 seconds, or None for no limit, not {value!r}")
    return float(value) if value <= LONGEST_S else None


def check_count(name: str, value: int, *, least: int) -> int:
    """Return `value` if it is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return value


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a `value` that is not one of the `choices`, a `Literal` type."""
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def start_method_or_default(asked: StartMethod | None) -> StartMethod:
    """Return `asked`, or what the environment asks for, or forkserver."""
    if asked is not None:
        check_choice("start_method", asked, StartMethod)
        return asked
    wanted = os.environ.get(START_METHOD_VARIABLE, "forkserver")
    if wanted not in get_args(StartMethod):
        raise ValueError(f"{START_METHOD_VARIABLE} must be one of {get_args(StartMethod)}, not {wanted!r}")
    return cast("StartMethod", wanted)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What may be asked for one task; a pool holds one of these as its default.

    Attributes:
        timeout: Seconds of running time, from when a worker starts the task. None is no limit.
        retries: Runs to add when a run ends in one of `retry_on`.
        retry_on: Exception classes a retry is for, one or several. Without an entry that fits, an exception
            raised by the function is final. None means: the worker died, or `timeout` passed.
        backoff_s: Seconds before the first retry; doubles each time, with jitter.
        label: Name shown in errors and by the monitor instead of the function's name.
    """

    timeout: float | None = None
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] | None = None
    backoff_s: float = BACKOFF_S
    label: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "timeout", check_timeout("timeout", self.timeout))
        check_count("retries", self.retries, least=0)
        if self.retry_on is not None:
            asked: Any = self.retry_on
            kinds = (asked,) if isinstance(asked, type) else asked
            if not isinstance(kinds, Iterable) or isinstance(kinds, str):
                raise TypeError(f"retry_on takes exception classes, not {kinds!r}")
            kinds = tuple(kinds)
            for kind in kinds:
                if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                    raise TypeError(f"retry_on takes exception classes, not {kind!r}")
            object.__setattr__(self, "retry_on", kinds)
        if isinstance(self.backoff_s, bool) or not isinstance(self.backoff_s, int | float):
            raise TypeError(f"backoff_s must be seconds as a number, not {self.backoff_s!r}")
        if not 0 <= self.backoff_s < math.inf:
            raise ValueError(f"backoff_s must be 0 or more seconds, not {self.backoff_s!r}")
        if self.label is not None and not isinstance(self.label, str):
            raise TypeError(f"label must be text, not {self.label!r}")

    def using(self, **changes: Any) -> TaskOptions:
        """Return a copy with `changes`; an unknown name is a TypeError that lists the known ones."""
        unknown = sorted(changes.keys() - self.__dataclass_fields__.keys())
        if unknown:
            known = ", ".join(self.__dataclass_fields__)
            raise TypeError(f"no such option: {', '.join(unknown)}; the options are {known}")
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What one pool was asked for. Built by `Pool`, read by everything behind it."""

    workers: int
    start_method: StartMethod = "forkserver"
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    max_tasks_per_worker: int | None = None
    capture: CaptureMode = "prefix"
    spare: bool = True
    shared_memory_limit: int | None = None
    debug: bool = False
    defaults: TaskOptions = field(default_factory=TaskOptions)

    def __post_init__(self) -> None:
        check_count("workers", self.workers, least=1)
        check_choice("start_method", self.start_method, StartMethod)
        check_choice("capture", self.capture, CaptureMode)
        if self.initializer is not None and not callable(self.initializer):
            raise TypeError(f"initializer must be callable, not {self.initializer!r}")
        if self.max_tasks_per_worker is not None:
            check_count("max_tasks_per_worker", self.max_tasks_per_worker, least=1)
