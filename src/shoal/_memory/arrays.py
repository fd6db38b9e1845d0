"""Numpy arrays that every process sees and may write: `shoal.empty` and its kin.

Role: arrays over segments, and what of them a task may write. Owner: whoever holds a view. Any thread; that two do not write
the same place at once is the user's business, see `find_writable`. The only file of shoal that imports numpy at its top.

Invariants
    Y1  An array travels by reference if and only if its bytes lie in a segment; wherever it arrives it lies in the same one.
    Y2  Small arrays share a slab, to save descriptors; no two of them overlap, in whatever process they were made.
"""

from __future__ import annotations

import os
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, SupportsIndex

from shoal._memory import segments
from shoal._memory.segments import Segment
from shoal._os import interpreter, mapping

try:
    import numpy as np
    from numpy.typing import ArrayLike, DTypeLike
except ImportError as error:
    raise ImportError('shared arrays need numpy: pip install "shoal[numpy]"') from error

#: Arrays below this share a slab.
SMALL_BYTES = 1 << 16
SLAB_BYTES = 1 << 20
_ALIGN = 64
#: Effort after which two ranges that touch count as overlapping.
_EFFORT = 100_000

Shape = SupportsIndex | tuple[SupportsIndex, ...] | list[SupportsIndex]


class SharedArray(np.ndarray[Any, np.dtype[Any]]):
    """A numpy array in shared memory. Views of it are, too; what is computed from it is an ordinary array."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        segment = segments.find(self)
        if segment is None or protocol < 5:
            return np.asarray(self).__reduce_ex__(protocol)  # by value
        whole = segment.view()
        extent = _extent(self, segment, whole)
        if self.flags.writeable and _recorder.found is not None:
            _recorder.found.append(extent)
        place = extent.offset, extent.shape, extent.strides
        return _rebuild, (pickle.PickleBuffer(whole), *place, self.dtype, bool(self.flags.writeable))

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        result = super().__array_wrap__(array, context)
        if result is self or type(self) is not SharedArray:
            return result
        return result[()] if return_scalar else result.view(np.ndarray)

    def __getitem__(self, key: Any) -> Any:
        result = super().__getitem__(key)
        if type(result) is SharedArray and segments.find(result) is None:  # picked, so copied
            return result.view(np.ndarray)
        return result


class Extent(NamedTuple):
    """Where an array lies: segment, first element, and how the others follow. `strides` in bytes."""

    segment: bytes
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int


class _Recorder(threading.local):
    found: list[Extent] | None = None


_recorder = _Recorder()


# --- making them --------------------------------------------------------------------------------


def empty(shape: Shape, dtype: DTypeLike = float, order: str = "C") -> SharedArray:
    """Return a new array in shared memory, as `numpy.empty`; its elements are zero.

    Given to a task or returned by one, alone, inside other objects, as a slice or transposed, it travels as a reference: all
    processes see and may write the same memory. It outlives any process and is freed with its last view.

    Args:
        shape: As for numpy.
        dtype: Any but `object`.
        order: ``"C"`` or ``"F"``.

    Raises:
        NoSharedMemory: There is not enough memory, or no descriptor left. Nothing is left behind.
        TypeError: `dtype` holds Python objects, which only one process can use.
    """
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(
            f"an array in shared memory cannot hold Python objects (dtype {kind}); use a dtype of fixed size"
        )
    if order not in ("C", "F"):
        raise ValueError(f'order must be "C" or "F", not {order!r}')
    sizes = tuple(int(n) for n in shape) if isinstance(shape, tuple | list) else (int(shape),)
    if any(n < 0 for n in sizes):
        raise ValueError(f"a shape has no negative sizes, as in {sizes}")
    nbytes = kind.itemsize
    for n in sizes:
        nbytes *= n
    view, offset = _allocate(nbytes)
    return SharedArray(sizes, kind, buffer=view, offset=offset, order=order)  # type: ignore[arg-type]


def zeros(shape: Shape, dtype: DTypeLike = float, order: str = "C") -> SharedArray:
    """Return a new array of zeros in shared memory, as `numpy.zeros`; see `empty`."""
    return empty(shape, dtype, order)


def full(shape: Shape, fill_value: Any, dtype: DTypeLike | None = None, order: str = "C") -> SharedArray:
    """Return a new array in shared memory filled with `fill_value`, as `numpy.full`; see `empty`."""
    made = empty(shape, np.asarray(fill_value).dtype if dtype is None else dtype, order)
    made[...] = fill_value
    return made


def array(object: ArrayLike, dtype: DTypeLike | None = None, order: str | None = None) -> SharedArray:
    """Return a copy of an array, or of what numpy makes one of, in shared memory; see `empty`.

    `order` None keeps the order of a Fortran-ordered source and is ``"C"`` else.
    """
    source = np.asarray(object) if dtype is None else np.asarray(object, dtype)
    fortran = source.flags.f_contiguous and not source.flags.c_contiguous
    made = empty(source.shape, source.dtype, order or ("F" if fortran else "C"))
    made[...] = source
    return made


class _Slab:
    """The slab that the next small arrays of this process go to.

    The program keeps it only by the arrays in it. A worker's arrays go when they are returned, one after the other: it keeps
    the slab itself, or each of them would cost the program one.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.array: Callable[[], Any] = lambda: None
        self.kept: Any = None
        self.used = 0


_slab = _Slab()


def _new_slab() -> None:
    """In a forked child: the parent goes on with the old one (Y2)."""
    global _slab
    _slab = _Slab()


os.register_at_fork(after_in_child=_new_slab)


def _allocate(nbytes: int) -> tuple[memoryview, int]:
    """Return (a segment's view, offset) of that much zeroed memory that nothing else uses."""
    if nbytes >= SMALL_BYTES:
        return segments.create(nbytes), 0
    with _slab.lock:
        room = _slab.array()
        if room is None or _slab.used + nbytes > SLAB_BYTES:
            view = segments.create(SLAB_BYTES)
            made = mapping.mapped_array(view)
            _slab.array = weakref.ref(made)
            _slab.kept = made if interpreter.is_worker() else None
            _slab.used = 0
        else:
            view = mapping.view(room)
        offset = _slab.used
        _slab.used += -(-max(nbytes, 1) // _ALIGN) * _ALIGN
        return view, offset


def _rebuild(
    buffer: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any, writeable: bool
) -> Any:
    """Make the array again in the process that received it: the other half of `SharedArray.__reduce_ex__`."""
    if not isinstance(buffer, memoryview) or segments.find(buffer) is None:  # pickled in band, by somebody else: a copy
        return np.ndarray(shape, dtype, buffer=buffer, offset=offset, strides=strides).copy()
    made = SharedArray(shape, dtype, buffer=buffer, offset=offset, strides=strides)
    if not writeable:
        made.flags.writeable = False
    return made


# --- who may write what -------------------------------------------------------------------------


def _extent(shared: SharedArray, segment: Segment, whole: memoryview) -> Extent:
    start = shared.__array_interface__["data"][0] - mapping.address(whole)
    return Extent(segment.id, start if shared.size else 0, shared.shape, shared.strides, shared.dtype.itemsize)


class _Nowhere:
    """A file for a pickler whose output nobody wants."""

    def write(self, data: Any) -> int:
        return len(data)


def find_writable(given: Any) -> list[Extent]:
    """Return the shared arrays that a task would receive writable if `given` were its arguments. Runs `__reduce__` code."""
    found: list[Extent] = []
    _recorder.found = found
    try:
        pickle.Pickler(_Nowhere(), 5, buffer_callback=lambda _: False).dump(given)
    except Exception:
        pass  # what cannot be pickled is refused when it is sent
    finally:
        _recorder.found = None
    return found


def bounds(extent: Extent) -> tuple[int, int]:
    """Return the first byte and the byte after the last, within the segment."""
    if 0 in extent.shape:
        return extent.offset, extent.offset
    reach = [(n - 1) * stride for n, stride in zip(extent.shape, extent.strides, strict=True)]
    low, high = sum(min(0, r) for r in reach), sum(max(0, r) for r in reach)
    return extent.offset + low, extent.offset + high + extent.itemsize


def describe(extent: Extent) -> str:
    """Return an extent in words, for an error."""
    return f"an array of shape {extent.shape}"


def overlap(one: Extent, other: Extent) -> bool:
    """Say whether two arrays have a byte in common. Interleaved ones, such as two columns, have none."""
    if one.segment != other.segment or 0 in one.shape or 0 in other.shape:
        return False
    (start, stop), (other_start, other_stop) = bounds(one), bounds(other)
    if stop <= other_start or other_stop <= start:
        return False
    segment = segments.known(one.segment)
    if segment is None:
        return True
    whole = segment.view()
    pair = [
        np.ndarray(e.shape, f"V{e.itemsize}", buffer=whole, offset=e.offset, strides=e.strides) for e in (one, other)
    ]
    try:
        return bool(np.shares_memory(pair[0], pair[1], max_work=_EFFORT))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True
