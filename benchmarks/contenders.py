"""One small adapter for each way to run Python in many processes.

Role: let a case say `submit`, `map`, `submit_limited` and mean the same thing everywhere. What can be said is in
`adapter.py`; the two that bring a server of their own are in `clusters.py`.
Owner: the case's own interpreter; the harness only asks for names and reasons.

Each adapter uses its library as that library's manual says, with its defaults. Two things are set
by hand because the default would make no sense for the row: the start method where it is the
question, and the chunk size of `map` where the library hands out single items otherwise.
Libraries are imported only when asked for, so that a case pays for its own contender alone.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from benchmarks.adapter import HANG_LIMIT_S, Contender, Session
from benchmarks.clusters import Dask, Ray

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

    def share(self, value: Any) -> Any:
        return importlib.import_module("shoal").share(value)

    def submit_limited(self, timeout_s: float, fn: Callable[..., Any], *args: Any) -> Any:
        return self.executor.using(timeout=timeout_s).submit(fn, *args)


class ShoalChoosing(Session):
    def __init__(self, shoal: Any) -> None:
        self.shoal = shoal

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        return list(self.shoal.map(fn, items, workers="auto"))

    def close(self) -> None:
        """The default pool ends with the program."""


class Shoal(Contender):
    name = title = "shoal"
    distribution = module = "shoal"
    offers: ClassVar[frozenset[str]] = frozenset({"share", "empty"})
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
        importlib.import_module("shoal").map(fn, items, workers="auto")
        return ""

    def choosing(self, workers: int) -> Session:
        shoal = importlib.import_module("shoal")
        shoal.map(abs, range(4 * workers))  # the default pool, as it is after its first use
        return ShoalChoosing(shoal)


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

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.parallel([self.delayed(fn)(*args)])[0]

    def share(self, value: Any) -> Any:
        return value  # it writes a large array to a file that every worker maps, by itself

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
    offers: ClassVar[frozenset[str]] = frozenset({"share"})
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
    Ray(),
    Dask(),
)


# --- for other questions than a pool's ----------------------------------------------------------


class Multiprocessing(Contender):
    """What the standard library has beside pools; see `kits.py`."""

    name = title = "multiprocessing"


class FasterFifo(Contender):
    name = title = "faster-fifo"
    distribution = "faster-fifo"
    module = "faster_fifo"


#: Who runs no tasks, but has locks, queues or pipes; `Suite.contenders` names them.
OTHERS: tuple[Contender, ...] = (Multiprocessing(), FasterFifo())
BY_NAME: Mapping[str, Contender] = {contender.name: contender for contender in (*CONTENDERS, *OTHERS)}
