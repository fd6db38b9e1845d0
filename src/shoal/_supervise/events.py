"""What a supervisor tells: events, and pictures of itself and its children.

Role: frozen values for people and programs. Owner: nobody. Times are seconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from shoal._supervise.policy import Restart, Strategy
    from shoal.errors import Obituary

ChildState = Literal["down", "starting", "up", "gone", "stopping", "restarting"]
SupervisorState = Literal["not started", "running", "stopping", "stopped", "gave up", "auto shutdown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildEvent:
    """Something happened to a child of a supervisor.

    Attributes:
        supervisor: The supervisor's name.
        child: The child's id.
        run: Which start of the child it is about, from 1.
        time: When, in seconds since the epoch.
    """

    supervisor: str
    child: str
    run: int
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStarted(ChildEvent):
    """A start of the child has begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildReady(ChildEvent):
    """The child is up.

    Attributes:
        pid: Its process id, if it is one process.
    """

    pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildExited(ChildEvent):
    """The child ended by itself, or did not become ready.

    Attributes:
        normal: Whether it ended well: a transient child is then not restarted.
        obituary: Everything known of its death, if it died.
        reason: In words, how it ended or why it did not start.
    """

    normal: bool
    reason: str
    obituary: Obituary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRestarting(ChildEvent):
    """A restart was decided; those it concerns are stopped, then started in order.

    Attributes:
        delay_s: Seconds until then.
    """

    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStopped(ChildEvent):
    """The supervisor has stopped the child.

    Attributes:
        killed: It did not end in its time, or was not asked to.
    """

    killed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp(ChildEvent):
    """The supervisor gave up, because of this child, and has stopped them all."""


Event = ChildStarted | ChildReady | ChildExited | ChildRestarting | ChildStopped | GaveUp


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildInfo:
    """A child as it was at one instant.

    Attributes:
        id: Its name in its supervisor.
        state: "up"; "starting" or "stopping"; "restarting": about to be; "down": nobody will start it unless asked to;
            "gone": it ended a moment ago.
        restart: "permanent", "transient" or "temporary".
        runs: How often it was started.
        restarts: How often its end made the supervisor restart it.
        pid: Process id, if it is one process and runs.
        obituary: How it died last, if it did.
    """

    id: str
    state: ChildState
    restart: Restart
    runs: int
    restarts: int
    pid: int | None = None
    obituary: Obituary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildCounts:
    """How many children there are.

    Attributes:
        specs: All that are known, running or not.
        active: Those that are up.
        supervisors: Those that are supervisors themselves.
        workers: The others.
    """

    specs: int
    active: int
    supervisors: int
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStatistics:
    """A supervisor as it was at one instant.

    Attributes:
        name: Its name.
        strategy: Whom a restart concerns.
        state: "running", or how it ended.
        children: Its children, in their start order.
        starts: Starts it made, restarts included.
        restarts: Restarts it decided on; one may concern several children.
        exits: Ends of children that it had not asked for.
        failed_starts: Starts that came to nothing.
        kills: Children that did not end in their time.
    """

    name: str
    strategy: Strategy
    state: SupervisorState
    children: tuple[ChildInfo, ...] = field(default=())
    starts: int = 0
    restarts: int = 0
    exits: int = 0
    failed_starts: int = 0
    kills: int = 0
