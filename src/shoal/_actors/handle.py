"""What callers hold: `shoal.Actor`, its methods, and how an actor's class is made.

Role: the surface; checks what is asked. Owner: the user. Any thread, any process the handle was passed to.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

from shoal._actors import client
from shoal._actors.connection import ActorFuture, Call, Target, tally_of
from shoal._actors.keeper import ActorOptions, Keeper, keeper_of
from shoal._settings import StartMethod, check_timeout
from shoal._supervise.policy import Restart
from shoal._supervise.tree import Supervisor

if TYPE_CHECKING:
    from shoal.errors import ActorDied

#: Seconds an actor may take to end after being asked, unless told otherwise; at the end of the program, too.
GRACE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorStatistics:
    """An actor as one process saw it at one instant.

    Attributes:
        name: Its name.
        is_alive: Whether it runs, or is being restarted.
        pid: Its process id, in the process that started it.
        restarts: How often it was restarted, in the process that started it.
        calls: Calls of this process that want an answer.
        casts: Those that want none.
        answers: Answers that came, exceptions included.
        failures: Calls that raised, or were not answered because it died.
        pending: Calls that wait for their answer.
        unsent: Calls that wait for room in its mailbox.
    """

    name: str
    is_alive: bool
    pid: int | None = None
    restarts: int | None = None
    calls: int = 0
    casts: int = 0
    answers: int = 0
    failures: int = 0
    pending: int = 0
    unsent: int = 0


class ActorMethod:
    """A method of an actor, to be called from anywhere: ``counter.add(1)``, ``counter.add.call(1)``, ``counter.add.cast(1)``."""

    __slots__ = ("_actor", "_name")

    def __init__(self, actor: Actor, name: str) -> None:
        self._actor = actor
        self._name = name

    def __call__(self, /, *args: Any, **kwargs: Any) -> ActorFuture:
        """Send the call and return the future of its answer, which can be awaited.

        Waits for room in the mailbox; not in an event loop, where the call is kept and sent when there is.

        Raises:
            NotPicklable: An argument cannot be sent.
            ActorDied: The actor has ended.
        """
        future = ActorFuture()
        self._actor._ask(Call(self._name, args, kwargs, future), None, wait=client.may_block() and not _in_event_loop())
        return future

    def call(self, /, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Call the method and return what it returns, or raise what it raises.

        Args:
            *args: Its arguments.
            timeout: Seconds to wait, for room in the mailbox and for the answer. None: no limit.
            **kwargs: Its keyword arguments. One called `timeout` can be given to ``method(...)`` only.

        Raises:
            MailboxFull: There was no room for that long. The call was not sent.
            TimeoutError: There was no answer in time. The call is not stopped.
            ActorDied: The actor died first, or has ended. The call ran once, or in part, or not at all.
            NotPicklable: An argument, or what it returned, cannot be sent.
        """
        check_timeout("timeout", timeout)
        client.check_may_wait(self._actor._target)
        limit = None if timeout is None else time.monotonic() + timeout
        future = ActorFuture()
        self._actor._ask(Call(self._name, args, kwargs, future), timeout, wait=True)
        left = None if limit is None else max(0.0, limit - time.monotonic())
        try:
            return future.result(left)
        except BaseException:
            future.cancel()  # on Ctrl-C, or if the time is over: the answer is for nobody
            raise
        finally:
            del future  # breaks the cycle with the traceback

    def cast(self, /, *args: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Send the call and want no answer. What it raises is printed by the actor's process.

        Args:
            *args: Its arguments.
            timeout: Seconds to wait for room in the mailbox. None: no limit.
            **kwargs: Its keyword arguments.

        Raises:
            MailboxFull: There was no room for that long. The call was not sent.
            ActorDied: The actor has ended.
            NotPicklable: An argument cannot be sent.
        """
        check_timeout("timeout", timeout)
        wait = client.may_block() and not _in_event_loop()
        self._actor._ask(Call(self._name, args, kwargs, None), timeout, wait=wait)

    def __repr__(self) -> str:
        return f"<method {self._name} of {self._actor!r}>"


def _in_event_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


class Actor:
    """A handle of an actor: an object that lives in a process of its own. Made by calling an actor's class, see `actor`.

    Its attributes are the methods of the class: see `ActorMethod`. A handle can be passed to other processes, in arguments of tasks,
    of processes and of actors, and used there. The calls of one process run in the order in which they were made.

    In the process that made it, it is a context manager: leaving the block stops the actor.
    """

    def __init__(self, target: Target, methods: frozenset[str] | None, keeper: Keeper | None = None) -> None:
        self._target = target
        self._methods = methods
        self._keeper = keeper
        self._tally = tally_of(target)

    def __getattr__(self, name: str) -> ActorMethod:
        if name.startswith("_") or (self._methods is not None and name not in self._methods):
            raise AttributeError(
                f"{self._target.name if '_target' in self.__dict__ else 'actor'} has no method {name!r}"
            )
        return ActorMethod(self, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(self._methods or ())})

    def _ask(self, call: Call, timeout: float | None, *, wait: bool) -> None:
        tally = self._tally
        try:
            client.ask(self._target, call, timeout, wait=wait)
        except ConnectionRefusedError:
            raise self._died(call) from None
        if call.wants_answer:
            tally.calls += 1
        else:
            tally.casts += 1

    def _died(self, call: Call) -> ActorDied:
        from shoal.errors import ActorDied

        keeper = self._own()
        obituary = keeper.obituary if keeper is not None else None
        return ActorDied(actor=self._target.name, call=str(call), obituary=obituary)

    def _own(self) -> Keeper | None:
        """What keeps it, in the process that started it."""
        keeper = self._keeper
        return keeper if keeper is not None and keeper.owner == os.getpid() else None

    def __reduce__(self) -> tuple[Any, ...]:
        target = self._target
        return _handle_of, (target.address, target.key, target.name, target.mailbox, self._methods)

    def __eq__(self, other: object) -> bool:
        """Whether both are handles of the same actor."""
        return self._target == other._target if isinstance(other, Actor) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._target.address)

    def __repr__(self) -> str:
        return f"<shoal.Actor {self._target.name}>"

    # --- its life -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its name: that of its class, unless it was given one."""
        return self._target.name

    @property
    def pid(self) -> int | None:
        """Its process id, in the process that started it; another one after a restart."""
        keeper = self._own()
        return keeper.pid if keeper is not None else None

    @property
    def is_alive(self) -> bool:
        """Whether calls are served: it runs, or is being restarted."""
        keeper = self._own()
        if keeper is not None:
            return keeper.may_serve
        connection = client.existing(self._target)
        if connection is not None and not connection.book.closed:
            return True
        from shoal._actors import wire

        try:
            wire.connect(self._target.address, 1.0).close()
        except OSError:
            return False
        return True

    def stop(self, grace: float = GRACE_S) -> bool:
        """End the actor: what was sent to it until now is done, then it ends. It is killed after `grace` seconds.

        Blocks until it has ended. Returns whether it ended by itself. Calls that were sent later fail with ActorDied.
        """
        return self._end(float(grace))

    def kill(self) -> None:
        """Kill the actor, for good, and wait until it has ended. Calls without an answer fail with ActorDied."""
        self._end(None)

    def _end(self, grace: float | None) -> bool:
        keeper = self._own()
        if keeper is None:
            raise RuntimeError(f"{self.name} belongs to another process, which alone can end it")
        supervisor = keeper.supervisor
        if supervisor is None:
            raise RuntimeError(
                f"{self.name} belongs to a supervisor: use its terminate_child(), or kill its process by pid"
            )
        driver = supervisor._open()
        if grace is None:
            supervisor.kill()
            return False
        driver.stop()
        if driver.ended.wait(grace):
            return True
        supervisor.kill()
        return False

    def statistics(self) -> ActorStatistics:
        """Return a frozen picture of the actor, as this process sees it."""
        keeper, tally = self._own(), self._tally
        restarts = None
        if keeper is not None:
            restarts = max(0, keeper.runs - 1)
        connection = client.existing(self._target)
        pending = unsent = 0
        if connection is not None:
            with connection.changed:
                pending, unsent = len(connection.book.pending), len(connection.book.waiting)
        return ActorStatistics(
            name=self.name,
            is_alive=self.is_alive,
            pid=self.pid,
            restarts=restarts,
            calls=tally.calls,
            casts=tally.casts,
            answers=tally.answers,
            failures=tally.failures,
            pending=pending,
            unsent=unsent,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.kill()
        else:
            self.stop()


def _handle_of(address: bytes, key: bytes, name: str, mailbox: int, methods: frozenset[str] | None) -> Actor:
    """Rebuild a handle in the process it was passed to."""
    return Actor(Target(address, key, name, mailbox), methods, keeper_of(address))


# --- classes ------------------------------------------------------------------------------------

#: What a handle has of its own: methods of these names could not be called through it.
_RESERVED = frozenset(name for name in vars(Actor) if not name.startswith("_"))


def methods_of(cls: type) -> frozenset[str] | None:
    """Return the names that can be called through a handle; None if the class makes them up as it goes."""
    if hasattr(cls, "__getattr__"):
        return None
    return frozenset(name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name, None)))


@overload
def actor(cls: type, /) -> Callable[..., Actor]: ...


@overload
def actor(
    *,
    mailbox: int = 1000,
    restart: Restart = "transient",
    intensity: int = 3,
    period: float = 60.0,
    backoff_s: float = 0.0,
    start_method: StartMethod | None = None,
    capture: bool = False,
    name: str | None = None,
) -> Callable[[type], Callable[..., Actor]]: ...


def actor(
    cls: type | None = None,
    /,
    *,
    mailbox: int = 1000,
    restart: Restart = "transient",
    intensity: int = 3,
    period: float = 60.0,
    backoff_s: float = 0.0,
    start_method: StartMethod | None = None,
    capture: bool = False,
    name: str | None = None,
) -> Any:
    """Make a class one of actors: calling it starts a process, makes the instance there, and returns a handle of it.

    ``@shoal.actor`` or ``@shoal.actor(mailbox=10)``. The process runs the methods that are called through handles, one after the
    other; the state of the instance needs no locks. A subclass of an actor's class is one, too.

    When the process dies, calls it has not answered fail with `ActorDied`, which carries the obituary; then the actor is made
    again with the same arguments, in a new process, and ``on_restart(obituary)`` is called on it if it has such a method. When it is
    stopped, ``on_stop()`` is called behind the last call, if it has that.

    Args:
        cls: The class.
        mailbox: How many calls of one process the actor may have waiting; who calls more waits for room.
        restart: ``"transient"``: when its process dies; ``"permanent"``: also when it exits with 0; ``"temporary"``: never.
        intensity: So many restarts are made ...
        period: ... within so many seconds; one more, and the actor has ended.
        backoff_s: Seconds before a restart; doubles with each further one.
        start_method: As for `Process`.
        capture: As for `Process`.
        name: What it is called; the name of the class without one.

    Raises:
        TypeError: The class has a method that a handle has, too, such as ``stop``.
        ValueError: An option is not what it must be.
    """
    chosen = ActorOptions(
        mailbox=mailbox,
        restart=restart,
        intensity=intensity,
        period=period,
        backoff_s=backoff_s,
        start_method=start_method,
        capture=capture,
        name=name,
    )
    Supervisor("one_for_one", intensity, period, backoff_s=backoff_s)  # checks them here, where they are written
    return _decorate(cls, chosen) if cls is not None else lambda cls: _decorate(cls, chosen)


def _decorate(cls: type, options: ActorOptions) -> type:
    if not isinstance(cls, type):
        raise TypeError(f"shoal.actor is for classes, not {cls!r}")
    hidden = sorted(_RESERVED & (methods_of(cls) or frozenset()))
    if hidden:
        raise TypeError(
            f"{cls.__name__}.{hidden[0]} would be hidden by the handle's own {hidden[0]}: give it another name"
        )
    changed: Any = cls
    plain: Any = object
    if "__new__" in vars(cls) and "__shoal_options__" not in vars(cls):
        changed.__shoal_new__ = vars(cls)["__new__"]
    changed.__new__ = staticmethod(_begin)
    changed.__shoal_options__ = options
    changed.__shoal_recipe__ = classmethod(_recipe)
    if changed.__reduce_ex__ is plain.__reduce_ex__ and changed.__reduce__ is plain.__reduce__:
        changed.__reduce_ex__ = _stays
    return cls


def _begin(cls: Any, /, *args: Any, **kwargs: Any) -> Actor:
    """Start an actor and return its handle when it is made. Stands in the place of the class's own `__new__`."""
    options: ActorOptions = cls.__shoal_options__
    keeper = Keeper(cls, options, args, kwargs)
    supervisor = Supervisor(
        "one_for_one",
        options.intensity,
        options.period,
        backoff_s=options.backoff_s,
        auto_shutdown="any_significant",
        name=keeper.name,
    )
    keeper.supervisor = supervisor
    try:
        supervisor._open().exit_grace_s = GRACE_S
        lasting = options.restart == "permanent"
        supervisor.start(keeper, restart=options.restart, shutdown=None, significant=not lasting, id=keeper.name)
    except BaseException:
        supervisor.kill()
        raise
    return keeper.handle


def _recipe(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Keeper:
    """How a supervisor makes an actor of this class, restarted by its own rules."""
    return Keeper(cls, cls.__shoal_options__, args, kwargs)  # type: ignore[attr-defined]


def _stays(self: object, _protocol: Any) -> Any:
    raise TypeError(f"the {type(self).__name__} itself stays in its process: pass handles of it")
