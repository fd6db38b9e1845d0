"""Search every state a small world can reach.

Role: breadth-first search with copies, so the first failure shown is a shortest one. Owner: the model tests.

A world is an object that pickles and has
    steps() -> (what must happen sooner or later, what may happen)     steps are tuples, a name first
    take(step)             do it, asserting what must hold on the way
    check()                assert what must hold in every state
    check_end()            assert what must hold when nothing has to happen any more
    key()                  equal for states that behave alike
"""

from __future__ import annotations

import pickle
from collections import deque
from typing import Any, Protocol

Step = tuple[Any, ...]


class World(Protocol):
    def steps(self) -> tuple[list[Step], list[Step]]: ...
    def take(self, step: Step) -> None: ...
    def check(self) -> None: ...
    def check_end(self) -> None: ...
    def key(self) -> Any: ...


class Broken(AssertionError):
    """An invariant does not hold; says by which steps."""


Trail = tuple["Trail | None", Step] | None


def explore(world: World) -> int:
    """Visit every state reachable from `world`; returns how many there are."""
    seen = {world.key()}
    waiting: deque[tuple[bytes, Trail]] = deque([(pickle.dumps(world, 5), None)])
    while waiting:
        data, trail = waiting.popleft()
        before: World = pickle.loads(data)
        must, may = before.steps()
        own, moved = before.key(), False
        for place, step in enumerate(must + may):
            here: World = pickle.loads(data)
            _attempt(lambda here=here, step=step: _go(here, step), (trail, step))
            key = here.key()
            moved = moved or (place < len(must) and key != own)
            if key not in seen:
                seen.add(key)
                waiting.append((pickle.dumps(here, 5), (trail, step)))
        if not moved:
            _attempt(before.check_end, (trail, ("the end",)))
    return len(seen)


def _go(world: World, step: Step) -> None:
    world.take(step)
    world.check()


def _attempt(action: Any, trail: Trail) -> None:
    try:
        action()
    except Exception as problem:
        steps = []
        while trail is not None:
            trail, step = trail
            steps.append(" ".join(map(str, step)))
        raise Broken(f"{problem!r}\nafter: {'; '.join(reversed(steps))}") from problem
