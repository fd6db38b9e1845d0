"""What callers hold: `shoal.Actor` and its methods.

Role: the surface; checks what is asked. Owner: the user. Any thread, any process the handle was passed to.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shoal._actors import client
from shoal._actors.connection import ActorFuture, Call, Target, tally_of
from shoal._actors.keeper import Keeper, keeper_of
from shoal._settings import check_timeout

if TYPE_CHECKING:
    from shoal.errors import ActorDied


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
            if not future._settled(left) and future.cancel():
                raise TimeoutError(
                    f"{self._name}() of actor {self._actor.name} has not been answered within {timeout} s"
                )
            return future.result()
        except KeyboardInterrupt:
            future.cancel()  # the answer is for nobody
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


#: What a handle itself is made of.
_FIELDS = frozenset({"_keeper", "_methods", "_tally", "_target"})


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

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _FIELDS:
            raise AttributeError(
                f"{name} cannot be set through a handle: the object lives in another process. Give its class a method that sets it"
            )
        super().__setattr__(name, value)

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
        obituary, ended = (keeper.obituary, keeper.ended) if keeper is not None else (None, "")
        return ActorDied(actor=self._target.name, call=str(call), obituary=obituary, ended=ended)

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

    def stop(self, grace: float = 5.0) -> bool:
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
            with connection.lock:
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
