"""Hand-shakes with tasks, opened again whatever a test does, so that closing the pool never waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process import pool_tasks


@pytest.fixture
def make_gate(tmp_path: Path) -> Iterator[Callable[[str], pool_tasks.Gate]]:
    """Makes gates by name. Ask for it after `pool` or `pool_factory`: it is taken down before them."""
    made: list[pool_tasks.Gate] = []

    def make(name: str) -> pool_tasks.Gate:
        made.append(pool_tasks.Gate(str(tmp_path), name))
        return made[-1]

    yield make
    for gate in made:
        gate.open()


@pytest.fixture
def gate(make_gate: Callable[[str], pool_tasks.Gate]) -> pool_tasks.Gate:
    return make_gate("gate")


@pytest.fixture
def log(tmp_path: Path) -> pool_tasks.Log:
    return pool_tasks.Log(str(tmp_path / "log"))
