"""The default pool: started at first use, ended with the program.

Role: `shoal.map`, `shoal.imap` and `shoal.submit`. Owner: the program. Safe from any thread.

Everything is imported when it is needed: a map that turns out to be too short for workers costs microseconds.
"""

from __future__ import annotations

import os
from _thread import allocate_lock

TYPE_CHECKING = False  # as type checkers read it; importing `typing` would cost more than a small map
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Literal, TypeVar

    from shoal._pool.executor import Pool, PoolView
    from shoal._pool.explaining import Explanation
    from shoal._pool.future import Future
    from shoal._settings import ErrorMode

    T = TypeVar("T")

_guard = allocate_lock()
_pool: Pool | None = None
_owner = 0


def default_pool() -> Pool:
    """Return the default pool, as large as this process may use processors."""
    global _pool, _owner
    from shoal._pool.executor import Pool

    with _guard:
        if _pool is None or _pool._closed or _owner != os.getpid():
            _pool, _owner = Pool(), os.getpid()
        return _pool


def running_pool() -> Pool | None:
    """Return the default pool if it has been used and can be used again."""
    pool = _pool
    if pool is None or pool._engine is None or pool._closed or _owner != os.getpid() or pool._engine.core.closing:
        return None
    return pool


def _after_fork_in_child() -> None:
    global _guard
    _guard = allocate_lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _view(pool: Pool, timeout: float | None, retries: int) -> PoolView:
    from shoal._pool.executor import PoolView
    from shoal._settings import TaskOptions

    return PoolView(pool, TaskOptions(timeout=timeout, retries=retries))


def map(
    fn: Callable[..., T],
    *iterables: Iterable[Any],
    workers: int | Literal["auto"] | None = None,
    timeout: float | None = None,
    retries: int = 0,
    errors: ErrorMode = "raise",
) -> list[T]:
    """Return ``[fn(item) for item in iterable]``, computed by worker processes. Waits for all of it.

    Args:
        fn: Called with one item of each iterable. Lambdas, closures and methods will do.
        *iterables: As for the built-in `map`; read at once.
        workers: Run on a pool of that many, started for this call. None uses the program's default pool. ``"auto"``
            begins in this process, measures, and brings in workers of the default pool only if what remains is
            worth it, so a short map costs no more than the loop; `explain` says what was done and why. It is the one mode
            in which `fn` **may run in your own process**: what it changes there stays changed, and if it crashes, your
            program does. Arguments that cannot be pickled are run there, too. With a `timeout` workers run all of it.
        timeout: Seconds each task may run; None is no limit.
        retries: Runs to add when a task's worker died or its timeout passed.
        errors: ``"raise"`` the first error at once and give up the rest, ``"return"`` errors in the place of
            results, or ``"skip"`` them.
    """
    if workers == "auto" and timeout is None:
        return _map_here_first(fn, iterables, retries, errors)
    from shoal._pool.executor import Pool

    if isinstance(workers, str) and str(workers) != "auto":
        raise ValueError(f'workers must be a number, "auto", or None for the default pool, not {workers!r}')
    if workers is None or workers == "auto":
        return _view(default_pool(), timeout, retries)._collect(fn, iterables, errors)
    with Pool(workers, spare=False) as pool:
        return _view(pool, timeout, retries)._collect(fn, iterables, errors)


def _map_here_first(
    fn: Callable[..., T], iterables: tuple[Iterable[Any], ...], retries: int, errors: ErrorMode
) -> list[T]:
    from shoal._os.interpreter import unguarded_import
    from shoal._pool import auto
    from shoal._pool.items import as_items

    place = unguarded_import()
    if place is not None:
        from shoal.errors import MainGuardMissing

        raise MainGuardMissing(script=place)
    if type(retries) is not int or retries != 0 or errors != "raise":  # what is given is checked as everywhere
        from shoal._settings import ErrorMode, TaskOptions, check_choice

        TaskOptions(retries=retries)
        check_choice("errors", errors, ErrorMode)
    given: object = fn
    if not callable(given):
        from shoal._wire.words import short

        raise TypeError(f"the function to run must be callable, not {short(fn)}")
    items, star = as_items(iterables)
    return auto.run(fn, items, errors, retries, star=star)


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


def explain() -> Explanation:
    """Return why the default pool hands out work as it does, and what the last map with ``workers="auto"`` did; see `Pool.explain`."""
    from shoal._pool import explaining

    pool = running_pool()
    if pool is None:
        return explaining.of_pool(cpu_count(), None, with_auto=True)
    return explaining.of_pool(pool._max_workers, pool._engine, with_auto=True)


def cpu_count() -> int:
    """Return how many processors this process may use: its affinity, within its control groups' quotas."""
    from shoal._os import cpus

    return cpus.usable_cpus()
