"""`shoal.Supervisor`: the surface.

Role: what the user starts children in, asks and waits for; checks what is asked. Owner: the user. Safe from any thread of the
program that made it.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import EllipsisType, TracebackType
from typing import Any, Literal, Self

from shoal._pool import interrupts
from shoal._settings import check_choice
from shoal._supervise import events as ev
from shoal._supervise.child import SupervisedChild, info_of
from shoal._supervise.children import Recipe, recipe_of
from shoal._supervise.driver import Driver, Member, Wish
from shoal._supervise.guard import check_main_guard, is_guard_error
from shoal._supervise.nested import SupervisorRecipe, running_here
from shoal._supervise.policy import AutoShutdown, Flags, Restart, Shutdown, Spec, State, Strategy

#: Longest wait for a child given `ready=True`. Seconds.
READY_LIMIT_S = 60.0
#: Seconds a child may take to end after being asked, unless told otherwise.
SHUTDOWN_S = 5.0

_names = itertools.count(1)


class Supervisor:
    """Starts children, watches them, and restarts them by the rules of Erlang/OTP's supervisors.

    Use it as a context manager: children are started in the order in which they are given and stopped in reverse when the block
    is left. Children are processes, functions, pools, actors and other supervisors.

    Args:
        strategy: Whom the end of one child concerns: ``"one_for_one"`` only itself, ``"one_for_all"`` all children,
            ``"rest_for_one"`` itself and those that were started after it. Those concerned are stopped, in reverse, then
            started again, in order.
        intensity: So many restarts are made ...
        period: ... within so many seconds. One more, and the supervisor gives up: it stops all children and fails.
        auto_shutdown: End when a significant child has ended and is not restarted: ``"any_significant"``, or the last of them:
            ``"all_significant"``.
        backoff_s: Seconds to wait before a restart; doubles with each further one, up to a minute, and begins anew when a child has
            been up for longer than `period`.
        on_event: Called with each event (`ChildStarted`, `ChildExited`, ...) in the supervisor's thread; be quick.
        name: What it is called in errors and events.

    Raises:
        ValueError, TypeError: An option is not what it must be.
    """

    def __init__(
        self,
        strategy: Strategy = "one_for_one",
        intensity: int = 1,
        period: float = 5.0,
        *,
        auto_shutdown: AutoShutdown = "never",
        backoff_s: float = 0.0,
        on_event: Callable[[ev.Event], object] | None = None,
        name: str | None = None,
    ) -> None:
        check_choice("strategy", strategy, Strategy)
        check_choice("auto_shutdown", auto_shutdown, AutoShutdown)
        if isinstance(intensity, bool) or not isinstance(intensity, int) or intensity < 0:
            raise ValueError(f"intensity must be a number of restarts, 0 or more, not {intensity!r}")
        self._flags = Flags(
            strategy, intensity, _seconds("period", period, least=1e-3), auto_shutdown, _seconds("backoff_s", backoff_s)
        )
        if on_event is not None and not callable(on_event):
            raise TypeError(f"on_event must be callable, not {on_event!r}")
        self._on_event = on_event
        self._name = name or f"Supervisor-{next(_names)}"
        self._owner = os.getpid()
        self._declared: list[Spec] = []
        self._driver: Driver | None = None
        self._opening = threading.Lock()
        self._numbers: dict[str, int] = {}  # of children that were given no name, by what they are

    @property
    def name(self) -> str:
        """What it is called in errors and events."""
        return self._name

    # --- opening and ending ---------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all children. Raises SupervisorFailed if it had given up, unless the block itself failed."""
        if self._owner != os.getpid():
            return  # a fork leaves the block
        try:
            self.stop()
        except KeyboardInterrupt:  # another one: no more patience
            self.kill()
            raise
        if kind is None:
            self._raise_if_failed()

    def _open(self) -> Driver:
        """Return the driver, begun now if it has not been: with what was added, in order."""
        self._check_owner()
        with interrupts.deferred(), self._opening:  # struck as it starts, its thread might wait for ever
            driver = self._driver
            if driver is not None:
                return driver
            check_main_guard()
            driver = self._begin()
        self._start_declared(driver)
        return driver

    def _begin(self) -> Driver:
        """Begin anew, without children."""
        self._check_owner()
        driver = Driver(self._name, self._flags, self._on_event)
        self._driver = driver
        running_here.add(driver)
        return driver

    def _start_declared(self, driver: Driver) -> None:
        try:
            for spec in self._declared:
                self._wait(driver, driver.start_child(spec), spec.id)
        except BaseException:
            self._wait_for(driver.stop())
            raise

    def _check_owner(self) -> None:
        if self._owner != os.getpid():
            raise RuntimeError(f"{self._name} belongs to process {self._owner}; a fork of it cannot use it")

    def stop(self) -> None:
        """Stop all children, in reverse order, and wait until they have ended. Once stopped it stays so.

        From `on_event` it does not wait.
        """
        self._check_owner()
        driver = self._driver
        if driver is None:
            return
        wish = driver.stop()
        if not driver.is_my_thread:
            self._wait_for(wish)
            driver.ended.wait()

    def kill(self) -> None:
        """Kill all children at once and wait until they have ended."""
        self._check_owner()
        driver = self._driver
        if driver is None:
            return
        wish = driver.kill()
        if not driver.is_my_thread:
            self._wait_for(wish)
            driver.ended.wait()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the supervisor has ended: stopped, shut down by a significant child, or given up.

        Returns False if `timeout` seconds passed first.

        Raises:
            SupervisorFailed: It gave up.
        """
        driver = self._open()
        self._check_thread(driver)
        if not driver.ended.wait(timeout):
            return False
        self._raise_if_failed()
        return True

    def _raise_if_failed(self) -> None:
        from shoal.errors import SupervisorFailed

        driver = self._driver
        if driver is not None and driver.policy.ended is not None and driver.policy.ended.why == "gave up":
            last = driver.last_words
            if last is not None and last.error is not None:
                raise last.error.with_traceback(None) from None
            raise SupervisorFailed(
                supervisor=self._name,
                child=driver.policy.ended.child or "",
                intensity=self._flags.intensity,
                period=self._flags.period,
                obituary=last.obituary if last is not None else None,
            )

    # --- children -------------------------------------------------------------------------------

    def add(
        self,
        child: Any,
        /,
        *args: Any,
        restart: Restart = "permanent",
        shutdown: Shutdown | EllipsisType = ...,
        significant: bool = False,
        ready: bool | float = False,
        id: str | None = None,
        **kwargs: Any,
    ) -> SupervisedChild:
        """Name a child that is started when the supervisor is, and again whenever that is restarted by another one.

        For a supervisor that is not running yet; the arguments are those of `start`.
        """
        if self._driver is not None:
            raise RuntimeError(f"{self._name} runs already: use start()")
        spec = self._spec(child, args, kwargs, _Options(restart, shutdown, significant, ready, id))
        self._declared.append(spec)
        return SupervisedChild(self, spec.id)

    def start(
        self,
        child: Any,
        /,
        *args: Any,
        restart: Restart = "permanent",
        shutdown: Shutdown | EllipsisType = ...,
        significant: bool = False,
        ready: bool | float = False,
        id: str | None = None,
        **kwargs: Any,
    ) -> SupervisedChild:
        """Start a child behind all others, and watch over it. Returns when it runs; with `ready`, when it says that it is ready.

        Args:
            child: A function, run in a process of its own; a subclass of `shoal.Process`, `shoal.Pool`, or an actor's class, made anew
                for each start; or a `shoal.Supervisor` that does not run yet. `functools.partial` of those will do.
            *args: Its arguments, the same for each start.
            restart: When its end makes it start again: ``"permanent"`` always, ``"transient"`` unless it ended well (exit code 0),
                ``"temporary"`` never.
            shutdown: Seconds it has to end after being asked, then it is killed; ``"kill"``: it is not asked; None: as long as
                it takes, the default for supervisors. Otherwise 5.
            significant: Its end may end the supervisor, see `auto_shutdown`. Not for permanent children.
            ready: Wait until it calls `ready`, for so many seconds; True is 60.
            id: Its name here; the name of the class or function, and a number if that is taken, without one.
            **kwargs: Its keyword arguments.

        Raises:
            ValueError, TypeError: An option is not what it must be, or there is such a child already.
            SupervisorFailed: The supervisor has given up.
            RuntimeError: The supervisor is stopping, or has stopped.
            TimeoutError: It did not become ready in time. It was killed.
            Exception: Whatever else kept it from starting, as it is. It is then not a child of the supervisor.
        """
        spec = self._spec(child, args, kwargs, _Options(restart, shutdown, significant, ready, id))
        driver = self._open()
        self._check_thread(driver)
        self._wait(driver, driver.start_child(spec), spec.id)
        return SupervisedChild(self, spec.id)

    def terminate_child(self, id: str) -> None:
        """Stop a child, or give up its restart. It stays known and can be restarted, unless it is temporary."""
        self._ask("terminate", id)

    def restart_child(self, id: str) -> None:
        """Start a child that does not run."""
        self._ask("restart", id)

    def delete_child(self, id: str) -> None:
        """Forget a child that does not run."""
        self._ask("delete", id)

    def _ask(self, what: Literal["terminate", "restart", "delete"], id_: str) -> None:
        driver = self._open()
        self._check_thread(driver)
        self._wait(driver, driver.ask_for(what, id_), id_)

    def _wait(self, driver: Driver, wish: Wish, id_: str) -> None:
        """Wait for the answer to a wish and raise what it says."""
        self._wait_for(wish)
        match wish.refusal:
            case "":
                return
            case "failed":
                assert wish.error is not None
                if is_guard_error(wish.error):  # it says itself where and why
                    raise wish.error.with_traceback(None) from None
                raise wish.error
            case "not found":
                raise LookupError(f"{self._name} has no child {id_!r}")
            case "already started" | "already present":
                raise ValueError(f"{self._name} has a child {id_!r} already")
            case "running" | "restarting" as state:
                raise RuntimeError(f"child {id_!r} of {self._name} is {state}: use terminate_child() first")
            case _:
                driver.ended.wait()
                self._raise_if_failed()
                raise RuntimeError(f"{self._name} has been stopped")

    def _check_thread(self, driver: Driver) -> None:
        if driver.is_my_thread:
            raise RuntimeError("on_event cannot wait for its own supervisor: do that in another thread")

    @staticmethod
    def _wait_for(wish: Wish) -> None:
        wish.done.wait()

    def _spec(self, child: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: _Options) -> Spec:
        self._check_owner()
        check_choice("restart", options.restart, Restart)
        if isinstance(child, Supervisor):
            if args or kwargs:
                raise TypeError("a supervisor that is given as a child takes no further arguments")
            recipe: Recipe = SupervisorRecipe(child)
        else:
            recipe = recipe_of(child, args, kwargs)
        if options.significant and (options.restart == "permanent" or self._flags.auto_shutdown == "never"):
            why = "a permanent child" if options.restart == "permanent" else 'a supervisor with auto_shutdown="never"'
            raise ValueError(f"significant=True has no meaning for {why}")
        return Spec(
            id=self._id(options.id, recipe.name),
            restart=options.restart,
            shutdown=_shutdown(options.shutdown, recipe),
            significant=bool(options.significant),
            about=Member(recipe, _ready(options.ready, recipe)),
        )

    def _id(self, asked: str | None, name: str) -> str:
        """Return the name asked for, or one that is free."""
        if asked is not None:
            if not isinstance(asked, str) or not asked:
                raise ValueError(f"id must be text, not {asked!r}")
            return asked
        taken = {spec.id for spec in self._declared}
        if self._driver is not None:
            taken.update(self._driver.policy.children)
        with self._opening:
            while True:
                number = self._numbers[name] = self._numbers.get(name, 0) + 1
                id_ = name if number == 1 else f"{name}-{number}"
                if id_ not in taken:
                    return id_

    # --- looking at it --------------------------------------------------------------------------

    def children(self) -> tuple[ev.ChildInfo, ...]:
        """Return a frozen picture of each child, in their start order."""
        return self.statistics().children

    def __getitem__(self, id: str) -> SupervisedChild:
        """Return the child of that name."""
        self._check_owner()
        driver = self._driver
        known = driver is not None and id in driver.policy.children
        if not known and not any(spec.id == id for spec in self._declared):
            raise LookupError(f"{self._name} has no child {id!r}")
        return SupervisedChild(self, id)

    def count_children(self) -> ev.ChildCounts:
        """Return how many children there are, and of which kind."""
        self._check_owner()
        driver = self._driver
        if driver is None:
            return ev.ChildCounts(specs=0, active=0, supervisors=0, workers=0)
        with driver.guard:
            members = [child.spec.about for child in driver.policy.in_order()]
            active = sum(child.state is State.UP for child in driver.policy.in_order())
        supervisors = sum(member.recipe.is_supervisor for member in members)
        return ev.ChildCounts(
            specs=len(members), active=active, supervisors=supervisors, workers=len(members) - supervisors
        )

    @property
    def events(self) -> tuple[ev.Event, ...]:
        """What happened, oldest first; the last thousand events."""
        self._check_owner()
        driver = self._driver
        if driver is None:
            return ()
        with driver.guard:
            return tuple(driver.events)

    def statistics(self) -> ev.SupervisorStatistics:
        """Return a frozen picture of the supervisor and its children."""
        self._check_owner()
        driver = self._driver
        if driver is None:
            return ev.SupervisorStatistics(name=self._name, strategy=self._flags.strategy, state="not started")
        with driver.guard:
            policy, counts = driver.policy, driver.counts
            state: ev.SupervisorState = "stopping" if policy.ending is not None else "running"
            if policy.ended is not None:
                state = policy.ended.why
            return ev.SupervisorStatistics(
                name=self._name,
                strategy=self._flags.strategy,
                state=state,
                children=tuple(info_of(driver, child) for child in policy.in_order()),
                starts=counts.starts,
                restarts=counts.restarts,
                exits=counts.exits,
                failed_starts=counts.failed_starts,
                kills=counts.kills,
            )

    def __repr__(self) -> str:
        if self._owner != os.getpid():
            return f"<shoal.Supervisor {self._name}, of process {self._owner}>"
        picture = self.statistics()
        up = sum(child.state == "up" for child in picture.children)
        return f"<shoal.Supervisor {self._name}, {self._flags.strategy}, {picture.state}, {up} of {len(picture.children)} up>"


@dataclass(frozen=True, slots=True)
class _Options:
    """The options of `start`, unchecked."""

    restart: Restart
    shutdown: Shutdown | EllipsisType
    significant: bool
    ready: bool | float
    id: str | None


def _shutdown(value: Shutdown | EllipsisType, recipe: Recipe) -> Shutdown:
    if value is ...:
        return None if recipe.is_supervisor else SHUTDOWN_S
    if isinstance(value, str):
        if value != "kill":
            raise ValueError(f'shutdown must be seconds, "kill" or None (as long as it takes), not {value!r}')
        return "kill"
    return None if value is None else _seconds("shutdown", value)


def _ready(value: bool | float, recipe: Recipe) -> float | None:
    """Return how long to wait for readiness: None is no limit, 0 not at all."""
    if value is False or value is None:
        return None if recipe.readiness == "always" else 0.0
    if recipe.readiness == "never":
        raise ValueError(f"{recipe.name} does not say when it is ready: leave ready= out")
    return READY_LIMIT_S if value is True else _seconds("ready", value, least=1e-9)


def _seconds(name: str, value: float, *, least: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be seconds, not {value!r}")
    if not least <= value < math.inf:
        raise ValueError(f"{name} must be seconds, {'above zero' if least else 'zero or more'}, not {value!r}")
    return float(value)
