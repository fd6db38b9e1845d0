"""Every question there is a file for, in the order of the page."""

from __future__ import annotations

from benchmarks import auto, data, pool, scale, sync
from benchmarks.model import Suite

SUITES: tuple[Suite, ...] = (pool.SUITE, data.SUITE, scale.SUITE, auto.SUITE, sync.SUITE)
