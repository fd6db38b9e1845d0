"""What an item of a queue is made of: bytes in its record, large buffers in blocks.

Role: objects to records and back, and the views on blocks. Owner: each process for itself.

Invariants
    I1  A block that somebody else could see is never given out writable: with ack=True the item may be taken again, so its
        buffers are mapped privately. Else nobody but the taker will ever see the block, and what he gets is the block itself.
    I2  A block returns with the last view of it, by one store; no lock is taken then.
    I3  What lies in shared memory (a lock, another queue, a shared array) is refused: nobody passes its descriptor on.
"""

from __future__ import annotations

import marshal
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shoal._memory import segments
from shoal._os import interpreter, mapping
from shoal._sync.queue_core import REFERENCE, Core
from shoal._sync.queue_layout import BLOCKS, INLINE_BYTES, PICKLED
from shoal._wire import codec
from shoal._wire.courier import shared_segment
from shoal._wire.frames import parts_of
from shoal.errors import NotPicklable

#: Exact types that `marshal` takes as quickly as can be, and gives back as they were.
PLAIN_TYPES = frozenset({int, float, str, bytes, bool, type(None)})
#: Up to this size; a longer one goes the way of everything else, which copies less.
PLAIN_BYTES = 4096
dumps: Callable[[Any], bytes] = marshal.dumps

_WHAT = ("an item put into", type("Queue", (), {}))


class Record(NamedTuple):
    """An object that is ready to be put: small bytes, or buffers that need blocks."""

    kind: int
    data: bytes
    #: Large buffers, each a list of parts; if `main`, the first one is the pickle itself.
    buffers: Sequence[list[memoryview]] = ()
    main: bool = False


def pack(obj: Any) -> Record:
    """Take an object apart.

    Raises:
        NotPicklable: It cannot be pickled, or something in it lies in shared memory.
    """
    found: list[Any] = []
    payload = codec.pack(obj, found, _WHAT, main_is_lost=_main_is_lost())
    for buffer in found:
        if shared_segment(buffer) is not None:
            raise _shared(obj)
    if isinstance(payload, bytes):
        if len(payload) <= INLINE_BYTES:
            return Record(PICKLED, payload)
        return Record(BLOCKS, b"", [[memoryview(payload)]], main=True)
    stream, _, _ = payload
    buffers = [parts_of(buffer) for buffer in found]
    if stream is not None and len(stream) + 16 * (2 + len(buffers)) > INLINE_BYTES:
        return Record(BLOCKS, b"", [[memoryview(stream)], *buffers], main=True)
    return Record(BLOCKS, stream or b"", buffers, main=stream is None)


def _main_is_lost() -> bool:
    return interpreter.main_module().kind == "none"


def _shared(obj: Any) -> NotPicklable:
    return NotPicklable(
        what="an item put into a queue",
        path="",
        culprit=f"{type(obj).__name__} object",
        reason="it lies in shared memory, which is passed as an argument of a task or process, not through a queue",
    )


def references(units: Sequence[int], record: Record) -> bytes:
    """Return the bytes of a record whose buffers are in blocks."""
    sizes = [sum(part.nbytes for part in parts) for parts in record.buffers]
    table = b"".join(REFERENCE.pack(unit, size) for unit, size in zip(units, sizes, strict=True))
    return REFERENCE.pack(len(units), record.main) + table + record.data


def fill(core: Core, view: memoryview, units: Sequence[int], record: Record) -> None:
    """Copy the buffers of a record into its blocks. Other threads run meanwhile."""
    for unit, parts in zip(units, record.buffers, strict=True):
        start = core.block_at(unit)
        for part in parts:
            mapping.copy(view[start : start + part.nbytes], part)
            start += part.nbytes


#: The memory that finalizers yet to come will write to. When the garbage collector takes a whole cycle away, it ends mappings
#: that are in it before it calls the finalizers in it; what is held from here is in no cycle.
kept: dict[int, memoryview] = {}


class Lease:
    """The right to a block; ends with the last view of it."""

    __slots__ = ("_core", "_forks", "_maker", "on_end", "party", "unit")

    def __init__(self, core: Core, view: memoryview, unit: int, party: Any, on_end: Any) -> None:
        kept[id(self)] = view
        self._core = core
        self._forks = mapping.forks
        self._maker = os.getpid()
        self.unit = unit
        self.party = party  # its place is in the unit table as long as we are
        self.on_end = on_end
        party.leases += 1

    def end(self) -> None:
        """Give the block back, unless a forked child may look at it still."""
        unit, self.unit = self.unit, -1
        if unit >= 0 and self._maker == os.getpid():
            self.party.leases -= 1
            self._core.release(unit, spoilt=mapping.forks != self._forks)
            self.on_end()

    def keep(self) -> None:
        """Do not give it back: the item will be unpacked again."""
        if self.unit >= 0:
            self.unit = -1
            self.party.leases -= 1

    def __del__(self, kept: dict[int, memoryview] = kept) -> None:
        self.end()
        kept.pop(id(self), None)


def unpack(core: Core, view: memoryview, kind: int, data: bytes, party: Any, on_end: Any, *, private: bool) -> Any:
    """Rebuild an object. Runs the code of its classes; any exception may come out.

    What raises a signal handler meanwhile leaves the blocks as they were, for another try; any other failure frees them.
    """
    if kind == PICKLED:
        return pickle.loads(data)
    references, main, end = core.references(data)
    leases: list[Lease] = []
    try:
        views = [_view(core, view, reference, party, on_end, leases, private=private) for reference in references]
        stream = views.pop(0) if main else memoryview(data)[end:]
        return pickle.loads(stream, buffers=views)
    except Exception:
        raise
    except BaseException:
        for lease in leases:
            lease.keep()
        raise


def _view(
    core: Core,
    view: memoryview,
    reference: tuple[int, int],
    party: Any,
    on_end: Any,
    leases: list[Lease],
    *,
    private: bool,
) -> memoryview:
    unit, nbytes = reference
    lease = Lease(core, view, unit, party, on_end)
    leases.append(lease)
    start = core.block_at(unit)
    if not private:
        return mapping.part(view, start, nbytes, lease)
    segment = segments.find(view)
    assert segment is not None
    array = mapping.map_file(segment.fd, nbytes, offset=start, private=True, on_gone=lease.end)
    return mapping.view(array)
