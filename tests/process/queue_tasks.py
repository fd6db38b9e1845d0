"""What the tests of queues and channels let workers and programs run. Light, as `pool_tasks.py`."""

from __future__ import annotations

from typing import Any

import shoal


def put_all(items: shoal.Queue[Any], values: list[Any]) -> int:
    for value in values:
        items.put(value)
    return len(values)


def take(items: shoal.Queue[Any], count: int) -> list[Any]:
    return [items.get() for _ in range(count)]


def take_until_closed(items: shoal.Queue[Any]) -> list[Any]:
    return list(items)


def echo(nested: dict[str, Any]) -> None:
    for item in nested["in"]:
        nested["out"].put(item)


def relay(nested: dict[str, Any]) -> None:
    (out,) = nested["out"]
    with out.writer():
        for array in nested["in"]:
            out.send(array.tobytes())
