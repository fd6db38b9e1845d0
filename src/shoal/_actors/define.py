"""`shoal.actor`: how a class becomes one of actors.

Role: the decorator, and what calling such a class does. Owner: the user.

Imported by each actor's process, with the module its class lives in, so it imports little: callers' and owners' parts come with
the first call of the class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from shoal._os.interpreter import is_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal._actors.handle import Actor
    from shoal._actors.keeper import Keeper
    from shoal._settings import CaptureMode, StartMethod
    from shoal._supervise.policy import Restart

#: What a handle has of its own: methods of these names could not be called through it.
RESERVED = frozenset({"is_alive", "kill", "name", "pid", "statistics", "stop"})


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
    capture: bool | CaptureMode = False,
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
    capture: bool | CaptureMode = False,
    name: str | None = None,
) -> Any:
    """Make a class one of actors: calling it starts a process, makes the instance there, and returns a handle of it.

    ``@shoal.actor`` or ``@shoal.actor(mailbox=10)``. The process runs the methods that are called through handles, one after the
    other; the state of the instance needs no locks. A subclass of an actor's class is one, too.

    When the process dies, calls it has not answered fail with `ActorDied`, which carries the obituary; then the actor is made
    again with the same arguments, in a new process, and ``on_restart(obituary)`` is called on it if it has such a method; the
    obituary is None if it had not died but was stopped, with its siblings or by hand. When it is stopped, ``on_stop()`` is called
    behind the last call, if it has that.

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
    options = {
        "mailbox": mailbox,
        "restart": restart,
        "intensity": intensity,
        "period": period,
        "backoff_s": backoff_s,
        "start_method": start_method,
        "capture": capture,
        "name": name,
    }
    if not is_worker():  # else they were checked where the module was imported first, or are when the class is called
        from shoal._actors.keeper import ActorOptions

        ActorOptions(**options)  # type: ignore[arg-type]
    return _decorate(cls, options) if cls is not None else lambda cls: _decorate(cls, options)


def _decorate(cls: type, options: dict[str, Any]) -> type:
    if not isinstance(cls, type):
        raise TypeError(f"shoal.actor is for classes, not {cls!r}")
    hidden = sorted(RESERVED & (methods_of(cls) or frozenset()))
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
    from shoal._actors.keeper import begin

    return begin(cls, cls.__shoal_options__, args, kwargs)


def _recipe(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Keeper:
    """How a supervisor makes an actor of this class, restarted by its own rules."""
    from shoal._actors.keeper import ActorOptions, Keeper

    return Keeper(cls, ActorOptions(**cls.__shoal_options__), args, kwargs)  # type: ignore[attr-defined]


def _stays(self: object, _protocol: Any) -> Any:
    raise TypeError(f"the {type(self).__name__} itself stays in its process: pass handles of it")
