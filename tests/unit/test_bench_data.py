"""The data benchmark's own arithmetic: clocks, sizes, and what its tasks answer."""

from __future__ import annotations

import pytest

from benchmarks import arrays, data, procs


def test_both_looks_at_an_array_give_the_answer_that_is_checked():
    array = arrays.marked_array(8 * 1000)
    data.check(arrays.ends(array))
    data.check(arrays.read_all(array))
    data.check(sum([arrays.ends(array)] * 16), 16)


def test_an_array_that_did_not_arrive_is_an_error():
    with pytest.raises(RuntimeError, match="did not arrive"):
        data.check(0.0)


def test_every_slice_a_worker_gives_has_ends_that_are_recognised():
    arrays.prepare(("plain", 8 * 1000))
    for nbytes in (8 * 2, 8 * 500, 8 * 1000):
        given = arrays.give("plain", nbytes)
        assert given.nbytes == nbytes
        data.check(arrays.ends(given))


def test_a_worker_keeps_one_array_of_each_kind_and_makes_another_for_another_size():
    arrays.prepare(("plain", 8 * 100))
    kept = arrays.give("plain", 8 * 100)
    arrays.prepare(("plain", 8 * 100))
    assert arrays.give("plain", 8 * 100) is kept
    arrays.prepare(("plain", 8 * 50))
    assert arrays.give("plain", 8 * 50) is not kept


def test_making_what_a_call_is_given_is_not_on_the_clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(data.time, "perf_counter", lambda: now[0])

    def make() -> float:
        now[0] += 100.0
        return 0.002

    def action(seconds: float) -> None:
        now[0] += seconds

    assert data.clocked(action, make) == pytest.approx(2.0)


def test_long_calls_are_repeated_less_often(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(data.time, "perf_counter", lambda: now[0])

    def action(_: object) -> None:
        calls.append(1)
        now[0] += 0.3

    data.clocked(action, enough_s=0.5, most=5)
    assert len(calls) == 2


def test_sizes_are_powers_of_four_that_the_free_memory_allows(monkeypatch):
    monkeypatch.setattr(procs, "machine_bytes", lambda field: data.SHARE_OF_MEMORY * (1 << 20))
    assert data.sizes({"largest": 1 << 30}) == [4096 * 4**power for power in range(5)]
    assert data.sizes({"largest": 1 << 14}) == [4096, 16384]


def test_a_curve_ends_where_the_next_call_would_take_too_long(monkeypatch):
    monkeypatch.setattr(data, "_point_s", lambda move, size: size / 1e6)
    figures: data.Figures = {}
    data._curve(figures, "arg", [100_000, 400_000, 1_600_000, 6_400_000], lambda size: None)
    assert figures == {f"arg_{size}": pytest.approx(0.001) for size in (100_000, 400_000, 1_600_000)}
