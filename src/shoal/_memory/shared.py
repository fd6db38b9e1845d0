"""`shoal.share`: one object, put into shared memory once, for every process.

Role: an object's pickle in a segment, and back. Owner: whoever holds a handle or a view. Any thread. Without numpy.

Layout of the segment, little-endian
    u64 length of the head, head: marshal of [(offset, bytes) of the stream, then of each buffer], stream, buffers at
    multiples of 64

Invariants
    H1  What is loaded from a segment is read-only, because everybody sees the same memory.
    H2  A process that received a segment loads it once, and forgets it when the sender says that it let go. A process
        that made it keeps nothing but what its handles keep.
"""

from __future__ import annotations

import marshal
import pickle
import struct
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from shoal._memory import segments
from shoal.errors import NotPicklable

T = TypeVar("T")

_ALIGN = 64
_LENGTH = struct.Struct("<Q")
_UNLOADED = object()

#: What this process received: segment id -> the object.
_loaded: dict[bytes, Any] = {}


class Shared(Generic[T]):
    """A handle of an object in shared memory; see `share`. A task that is given it receives the object itself."""

    __slots__ = ("__weakref__", "_kind", "_value", "_view")

    def __init__(self, view: memoryview, kind: str) -> None:
        self._view = view
        self._kind = kind
        self._value: Any = _UNLOADED

    @property
    def value(self) -> T:
        """The object itself as every process sees it: its arrays are read-only and lie in the shared memory."""
        if self._value is _UNLOADED:
            self._value = _load(self._view)
        return cast("T", self._value)

    @property
    def nbytes(self) -> int:
        """Bytes of shared memory it takes."""
        return self._view.nbytes

    def __repr__(self) -> str:
        return f"<shoal.Shared {self._kind}, {self.nbytes} bytes>"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if protocol < 5:
            return _arrive, (bytes(self._view),)
        return _arrive, (pickle.PickleBuffer(self._view),)

    def __copy__(self) -> Shared[T]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared[T]:
        return self  # what is shared does not change


def share(obj: T) -> Shared[T]:
    """Put an object into shared memory once, and return a handle to give to any number of tasks.

    Where the handle is passed to a task, alone or inside other arguments, in `initargs` or captured by a function, the task
    receives the object itself: unpickled once per worker, its buffers (numpy arrays, data frames) not copied at all. They are
    read-only. The memory is freed when the last handle and the last view of it are gone, in every process.

    Blocks while the object is copied. Safe from any thread.

    Args:
        obj: Anything that can be pickled. A handle is returned as another handle of the same memory.

    Raises:
        NoSharedMemory: There is not enough memory, or no descriptor left. Nothing is left behind.
        NotPicklable: `obj` cannot be pickled.
    """
    if isinstance(obj, Shared):
        return Shared(obj._view, obj._kind)
    stream, buffers = _dump(obj)
    sizes = [sum(part.nbytes for part in stream), *(buffer.nbytes for buffer in buffers)]
    head_bytes = len(marshal.dumps([(1 << 62, 1 << 62)] * len(sizes)))  # as long as any head of so many
    places, end = [], _LENGTH.size + head_bytes
    for size in sizes:
        start = -(-end // _ALIGN) * _ALIGN
        places.append((start, size))
        end = start + size
    head = marshal.dumps(places)
    parts = [(0, memoryview((_LENGTH.pack(len(head)) + head).ljust(places[0][0], b"\0")))]
    at = places[0][0]
    for part in stream:
        parts.append((at, part))
        at += part.nbytes
    parts += [(place[0], buffer) for place, buffer in zip(places[1:], buffers, strict=True)]
    return Shared(segments.create_filled(end, parts), type(obj).__name__)


class _Sink:
    """A file that keeps what a pickler writes; large bytes objects come uncopied."""

    __slots__ = ("parts", "write")

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.write = self.parts.append


def _dump(obj: Any) -> tuple[list[memoryview], list[memoryview]]:
    try:
        return _dump_by(pickle.Pickler, obj)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as first:
        import cloudpickle

        try:
            return _dump_by(cloudpickle.Pickler, obj)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            culprit = f"{type(obj).__name__} object"
            raise NotPicklable(what="the object to share", path="", culprit=culprit, reason=said) from first


def _dump_by(pickler: Callable[..., Any], obj: Any) -> tuple[list[memoryview], list[memoryview]]:
    sink, buffers = _Sink(), list[memoryview]()

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            buffers.append(buffer.raw())
        except BufferError:  # not contiguous: pickle copies it
            return True
        return False

    pickler(sink, protocol=5, buffer_callback=keep).dump(obj)
    return [memoryview(part).cast("B") for part in sink.parts], buffers


def _load(whole: memoryview) -> Any:
    (length,) = _LENGTH.unpack_from(whole)
    places = marshal.loads(whole[_LENGTH.size : _LENGTH.size + length])
    fixed = whole.toreadonly()  # H1
    stream, *buffers = [fixed[start : start + size] for start, size in places]
    return pickle.loads(stream, buffers=buffers)


def _arrive(buffer: Any) -> Any:
    """Rebuild the object in the process that received it: the other half of `Shared.__reduce_ex__`."""
    segment = segments.find(buffer) if isinstance(buffer, memoryview) else None
    if segment is None:  # pickled in band, by somebody else: a copy
        return _load(memoryview(bytes(buffer)))
    known = _loaded.get(segment.id, _UNLOADED)
    if known is _UNLOADED:
        # Not under a lock, since it runs code of the object's classes: two threads may both load it, one is kept.
        known = _loaded.setdefault(segment.id, _load(buffer))
    return known


def forget(identity: bytes) -> None:
    """Drop the object of a segment whose sender has let go of it (H2). May run code of the object's classes."""
    _loaded.pop(identity, None)


#: What numpy, pandas, polars and memoryview say when somebody writes to what is read-only.
_SAYINGS = ("read-only", "readonly", "not writable", "not writeable", "cannot modify")


def read_only_hint(error: BaseException) -> str | None:
    """Return what to do about an error that comes from writing to a shared object, or None if it seems to be another."""
    if not _loaded or not isinstance(error, ValueError | TypeError | BufferError):
        return None
    text = str(error).lower()
    if not any(saying in text for saying in _SAYINGS):
        return None
    return (
        "hint: what shoal.share gave is read-only, because every process sees the same memory; write to a copy of it, "
        "or make an array that every process may write with shoal.array() or shoal.empty()"
    )
