"""`shoal.share`: one object, put into shared memory once, for every process.

Role: an object's pickle in a segment, and back. Owner: whoever holds a handle or a view. Any thread. Without numpy.

Layout of the segment, words of this machine's order
    u64 how many parts, u64 the bytes of each; then the parts: the pickle stream, its buffers, each at a multiple of 64

Invariants
    H1  What the buffers of an object become is read-only, because everybody sees the same memory.
    H2  A process that received a segment loads it once, and forgets it when the sender says that it let go. A process
        that made it keeps nothing but what its handles keep.
    H3  A buffer that is only a part of a segment is somebody else's object with ours inside: it is never taken for the whole.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
import threading
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, cast

from shoal._memory import segments
from shoal._memory.reducers import REFUSALS, Sink, reduce_array, reducers
from shoal._os.interpreter import main_module
from shoal.errors import NotPicklable

T = TypeVar("T")

_ALIGN = 64
_WORD = 8
_UNLOADED = object()

#: What this process received: segment id -> the object.
_loaded: dict[bytes, Any] = {}
#: Held for the moment in which a handle keeps what it loaded.
_keeping = threading.Lock()


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
            # Not under a lock, since it runs code of the object's classes: two threads may both load it, one is kept.
            loaded = _load(self._view)
            with _keeping:
                if self._value is _UNLOADED:
                    self._value = loaded
        return cast("T", self._value)

    @property
    def nbytes(self) -> int:
        """Bytes of shared memory it takes."""
        return self._view.nbytes

    def __repr__(self) -> str:
        return f"<shoal.Shared {self._kind}, {self.nbytes} bytes>"

    def __eq__(self, other: object) -> bool:
        """Whether both are handles of the same memory."""
        return self._view.obj is other._view.obj if isinstance(other, Shared) else NotImplemented

    def __hash__(self) -> int:
        return id(self._view.obj)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if protocol < 5:
            return _arrive, (bytes(self._view),)
        return _arrive, (pickle.PickleBuffer(self._view.toreadonly()),)

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
    places, end = _places(sizes)
    at = places[0]
    parts = [(0, memoryview(array("Q", [len(sizes), *sizes])).cast("B"))]
    for part in stream:
        parts.append((at, part))
        at += part.nbytes
    parts += zip(places[1:], buffers, strict=True)
    return Shared(segments.create_filled(end, parts), type(obj).__name__)


def _places(sizes: list[int]) -> tuple[list[int], int]:
    """Return where each part begins, behind a head of all their sizes, and where the last one ends."""
    places, end = [], _WORD * (1 + len(sizes))
    for size in sizes:
        places.append(-(-end // _ALIGN) * _ALIGN)
        end = places[-1] + size
    return places, end


def _dump(obj: Any) -> tuple[list[memoryview], list[memoryview]]:
    try:
        parts, buffers = _dump_by(pickle.Pickler, copyreg.dispatch_table, obj)
        if main_module().kind == "none" and any(b"__main__" in part for part in parts):
            parts, buffers = _dump_by_value(obj)  # no worker can import what lives there: this is a notebook
    except (KeyboardInterrupt, MemoryError, NotPicklable):
        raise
    except BaseException as first:  # what `__reduce__` raises, SystemExit included, is that object's failure
        parts, buffers = _dump_by_value(obj, first)
    return [memoryview(part).cast("B") for part in parts], buffers


def _dump_by_value(obj: Any, first: BaseException | None = None) -> tuple[list[Any], list[memoryview]]:
    import cloudpickle

    try:
        return _dump_by(cloudpickle.Pickler, cloudpickle.Pickler.dispatch_table, obj)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        refusal = first if isinstance(first, REFUSALS) else error
        said = f"{type(refusal).__name__}: {refusal}".partition("\n")[0]
        culprit = f"{type(obj).__name__} object"
        raise NotPicklable(what="the object to share", path="", culprit=culprit, reason=said) from first or error


def _dump_by(base: Any, known: Mapping[Any, Any], obj: Any) -> tuple[list[Any], list[memoryview]]:
    sink, buffers = Sink(), list[memoryview]()

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            buffers.append(buffer.raw())
        except BufferError:  # not contiguous: pickle copies it
            return True
        return False

    table = {**known, **_own_reducers()}
    if base is not pickle.Pickler:  # cloudpickle's looks at the table of its class only
        base = type(base.__name__, (base,), {"dispatch_table": table})
    pickler = base(sink, protocol=5, buffer_callback=keep)
    pickler.dispatch_table = table
    pickler.dump(obj)
    return sink.parts, buffers


def _own_reducers() -> dict[type, Callable[[Any], Any]]:
    """Return how to take apart what would otherwise travel in the stream, and not be read-only memory behind it (H1)."""
    table = reducers()
    numpy = sys.modules.get("numpy")
    if hasattr(numpy, "memmap"):
        table[numpy.memmap] = reduce_array  # type: ignore[union-attr]
    arrays = sys.modules.get("shoal._memory.arrays")
    if hasattr(arrays, "SharedArray"):
        table[arrays.SharedArray] = reduce_array  # type: ignore[union-attr]
    return table


def _load(whole: memoryview) -> Any:
    (count,) = whole[:_WORD].cast("Q")
    sizes = whole[_WORD : _WORD * (1 + count)].cast("Q").tolist()
    fixed = whole.toreadonly()  # H1
    stream, *buffers = [fixed[start : start + size] for start, size in zip(_places(sizes)[0], sizes, strict=True)]
    return pickle.loads(stream, buffers=buffers)


def _arrive(buffer: Any) -> Any:
    """Rebuild the object in the process that received it: the other half of `Shared.__reduce_ex__`."""
    whole = memoryview(buffer)
    segment = segments.find(whole)
    if segment is None or segment.size != whole.nbytes:  # a copy that somebody else made, or H3
        return _load(whole)
    known = _loaded.get(segment.id, _UNLOADED)
    if known is _UNLOADED:
        # Not under a lock, for the reason given in `Shared.value`.
        known = _loaded.setdefault(segment.id, _load(whole))
    return known


def forget(identity: bytes) -> None:
    """Drop the object of a segment whose sender has let go of it (H2). May run code of the object's classes."""
    _loaded.pop(identity, None)


#: What numpy, pandas, polars and memoryview say when somebody writes to what is read-only.
_SAYINGS = ("read-only", "readonly", "read-write", "not writable", "not writeable", "writeable flag")


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
