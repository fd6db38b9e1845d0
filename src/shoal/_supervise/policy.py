"""Which child is started, stopped and restarted when. Pure: events in, actions out, no clocks, no processes.

Role: the rules of Erlang/OTP's `supervisor`, as a state machine. Owner: one `Supervisor`, which calls it from one thread; an
event brings the time with it, in seconds of any clock that does not go back.

An *operation* deals with one exit, one restart that is due or one wish of the user: it first stops some children, one after the
other, then starts some, one after the other. What happens meanwhile waits in a mailbox, as in OTP's process; under `one_for_one`
children have nothing to do with each other, so each has a mailbox of its own and a slow start holds up nobody else.

A start of a child has a number, its *run*. Whoever carries out the actions answers
    Start(id, run)     by `started` once it is ready, or by `start_failed` once nothing of it is left
    Ask, Kill(id, run) by `exited` (or `start_failed`) once nothing of it is left; a Kill may follow an Ask

States of a child
    DOWN        not running; nobody will start it unless asked to, or a sibling's restart includes it
    STARTING    Start was given
    UP          ready
    GONE        it ended by itself; its exit waits in the mailbox
    STOPPING    Ask or Kill was given
    RESTARTING  not running; a restart waits in the mailbox, or for its pause to pass

Invariants
    V1  A child is started only from DOWN or RESTARTING: never two runs of one child.
    V2  Children are started in their order and stopped in reverse; no Start is given while another is under way, nor
        while one of those to be stopped is not DOWN. (Under one_for_one: for each child by itself.)
    V3  A temporary child is never started twice; it is forgotten as soon as it has ended.
    V4  More than `intensity` restarts within `period` seconds end everything: all children stopped, in reverse, then `Ended`.
    V5  After `Ended` there is no action; every wish is answered, once.
    V6  What is decided about a run that is over changes nothing: events name their run.

The file is long because these rules are read, and checked against OTP's, together.

Checked by tests/unit/test_supervise_policy.py (a row for each sentence of OTP's documentation) and
tests/model/test_supervise.py (every order of exits, starts and wishes of small trees).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
Restart = Literal["permanent", "transient", "temporary"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]
#: Seconds to end after being asked, "kill" for not being asked, None for as long as it takes.
Shutdown = float | Literal["kill"] | None
#: Why a supervisor has ended.
Why = Literal["stopped", "gave up", "auto shutdown"]

#: Longest pause before a restart, in seconds.
BACKOFF_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Flags:
    """What holds for all children of a supervisor. `period` and `backoff_s` are seconds."""

    strategy: Strategy = "one_for_one"
    intensity: int = 1
    period: float = 5.0
    auto_shutdown: AutoShutdown = "never"
    backoff_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Spec:
    """What holds for one child. `about` is the caller's own."""

    id: str
    restart: Restart = "permanent"
    shutdown: Shutdown = 5.0
    significant: bool = False
    about: Any = None


class State(Enum):
    """See the top of the file."""

    DOWN = "down"
    STARTING = "starting"
    UP = "up"
    GONE = "gone"
    STOPPING = "stopping"
    RESTARTING = "restarting"


# --- actions ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Start the child. `again` tells whether it has run before."""

    id: str
    run: int
    again: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the child to end; it may still be starting."""

    id: str
    run: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End the child at once; it may still be starting."""

    id: str
    run: int


@dataclass(frozen=True, slots=True)
class Restarting:
    """Nothing to do: a restart was decided, to begin in `delay_s` seconds."""

    id: str
    run: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Forget:
    """The child's specification is gone, and with it everything kept for it."""

    id: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A wish is fulfilled (`refusal` empty), or refused for that reason."""

    token: object
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """All children are stopped. `child` is the one whose restart was one too many, or whose end shut everything down."""

    why: Why
    child: str | None


Action = Start | Ask | Kill | Restarting | Forget | Answer | Ended


# --- state --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Child:
    """One child as the policy sees it."""

    spec: Spec
    state: State = State.DOWN
    run: int = 0
    wanted: bool = False  # it ran, and nobody stopped it for its own sake
    restarts: int = 0  # in all
    failures: int = 0  # restarts in a row, for the pause
    up_since: float = 0.0
    kill_at: float | None = None  # while STOPPING: when patience ends
    due_at: float | None = None  # while RESTARTING: when the pause ends; None: its turn is in the mailbox


Kind = Literal["exit", "again", "start", "terminate", "restart", "delete", "end"]


@dataclass(slots=True)
class Operation:
    """Something to do, and how far it is. `token` is whose wish it is."""

    kind: Kind
    id: str = ""
    run: int = 0
    normal: bool = False
    spec: Spec | None = None
    counted: bool = False
    token: object = None
    stops: list[str] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Lane:
    """What happens in order: one operation at a time, and those that wait."""

    current: Operation | None = None
    mailbox: deque[Operation] = field(default_factory=deque)


class Policy:
    """The state machine. Each event returns what is to be done, in order."""

    def __init__(self, flags: Flags) -> None:
        self.flags = flags
        self.children: dict[str, Child] = {}  # in start order
        self.ended: Ended | None = None
        self.ending: Ended | None = None  # what it will be, once all are stopped
        self._lanes: dict[str, Lane] = {}
        self._restarts: list[float] = []  # when, newest first
        self._waiting: list[object] = []  # who waits for the end
        self._actions: list[Action] = []

    # --- wishes ---------------------------------------------------------------------------------

    def start_child(self, spec: Spec, token: object, now: float) -> list[Action]:
        """Add a child behind all others and start it; answered when it is ready. One that cannot start is forgotten."""
        return self._wish(Operation("start", spec.id, token=token, spec=spec), now)

    def terminate_child(self, id_: str, token: object, now: float) -> list[Action]:
        """Stop a child, or give up its restart. Its specification stays, unless it is temporary."""
        return self._wish(Operation("terminate", id_, token=token), now)

    def restart_child(self, id_: str, token: object, now: float) -> list[Action]:
        """Start a child that is not running."""
        return self._wish(Operation("restart", id_, token=token), now)

    def delete_child(self, id_: str, token: object, now: float) -> list[Action]:
        """Forget a child that is not running."""
        return self._wish(Operation("delete", id_, token=token), now)

    def stop(self, token: object, now: float) -> list[Action]:
        """Stop all children, in reverse; answered when they are. Cuts short whatever is under way."""
        if self.ended is not None:
            self._do(Answer(token))
        else:
            self._waiting.append(token)
            self._end(Ended("stopped", None), now)
        return self._taken()

    def kill(self, token: object, now: float) -> list[Action]:
        """End all children at once, in no order; answered when they are gone."""
        actions = self.stop(token, now)
        for child in self.children.values():
            if child.state in (State.STARTING, State.UP, State.STOPPING):
                child.state, child.kill_at = State.STOPPING, None
                self._do(Kill(child.spec.id, child.run))
        return actions + self._taken()

    def _wish(self, operation: Operation, now: float) -> list[Action]:
        if self.ending is not None:
            self._do(Answer(operation.token, "stopping"))
        else:
            self._post(operation, now)
        return self._taken()

    # --- what happened --------------------------------------------------------------------------

    def started(self, id_: str, run: int, now: float) -> list[Action]:
        """The child is ready."""
        child = self._running(id_, run)
        if child is not None and child.state is State.STARTING:  # else it is being stopped, ready or not
            child.state, child.up_since = State.UP, now
            self._advance(id_, now)
        return self._taken()

    def start_failed(self, id_: str, run: int, now: float) -> list[Action]:
        """The child did not become ready, and nothing of it is left."""
        child = self._running(id_, run)
        if child is not None and child.state is State.STARTING:
            child.state = State.DOWN
            self._failed(child, now)
        elif child is not None:
            self._is_gone(child, True, now)
        return self._taken()

    def exited(self, id_: str, run: int, normal: bool, now: float) -> list[Action]:
        """The child has ended, by itself or because it was told to."""
        child = self._running(id_, run)
        if child is not None and child.state is State.STARTING:
            return self.start_failed(id_, run, now)
        if child is not None:
            self._is_gone(child, normal, now)
        return self._taken()

    def tick(self, now: float) -> list[Action]:
        """Time has passed; see `next_due`."""
        for child in list(self.children.values()):
            if child.state is State.STOPPING and child.kill_at is not None and child.kill_at <= now:
                child.kill_at = None
                self._do(Kill(child.spec.id, child.run))
            if child.state is State.RESTARTING and child.due_at is not None and child.due_at <= now:
                child.due_at = None
                self._post(Operation("again", child.spec.id, counted=True), now)
        return self._taken()

    @property
    def next_due(self) -> float | None:
        """When `tick` wants to be called next, if nothing else happens."""
        times = (time for child in self.children.values() for time in (child.kill_at, child.due_at))
        return min((time for time in times if time is not None), default=None)

    def _running(self, id_: str, run: int) -> Child | None:
        """Return the child if that run of it is the one that runs (V6)."""
        child = self.children.get(id_)
        alive = child is not None and child.run == run
        return child if alive and child.state in (State.STARTING, State.UP, State.STOPPING) else None  # type: ignore[union-attr]

    def _is_gone(self, child: Child, normal: bool, now: float) -> None:
        if child.state is State.STOPPING:
            self._is_down(child)
            self._advance(child.spec.id, now)
            return
        child.state = State.GONE
        if now - child.up_since > self.flags.period:
            child.failures = 0
        self._post(Operation("exit", child.spec.id, run=child.run, normal=normal), now)

    def _is_down(self, child: Child) -> None:
        child.state = State.DOWN
        child.kill_at = child.due_at = None
        if child.spec.restart == "temporary":
            self._forget(child)  # V3

    # --- operations -----------------------------------------------------------------------------

    def _lane(self, id_: str) -> Lane:
        """Return where what concerns this child waits: under one_for_one its own place, at the end the one of all."""
        own = self.flags.strategy == "one_for_one" and self.ending is None
        return self._lanes.setdefault(id_ if own else "", Lane())

    def _post(self, operation: Operation, now: float) -> None:
        if self.ending is None:
            self._lane(operation.id).mailbox.append(operation)
        self._advance(operation.id, now)

    def _advance(self, id_: str, now: float) -> None:
        """Go on with what is under way, then with what waits, until somebody has to be waited for."""
        lane = self._lane(id_)
        while self._lane(id_) is lane:  # it is not when the end has begun
            if lane.current is None:
                if not lane.mailbox:
                    break
                lane.current = lane.mailbox.popleft()
                self._begin(lane.current, now)
            elif self._busy(lane.current, now):
                return
            else:
                done, lane.current = lane.current, None
                self._finish(done, now)
        if self._lane(id_) is lane and not lane.mailbox and id_ not in self.children:
            self._lanes.pop(id_, None)

    def _begin(self, operation: Operation, now: float) -> None:
        """Decide whom to stop and whom to start. What is found to be settled already stays empty."""
        child = self.children.get(operation.id)
        if operation.kind == "start":
            self._begin_start(operation, child)
        elif child is None:  # forgotten while this waited
            self._refuse(operation, "not found")
        elif operation.kind == "exit":
            if child.state is State.GONE and child.run == operation.run:
                self._after_exit(operation, child, now)
        elif operation.kind == "again":
            if child.state is State.RESTARTING and child.due_at is None:
                self._restart(operation, child, now)
        elif operation.kind == "terminate":
            self._begin_terminate(operation, child)
        elif child.state is not State.DOWN:
            self._refuse(operation, "restarting" if child.state is State.RESTARTING else "running")
        elif operation.kind == "restart":
            operation.starts = [operation.id]
        else:
            self._forget(child)

    def _begin_start(self, operation: Operation, known: Child | None) -> None:
        if known is not None:
            there = known.state in (State.DOWN, State.RESTARTING)
            self._refuse(operation, "already present" if there else "already started")
        else:
            assert operation.spec is not None
            self.children[operation.id] = Child(operation.spec)
            operation.starts = [operation.id]

    def _begin_terminate(self, operation: Operation, child: Child) -> None:
        """Stop it. Siblings that were stopped for its restart and wait for its pause to pass need not wait any more."""
        if child.state is State.RESTARTING:
            others = (self.children[one] for one in self._concerned(child))
            operation.starts = [one.spec.id for one in others if one is not child and one.wanted]
        child.wanted = False
        operation.stops = [operation.id]

    def _refuse(self, operation: Operation, why: str) -> None:
        if operation.token is not None:
            self._do(Answer(operation.token, why))
            operation.token = None

    def _after_exit(self, operation: Operation, child: Child, now: float) -> None:
        restart = child.spec.restart
        if restart == "permanent" or (restart == "transient" and not operation.normal):
            self._restart(operation, child, now)
            return
        child.wanted = False
        self._is_down(child)
        auto = self.flags.auto_shutdown
        if child.spec.significant and (
            auto == "any_significant" or (auto == "all_significant" and not self._any_left())
        ):
            self._end(Ended("auto shutdown", child.spec.id), now)

    def _any_left(self) -> bool:
        return any(one.spec.significant and one.state is not State.DOWN for one in self.children.values())

    def _restart(self, operation: Operation, child: Child, now: float) -> None:
        """Count a restart and begin it: those it concerns are stopped at once, and started after the pause, if there is one."""
        if not operation.counted and not self._count(child, now):
            return
        others = self._concerned(child)
        operation.stops = [one for one in reversed(others) if one != child.spec.id]
        pause_s = 0.0 if operation.counted else self._pause_s(child)
        if not operation.counted:
            self._do(Restarting(child.spec.id, child.run, pause_s))
        child.state = State.RESTARTING
        if pause_s:
            child.due_at = now + pause_s
        else:
            operation.starts = others

    def _concerned(self, child: Child) -> list[str]:
        """Return who is restarted together with this child, itself included, in start order."""
        ids = list(self.children)
        if self.flags.strategy == "one_for_one":
            return [child.spec.id]
        return ids if self.flags.strategy == "one_for_all" else ids[ids.index(child.spec.id) :]

    def _count(self, child: Child, now: float) -> bool:
        """Note a restart; False, and the end has begun, if it is one too many (V4)."""
        oldest = now - self.flags.period
        self._restarts = [now, *(time for time in self._restarts if time >= oldest)]
        if len(self._restarts) > self.flags.intensity:
            self._is_down(child)
            self._end(Ended("gave up", child.spec.id), now)
            return False
        child.restarts += 1
        child.failures += 1
        return True

    def _pause_s(self, child: Child) -> float:
        first = self.flags.backoff_s
        return min(first * 2.0 ** min(child.failures - 1, 64), max(first, BACKOFF_LIMIT_S)) if first else 0.0

    def _busy(self, operation: Operation, now: float) -> bool:
        """Stop and start as far as that goes without waiting; True if somebody has to be waited for (V2)."""
        while operation.stops:
            child = self.children.get(operation.stops[0])
            if child is not None and self._stopping(child, now):
                return True
            operation.stops.pop(0)
        while operation.starts:
            child = self.children.get(operation.starts[0])
            if child is not None and child.state is State.STARTING:
                return True
            if child is not None and child.state in (State.DOWN, State.RESTARTING):
                self._start(child)
                return True
            operation.starts.pop(0)
        return False

    def _start(self, child: Child) -> None:
        child.due_at = None
        child.run += 1
        child.wanted = True
        child.state = State.STARTING
        self._do(Start(child.spec.id, child.run, child.run > 1))

    def _stopping(self, child: Child, now: float) -> bool:
        """See to it that the child stops; False once it is DOWN."""
        if child.state in (State.STARTING, State.UP):
            patience = child.spec.shutdown
            child.state = State.STOPPING
            if patience == "kill":
                self._do(Kill(child.spec.id, child.run))
            else:
                child.kill_at = None if patience is None else now + patience
                self._do(Ask(child.spec.id, child.run))
        if child.state is State.STOPPING:
            return True
        self._is_down(child)
        return False

    def _failed(self, child: Child, now: float) -> None:
        """A child did not start: whoever wished for it is told; a restart is tried again, behind what waits."""
        lane = self._lane(child.spec.id)
        operation = lane.current
        assert operation is not None, "only an operation starts a child"
        if operation.kind in ("start", "restart"):
            lane.current, child.wanted = None, False
            self._refuse(operation, "failed")
            if operation.kind == "start":
                self._forget(child)
        elif operation.kind != "end":
            self._finish(operation, now)
            lane.current = None
            child.state = State.RESTARTING
            self._try_again(child, lane, now)
        self._advance(child.spec.id, now)

    def _try_again(self, child: Child, lane: Lane, now: float) -> None:
        if not self.flags.backoff_s:
            lane.mailbox.append(Operation("again", child.spec.id))
        elif self._count(child, now):
            pause_s = self._pause_s(child)
            child.due_at = now + pause_s
            self._do(Restarting(child.spec.id, child.run, pause_s))

    def _finish(self, operation: Operation, now: float) -> None:  # noqa: ARG002 - as its neighbours
        if operation.kind == "end":
            assert self.ending is not None
            self.ended = self.ending
            self._do(self.ended)
            waiting, self._waiting = self._waiting, []
            for token in waiting:
                self._do(Answer(token))
        elif operation.token is not None:
            self._do(Answer(operation.token))

    def _end(self, ended: Ended, now: float) -> None:
        """Begin to stop everything; whatever was under way or waits is over (V5)."""
        if self.ending is not None:
            return
        for lane in self._lanes.values():
            for operation in (*([lane.current] if lane.current else ()), *lane.mailbox):
                self._refuse(operation, "stopping")
        self.ending = ended
        self._lanes = {"": Lane(Operation("end", stops=list(reversed(self.children))))}
        self._advance("", now)

    # --- small things ---------------------------------------------------------------------------

    def _forget(self, child: Child) -> None:
        if self.children.pop(child.spec.id, None) is not None:
            self._do(Forget(child.spec.id))

    def _do(self, action: Action) -> None:
        self._actions.append(action)

    def _taken(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def in_order(self) -> Iterator[Child]:
        """Yield the children in their start order."""
        yield from self.children.values()
