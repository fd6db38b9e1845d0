"""The default pool: started at first use, ended with the program.

Role: `shoal.map`, `shoal.imap` and `shoal.submit`. Owner: the program. Safe from any thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from shoal._os import cpus
from shoal._pool.executor import Pool, PoolView
from shoal._settings import ErrorMode, TaskOptions

if TYPE_CHECKING:
    from shoal._pool.future import Future

T = TypeVar("T")

_guard = threading.Lock()
_pool: Pool | None = None
_owner = 0


def default_pool() -> Pool:
    """Return the default pool, as large as this process may use processors."""
    global _pool, _owner
    with _guard:
        if _pool is None or _pool._closed or _owner != os.getpid():
            _pool, _owner = Pool(), os.getpid()
        return _pool


def _after_fork_in_child() -> None:
    global _guard
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _view(pool: Pool, timeout: float | None, retries: int) -> PoolView:
    return PoolView(pool, TaskOptions(timeout=timeout, retries=retries))


def map(
    fn: Callable[..., T],
    *iterables: Iterable[Any],
    workers: int | None = None,
    timeout: float | None = None,
    retries: int = 0,
    errors: ErrorMode = "raise",
) -> list[T]:
    """Return ``[fn(item) for item in iterable]``, computed by worker processes. Waits for all of it.

    Args:
        fn: Called with one item of each iterable. Lambdas, closures and methods will do.
        *iterables: As for the built-in `map`; read at once.
        workers: Run on a pool of that many, started for this call. None uses the program's default pool.
        timeout: Seconds each task may run; None is no limit.
        retries: Runs to add when a task's worker died or its timeout passed.
        errors: ``"raise"`` the first error at once and give up the rest, ``"return"`` errors in the place of
            results, or ``"skip"`` them.
    """
    if workers is None:
        return _view(default_pool(), timeout, retries)._collect(fn, iterables, errors)
    with Pool(workers, spare=False) as pool:
        return _view(pool, timeout, retries)._collect(fn, iterables, errors)


def imap(
    fn: Callable[..., T],
    *iterables: Iterable[Any],
    ordered: bool = True,
    errors: ErrorMode = "raise",
    buffersize: int | None = None,
    timeout: float | None = None,
    retries: int = 0,
) -> Iterator[T]:
    """Return an iterator over results, pulling items as needed, on the default pool; see `Pool.imap`."""
    view = _view(default_pool(), timeout, retries)
    return view.imap(fn, *iterables, ordered=ordered, errors=errors, buffersize=buffersize)


def submit(fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
    """Queue ``fn(*args, **kwargs)`` on the default pool and return its future; see `Pool.submit`."""
    return default_pool().submit(fn, *args, **kwargs)


def cpu_count() -> int:
    """Return how many processors this process may use: its affinity, within its control groups' quotas."""
    return cpus.usable_cpus()
