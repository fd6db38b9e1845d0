"""`shoal.Pool`: the surface.

Role: check what the user asks and hand it to the engine. Owner: the user. Safe from any thread.

The engine and what it stands on are imported by the first pool, after it has told the template to start: on two processors the
one's imports cost no time beside the other's. So nothing here imports them at the top.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from shoal._os import cpus
from shoal._os.interpreter import importing_main, unguarded_import
from shoal._os.platform import check_platform
from shoal._pool import launcher
from shoal._pool.items import as_items
from shoal._settings import (
    BACKOFF_S,
    CaptureMode,
    ErrorMode,
    PoolOptions,
    StartMethod,
    TaskOptions,
    check_choice,
    check_count,
    parse_bytes,
    start_method_or_default,
)

if TYPE_CHECKING:
    from shoal._pool import explaining, mapping, snapshots
    from shoal._pool.engine import Engine
    from shoal._pool.future import Future

T = TypeVar("T")


class _Surface(concurrent.futures.Executor):
    """What `Pool` and `PoolView` share: every way to hand over work, under one set of options."""

    _options: TaskOptions

    def _engine_now(self) -> Engine:
        raise NotImplementedError

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queue ``fn(*args, **kwargs)`` for a worker and return its future.

        Never waits for a worker. Arguments are pickled here, so later changes to them do not matter.

        Raises:
            NotPicklable: `fn` or an argument cannot be sent to a process.
            PoolClosed: The pool was closed, or belongs to the process this one was forked from.
            MainGuardMissing: This call runs while a worker imports the main script.
        """
        return self._engine_now().call(fn, args, kwargs, self._options)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over ``fn(*items)`` for the items of the iterables, in order.

        The iterables are read at once, unless `buffersize` is given. Work begins at once.

        Args:
            fn: Called with one item of each iterable.
            *iterables: As for the built-in `map`; the shortest one ends it.
            timeout: Seconds from this call until the iterator raises `TimeoutError`. For a limit on each
                task use ``pool.using(timeout=...)``.
            chunksize: Accepted for compatibility and checked; batches find their size by themselves.
            buffersize: Tasks that may be unfinished or not yet taken from the iterator.

        Raises:
            What `fn` raised, in the place of its result, with a note that says which task it was.
            TimeoutError: `timeout` passed.
        """
        if chunksize is not None and chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, not {chunksize}")
        if buffersize is not None:
            check_count("buffersize", buffersize, least=1)
        if "submit" in vars(self) or type(self).submit is not _Surface.submit:
            return super().map(fn, *iterables, timeout=timeout)  # whoever overrides submit wants to see each task
        deadline = None if timeout is None else time.monotonic() + timeout
        engine = self._engine_now()
        if not iterables:
            return iter(())
        if buffersize is not None:
            stream = self._stream(fn, iterables, ordered=True, errors="raise", buffersize=buffersize, deadline=deadline)
            stream.begin()
            return iter(stream)
        from shoal._pool import mapping

        items, star = as_items(iterables)
        job = mapping.list_job(engine, fn, items, self._options, star=star)
        return mapping.in_order(engine, job, deadline)

    def imap(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        ordered: bool = True,
        errors: ErrorMode = "raise",
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over results, pulling items as they are needed; the source may be endless.

        Items are pulled in the thread that iterates, and pickled when a worker can take them: do not change one
        after it was yielded. Closing the iterator gives up what is left.

        Args:
            fn: Called with one item of each iterable.
            *iterables: As for the built-in `map`.
            ordered: Yield in the order of the items, else as results come.
            errors: ``"raise"`` the first error and give up the rest, ``"return"`` errors in the place of
                results, or ``"skip"`` them.
            buffersize: Most items pulled and not yet yielded. None finds a number that keeps the workers busy.

        Raises:
            What `fn` raised, if `errors` is ``"raise"``. What the source raised, after the results of the
            items before.
        """
        check_choice("errors", errors, ErrorMode)
        if buffersize is not None:
            check_count("buffersize", buffersize, least=1)
        if not iterables:
            raise TypeError("imap needs at least one iterable")
        return iter(self._stream(fn, iterables, ordered=ordered, errors=errors, buffersize=buffersize))

    def _stream(
        self,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        *,
        ordered: bool,
        errors: ErrorMode,
        buffersize: int | None,
        deadline: float | None = None,
    ) -> mapping.Stream:
        from shoal._pool import mapping

        return mapping.Stream(
            self._engine_now(),
            fn,
            iterables,
            self._options,
            star=False,
            ordered=ordered,
            errors=errors,
            buffersize=buffersize,
            deadline=deadline,
            owner=self,
        )

    def starmap(
        self, fn: Callable[..., T], iterable: Iterable[Iterable[Any]], *, errors: ErrorMode = "raise"
    ) -> list[T]:
        """Return ``[fn(*args) for args in iterable]``, computed by the workers. Waits for all of it.

        Args:
            fn: Called with each tuple of arguments.
            iterable: Tuples of arguments; read at once.
            errors: As for `imap`; with ``"raise"`` the first error ends the call at once.
        """
        check_choice("errors", errors, ErrorMode)
        engine = self._engine_now()
        from shoal._pool import mapping

        items = [tuple(args) for args in iterable]
        job = mapping.list_job(engine, fn, items, self._options, star=True)
        return mapping.collect(engine, job, errors)

    def _collect(self, fn: Callable[..., T], iterables: tuple[Iterable[Any], ...], errors: ErrorMode) -> list[T]:
        """`map` to a list."""
        check_choice("errors", errors, ErrorMode)
        engine = self._engine_now()
        from shoal._pool import mapping

        items, star = as_items(iterables)
        return mapping.collect(engine, mapping.list_job(engine, fn, items, self._options, star=star), errors)


class Pool(_Surface):
    """Worker processes that run your functions; a `concurrent.futures.Executor`.

    A worker that dies costs the one task it was running; the pool replaces it and goes on. Workers start when
    there is work for them.

    Args:
        workers: How many. None is the number of processors this process may use.
        mp_context: For compatibility: only its start method is used.
        initializer: Called in each worker before its first task.
        initargs: Its arguments.
        max_workers: Another name of `workers`.
        start_method: ``"forkserver"`` (a clean template process that imported your main module), ``"spawn"`` (a
            fresh interpreter each) or ``"fork"`` (a copy of this process; unsafe if it has threads).
        max_tasks_per_worker: A worker is replaced after that many tasks.
        max_tasks_per_child: Another name of it.
        timeout: Seconds each task may run; see `using`.
        retries: Runs to add when a task's worker died or its timeout passed; see `using`.
        retry_on: Exception classes a retry is for; see `using`.
        backoff_s: Seconds before the first retry; doubles each time.
        label: Name of tasks in errors, instead of the call.
        capture: ``"prefix"`` forwards what workers print, each line whole and with the worker's number in
            front; ``"inherit"`` leaves them this program's streams, and obituaries without last lines.
        spare: Keep one more process warm, to replace a dead worker at once. It has not run `initializer`.
        shared_memory_limit: Most memory that large arguments and results may take on their way and be kept warm in
            afterwards, as ``"2GiB"`` or bytes; beyond it they travel through sockets, slower. None is a quarter of the
            memory this process may use.
        debug: Refuse a task that is handed a writable slice of a shared array while a task in another worker has an
            overlapping one: its future gets `OverlappingWrites`.

    Raises:
        ValueError, TypeError: An option is not what it must be.
    """

    def __init__(
        self,
        workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_workers: int | None = None,
        start_method: StartMethod | None = None,
        max_tasks_per_worker: int | None = None,
        max_tasks_per_child: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] | None = None,
        backoff_s: float = BACKOFF_S,
        label: str | None = None,
        capture: CaptureMode = "prefix",
        spare: bool = True,
        shared_memory_limit: int | str | None = None,
        debug: bool = False,
    ) -> None:
        check_platform()
        workers = _either("workers", workers, "max_workers", max_workers)
        self._options = TaskOptions(
            timeout=timeout,
            retries=retries,
            retry_on=retry_on,  # type: ignore[arg-type]
            backoff_s=backoff_s,
            label=label,
        )
        self._pool_options = PoolOptions(
            workers=cpus.usable_cpus() if workers is None else workers,
            start_method=_start_method(start_method, mp_context),
            initializer=initializer,
            initargs=tuple(initargs),
            max_tasks_per_worker=_either(
                "max_tasks_per_worker", max_tasks_per_worker, "max_tasks_per_child", max_tasks_per_child
            ),
            capture=capture,
            spare=spare,
            shared_memory_limit=None
            if shared_memory_limit is None
            else parse_bytes("shared_memory_limit", shared_memory_limit),
            debug=debug,
            defaults=self._options,
        )
        self._max_workers = self._pool_options.workers
        self._engine: Engine | None = None
        self._closed = False
        if not importing_main():
            launcher.warm_up(self._pool_options.start_method)
        import shoal._pool.mapping  # noqa: F401 - see the header

    def _engine_now(self) -> Engine:
        engine = self._engine
        return engine if engine is not None else self._start()

    def _start(self) -> Engine:
        from shoal._pool import interrupts
        from shoal._pool.engine import Engine
        from shoal._pool.failures import start_refused
        from shoal.errors import MainGuardMissing, PoolClosed

        place = unguarded_import()
        if place is not None:
            raise MainGuardMissing(script=place)
        with interrupts.deferred(), _starting:  # an engine that is half made could not be ended
            if self._closed:
                raise PoolClosed(reason="the pool is closed: it takes no work after shutdown()")
            if self._engine is None:
                try:
                    self._engine = Engine(self._pool_options)
                except OSError as error:
                    raise start_refused(error) from error
                weakref.finalize(self, Engine.abandon_later, self._engine).atexit = False
            return self._engine

    def using(
        self,
        *,
        timeout: float | EllipsisType | None = ...,
        retries: int | None = None,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] | None = None,
        backoff_s: float | None = None,
        label: str | None = None,
    ) -> PoolView:
        """Return this pool under other task options: ``pool.using(timeout=30).submit(f, x)``.

        Args:
            timeout: Seconds of running time from when a worker starts the task; None is no limit. When it has
                passed, the task's worker is killed: the task sees nothing, and no cleanup of it runs. The
                future gets `TaskTimeout`.
            retries: Runs to add when a run ends in one of `retry_on`.
            retry_on: Exception classes. Without it: `WorkerDied` and `TaskTimeout`; what the function
                raises is then final.
            backoff_s: Seconds before the first retry; doubles with each, with jitter.
            label: Name in errors and monitors, instead of the call.
        """
        named = {"retries": retries, "retry_on": retry_on, "backoff_s": backoff_s, "label": label}
        changes: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        if timeout is not ...:
            changes["timeout"] = timeout
        return PoolView(self, self._options.using(**changes))

    def statistics(self) -> snapshots.PoolStatistics:
        """Return a frozen picture of what the pool did and does."""
        from shoal._pool import snapshots

        return snapshots.statistics(self._engine) if self._engine is not None else snapshots.PoolStatistics()

    def explain(self) -> explaining.Explanation:
        """Return what was measured of each function the pool ran and how its tasks are handed out; `str` of it is for people."""
        from shoal._pool import explaining

        return explaining.of_pool(self._pool_options.workers, self._engine)

    @property
    def workers(self) -> tuple[snapshots.WorkerInfo, ...]:
        """A frozen picture of each worker process."""
        from shoal._pool import snapshots

        return snapshots.workers(self._engine) if self._engine is not None else ()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, finish what was asked for, end the workers.

        Args:
            wait: Block until all of that is done. Otherwise it happens in the background.
            cancel_futures: Cancel what has not started.
        """
        engine = self._close()
        if engine is not None:
            engine.begin_close(cancel=cancel_futures)
            if wait:
                engine.join()

    def kill(self) -> None:
        """End the pool at once: running tasks are killed, everything unfinished is cancelled. Blocks briefly."""
        engine = self._close()
        if engine is not None:
            engine.begin_close(kill=True)
            engine.join()

    def _close(self) -> Engine | None:
        """Take no more work; let go of what the workers were to start with."""
        with _starting:
            self._closed = True
            self._pool_options = replace(self._pool_options, initializer=None, initargs=())
            return self._engine

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.kill()
        else:
            self.shutdown(wait=True)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._engine is not None else "not started"
        return f"<shoal.Pool of {self._max_workers} workers by {self._pool_options.start_method}, {state}>"


#: Held while any pool starts or is closed. One for all, which a forked child can make anew; reentrant, because the garbage
#: collector may run anybody's finalizer there.
_starting = threading.RLock()


def _after_fork_in_child() -> None:
    global _starting
    _starting = threading.RLock()  # whoever held it is not here


os.register_at_fork(after_in_child=_after_fork_in_child)


class PoolView(_Surface):
    """A pool under other task options; see `Pool.using`. Closing it is closing the pool."""

    def __init__(self, pool: Pool, options: TaskOptions) -> None:
        self._pool = pool
        self._options = options
        self._max_workers = pool._max_workers

    def _engine_now(self) -> Engine:
        return self._pool._engine_now()

    def using(self, **changes: Any) -> PoolView:
        """Return the pool under these options and further `changes`; see `Pool.using`."""
        return PoolView(self._pool, self._options.using(**changes))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Close the pool; see `Pool.shutdown`."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def _either(name: str, value: int | None, other: str, other_value: int | None) -> int | None:
    if value is not None and other_value is not None:
        raise TypeError(f"{name} and {other} are two names of one thing: give one of them")
    return value if value is not None else other_value


def _start_method(asked: StartMethod | None, mp_context: Any) -> StartMethod:
    if asked is None and mp_context is not None:
        found = mp_context.get_start_method()
        check_choice("the start method of mp_context", found, StartMethod)
        return cast("StartMethod", found)
    return start_method_or_default(asked)
