"""Shared arrays in one process: every view of them travels as a place in the same memory, every copy as data."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shoal
from shoal._memory import arrays, segments
from shoal._wire import codec

RECORD = np.dtype([("id", "i4"), ("at", "M8[us]"), ("place", "f8", (2,)), ("name", "U3")])
DTYPES = ["f8", "i1", "?", "c16", ">i4", "M8[ns]", "m8[D]", "S5", "U2", "V7", "f2", RECORD]
dtypes = st.sampled_from(DTYPES)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def travel(given):
    """Through the codec and back, within this process; every buffer stays where it is."""
    buffers = []
    payload = codec.pack(given, buffers, ("the argument of", len))
    return codec.unpack(payload, buffers)


def address(array):
    return array.__array_interface__["data"][0]


def is_same_view(one, other):
    return (
        type(one) is type(other) is shoal.SharedArray
        and one.dtype == other.dtype
        and one.shape == other.shape
        and one.strides == other.strides
        and one.flags.writeable == other.flags.writeable
        and (address(one) == address(other) or not one.size)
        and segments.find(one) is segments.find(other)
    )


def same_bytes(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def read_only(array):
    view = array[...]
    view.flags.writeable = False
    return view


def slices(size):
    bound = st.none() | st.integers(-size - 1, size + 1)
    return st.builds(slice, bound, bound, st.none() | st.integers(-3, 3).filter(bool))


@st.composite
def views(draw):
    """A shared array of any kind, and any view of it that numpy can make."""
    dtype, shape = np.dtype(draw(dtypes)), draw(shapes)
    array = shoal.empty(shape, dtype, order=draw(st.sampled_from("CF")))
    for _ in range(draw(st.integers(0, 4))):
        how = draw(
            st.sampled_from(
                [
                    "slice",
                    "transpose",
                    "add",
                    "flat",
                    "reshape",
                    "field",
                    "fix",
                    "same",
                    "broadcast",
                    "bytes",
                    "reverse",
                ]
            )
        )
        if how == "slice":
            array = array[(*(draw(slices(n)) for n in array.shape), ...)]
        elif how == "transpose":
            array = array.transpose(draw(st.permutations(range(array.ndim))))
        elif how == "add":
            array = array[None, ...]
        elif how == "flat" and array.flags.c_contiguous:
            array = array.reshape(-1)
        elif how == "reshape" and array.flags.c_contiguous and array.size == 4:
            array = array.reshape(2, 2)
        elif how == "field" and array.dtype.names:
            array = array[draw(st.sampled_from(array.dtype.names))]
        elif how == "fix":
            array = read_only(array)
        elif how == "broadcast":
            array = np.broadcast_to(array, (2, *array.shape), subok=True)
        elif how == "bytes" and array.ndim and array.flags.c_contiguous and array.dtype.itemsize > 1:
            array = array.view(f"V{array.dtype.itemsize}")
        elif how == "reverse" and array.ndim:
            array = array[::-1]
    return array if type(array) is shoal.SharedArray else None


# --- views --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(views())
def test_any_view_arrives_as_the_same_view_of_the_same_memory(array):
    if array is None:
        return
    arrived = travel(array)
    assert is_same_view(array, arrived)
    if arrived.size and arrived.flags.writeable:
        segments.find(array).view()[:] = b"\x01" * segments.find(array).size
        assert same_bytes(array, arrived)


@settings(deadline=None, max_examples=50)
@given(views(), st.sampled_from([2, 4, 5]))
def test_any_view_pickled_by_somebody_else_is_a_copy_of_its_values(array, protocol):
    if array is None:
        return
    arrived = pickle.loads(pickle.dumps(array, protocol))
    assert type(arrived) is np.ndarray
    assert arrived.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")  # numpy's own may change the order
    assert same_bytes(array.view(np.ndarray).astype(arrived.dtype), arrived)
    assert not np.shares_memory(array, arrived)


@pytest.mark.parametrize(
    "change", [lambda a: a.view("u4"), lambda a: a.view("c8"), lambda a: a.real, lambda a: a.diagonal()]
)
def test_views_as_another_type_travel_by_reference(change):
    array = change(shoal.zeros((4, 4)))
    assert is_same_view(array, travel(array))


def test_windows_that_overlap_themselves_travel_by_reference():
    array = shoal.array(np.arange(10.0))
    windows = np.lib.stride_tricks.as_strided(array, (8, 3), (8, 8), subok=True)
    assert is_same_view(windows, travel(windows))


def test_views_of_one_array_stay_views_of_one_array():
    array = shoal.zeros(10)
    left, right = travel([array[:6], array[4:]])
    left[5] = 3
    assert (right[1], array[5]) == (3, 3)


def test_a_view_is_small_on_its_way_however_large_the_array():
    array = shoal.zeros(1 << 22)
    assert len(pickle.dumps(array[5:9], 5, buffer_callback=lambda _: False)) < 500


# --- copies -------------------------------------------------------------------------------------

COPIES = {
    "arithmetic": lambda a: a + 1,
    "a comparison": lambda a: a > 0,
    "a ufunc": np.exp,
    "picked elements": lambda a: a[[0, 2]],
    "a mask": lambda a: a[np.ones(a.shape, bool)],
    "take": lambda a: a.take([1, 2]),
    "copy": lambda a: a.copy(),
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "astype": lambda a: a.astype("f4"),
    "flatten": lambda a: a.flatten(),
    "ravel of a transposed": lambda a: a.T.ravel(),
    "sort": np.sort,
    "concatenate": lambda a: np.concatenate([a, a]),
    "a sum along an axis": lambda a: a.sum(axis=0),
    "cumsum": lambda a: a.cumsum(),
    "a product of matrices": lambda a: a @ a,
    "where": lambda a: np.where(a > 0, a, a),
    "beside an ordinary array": lambda a: np.ones(a.shape) + a,
    "stack": lambda a: np.stack([a, a]),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_what_is_computed_is_ordinary_and_travels_as_data(make):
    made = make(shoal.array(np.arange(9.0).reshape(3, 3)))
    assert type(made) is np.ndarray
    assert segments.find(made) is None
    arrived = travel(made)
    assert type(arrived) is np.ndarray
    assert np.array_equal(made, arrived)


def test_what_is_computed_to_a_number_is_a_number():
    array = shoal.array([1.0, 2.0])
    for made in (array.sum(), array.max(), array @ array, array[0], np.mean(array), array.item(1)):
        assert isinstance(made, float)


def test_what_is_computed_in_place_stays_where_it_is():
    array = shoal.zeros(3)
    before = address(array)
    array += 2
    result = np.add(array, 1, out=array)
    assert result is array
    assert (address(array), list(array)) == (before, [3, 3, 3])
    assert is_same_view(array, travel(array))


# --- making -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(shape=shapes, dtype=dtypes, order=st.sampled_from("CF"))
def test_a_new_array_is_what_numpy_makes_and_zero(shape, dtype, order):
    for made, expected in (
        (shoal.empty(shape, dtype, order), np.zeros(shape, dtype, order)),
        (shoal.zeros(shape, dtype, order=order), np.zeros(shape, dtype, order)),
    ):
        assert same_bytes(made, expected)
        assert made.size == 0 or made.strides == expected.strides
        assert made.flags.writeable
        assert made.flags.aligned


@settings(deadline=None, max_examples=50)
@given(views())
def test_a_copy_of_anything_is_equal_and_apart(array):
    if array is None:
        return
    for source in (array, np.asarray(array)):
        made = shoal.array(source)
        assert same_bytes(made, source)
        assert type(made) is shoal.SharedArray
        assert made.flags.writeable
        assert not np.shares_memory(made, source)


def test_the_shape_may_be_a_number_or_any_row_of_numbers():
    for shape in (3, np.int64(3), [3], (np.int8(3),), range(3, 4), np.array([3])):
        assert shoal.empty(shape).shape == (3,)
    assert shoal.empty(()).shape == ()


@pytest.mark.parametrize("shape", [-1, (2, -3), 2.5, "3", (2.5,), None])
def test_what_is_no_shape_is_refused(shape):
    with pytest.raises((TypeError, ValueError)):
        shoal.empty(shape)


@pytest.mark.parametrize("dtype", [object, "O", [("a", "i4"), ("b", object)], np.dtype((object, (2,)))])
def test_python_objects_are_refused_in_words(dtype):
    with pytest.raises(TypeError, match="cannot hold Python objects"):
        shoal.empty(3, dtype)


def test_python_objects_are_refused_when_they_come_with_the_values():
    for make in (
        lambda: shoal.array([object()]),
        lambda: shoal.full(2, object()),
        lambda: shoal.array([1, "a"], object),
    ):
        with pytest.raises(TypeError, match="cannot hold Python objects"):
            make()


def test_a_filled_array_has_the_type_of_its_value():
    assert shoal.full((2, 3), 7).dtype == np.full((2, 3), 7).dtype
    assert shoal.full(2, "abc").tolist() == ["abc", "abc"]
    assert shoal.full((), 1.5).item() == 1.5
    assert shoal.full((2, 2), [1, 2], "f4").tolist() == [[1, 2], [1, 2]]


def test_strings_of_no_length_take_room_of_their_own():
    one, other = shoal.empty(1000, "S"), shoal.empty(1000, "U")
    assert one.dtype == np.empty(1, "S").dtype
    assert not np.shares_memory(one, other)


def test_a_name_that_is_no_order_is_refused():
    with pytest.raises(ValueError, match="order"):
        shoal.empty(3, order="X")


def test_more_than_there_is_is_refused():
    for shape in (1 << 45, (1 << 40, 1 << 40)):
        with pytest.raises(shoal.NoSharedMemory):
            shoal.empty(shape)


# --- small ones ---------------------------------------------------------------------------------


def spans(made):
    return sorted((address(array), address(array) + array.nbytes) for array in made)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 70_000), max_size=60))
def test_no_two_arrays_overlap_and_each_begins_on_a_line_of_its_own(sizes):
    made = [shoal.empty(size, "u1") for size in sizes]
    assert all(before <= after for (_, before), (after, _) in zip(spans(made), spans(made)[1:], strict=False))
    assert all(start % 64 == 0 for start, _ in spans(made))
    for number, array in enumerate(made):
        assert not array.any()
        array[...] = number % 251 + 1
    assert all((array == number % 251 + 1).all() for number, array in enumerate(made))


def test_thousands_of_small_arrays_cost_few_descriptors():
    before = len(os.listdir("/proc/self/fd"))
    made = [shoal.empty(10) for _ in range(10_000)]
    assert len(os.listdir("/proc/self/fd")) - before <= 2
    del made
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) - before <= 0


def test_threads_may_make_small_arrays_at_the_same_time():
    made = []

    def work():
        made.extend(shoal.empty(100, "u1") for _ in range(500))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(before <= after for (_, before), (after, _) in zip(spans(made), spans(made)[1:], strict=False))


def test_after_a_fork_both_sides_make_small_arrays_that_do_not_overlap():
    board = shoal.zeros(8, "i8")
    before = shoal.zeros(4)
    with arrays._slab.lock:  # somebody is making one while we fork
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                made = [shoal.full(4, 1.0) for _ in range(50)]
                before[0] = 5
                board[0] = len({segments.find(array).id for array in made} & {segments.find(before).id})
                code = 0 if all((array == 1).all() for array in made) else 2
            finally:
                os._exit(code)
    made = [shoal.full(4, 2.0) for _ in range(50)]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert all((array == 2).all() for array in made)
    assert (before[0], board[0]) == (5, 0)


# --- who may write what -------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(shape=st.tuples(st.integers(1, 6), st.integers(1, 6)), data=st.data())
def test_two_parts_overlap_if_they_have_an_element_in_common(shape, data):
    array = shoal.zeros(shape, "i4")
    one, other = (array[data.draw(slices(shape[0])), data.draw(slices(shape[1]))] for _ in range(2))
    (first,), (second,) = arrays.find_writable([one]), arrays.find_writable([other])
    one[...] = 1
    assert arrays.overlap(first, second) == bool(other.any()) == arrays.overlap(second, first)


def test_writable_parts_are_found_wherever_they_are_hidden():
    array = shoal.zeros(100)
    fixed = read_only(array)
    hidden = ({"a": [array[:10]]}, lambda: array[50:], fixed, np.asarray(array), array + 1)
    assert sorted(extent.shape for extent in arrays.find_writable(hidden)) == [(10,), (100,)]
    assert arrays.find_writable((fixed, 1, "x")) == []
    assert arrays.find_writable(threading.Lock()) == []


def test_the_bounds_of_a_part_are_its_first_and_last_byte():
    array = shoal.zeros((4, 4), "i8")
    at = address(array) - address(np.frombuffer(segments.find(array).view(), "u1"))

    def bounds(part):
        start, stop = arrays.bounds(arrays.find_writable(part)[0])
        return (start - at, stop - at) if part.size else stop - start

    assert bounds(array) == (0, 128)
    assert bounds(array[1:3, ::-1]) == (32, 96)
    assert bounds(array[::-2, 1]) == (40, 112)
    assert bounds(array[2:2]) == 0
