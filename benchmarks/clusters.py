"""Adapters for the two contenders that bring servers of their own: Ray and Dask.

Role: the same words as in `contenders.py`, for libraries made for many machines, here on one.
Owner: the case's own interpreter.

Both are opened as their manuals say for one machine, without their web pages. What they print goes to the case's
output, and whatever they would send to their makers is switched off.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from benchmarks.adapter import HANG_LIMIT_S, Contender, Session


class RaySession(Session):
    def __init__(self, workers: int) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self.ray = importlib.import_module("ray")
        # Its sockets lie in here, whose paths must be short; by default the files stay for ever.
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        self.ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
            _temp_dir=self.folder,
        )
        self.remote: dict[Callable[..., Any], Any] = {}

    def _remote(self, fn: Callable[..., Any]) -> Any:
        if fn not in self.remote:
            self.remote[fn] = self.ray.remote(max_retries=0)(fn)  # a task is not run again when its worker is killed
        return self.remote[fn]

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._remote(fn).remote(*args)

    def result(self, handle: Any) -> Any:
        return self.ray.get(handle, timeout=HANG_LIMIT_S)

    def submit_all(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        submit = self._remote(fn).remote
        return list(self.ray.get([submit(item) for item in items]))

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        return self.submit_all(fn, items)

    def share(self, value: Any) -> Any:
        return self.ray.put(value)

    def close(self) -> None:
        self.ray.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


class Ray(Contender):
    name = "ray"
    title = "Ray"
    distribution = module = "ray"
    lacks: ClassVar[Mapping[str, str]] = {"timeout": "no time limit for a task"}
    offers: ClassVar[frozenset[str]] = frozenset({"share"})
    imports = "import ray"
    body = (
        "ray.init(num_cpus=2, include_dashboard=False)\n"
        "ray.get(ray.remote(task).remote(1))\n"
        "at = time.perf_counter()\n"
        "ray.shutdown()\n"
        "return at"
    )

    def open(self, workers: int) -> Session:
        return RaySession(workers)


class DaskSession(Session):
    #: A waiting task is given to one of the workers before it is free.
    probes = 2

    def __init__(self, workers: int) -> None:
        # As with Ray: a task is not run again when its worker is killed.
        importlib.import_module("dask").config.set({"distributed.scheduler.allowed-failures": 0})
        client = importlib.import_module("distributed").Client
        self.client = client(n_workers=workers, threads_per_worker=1, dashboard_address=None)

    # `pure=False` everywhere: otherwise the second call with the same argument is answered from memory.

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.client.submit(fn, *args, pure=False)

    def submit_all(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        submit = self.client.submit
        return list(self.client.gather([submit(fn, item, pure=False) for item in items]))

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        return list(self.client.gather(self.client.map(fn, items, pure=False)))

    def share(self, value: Any) -> Any:
        return self.client.scatter(value, broadcast=True)

    def close(self) -> None:
        self.client.close()


class Dask(Contender):
    name = "dask"
    title = "Dask"
    distribution = module = "distributed"
    lacks: ClassVar[Mapping[str, str]] = {"timeout": "no time limit for a task"}
    offers: ClassVar[frozenset[str]] = frozenset({"share"})
    imports = "from distributed import Client"
    body = (
        "with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:\n"
        "    client.submit(task, 1).result()\n"
        "    return time.perf_counter()"
    )

    def open(self, workers: int) -> Session:
        return DaskSession(workers)
