"""The functions of a pool: pickled once, sent to each worker once.

Role: callables to records, records to messages. Owner: the engine; `record` runs user code (pickling) and is
called without the engine's lock, everything else with it.

Invariants
    N1  A function that plain pickle stores as a name is recognised by identity; its bytes never change.
    N2  Anything else (closure, bound method, partial, callable object) may have changed since the last call, so
        it is pickled every time and recognised by its bytes.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from shoal._pool.batching import Pace
from shoal._wire import codec
from shoal._wire.frames import Buffer

#: Functions remembered; the oldest beyond that are forgotten, here and in the workers.
REMEMBERED = 256


class FunctionRecord:
    """One function as the workers know it."""

    __slots__ = ("buffers", "by_value", "fn", "id", "label", "pace", "payload")

    def __init__(self, number: int, fn: Callable[..., Any], payload: codec.Payload, buffers: list[Buffer]) -> None:
        self.id = number
        self.fn = fn
        self.payload = payload
        self.buffers = buffers
        self.by_value = False
        self.label = codec.describe_callable(fn)
        self.pace = Pace()


class FunctionBook:
    """All records of one pool. Safe from any thread."""

    def __init__(self, *, main_is_lost: bool) -> None:
        self._main_is_lost = main_is_lost
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._by_identity: OrderedDict[int, FunctionRecord] = OrderedDict()
        self._by_bytes: OrderedDict[bytes, FunctionRecord] = OrderedDict()
        self._forgotten: list[int] = []

    def record(self, fn: Callable[..., Any]) -> FunctionRecord:
        """Return the record of `fn`, pickling it if that is needed.

        Raises:
            NotPicklable: It holds something that cannot be pickled.
            TypeError: It is not callable.
        """
        known = self._by_identity.get(id(fn))
        if known is not None and known.fn is fn:
            return known
        if not callable(fn):
            raise TypeError(f"the function to run must be callable, not {codec.short(fn)}")
        lost = self._main_is_lost and getattr(fn, "__module__", None) == "__main__"
        if codec.is_named(fn) and not lost:
            return self._remember(self._by_identity, id(fn), fn, by_value=False)
        buffers: list[Buffer] = []
        payload = codec.pack_function(fn, buffers, by_value=lost)
        whole = payload if isinstance(payload, bytes) else bytes(buffers[0]) if len(buffers) == 1 else None
        if whole is None:  # holds large arrays: comparing them would cost more than sending them
            return FunctionRecord(next(self._numbers), fn, payload, buffers)
        known = self._by_bytes.get(whole)
        if known is None:
            known = FunctionRecord(next(self._numbers), fn, payload, buffers)
            self._store(self._by_bytes, whole, known)
        return known

    def _remember(
        self, table: OrderedDict[int, FunctionRecord], key: int, fn: Callable[..., Any], *, by_value: bool
    ) -> FunctionRecord:
        buffers: list[Buffer] = []
        payload = codec.pack_function(fn, buffers, by_value=by_value)
        record = FunctionRecord(next(self._numbers), fn, payload, buffers)
        record.by_value = by_value
        self._store(table, key, record)
        return record

    def _store(self, table: OrderedDict[Any, FunctionRecord], key: Any, record: FunctionRecord) -> None:
        with self._lock:
            table[key] = record
            while len(table) > REMEMBERED:
                _, oldest = table.popitem(last=False)
                self._forgotten.append(oldest.id)

    def by_value(self, record: FunctionRecord) -> bool:
        """Switch a record to pickling by value, because a worker cannot find its name. False if it is already.

        Raises:
            NotPicklable: It holds something that cannot be pickled.
        """
        if record.by_value:
            return False
        buffers: list[Buffer] = []
        record.payload = codec.pack_function(record.fn, buffers, by_value=True)
        record.buffers = buffers
        record.by_value = True
        record.id = next(self._numbers)
        return True

    def release(self, record: FunctionRecord) -> None:
        """Forget a record that is in no table, now that its job is done."""
        if not isinstance(record.payload, bytes) and len(record.buffers) > 1:
            with self._lock:
                self._forgotten.append(record.id)

    def take_forgotten(self) -> list[int]:
        """Return the ids that workers need not know any more; each is returned once."""
        if not self._forgotten:
            return []
        with self._lock:
            taken, self._forgotten = self._forgotten, []
        return taken
