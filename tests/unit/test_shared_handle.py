"""`shoal.share`: put once, read-only everywhere, freed with the last handle and view (H1 to H3)."""

from __future__ import annotations

import array
import copy
import ctypes
import gc
import importlib
import io
import os
import pickle
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shoal
from shoal._memory import segments, shared
from shoal.errors import NoSharedMemory, NotPicklable


@pytest.fixture(autouse=True)
def nothing_received():
    """What ends must end by itself, not by the collector; and nothing received stays for the next test."""
    gc.disable()
    yield
    gc.enable()
    shared._loaded.clear()


def outgoing(obj):
    """The stream and the buffers that a sender of `obj` has."""
    buffers = []
    stream = pickle.dumps(obj, 5, buffer_callback=lambda buffer: buffers.append(buffer.raw()))
    return stream, buffers


def elsewhere(buffer):
    """A buffer as another process receives it: a segment under an identity that is not known here yet."""
    segment = segments.find(buffer)
    assert segment is not None
    assert buffer.nbytes == segment.size, "only a whole segment travels as a reference"
    seen = segments.adopt(os.urandom(16), os.dup(segment.fd), segment.size)
    return seen


def arrived(obj):
    """`obj` as a task in another process receives it."""
    stream, buffers = outgoing(obj)
    return pickle.loads(stream, buffers=[elsewhere(buffer) for buffer in buffers])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


class Point:
    def __init__(self, x):
        self.x = x


# --- what arrives -------------------------------------------------------------------------------


@settings(deadline=None)
@given(plain)
def test_anything_that_pickles_arrives_as_itself(obj):
    handle = shoal.share(obj)
    assert handle.value == obj
    assert arrived(handle) == obj
    assert arrived([handle, {"deep": handle}]) == [obj, {"deep": obj}]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 300), max_size=40))
def test_every_buffer_is_found_again_whatever_their_number(sizes):
    given_ = [bytearray(os.urandom(size)) for size in sizes]
    handle = shoal.share([pickle.PickleBuffer(one) for one in given_])
    assert [bytes(one) for one in handle.value] == [bytes(one) for one in given_]
    assert all(one.readonly for one in handle.value)
    assert [bytes(one) for one in arrived(handle)] == [bytes(one) for one in given_]


def test_a_function_and_an_object_of_a_local_class_travel_by_value():
    base = 3

    class Local:
        def more(self, x):
            return x + base

    assert arrived(shoal.share(lambda x: x * base))(2) == 6
    assert arrived(shoal.share(Local())).more(1) == 4


def test_large_bytes_are_written_from_where_they_are():
    """The stream is kept in pieces: megabytes in it are not copied before they are shared."""
    big = os.urandom(1 << 20)
    parts, buffers = shared._dump_by(pickle.Pickler, {}, {"key": [big, "text"]})
    assert any(part is big for part in parts)
    assert not buffers
    assert arrived(shoal.share({"key": [big, "text"]})) == {"key": [big, "text"]}


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"read-only"),
        memoryview(bytearray(b"writable")),
        memoryview(array.array("d", [1.5, 2.5, 3.5])),
        memoryview(b"every second")[::2],
        memoryview(bytes(24)).cast("i", (2, 3)),
        memoryview(bytes(8)).cast("d", ()),
        memoryview(b""),
    ],
    ids=["bytes", "bytearray", "doubles", "strided", "2-d", "0-d", "empty"],
)
def test_memoryviews_arrive_as_views_of_the_shared_memory(view):
    for got in (shoal.share([view]).value[0], arrived(shoal.share([view]))[0]):
        assert type(got) is memoryview
        assert got == view
        assert (got.format, got.shape, got.readonly) == (view.format, view.shape, True)
        assert segments.find(got) is not None


def test_handles_inside_a_shared_object_arrive_as_their_objects():
    """Each in its own place, also where the outer one is loaded for the first time (H3)."""
    one, two = shoal.share(["one"]), shoal.share({"two": memoryview(b"2")})
    outer = shoal.share({"one": one, "two": two, "again": [one]})
    for got in (outer.value, arrived(outer), shoal.share([outer]).value[0]):
        assert got == {"one": ["one"], "two": {"two": b"2"}, "again": [["one"]]}
    assert not [obj for obj in shared._loaded.values() if obj in (["one"], {"two": b"2"})]


def test_what_lives_in_a_main_module_that_no_worker_can_import_goes_by_value(monkeypatch):
    class Lost:
        def __init__(self):
            self.x = 5

    Lost.__module__, Lost.__qualname__ = "__main__", "Lost"
    monkeypatch.setattr(sys.modules["__main__"], "Lost", Lost, raising=False)
    monkeypatch.setattr(shared, "main_module", lambda: shared_main("none"))
    handle = shoal.share(Lost())
    monkeypatch.delattr(sys.modules["__main__"], "Lost")
    assert arrived(handle).x == 5
    monkeypatch.setattr(sys.modules["__main__"], "Lost", Lost, raising=False)
    monkeypatch.setattr(shared, "main_module", lambda: shared_main("file"))
    assert type(arrived(shoal.share(Lost()))) is Lost


def shared_main(kind):
    from shoal._os.interpreter import MainModule

    return MainModule(kind)


# --- arrays -------------------------------------------------------------------------------------


def arrays():
    np = pytest.importorskip("numpy")
    table = np.arange(48.0).reshape(6, 8)
    return {
        "C": table,
        "F": np.asfortranarray(table),
        "strided": table[::2, ::-3],
        "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
        "broadcast": np.broadcast_to(np.arange(3), (4, 3)),
        "0-d": np.array(5.5),
        "empty": np.zeros((0, 3)),
        "records": np.array([(1, 2.5), (3, 4.5)], [("a", "i4"), ("b", ">f8")]),
        "one field": np.array([(1, 2.5), (3, 4.5)], [("a", "i4"), ("b", ">f8")])["b"],
        "dates": np.array(["2020-01-01", "NaT"], "M8[D]"),
        "text": np.array(["a", "bcd"]),
        "shared": shoal.array(table)[1:3, ::2],
    }


def test_arrays_arrive_read_only_over_the_shared_memory():
    """H1. Also those that numpy itself would pickle as bytes: strided ones, fields."""
    np = pytest.importorskip("numpy")
    given_ = arrays()
    handle = shoal.share(given_)
    for got in (handle.value, arrived(handle)):
        for name, sent in given_.items():
            assert type(got[name]) is np.ndarray, name
            assert got[name].dtype == sent.dtype, name
            np.testing.assert_array_equal(got[name], sent)
            assert not got[name].flags.writeable, name
            assert not sent.size or segments.find(got[name]) is not None, name
            if sent.size:
                with pytest.raises(ValueError):
                    got[name].flags.writeable = True
    assert handle.value["F"].flags.f_contiguous


def test_buffers_are_aligned_for_every_processor():
    np = pytest.importorskip("numpy")
    handle = shoal.share([np.ones(n, "u1") for n in (1, 63, 64, 65, 1000)])
    for one in handle.value:
        assert one.__array_interface__["data"][0] % 64 == 0


def test_a_mapped_file_is_shared_as_an_array(tmp_path):
    np = pytest.importorskip("numpy")
    mapped = np.memmap(tmp_path / "data", "f4", "w+", shape=(10, 10))
    mapped[...] = 3
    got = arrived(shoal.share(mapped))
    assert got.shape == (10, 10)
    assert got.sum() == 300
    assert segments.find(got) is not None


def test_of_a_shared_array_only_the_part_is_put():
    np = pytest.importorskip("numpy")
    large = shoal.zeros((1000, 1000))
    handle = shoal.share(large[:3])
    assert handle.nbytes < 30_000
    large[0] = 7
    assert (handle.value == 0).all(), "it is as it was when it was shared"
    small = shoal.zeros(3)
    assert shoal.share(small).nbytes < 1000
    assert type(shoal.share(small).value) is np.ndarray


def test_arrays_of_objects_arrive_too():
    np = pytest.importorskip("numpy")
    got = arrived(shoal.share(np.array([1, "two", None], object)))
    assert list(got) == [1, "two", None]


# --- handles ------------------------------------------------------------------------------------


def test_handle_says_what_it_is():
    handle = shoal.share({"a": b"x" * 1000})
    assert "dict" in repr(handle)
    assert str(handle.nbytes) in repr(handle)
    assert 1000 <= handle.nbytes < 1500


def test_value_is_loaded_once_and_is_not_what_was_given():
    given_ = [Point(1)]
    handle = shoal.share(given_)
    given_[0].x = 2
    assert handle.value[0].x == 1
    assert handle.value is handle.value
    assert not shared._loaded, "H2: this process made it"


def test_sharing_a_handle_gives_an_equal_one():
    handle = shoal.share([1])
    again = shoal.share(handle)
    assert again == handle
    assert hash(again) == hash(handle)
    assert again.value == [1]
    assert handle != shoal.share([1])
    assert handle != [1]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_handle_is_a_handle_of_the_same(copied):
    handle = shoal.share([1])
    assert copied(handle) == handle
    assert copied([handle])[0] == handle


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_by_others_it_is_a_copy_of_the_object(protocol):
    np = pytest.importorskip("numpy")
    data = pickle.dumps({"h": shoal.share([np.arange(5), "x"])}, protocol)
    got = pickle.loads(data)["h"]
    assert got[1] == "x"
    assert list(got[0]) == [0, 1, 2, 3, 4]
    assert segments.find(got[0]) is None
    assert not shared._loaded
    with pytest.raises(
        ValueError, match="read-only"
    ):  # as everywhere: whether it was copied on the way must not matter
        got[0][0] = 1


# --- life ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", [False, True], ids=["unseen", "value-seen"])
def test_memory_goes_with_the_last_handle_and_view_at_once(look):
    np = pytest.importorskip("numpy")
    handle = shoal.share({"a": np.arange(100), "b": [1, 2], "f": lambda: 1, "h": shoal.share(np.ones(3))})
    gone = []
    segments.find(handle._view).watchers.append(gone.append)
    again = copy.copy(handle)
    kept = handle.value["a"][3:] if look else None
    del handle
    assert not gone
    del again
    assert len(gone) == (not look)
    del kept
    assert len(gone) == 1


def test_handle_in_flight_keeps_the_memory():
    handle = shoal.share(b"x" * 1000)
    gone = []
    segments.find(handle._view).watchers.append(gone.append)
    buffers = outgoing(handle)[1]
    del handle
    assert not gone
    buffers.clear()
    assert gone


def test_receiver_loads_it_once_until_the_sender_lets_go():
    handle = shoal.share([Point(1)])
    stream, (buffer,) = outgoing(handle)
    seen = elsewhere(buffer)
    identity = segments.find(seen).id
    first = pickle.loads(stream, buffers=[seen])
    assert pickle.loads(stream, buffers=[seen]) is first
    assert pickle.loads(stream, buffers=[seen.toreadonly()]) is first
    shared.forget(identity)
    shared.forget(identity)
    assert not shared._loaded
    assert pickle.loads(stream, buffers=[seen]) is not first


def test_receiver_lets_go_when_told():
    np = pytest.importorskip("numpy")
    stream, (buffer,) = outgoing(shoal.share(np.arange(1000)))
    seen = elsewhere(buffer)
    identity = segments.find(seen).id
    del buffer
    got = pickle.loads(stream, buffers=[seen])
    gone = []
    segments.find(seen).watchers.append(gone.append)
    del seen
    shared.forget(identity)
    assert not gone
    del got
    assert gone == [identity]


def test_nothing_is_kept_of_an_object_that_fails_to_load():
    handle = shoal.share(Explosive())
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            handle.value
        with pytest.raises(ZeroDivisionError):
            arrived(handle)
    assert not shared._loaded


class Explosive:
    def __reduce__(self):
        return explode, ()


def explode():
    return 1 / 0


def test_threads_that_load_at_once_get_one_object():
    handle = shoal.share([Point(n) for n in range(2000)])
    stream, (buffer,) = outgoing(handle)
    seen = elsewhere(buffer)
    start = threading.Barrier(8)
    got = []

    def load():
        start.wait()
        got.append((pickle.loads(stream, buffers=[seen]), handle.value))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one, _ in got}) == 1
    assert len({id(value) for _, value in got}) == 1


# --- what fails ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (threading.Lock(), "lock"),
        ({"deep": [threading.Lock()]}, "lock"),
        ((n for n in range(3)), "generator"),
    ],
    ids=["lock", "deep", "generator"],
)
def test_what_cannot_be_pickled_is_named(obj, words):
    with pytest.raises(NotPicklable, match="cannot be sent") as caught:
        shoal.share(obj)
    assert words in str(caught.value)
    assert caught.value.what == "the object to share"


class Quits:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), SystemExit(3), RecursionError("deep")], ids=repr)
def test_an_object_whose_own_code_fails_cannot_be_shared(error):
    with pytest.raises(NotPicklable) as caught:
        shoal.share(Quits(error))
    assert type(error).__name__ in caught.value.reason


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()], ids=repr)
def test_what_is_not_the_objects_fault_passes_through(error):
    with pytest.raises(type(error)):
        shoal.share(Quits(error))


def test_no_memory_is_said_before_anything_is_taken(monkeypatch):
    monkeypatch.setattr(segments.cgroup, "available_memory_bytes", lambda: segments.MARGIN_BYTES)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NoSharedMemory):
        shoal.share([1])
    assert len(os.listdir("/proc/self/fd")) == before


# --- without numpy ------------------------------------------------------------------------------


def test_sharing_needs_no_numpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.delitem(sys.modules, "shoal._memory.arrays", raising=False)
    assert arrived(shoal.share({"a": [b"x" * 100, memoryview(b"y")]})) == {"a": [b"x" * 100, b"y"]}
    with pytest.raises(ImportError, match=r'pip install "shoal\[numpy\]"'):
        importlib.import_module("shoal._memory.arrays")


# --- the hint -----------------------------------------------------------------------------------


def failures():
    np = pytest.importorskip("numpy")
    fixed = np.arange(3.0)
    fixed.flags.writeable = False
    view = memoryview(b"abc")

    def assign():
        fixed[0] = 1

    def add():
        nonlocal fixed
        fixed += 1

    def unlock():
        over = np.frombuffer(b"12345678")
        over.flags.writeable = True

    def byte():
        view[0] = 1

    return [
        assign,
        add,
        unlock,
        byte,
        fixed.sort,
        lambda: np.add(fixed, 1, out=fixed),
        lambda: ctypes.c_char.from_buffer(view),
        lambda: io.BytesIO(b"xyz").readinto(view),
        lambda: memoryview(b"x").__setitem__(0, 1),
    ]


def raised(call):
    try:
        call()
    except (ValueError, TypeError, BufferError) as error:
        return error
    pytest.fail("nothing was raised")


def test_writing_to_what_is_shared_is_explained():
    arrived(shoal.share([1]))
    for call in failures():
        error = raised(call)
        assert "shoal.share" in (shared.read_only_hint(error) or ""), f"{type(error).__name__}: {error}"


def test_nothing_is_explained_where_nothing_is_shared():
    for call in failures():
        assert shared.read_only_hint(raised(call)) is None


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), TypeError("not a number"), KeyError("read-only"), OSError(30, "Read-only file system")],
    ids=repr,
)
def test_other_errors_are_left_alone(error):
    arrived(shoal.share([1]))
    assert shared.read_only_hint(error) is None
