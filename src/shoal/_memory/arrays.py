"""Numpy arrays that every process sees and may write: `shoal.empty` and its kin.

Role: arrays over segments, and what of them a task may write. Owner: whoever holds a view. Any thread; that two do not write
the same place at once is the user's business, see `find_writable`. The only file of shoal that imports numpy at its top.

Invariants
    Y1  An array travels by reference if and only if its bytes lie in a segment; wherever it arrives it lies in the same one.
    Y2  Small arrays share a slab, to save descriptors; no two of them overlap, in whatever process they were made.
    Y3  Methods, operators and numpy's functions give a `SharedArray` only for what lies in a segment; a copy is ordinary.
"""

from __future__ import annotations

import functools
import operator
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, SupportsIndex

from shoal._memory import segments
from shoal._memory.reducers import passing
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

Shape = SupportsIndex | Sequence[SupportsIndex]

#: numpy 1 does not tell `__array_wrap__` when a scalar is wanted.
_NUMPY_1 = np.__version__.startswith("1.")


class SharedArray(np.ndarray[Any, np.dtype[Any]]):
    """A numpy array in shared memory. Views of it are, too; what is computed from it is an ordinary array."""

    #: Below that of ordinary arrays: an operation on both gives an ordinary one.
    __array_priority__ = -100.0

    def __reduce_ex__(self, protocol: Any) -> Any:
        segment = segments.find(self) if protocol >= 5 else None
        if segment is None:
            return self.view(np.ndarray).__reduce_ex__(protocol)  # by value
        whole = segment.view()
        writeable = bool(self.flags.writeable)
        extent = _extent(self, segment, whole)
        if writeable and _recorder.found is not None:
            _recorder.found.append(extent)
        place = extent.offset, extent.shape, extent.strides
        # What is read-only travels over a read-only buffer, so that the receiver cannot make it writable either.
        buffer = pickle.PickleBuffer(whole if writeable else whole.toreadonly())
        return _rebuild, (buffer, *place, self.dtype, writeable)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        if array is self:  # the target of an operation in place
            return array
        if return_scalar or (_NUMPY_1 and array.ndim == 0):
            return array[()]
        return array.view(np.ndarray) if segments.find(array) is None else array

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _settled(super().__array_function__(func, types, args, kwargs))

    def __getitem__(self, key: Any) -> Any:
        return _settled(super().__getitem__(key))

    def __copy__(self) -> Any:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Any:
        return self.copy()


def _settled(result: Any) -> Any:
    """Return a result with every copy in it as an ordinary array (Y3)."""
    if isinstance(result, SharedArray):
        return result if segments.find(result) is not None else result.view(np.ndarray)
    if type(result) is tuple or type(result) is list:
        return type(result)(map(_settled, result))
    return result


def _settling(name: str) -> Callable[..., Any]:
    original = getattr(np.ndarray, name)

    @functools.wraps(original, assigned=("__name__",))  # the documentation is numpy's
    def method(self: SharedArray, *args: Any, **kwargs: Any) -> Any:
        return _settled(original(self, *args, **kwargs))

    return method


#: Methods that may copy, and would keep the type when they do.
_MAY_COPY = (
    "argmax argmin argpartition argsort astype byteswap choose clip compress conj conjugate copy cumprod cumsum diagonal "
    "dot flatten max mean min prod ptp ravel repeat reshape round searchsorted std sum take trace var"
)
for _name in _MAY_COPY.split():
    if hasattr(np.ndarray, _name):
        setattr(SharedArray, _name, _settling(_name))


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
    kind = _checked(dtype)
    if order not in ("C", "F"):
        raise ValueError(f'order must be "C" or "F", not {order!r}')
    try:
        sizes: tuple[int, ...] = (operator.index(shape),)  # type: ignore[arg-type]
    except TypeError:
        sizes = tuple(map(operator.index, shape))  # type: ignore[arg-type]
    if any(n < 0 for n in sizes):
        raise ValueError(f"a shape has no negative sizes, as in {sizes}")
    nbytes = kind.itemsize
    for n in sizes:
        nbytes *= n
    view, offset = _allocate(nbytes)
    return SharedArray(sizes, kind, buffer=view, offset=offset, order=order)  # type: ignore[arg-type]


def _checked(dtype: DTypeLike) -> np.dtype[Any]:
    kind = np.dtype(dtype)
    if not kind.itemsize:
        kind = np.empty(0, kind).dtype  # "S" becomes "S1" when an array is made
    if kind.hasobject:
        raise TypeError(
            f"an array in shared memory cannot hold Python objects (dtype {kind}); use a dtype of fixed size"
        )
    return kind


def zeros(shape: Shape, dtype: DTypeLike = float, order: str = "C") -> SharedArray:
    """Return a new array of zeros in shared memory, as `numpy.zeros`; see `empty`."""
    return empty(shape, dtype, order)


def full(shape: Shape, fill_value: Any, dtype: DTypeLike | None = None, order: str = "C") -> SharedArray:
    """Return a new array in shared memory filled with `fill_value`, as `numpy.full`; see `empty`."""
    made = empty(shape, np.asarray(fill_value).dtype if dtype is None else dtype, order)
    np.copyto(made, fill_value, casting="unsafe")
    return made


def array(object: ArrayLike, dtype: DTypeLike | None = None, order: str = "K") -> SharedArray:
    """Return a copy of an array, or of what numpy makes one of, in shared memory; see `empty`.

    Args:
        object: An array is copied once, straight into the shared memory.
        dtype: That of `object` if `None`.
        order: ``"C"``, ``"F"``, ``"A"``: ``"F"`` if `object` is so, or ``"K"``: the order its axes have in memory.
    """
    source = object if isinstance(object, np.ndarray) else np.asarray(object, dtype)
    kind = source.dtype if dtype is None else np.dtype(dtype)
    if kind != source.dtype and kind in _OPEN:
        source = source.astype(kind)
        kind = source.dtype
    if order == "K":
        axes = sorted(range(source.ndim), key=lambda axis: -abs(source.strides[axis]))
        made = empty([source.shape[axis] for axis in axes], kind).transpose(np.argsort(axes))
    elif order == "A":
        made = empty(source.shape, kind, "F" if source.flags.fnc else "C")
    else:
        made = empty(source.shape, kind, order)
    np.copyto(made, source, casting="unsafe")
    return made


#: Kinds whose length or unit depends on the values.
_OPEN = [np.dtype(code) for code in ("S", "U", "M8", "m8")]


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
    made: np.ndarray[Any, Any]
    if not isinstance(buffer, memoryview) or segments.find(buffer) is None:  # pickled in band, by somebody else: a copy
        made = np.ndarray(shape, dtype, buffer=buffer, offset=offset, strides=strides).copy(order="K")
    else:
        over = buffer if writeable else np.frombuffer(buffer, "u1")  # numpy looks through a view, not through an array
        made = SharedArray(shape, dtype, buffer=over, offset=offset, strides=strides)
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
    found = _record(pickle.Pickler, given)
    if found is None:
        import cloudpickle

        found = _record(cloudpickle.Pickler, given)  # a function by value among the arguments
    return found or []  # what cannot be pickled is refused when it is sent


def _record(pickler: Callable[..., Any], given: Any) -> list[Extent] | None:
    _recorder.found = found = list[Extent]()
    try:
        with passing:
            pickler(_Nowhere(), protocol=5, buffer_callback=lambda _: False).dump(given)
    except Exception:
        return None
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
    if one.segment != other.segment or 0 in (*one.shape, *other.shape, one.itemsize, other.itemsize):
        return False
    (start, stop), (other_start, other_stop) = bounds(one), bounds(other)
    if stop <= other_start or other_stop <= start:
        return False
    try:
        return bool(np.shares_memory(_Standing(one), _Standing(other), max_work=_EFFORT))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


class _Standing:
    """Stands for an array that may be gone: an address that nobody reads, so that numpy can compare two of them."""

    def __init__(self, extent: Extent) -> None:
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{extent.itemsize}",
            "shape": extent.shape,
            "strides": extent.strides,
            "data": (_NOWHERE + extent.offset, True),
        }


_NOWHERE = 1 << 46
