"""Pickling: functions by name or by value, data by plain pickle 5, a clear error when neither works.

Role: objects to payloads and back. Owner: none; stateless.

A payload is what travels inside a message: bytes when it is small, else a reference
`(bytes | None, first, count)` to buffers of the same frame. `None` says that the pickle stream
itself is the first of these buffers.

Invariants
    C1  `pack` never leaves a half-written payload: the buffers of a failed pickle are not added.
    C2  Plain pickle comes first; cloudpickle is only asked when plain pickle cannot do it, or when
        the class or function lives in a `__main__` that a worker cannot import.
    C3  What is rebuilt from an out-of-band buffer is writable if the original was.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
import types
from collections import ChainMap
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, cast

from shoal._memory.reducers import REFUSALS, OnlyPassed, Sink, passing, reducers
from shoal._os.interpreter import is_worker
from shoal._wire.courier import shared_segment
from shoal._wire.frames import LARGE_BYTES, Buffer, parts_of
from shoal._wire.words import describe_callable, short

Payload = bytes | tuple[bytes | None, int, int]
#: Words for a pair of arguments, ``(args, kwargs)``: errors then say which of them it is.
ARGUMENTS = "an argument of"
#: What is being packed: words, and the callable they are about: ("the result of", f).
What = tuple[str, Any]


def _dumps(obj: Any, keep: Callable[[pickle.PickleBuffer], bool] | None, *, by_value: bool) -> bytes:
    if not by_value:
        return pickle.dumps(obj, 5, buffer_callback=keep)
    import cloudpickle

    return bytes(cloudpickle.dumps(obj, 5, buffer_callback=keep))


def _collector(found: list[Buffer]) -> Callable[[pickle.PickleBuffer], bool]:
    """Return a `buffer_callback` that takes large buffers into `found` and leaves the others in the pickle."""

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous: pickle copies it
            return True
        if raw.nbytes < LARGE_BYTES and shared_segment(raw) is None:
            return True
        found.append(raw)
        return False

    return keep_in_band


def pack(obj: Any, buffers: list[Buffer], what: What, *, main_is_lost: bool = False) -> Payload:
    """Pickle `obj`; buffers of at least `LARGE_BYTES` are appended to `buffers`, uncopied.

    Args:
        obj: Anything.
        buffers: The frame's buffers; extended.
        what: What this is, for the error; only made into text when there is one.
        main_is_lost: Workers cannot import `__main__` (a notebook): pickle what lives there by value.

    Raises:
        NotPicklable: Neither pickle nor cloudpickle can take `obj`.
    """
    found: list[Buffer] = []
    keep_in_band = _collector(found)
    try:
        if _bulky(obj) and not main_is_lost:  # else what lives in `__main__` has to be looked for first
            return _pack_stream(obj, buffers)
        data = _dumps(obj, keep_in_band, by_value=False)
        if main_is_lost and b"__main__" in data:
            found.clear()
            data = _dumps(obj, keep_in_band, by_value=True)
        elif b"multiprocessing." in data and any(name in data for name in _NEED_A_KEY):
            found.clear()
            data = _dumps_shared(obj, keep_in_band)
    except KeyboardInterrupt:
        raise
    except BaseException as first:  # what `__reduce__` raises, SystemExit included, is that object's failure
        found.clear()
        if isinstance(first, OnlyPassed) and not passing.on:
            with passing:
                return pack(obj, buffers, what, main_is_lost=main_is_lost)
        if isinstance(first, TypeError) and "memoryview" in str(first):  # deep inside, where no glance finds it
            try:
                return _pack_stream(obj, buffers)
            except Exception as second:
                first = second
        data = _by_value(obj, keep_in_band, what, first)
    if len(data) < LARGE_BYTES:
        if not found:
            return data
        buffers += found
        return data, len(buffers) - len(found), len(found)
    buffers.append(data)
    buffers += found
    return None, len(buffers) - len(found) - 1, len(found) + 1


def pack_call(
    args: tuple[Any, ...], kwargs: dict[str, Any], buffers: list[Buffer], what: What, *, main_is_lost: bool
) -> Payload:
    """As `pack` for ``(args, kwargs)``; quick for a few plain arguments, the most frequent of all things that are packed."""
    if not kwargs and _NEVER_BULKY.issuperset(map(type, args)):
        data = pickle.dumps((args, kwargs), 5)
        if len(data) < LARGE_BYTES:
            return data
    return pack((args, kwargs), buffers, what, main_is_lost=main_is_lost)


_NEVER_BULKY = frozenset({int, str, float, bool, type(None)})

#: Looked through for large bytes: this many objects of each container, two deep.
_GLANCE = 32


def _bulky(obj: Any, depth: int = 3) -> bool:
    """Say whether a glance finds something large that pickle would copy into its stream, and that into the frame."""
    kind = type(obj)
    if kind is tuple or kind is list:
        if depth:
            for part in obj if len(obj) <= _GLANCE else obj[:_GLANCE]:
                if type(part) not in _NEVER_BULKY and _bulky(part, depth - 1):
                    return True
        return False
    if kind is dict:
        return bool(depth and obj) and any(_bulky(part, depth - 1) for part in islice(obj.values(), _GLANCE))
    if kind in _NEVER_BULKY:
        return False
    if kind is bytes or kind is bytearray:
        return len(obj) >= LARGE_BYTES
    if kind is memoryview:
        return True
    numpy = sys.modules.get("numpy")
    if kind is not getattr(numpy, "ndarray", None) or obj.nbytes < LARGE_BYTES:
        return False
    # What numpy makes bytes of when it is pickled, instead of handing its memory out.
    return not obj.dtype.hasobject and (obj.dtype.kind in "mMV" or not obj.flags.forc)


class Stream:
    """Bytes in parts: a pickle stream, in which large bytes objects are the caller's own, uncopied."""

    __slots__ = ("__weakref__", "nbytes", "parts")

    def __init__(self, parts: list[Buffer]) -> None:
        self.parts = [memoryview(part).cast("B") for part in parts]
        self.nbytes = sum(part.nbytes for part in self.parts)

    def joined(self) -> bytes:
        """Return it in one piece."""
        return b"".join(self.parts)

    def view(self) -> memoryview:
        """Return the bytes of a stream of one part."""
        return self.parts[0]


def frozen(buffer: Any) -> Any:
    """Return a buffer that later changes to the caller's objects do not reach: a copy, unless it is shared or immutable."""
    if isinstance(buffer, bytes) or shared_segment(buffer) is not None:
        return buffer
    return Stream([b"".join(parts_of(buffer))])


def _pack_stream(obj: Any, buffers: list[Any]) -> Payload:
    """As `pack`, for an object with large bytes, memoryviews or unusual arrays in it: those are not copied here."""
    found: list[Buffer] = []
    sink = Sink()
    pickler = pickle.Pickler(sink, 5, buffer_callback=_collector(found))
    pickler.dispatch_table = ChainMap(reducers(), cast("Any", copyreg.dispatch_table))
    pickler.dump(obj)
    stream = Stream(sink.parts)
    if stream.nbytes < LARGE_BYTES:
        if not found:
            return stream.joined()
        buffers += found
        return stream.joined(), len(buffers) - len(found), len(found)
    buffers.append(stream)
    buffers += found
    return None, len(buffers) - len(found) - 1, len(found) + 1


def _by_value(obj: Any, keep: Callable[[pickle.PickleBuffer], bool], what: What, first: BaseException) -> bytes:
    if "multiprocessing.reduction" in sys.modules:
        try:
            with passing:
                return _dumps_shared(obj, keep)  # sockets and pipe ends travel its way
        except KeyboardInterrupt:
            raise
        except BaseException:
            pass  # SystemExit included: the next way says what is wrong
    try:
        with passing:
            return _dumps(obj, keep, by_value=True)
    except KeyboardInterrupt:
        raise
    except BaseException as second:
        refusal = first if isinstance(first, REFUSALS) else second
        raise refused(obj, what, refusal) from first


#: Modules whose objects are of use only to a process that knows this program's key.
_NEED_A_KEY = (b"multiprocessing.connection", b"multiprocessing.managers")


def _dumps_shared(obj: Any, keep: Callable[[pickle.PickleBuffer], bool]) -> bytes:
    """Pickle as `multiprocessing` does: descriptors are handed over on request, proxies need the program's key."""
    from multiprocessing import process
    from multiprocessing.reduction import ForkingPickler

    sink, found = Sink(), list[pickle.PickleBuffer]()
    # Positions, because its signature names none; they are those of `pickle.Pickler`.
    ForkingPickler(sink, 5, True, found.append).dump(obj)
    shared = _WithKey(b"".join(sink.parts), bytes(process.current_process().authkey), found)
    return pickle.dumps(shared, 5, buffer_callback=keep)


class _WithKey:
    """What `_dumps_shared` made, and the key; loading it gives the object itself."""

    def __init__(self, data: bytes, key: bytes, buffers: list[pickle.PickleBuffer]) -> None:
        self._data = data
        self._key = key
        self._buffers = buffers

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_shared, (self._data, self._key, *self._buffers)


def _load_shared(data: bytes, key: bytes, *buffers: Any) -> Any:
    if is_worker():
        from multiprocessing import process

        process.current_process().authkey = key
    return pickle.loads(data, buffers=buffers)


def unpack(payload: Payload, buffers: list[Any]) -> Any:
    """Rebuild what `pack` pickled, once: its buffers are taken out of `buffers`.

    Runs the code of the classes inside; any exception may come out.

    Raises:
        NoSharedMemory: A buffer did not arrive, for lack of descriptors.
    """
    if isinstance(payload, bytes):
        return pickle.loads(payload)
    main, first, count = payload
    mine = buffers[first : first + count]
    buffers[first : first + count] = [b""] * count  # so that what is lent returns with the last view of it
    for buffer in mine:
        if isinstance(buffer, OSError):  # a NoSharedMemory that the courier put here
            raise buffer
    if main is None:
        return pickle.loads(mine[0], buffers=mine[1:])
    return pickle.loads(main, buffers=mine)


#: Built-in types that pickle by reduction, and whose unpickling cannot fail either.
_PLAIN_REDUCED = frozenset({range, slice, complex})


class _NotPlain(Exception):
    pass


class _Spotter(pickle.Pickler):
    """A pickler that stops at the first thing that is not plain built-in data, before any code of it runs."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) not in _PLAIN_REDUCED and not (type(obj) is type and obj in _PLAIN_REDUCED):
            raise _NotPlain
        return NotImplemented


def pack_spawning(obj: Any, buffers: list[Buffer], what: What, *, main_is_lost: bool, once: bool = False) -> Payload:
    """As `pack`, but `multiprocessing`'s locks, semaphores and events pickle too, as when it starts a process itself.

    Only those of a spawn or forkserver context: one of a fork context has no name another program could open. Its queues,
    pipes and arrays as well if it is unpacked at most `once`.
    """
    context = sys.modules.get("multiprocessing.context")
    if context is not None:  # else there is no such lock either
        from multiprocessing.reduction import ForkingPickler

        before = context.get_spawning_popen()
        context.set_spawning_popen(_SpawningOne() if once else _Spawning())
        found: list[Buffer] = []
        sink = Sink()
        try:
            # Positions, because its signature names none; they are those of `pickle.Pickler`.
            with passing:
                ForkingPickler(sink, 5, True, _collector(found)).dump(obj)
        except Exception:
            sink.parts.clear()  # `pack` may yet do it by value, and says why if it cannot
        finally:
            context.set_spawning_popen(before)
        data = b"".join(sink.parts)
        if data and len(data) < LARGE_BYTES and not (main_is_lost and b"__main__" in data):
            buffers += found
            return (data, len(buffers) - len(found), len(found)) if found else data
    return pack(obj, buffers, what, main_is_lost=main_is_lost)


class _Spawning:
    """Stands for the process that is being started; see `pack_spawning`."""

    def duplicate_for_child(self, fd: int) -> int:
        raise TypeError(f"descriptor {fd} of a multiprocessing queue, pipe or array cannot be passed here")


class _SpawningOne(_Spawning):
    """As that, where what is packed is unpacked at most once: descriptors are handed over then, on request."""

    def duplicate_for_child(self, fd: int) -> int:
        return fd

    def DupFd(self, fd: int) -> Any:  # noqa: N802 - multiprocessing's name
        from multiprocessing.resource_sharer import DupFd

        return DupFd(fd)


def pack_plain(items: Any) -> bytes | Stream | None:
    """Pickle `items` in one piece if it is all built-in data, whose unpickling cannot fail.

    Returns None when it holds anything else, or cannot be pickled so: then each item goes by itself,
    which lets the other end tell which one explodes.
    """
    sink = Sink()
    try:
        _Spotter(sink, 5).dump(items)
    except Exception:  # not plain, or too deep: packing one by one finds whose
        return None
    stream = Stream(sink.parts) if len(sink.parts) > 1 else None
    if stream is None or stream.nbytes < LARGE_BYTES:
        return b"".join(sink.parts)
    return stream


def pack_function(fn: Any, buffers: list[Buffer], *, by_value: bool, what: str = "the function") -> Payload:
    """Pickle a function: by name when a worker can find it by name, else by value.

    Raises:
        NotPicklable: It holds something that cannot be pickled.
    """
    if not by_value:
        return pack(fn, buffers, (what, fn))
    found: list[Buffer] = []

    try:
        with passing:
            data = _dumps(fn, _collector(found), by_value=True)
    except Exception as error:
        raise refused(fn, (what, fn), error) from error
    buffers.append(data)
    buffers += found
    return None, len(buffers) - len(found) - 1, len(found) + 1


def is_named(fn: Any) -> bool:
    """Say whether plain pickle stores `fn` as a mere name, so that its bytes never change."""
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:
        return False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is fn


def refused(obj: Any, what: What, error: BaseException) -> Exception:
    """Build the `NotPicklable` that names the culprit inside `obj`."""
    from shoal.errors import NotPicklable

    which = what[0]
    if which == ARGUMENTS and isinstance(obj, tuple) and len(obj) == 2:
        which, obj = _which_argument(*obj)
    try:
        path, culprit = _find_culprit(obj)
        said = str(error).partition("\n")[0]
    except Exception:  # its attributes, or the error's text, have code of their own
        path, culprit, said = "", obj, ""
    if isinstance(error, RecursionError):
        said = "it is nested too deeply for pickle"
        culprit, path = obj, ""
    reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
    words = f"{which} {describe_callable(what[1])}"
    return NotPicklable(what=words, path=path, culprit=f"{type(culprit).__name__} {short(culprit)}", reason=reason)


def _which_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any]:
    for index, value in enumerate(args):
        if not _picklable(value):
            return f"argument {index} of", value
    for name, value in kwargs.items():
        if not _picklable(value):
            return f"argument {name!r} of", value
    return ARGUMENTS, (args, kwargs)


def _picklable(obj: Any) -> bool:
    try:
        _dumps(obj, None, by_value=True)
    except BaseException:
        return False
    return True


def _find_culprit(obj: Any, limit: int = 20) -> tuple[str, Any]:
    """Walk towards the smallest part that cannot be pickled; returns (path, part)."""
    path = ""
    seen = {id(obj)}
    for _ in range(limit):
        for step, part in _parts(obj):
            if id(part) not in seen and not _picklable(part):
                seen.add(id(part))
                path, obj = path + step, part
                break
        else:
            return path, obj
    return path, obj


#: A captured variable that has no value yet.
_EMPTY_CELL = types.CellType()


def _parts(obj: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(obj, dict):
        return [(f"[{short(key, 30)}]", value) for key, value in list(obj.items())[:1000]]
    if isinstance(obj, list | tuple):
        return [(f"[{index}]", value) for index, value in enumerate(obj[:1000])]
    if isinstance(obj, set | frozenset):
        return [(f"{{{short(value, 30)}}}", value) for value in list(obj)[:1000]]
    closure = getattr(obj, "__closure__", None)
    if closure:
        names = obj.__code__.co_freevars
        cells = zip(names, closure, strict=False)
        return [(f" (captured {name!r})", cell.cell_contents) for name, cell in cells if cell != _EMPTY_CELL]
    if hasattr(obj, "func") and hasattr(obj, "args") and hasattr(obj, "keywords"):
        return [(".func", obj.func), (".args", obj.args), (".keywords", obj.keywords)]
    if hasattr(obj, "__self__") and not isinstance(obj.__self__, type) and callable(obj):
        return [(".__self__", obj.__self__)]
    state = getattr(obj, "__dict__", None)
    if isinstance(state, dict) and not isinstance(obj, type):
        return [(f".{name}", value) for name, value in list(state.items())[:1000]]
    return []


def shifted(payload: Payload, mine: Sequence[Buffer], buffers: list[Buffer]) -> Payload:
    """Move a payload that has its own buffers `mine` into a frame whose buffers are `buffers`."""
    if isinstance(payload, bytes):
        return payload
    main, _, count = payload
    start = len(buffers)
    buffers += mine
    return main, start, count
