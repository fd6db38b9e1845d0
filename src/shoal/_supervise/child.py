"""A child of a supervisor, as the user holds it.

Role: looks at, and asks for, one child, whichever run of it there is. Owner: the user. Any thread.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from shoal._supervise import events as ev
from shoal._supervise.policy import Child, State

if TYPE_CHECKING:
    from shoal._supervise.driver import Driver
    from shoal._supervise.tree import Supervisor


class SupervisedChild:
    """A child of a supervisor, whichever run of it there is. Made by `Supervisor.start`."""

    def __init__(self, supervisor: Supervisor, id: str) -> None:
        self._supervisor = supervisor
        self._id = id
        self._value: Any = None
        self._value = self.value

    @property
    def id(self) -> str:
        """Its name in its supervisor."""
        return self._id

    @property
    def value(self) -> Any:
        """What runs now, or ran last: the `Process`, `Pool`, actor or `Supervisor`. Another one after each restart."""
        self._supervisor._check_owner()
        driver = self._supervisor._driver
        value = driver.value_of(self._id) if driver is not None else None
        if value is not None:  # else it is forgotten; but it may be asked how it ended
            self._value = value
        return self._value

    @property
    def info(self) -> ev.ChildInfo | None:
        """A frozen picture of it; None once it is forgotten."""
        found = (one for one in self._supervisor.children() if one.id == self._id)
        return next(found, None)

    @property
    def state(self) -> str:
        """``"up"`` and so on, see `ChildInfo`; ``"forgotten"`` once the supervisor knows it no more."""
        info = self.info
        return info.state if info is not None else "forgotten"

    @property
    def pid(self) -> int | None:
        """Process id of the run there is, if it is one process."""
        info = self.info
        return info.pid if info is not None else None

    def terminate(self) -> None:
        """Stop it; see `Supervisor.terminate_child`."""
        self._supervisor.terminate_child(self._id)

    def restart(self) -> None:
        """Start it again after `terminate`; see `Supervisor.restart_child`."""
        self._supervisor.restart_child(self._id)

    def __repr__(self) -> str:
        if self._supervisor._owner != os.getpid():
            return f"<child {self._id!r} of {self._supervisor!r}>"
        return f"<child {self._id!r} of {self._supervisor.name}, {self.state}>"


def info_of(driver: Driver, child: Child) -> ev.ChildInfo:
    """Return a frozen picture of a child. With the driver's guard held."""
    record = driver.records.get(child.spec.id)
    running = record.attempt.running if record is not None else None
    last = record.last if record is not None else None
    alive = child.state in (State.STARTING, State.UP, State.STOPPING)
    return ev.ChildInfo(
        id=child.spec.id,
        state=child.state.value,
        restart=child.spec.restart,
        runs=child.run,
        restarts=child.restarts,
        pid=running.pid if running is not None and alive else None,
        obituary=last.obituary if last is not None else None,
    )
