"""The functions of a pool: pickled once, sent to each worker once.

Role: callables to records. Owner: the engine; `record` and `by_value` run user code (pickling) and are called without the
engine's lock.

Invariants
    N1  A function that plain pickle stores as a name is recognised by identity; its bytes never change.
    N2  Anything else (closure, bound method, partial, callable object) may have changed since the last call, so
        it is pickled every time and recognised by its bytes.
    N3  Nothing but named functions is kept alive here; what is remembered of others is bounded in number and bytes.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from shoal._pool.batching import Pace
from shoal._wire import codec
from shoal._wire.courier import shared_segment
from shoal._wire.frames import Buffer, parts_of
from shoal._wire.words import describe_callable, short

#: Functions remembered; the oldest beyond that are forgotten, here and in the workers.
REMEMBERED = 256
#: A function of more bytes is sent for its job and forgotten after it.
REMEMBERED_BYTES = 1 << 18


#: A pickled initializer, its pickled arguments, and the buffers of both.
BootPayload = tuple[codec.Payload, codec.Payload, list[Buffer]]


def boot_payload(
    initializer: Callable[..., object], initargs: tuple[Any, ...], *, main_is_lost: bool, by_value: bool = False
) -> BootPayload:
    """Pickle an initializer and its arguments, `multiprocessing`'s locks among them.

    Args:
        initializer: By name if `by_value` is false and workers can import its module.
        initargs: By plain pickle as far as possible.
        main_is_lost: Workers cannot import ``__main__``.
        by_value: They cannot find the initializer by its name.

    Raises:
        NotPicklable: One of them cannot be sent to another process.
    """
    buffers: list[Buffer] = []
    by_value = by_value or (main_is_lost and getattr(initializer, "__module__", None) == "__main__")
    function = codec.pack_function(initializer, buffers, by_value=by_value, what="the initializer")
    what = "the arguments of the initializer", initializer
    args = codec.pack_spawning(initargs, buffers, what, main_is_lost=main_is_lost)
    return function, args, [codec.frozen(buffer) for buffer in buffers]


#: The bytes of a pickled function: the stream, then each buffer.
Content = tuple[bytes, tuple[bytes, ...]]
#: A function as it is sent: (id, payload, its buffers).
Form = tuple[int, codec.Payload, list[Buffer]]


class FunctionRecord:
    """One function as the workers know it."""

    __slots__ = ("by_value", "form", "label", "named", "pace", "transient")

    def __init__(self, number: int, label: str, payload: codec.Payload, buffers: list[Buffer]) -> None:
        self.form: Form = number, payload, buffers  # replaced as a whole: other threads read it once
        self.label = label
        self.by_value = False
        self.transient = False  # to be forgotten when its job is done
        self.named: Callable[..., Any] | None = None  # the function itself, if it is kept alive by its module anyway
        self.pace = Pace()


class FunctionBook:
    """All records of one pool. Safe from any thread."""

    def __init__(self, *, main_is_lost: bool) -> None:
        self._main_is_lost = main_is_lost
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._by_identity: OrderedDict[int, FunctionRecord] = OrderedDict()
        self._by_bytes: OrderedDict[Content, FunctionRecord] = OrderedDict()
        self._forgotten: list[int] = []

    def record(self, fn: Callable[..., Any]) -> FunctionRecord:
        """Return the record of `fn`, pickling it if that is needed.

        Raises:
            NotPicklable: It holds something that cannot be pickled.
            TypeError: It is not callable.
        """
        known = self._by_identity.get(id(fn))
        if known is not None and known.named is fn:
            return known
        if not callable(fn):
            raise TypeError(f"the function to run must be callable, not {short(fn)}")
        lost = self._main_is_lost and getattr(fn, "__module__", None) == "__main__"
        buffers: list[Buffer] = []
        payload = codec.pack_function(fn, buffers, by_value=lost)
        buffers = [codec.frozen(buffer) for buffer in buffers]
        if codec.is_named(fn) and not lost:
            record = self._new(fn, payload, buffers)
            record.named = fn
            return self._store(self._by_identity, id(fn), record)
        held = any(shared_segment(buffer) is not None for buffer in buffers)  # remembering it would keep that alive
        if held or (not isinstance(payload, bytes) and sum(map(own_bytes, buffers)) > REMEMBERED_BYTES):
            record = self._new(fn, payload, buffers)
            record.transient = True
            return record
        key = _content(payload, buffers)
        known = self._by_bytes.get(key)
        return known if known is not None else self._store(self._by_bytes, key, self._new(fn, payload, buffers))

    def _new(self, fn: Callable[..., Any], payload: codec.Payload, buffers: list[Buffer]) -> FunctionRecord:
        return FunctionRecord(next(self._numbers), describe_callable(fn), payload, buffers)

    def _store(self, table: OrderedDict[Any, FunctionRecord], key: Any, record: FunctionRecord) -> FunctionRecord:
        with self._lock:
            table[key] = record
            while len(table) > REMEMBERED:
                _, oldest = table.popitem(last=False)
                self._forgotten.append(oldest.form[0])
        return record

    def records(self) -> list[FunctionRecord]:
        """Return what is remembered, the latest last."""
        with self._lock:
            return sorted([*self._by_identity.values(), *self._by_bytes.values()], key=lambda record: record.form[0])

    def by_value(self, record: FunctionRecord, fn: Callable[..., Any]) -> bool:
        """Switch a record to pickling by value, because a worker cannot find its name. False if it is already.

        Raises:
            NotPicklable: It holds something that cannot be pickled.
        """
        if record.by_value:
            return False
        buffers: list[Buffer] = []
        payload = codec.pack_function(fn, buffers, by_value=True)
        record.form = next(self._numbers), payload, [codec.frozen(buffer) for buffer in buffers]
        record.by_value = True
        return True

    def after_fork(self) -> None:
        """In a forked child: whoever held the lock is not here."""
        self._lock = threading.Lock()

    def release(self, record: FunctionRecord) -> None:
        """Take in that a job of this function is done."""
        if record.transient:
            with self._lock:
                self._forgotten.append(record.form[0])

    def take_forgotten(self) -> list[int]:
        """Return the ids that workers need not know any more; each is returned once."""
        if not self._forgotten:
            return []
        with self._lock:
            taken, self._forgotten = self._forgotten, []
        return taken


def own_bytes(buffer: Any) -> int:
    """Return how much of a buffer has to be sent: nothing of a shared segment."""
    if shared_segment(buffer) is not None:
        return 0
    return sum(part.nbytes for part in parts_of(buffer))


def _content(payload: codec.Payload, buffers: list[Any]) -> Content:
    """Return what two pickles have in common if and only if they are equal; a shared segment counts by its identity."""
    main = payload if isinstance(payload, bytes) else payload[0] or b""
    rest: list[bytes] = []
    for buffer in buffers:
        segment = shared_segment(buffer)
        rest.append(segment.id if segment is not None else b"".join(parts_of(buffer)))
    return main, tuple(rest)
