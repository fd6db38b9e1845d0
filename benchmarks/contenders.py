"""One small adapter for each way to run Python in many processes.

Role: let a case say `submit`, `map`, `submit_limited` and mean the same thing everywhere.
Owner: the case's own interpreter; the harness only asks for names and reasons.

Each adapter uses its library as that library's manual says, with its defaults. Two things are set
by hand because the default would make no sense for the row: the start method where it is the
question, and the chunk size of `map` where the library hands out single items otherwise.
Libraries are imported only when asked for, so that a case pays for its own contender alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from benchmarks.machine import version_of

#: A result that takes longer than this hangs. Seconds.
HANG_LIMIT_S = 30.0


class NotApplicable(Exception):
    """The contender has no such feature; the text says what it lacks."""


class Session:
    """One open pool. Subclasses wrap one kind each."""

    #: Tasks to queue so that one of them surely goes to the slot that becomes free.
    probes = 1

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        raise NotImplementedError

    def submit_limited(self, timeout_s: float, fn: Callable[..., Any], *args: Any) -> Any:
        raise NotImplementedError

    def result(self, handle: Any) -> Any:
        return handle.result(HANG_LIMIT_S)

    def submit_all(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        """Submit one by one, then gather in order. Each kind writes the loops as its user would, unwrapped."""
        raise NotImplementedError

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    def singly(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """Run one item per task, so that every worker gets some."""
        return self.submit_all(fn, items)

    def close(self) -> None:
        raise NotImplementedError

    def terminate(self) -> None:
        """Close without waiting for tasks; a task whose worker was killed may never end."""
        self.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Contender:
    """A library in one configuration."""

    name: str
    #: What to call it in a table.
    title: str
    distribution: ClassVar[str | None] = None
    module: ClassVar[str | None] = None
    #: Feature it has not, and why; shown instead of a figure.
    lacks: ClassVar[Mapping[str, str]] = {}
    #: The program a user would write for one result: imports, and the body of a function
    #: that returns the time right after the result.
    imports: str
    body: str

    def missing(self) -> str | None:
        """Why it cannot take part, or None."""
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            return "not installed"
        return None

    def version(self) -> str:
        return version_of(self.distribution)

    def load(self) -> None:
        """Import the library, so that what follows is not charged with it."""
        if self.module is not None:
            importlib.import_module(self.module)

    def open(self, workers: int) -> Session:
        raise NotImplementedError

    def map_once(self, fn: Callable[..., Any], items: Sequence[Any], workers: int) -> str:
        """Open, map, close: a short program's only use of the library. Returns a note, or nothing."""
        with self.open(workers) as session:
            session.map(fn, items)
        return ""


# --- executors ----------------------------------------------------------------------------------


class ExecutorSession(Session):
    """`concurrent.futures.Executor` and what looks like it."""

    def __init__(self, executor: Any) -> None:
        self.executor = executor

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.executor.submit(fn, *args)

    def submit_all(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        submit = self.executor.submit
        futures = [submit(fn, item) for item in items]
        return [future.result() for future in futures]

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        return list(self.executor.map(fn, items, chunksize=max(1, len(items) // 200)))

    def close(self) -> None:
        self.executor.shutdown(wait=True, cancel_futures=True)


class ShoalSession(ExecutorSession):
    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        return list(self.executor.map(fn, items))

    def submit_limited(self, timeout_s: float, fn: Callable[..., Any], *args: Any) -> Any:
        return self.executor.using(timeout=timeout_s).submit(fn, *args)


class Shoal(Contender):
    name = title = "shoal"
    distribution = module = "shoal"
    imports = "import shoal"
    body = "with shoal.Pool(2) as pool:\n    pool.submit(task, 1).result()\n    return time.perf_counter()"

    def missing(self) -> str | None:
        if (reason := super().missing()) is not None:
            return reason
        try:
            shoal = importlib.import_module("shoal")
            shoal.Pool  # noqa: B018 - public names load on first use
        except Exception as error:
            return f"not usable yet: {type(error).__name__}: {error}"
        return None

    def open(self, workers: int) -> Session:
        shoal = importlib.import_module("shoal")
        return ShoalSession(shoal.Pool(workers))

    def map_once(self, fn: Callable[..., Any], items: Sequence[Any], workers: int) -> str:
        shoal = importlib.import_module("shoal")
        try:
            shoal.map(fn, items, workers="auto")
        except (TypeError, ValueError):
            with shoal.Pool(workers) as pool:
                list(pool.map(fn, items))
            return 'this version has no workers="auto"; a pool was opened and closed'
        return ""


class StdlibExecutor(Contender):
    lacks: ClassVar[Mapping[str, str]] = {
        "heal": "one dead worker breaks the pool",
        "timeout": "no time limit for a task",
    }

    def __init__(self, method: str) -> None:
        self.method = method
        self.name = f"ppe-{method}"
        self.title = f"ProcessPoolExecutor, {method}"
        self.imports = "from concurrent.futures import ProcessPoolExecutor\nfrom multiprocessing import get_context\n"
        self.body = (
            f'with ProcessPoolExecutor(2, mp_context=get_context("{method}")) as pool:\n'
            "    pool.submit(task, 1).result()\n"
            "    return time.perf_counter()"
        )

    def open(self, workers: int) -> Session:
        from concurrent.futures import ProcessPoolExecutor

        return ExecutorSession(ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(self.method)))


class Loky(Contender):
    name = title = "loky"
    distribution = module = "loky"
    lacks: ClassVar[Mapping[str, str]] = {
        "heal": "one dead worker breaks the executor",
        "timeout": "no time limit for a task",
    }
    imports = "from loky import ProcessPoolExecutor"
    body = "with ProcessPoolExecutor(2) as pool:\n    pool.submit(task, 1).result()\n    return time.perf_counter()"

    def open(self, workers: int) -> Session:
        loky = importlib.import_module("loky")
        return LokySession(loky.ProcessPoolExecutor(workers))


class LokySession(ExecutorSession):
    def close(self) -> None:
        self.executor.shutdown(wait=True)


# --- pools with their own ideas -----------------------------------------------------------------


class StdlibPoolSession(Session):
    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply_async(fn, args)

    def result(self, handle: Any) -> Any:
        return handle.get(HANG_LIMIT_S)

    def submit_all(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        apply_async = self.pool.apply_async
        handles = [apply_async(fn, (item,)) for item in items]
        return [handle.get() for handle in handles]

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        return list(self.pool.map(fn, items))

    def close(self) -> None:
        self.pool.close()
        self.pool.join()

    def terminate(self) -> None:
        self.pool.terminate()  # close and join would wait for the killed task's result for ever
        self.pool.join()


class StdlibPool(Contender):
    lacks: ClassVar[Mapping[str, str]] = {"timeout": "no time limit for a task"}

    def __init__(self, method: str) -> None:
        self.method = method
        self.name = f"pool-{method}"
        self.title = f"multiprocessing.Pool, {method}"
        self.imports = "from multiprocessing import get_context"
        self.body = (
            f'with get_context("{method}").Pool(2) as pool:\n'
            "    pool.apply_async(task, (1,)).get()\n"
            "    return time.perf_counter()"
        )

    def open(self, workers: int) -> Session:
        return StdlibPoolSession(multiprocessing.get_context(self.method).Pool(workers))


class PebbleSession(Session):
    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.schedule(fn, args=args)

    def submit_limited(self, timeout_s: float, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.schedule(fn, args=args, timeout=timeout_s)

    def submit_all(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        schedule = self.pool.schedule
        futures = [schedule(fn, args=(item,)) for item in items]
        return [future.result() for future in futures]

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        # Larger chunks served it no better.
        chunk = min(100, max(1, len(items) // 200))
        return list(self.pool.map(fn, items, chunksize=chunk).result())

    def close(self) -> None:
        self.pool.close()
        self.pool.join()

    def terminate(self) -> None:
        self.pool.stop()
        self.pool.join()


class Pebble(Contender):
    name = title = "pebble"
    distribution = "Pebble"
    module = "pebble"
    imports = "from pebble import ProcessPool"
    body = (
        "with ProcessPool(max_workers=2) as pool:\n    pool.schedule(task, args=(1,)).result()\n"
        "    return time.perf_counter()"
    )

    def open(self, workers: int) -> Session:
        pebble = importlib.import_module("pebble")
        return PebbleSession(pebble.ProcessPool(max_workers=workers))


class MpireSession(Session):
    #: It deals tasks out to its workers in turn, so of two waiting tasks one is the free slot's.
    probes = 2

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply_async(fn, args)

    def submit_limited(self, timeout_s: float, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply_async(fn, args, task_timeout=timeout_s)

    def result(self, handle: Any) -> Any:
        return handle.get(timeout=HANG_LIMIT_S)

    def submit_all(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        apply_async = self.pool.apply_async
        handles = [apply_async(fn, (item,)) for item in items]
        return [handle.get() for handle in handles]

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        return list(self.pool.map(fn, items))

    def close(self) -> None:
        self.pool.stop_and_join()

    def terminate(self) -> None:
        self.pool.terminate()


class Mpire(Contender):
    name = title = "mpire"
    distribution = module = "mpire"
    lacks: ClassVar[Mapping[str, str]] = {"heal": "after a worker's death its waiting tasks do not run"}
    imports = "from mpire import WorkerPool"
    body = "with WorkerPool(2) as pool:\n    pool.apply(task, (1,))\n    return time.perf_counter()"

    def open(self, workers: int) -> Session:
        mpire = importlib.import_module("mpire")
        return MpireSession(mpire.WorkerPool(workers))


class JoblibSession(Session):
    def __init__(self, workers: int) -> None:
        joblib = importlib.import_module("joblib")
        self.delayed = joblib.delayed
        self.parallel = joblib.Parallel(n_jobs=workers)
        self.one_each = joblib.Parallel(n_jobs=workers, batch_size=1)
        self.parallel.__enter__()

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        task = self.delayed(fn)
        return list(self.parallel(task(item) for item in items))

    def singly(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        task = self.delayed(fn)
        return list(self.one_each(task(item) for item in items))

    def close(self) -> None:
        self.parallel.__exit__(None, None, None)


class Joblib(Contender):
    name = title = "joblib"
    distribution = module = "joblib"
    lacks: ClassVar[Mapping[str, str]] = {
        "submit": "takes whole iterables, not single tasks",
        "heal": "one dead worker fails the whole call",
        "timeout": "its time limit ends the whole call",
    }
    imports = "from joblib import Parallel, delayed"
    body = "with Parallel(n_jobs=2) as parallel:\n    parallel([delayed(task)(1)])\n    return time.perf_counter()"

    def open(self, workers: int) -> Session:
        return JoblibSession(workers)


#: In the order of the table. Adding a peer is one class and one entry here.
CONTENDERS: tuple[Contender, ...] = (
    Shoal(),
    StdlibExecutor("fork"),
    StdlibExecutor("forkserver"),
    StdlibPool("fork"),
    StdlibPool("forkserver"),
    Loky(),
    Joblib(),
    Pebble(),
    Mpire(),
)
BY_NAME: Mapping[str, Contender] = {contender.name: contender for contender in CONTENDERS}
