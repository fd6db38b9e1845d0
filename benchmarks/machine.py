"""What was measured on: machine, kernel, Python, versions, date, and how quiet it was."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def cpu_model(cpuinfo: str) -> str:
    """Return the processor's name from the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    return fields.get("model name") or fields.get("cpu model") or fields.get("hardware") or platform.machine()


def memory_gib(meminfo: str) -> float:
    """Return the machine's memory from the text of /proc/meminfo."""
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) / (1 << 20)
    return 0.0


def version_of(distribution: str | None) -> str:
    if distribution is None:
        return platform.python_version()
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def describe(distributions: Iterable[str]) -> dict[str, Any]:
    """Collect what a reader needs to judge the figures."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return {
        "cpu": cpu_model(cpuinfo),
        "cpus": len(os.sched_getaffinity(0)),
        "virtual": " hypervisor" in cpuinfo,
        "memory_gib": round(memory_gib(Path("/proc/meminfo").read_text(encoding="ascii")), 1),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libc": " ".join(platform.libc_ver()).strip(),
        "versions": {name: version_of(name) for name in sorted(set(distributions))},
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


class Noise:
    """How much of the machine others took during a run: the first line of /proc/stat, before and after."""

    def __init__(self) -> None:
        self._load_before = os.getloadavg()[0]
        self._before = self._read()

    @staticmethod
    def _read() -> list[int]:
        with open("/proc/stat", encoding="ascii") as file:
            return [int(word) for word in file.readline().split()[1:]]

    def report(self) -> dict[str, float]:
        return {"load_before": round(self._load_before, 2), "steal_share": steal_share(self._before, self._read())}


def steal_share(before: list[int], after: list[int]) -> float:
    """Return the share of time in which the hypervisor ran somebody else; field 8 of the cpu line."""
    spent = [now - then for then, now in zip(before, after, strict=True)]
    total = sum(spent[:8])  # guest time is already counted as user time
    return round(spent[7] / total, 4) if total and len(spent) > 7 else 0.0
