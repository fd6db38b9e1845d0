"""What can be supervised: processes, functions, pools, other supervisors, and whatever follows the protocol here.

Role: the small protocol between the driver and a child, and the adapters to it. Owner: the driver; each run has its own `Running`.

Protocol
    A `Recipe` makes a run. `make` is called in a thread of that start's own, so it may take its time; it begins the run, or raises
    and leaves nothing. `wait_ready`, in the same thread, returns once the run is of use, or raises; it must also raise when the
    run ends before. `ask` and `kill` may come from another thread at any time after `make`, do not block, and do nothing when the
    run is over. `Begin.on_exit` is called once, from any thread, as soon as nothing of the run is left, however that came about.

    A class is supervised as itself if it has `__shoal_recipe__(args, kwargs)`, which returns its recipe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from shoal._pool.executor import Pool
    from shoal._process.facade import Process
    from shoal.errors import Obituary


@dataclass(frozen=True, slots=True)
class Exit:
    """How a run ended. `normal`: a transient child is then not restarted. `error`: what is to be said in the supervisor's place."""

    normal: bool
    reason: str
    obituary: Obituary | None = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Begin:
    """What a run is begun with.

    Attributes:
        id: The child's id.
        run: Which run it is, from 1.
        last: How the run before it ended, if there was one and it ended by itself.
        on_exit: See the top of the file.
    """

    id: str
    run: int
    last: Exit | None
    on_exit: Callable[[Exit], None]


Readiness = Literal["never", "if asked", "always"]


class Running(Protocol):
    """One run of a child."""

    @property
    def value(self) -> Any:
        """What the user works with."""

    @property
    def pid(self) -> int | None:
        """Process id, if it is one process."""

    def wait_ready(self, timeout: float | None) -> None:
        """Return once the run is of use; raise if it ended before, or `timeout` seconds have passed."""

    def ask(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


class Recipe(Protocol):
    """How a child is made, again and again."""

    #: What the child is called unless it is given a name.
    name: str
    #: Whether it watches over children of its own: it is then given as long as it takes to stop.
    is_supervisor: bool
    #: Whether it says when it is ready: if asked to, in any case, or not at all.
    readiness: Readiness

    def make(self, begin: Begin) -> Running:
        """Begin a run. Raises whatever is in the way."""

    def rest(self) -> None:
        """There is no run, and none is to come unless somebody asks for it. Must not block."""


def recipe_of(child: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recipe:
    """Return how to make `child` with these arguments.

    Raises:
        TypeError: It is nothing that can be supervised.
    """
    target = child
    while isinstance(target, partial):
        target = target.func
    own = getattr(target, "__shoal_recipe__", None)
    if own is not None:
        recipe: Recipe = own(*_flat(child, args, kwargs))
        return recipe
    if isinstance(target, type):
        kind = _kind_of(target)
        if kind is not None:
            return kind(partial(child, *args, **kwargs), target.__name__)
    if isinstance(target, type) or not callable(child):
        raise TypeError(
            f"{child!r} cannot be supervised: give a function, a subclass of shoal.Process, shoal.Pool, an actor's class or a "
            "shoal.Supervisor"
        )
    name = getattr(target, "__name__", type(target).__name__)
    return ProcessRecipe(partial(_process_of, child, args, kwargs), "lambda" if name == "<lambda>" else name)


def _flat(child: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call of `child`, those of the partials it is wrapped in included."""
    while isinstance(child, partial):
        args, kwargs, child = (*child.args, *args), {**child.keywords, **kwargs}, child.func
    return args, kwargs


def _kind_of(target: type) -> Callable[[Callable[[], Any], str], Recipe] | None:
    from shoal._pool.executor import Pool
    from shoal._process.facade import Process

    if issubclass(target, Process):
        return ProcessRecipe
    return PoolRecipe if issubclass(target, Pool) else None


# --- processes ----------------------------------------------------------------------------------


def _process_of(target: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Process:
    from shoal._process.facade import Process

    return Process(target=target, args=args, kwargs=kwargs, daemon=True)


class ProcessRecipe:
    """A `shoal.Process`, made anew for each run."""

    is_supervisor = False
    readiness: Readiness = "if asked"

    def __init__(self, factory: Callable[[], Process], name: str) -> None:
        self._factory = factory
        self.name = name

    def rest(self) -> None:
        pass

    def make(self, begin: Begin) -> Running:
        return ProcessRun(self._factory(), begin)


class ProcessRun:
    """One process."""

    def __init__(self, process: Process, begin: Begin) -> None:
        self.value = process
        self._on_exit = begin.on_exit
        process.daemon = True  # the end of the program must not wait for what its supervisor is to end
        process.start()
        process._on_exit(self._exited)

    @property
    def pid(self) -> int | None:
        return self.value.pid

    def wait_ready(self, timeout: float | None) -> None:
        self.value.wait_ready(timeout)

    def ask(self) -> None:
        self.value._ask_to_stop()

    def kill(self) -> None:
        self.value._kill("its supervisor killed it")

    def _exited(self) -> None:
        process = self.value
        code = process.exitcode
        obituary = process.obituary if code != 0 else None
        reason = obituary.cause if obituary is not None else f"exited with code {code}"
        running = process._shoal_run
        error = running.guard_error if running is not None else None
        self._on_exit(Exit(code == 0, reason, obituary, error))


# --- pools --------------------------------------------------------------------------------------


class PoolRecipe:
    """A `shoal.Pool`. It heals itself; it ends when somebody shuts it down."""

    is_supervisor = False
    readiness: Readiness = "never"

    def __init__(self, factory: Callable[[], Pool], name: str) -> None:
        self._factory = factory
        self.name = name

    def rest(self) -> None:
        pass

    def make(self, begin: Begin) -> Running:
        return PoolRun(self._factory(), begin)


class PoolRun:
    """One pool."""

    pid = None

    def __init__(self, pool: Pool, begin: Begin) -> None:
        self.value = pool
        self._engine = pool._engine_now()
        watcher = threading.Thread(
            target=self._watch, args=(begin.on_exit,), name=f"shoal-pool-{begin.id}", daemon=True
        )
        try:
            watcher.start()
        except RuntimeError:  # no room for a thread: nothing may be left of a run that is not made
            self.kill()
            raise

    def wait_ready(self, timeout: float | None) -> None:
        pass

    def ask(self) -> None:
        self.value.shutdown(wait=False)

    def kill(self) -> None:
        self.value._close()
        self._engine.begin_close(kill=True)

    def _watch(self, on_exit: Callable[[Exit], None]) -> None:
        self._engine.closed.wait()
        on_exit(Exit(True, "was shut down"))
