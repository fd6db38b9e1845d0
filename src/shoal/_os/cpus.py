"""How many CPUs this process may really use.

Role: affinity ∩ the CPU quotas of every control group above us. Owner: nobody; nothing is written.
"""

from __future__ import annotations

import os

from shoal._os.cgroup import group_directories, read_text


def parse_cpu_max(text: str | None) -> float | None:
    """Return CPUs from the text of a version 2 cpu.max (``"150000 100000"`` is 1.5), or `None` for no limit."""
    words = (text or "").split()
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:
        return None  # "max 100000", or unreadable
    return int(words[0]) / int(words[1])


def parse_cfs(quota_text: str | None, period_text: str | None) -> float | None:
    """Return CPUs from the texts of version 1's cpu.cfs_quota_us and cpu.cfs_period_us, or `None` for no limit."""
    quota, period = (quota_text or "").strip(), (period_text or "").strip()
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # "-1" is no limit
    return int(quota) / int(period)


def quota_cpus(root: str = "/") -> float | None:
    """Return the smallest CPU quota on our group or any ancestor, in CPUs, or `None` if there is none."""
    quotas = [parse_cpu_max(read_text(f"{directory}/cpu.max")) for directory in group_directories("", root)]
    quotas += [
        parse_cfs(read_text(f"{directory}/cpu.cfs_quota_us"), read_text(f"{directory}/cpu.cfs_period_us"))
        for directory in group_directories("cpu", root)
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def count(affinity: int, quota: float | None) -> int:
    """Return the CPUs usable with `affinity` CPUs allowed and a quota of `quota` CPUs: at least 1.

    A quota is rounded up: 1.5 CPUs keep two processes three quarters busy, and one would leave a third unused.
    """
    if quota is None:
        return max(1, affinity)
    return max(1, min(affinity, -int(-quota // 1)))


def usable_cpus(root: str = "/") -> int:
    """Return how many CPUs this process may use now: its affinity, cut to the nested control group quotas; at least 1."""
    return count(len(os.sched_getaffinity(0)), quota_cpus(root))
