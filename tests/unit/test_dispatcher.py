"""The dispatcher against a trivial model of it, over long random histories; and against workers that lie (D3)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal._pool.batching import WHOLE, Pace
from shoal._pool.dispatcher import SILENT_LOSSES, Dispatcher


class Job:
    def __init__(self, size, cost_s=1e-4):
        self.size = size
        self.pace = Pace()
        self.grain = WHOLE
        self.pace.cost_s = cost_s
        self.given_up = False


def with_one_span(size=3, **options):
    """Return a dispatcher whose worker 0 has the tasks of one job, in one span or several."""
    dispatcher, job = Dispatcher(**options), Job(size, cost_s=0.0)
    dispatcher.worker_ready(0)
    for _ in range(size):
        dispatcher.add(job, 0, size)
    (_, span) = dispatcher.assign()[0]
    return dispatcher, job, span


# --- against a reference ------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "ready", "assign", "finish", "back", "die", "die quietly", "give up", "close", "claim", "unclaim"]
        ),
        st.integers(0, 7),
        st.integers(0, 7),
    ),
    max_size=80,
)


class Reference:
    """Each task is in one place; that is all it knows."""

    def __init__(self):
        self.place = {}  # (job, index) -> "waits", number of a worker, or gone
        self.jobs = []

    def where(self, place):
        return {task for task, at in self.place.items() if at == place}

    def move(self, job, start, stop, place):
        for index in range(start, stop):
            if job.given_up and place == "waits":
                del self.place[job, index]
            else:
                self.place[job, index] = place

    def settle(self, job, start, stop):
        for index in range(start, stop):
            del self.place[job, index]


class History:
    def __init__(self, max_tasks):
        self.dispatcher, self.reference = Dispatcher(max_tasks), Reference()
        self.workers = []
        self.number = 0

    def play(self, step, a, b):
        getattr(self, "do_" + step.replace(" ", "_"))(a, b)
        self.check()

    def pick(self, a, b):
        """Return (worker, span) of something in flight, or None."""
        busy = [number for number in self.workers if self.dispatcher.spans_at(number)]
        if not busy:
            return None
        number = busy[a % len(busy)]
        return number, self.dispatcher.spans_at(number)[0]

    def do_add(self, a, b):
        job = Job(1 + a, cost_s=[None, 1e-6, 1e-3, 1.0][b % 4])
        job.number = len(self.reference.jobs)
        self.reference.jobs.append(job)
        self.dispatcher.add(job, 0, job.size)
        self.reference.move(job, 0, job.size, "waits")

    def do_ready(self, a, b):
        if len(self.workers) < 4:
            self.workers.append(self.number)
            self.dispatcher.worker_ready(self.number)
            self.number += 1

    def do_assign(self, a, b):
        for number, span in self.dispatcher.assign():
            assert {(span.job, index) for index in range(span.start, span.stop)} <= self.reference.where("waits")
            self.reference.move(span.job, span.start, span.stop, number)
        assert not (self.dispatcher.waiting and self.dispatcher.idle)  # D6
        for number in self.dispatcher.spent():
            self.workers.remove(number)
            assert self.dispatcher.worker_gone(number, None) is None

    def do_finish(self, a, b):
        if found := self.pick(a, b):
            number, span = found
            count = 1 + b % len(span)
            first = span.start
            assert self.dispatcher.finished(number, span.id, first, count) is span.job
            assert self.dispatcher.finished(number, span.id, first, count) is None  # D3
            self.reference.settle(span.job, first, first + count)

    def do_back(self, a, b):
        if found := self.pick(a, b):
            number, span = found
            job, stop, first = span.job, span.stop, span.start + b % len(span)
            self.dispatcher.handed_back(number, span.id, first)
            self.reference.move(job, first, stop, "waits")

    def do_die(self, a, b, quiet=False):
        if not self.workers:
            return
        number = self.workers.pop(a % len(self.workers))
        spans = [(span.job, span.start, span.stop) for span in self.dispatcher.spans_at(number)]
        first = next(iter(self.dispatcher.spans_at(number)), None)
        announced = None if first is None or quiet else (first.id, first.start + b % len(first))
        losses = first.lost if first is not None else 0
        culprit = self.dispatcher.worker_gone(number, announced)
        if announced is not None:
            assert culprit == (first.job, announced[1])
        else:
            assert (culprit is None) == (losses + 1 < SILENT_LOSSES or first is None)
        for job, start, stop in spans:
            self.reference.move(job, start, stop, "waits")
        if culprit is not None:
            self.reference.place.pop(culprit, None)

    def do_die_quietly(self, a, b):
        self.do_die(a, b, quiet=True)

    def do_claim(self, a, b):
        """Whoever waits for the first worker takes some of one job, unless it has some already."""
        if not self.reference.jobs:
            return
        job = self.reference.jobs[a % len(self.reference.jobs)]
        if job.given_up or any(at == "claimed" and owner is job for (owner, _), at in self.reference.place.items()):
            return
        claimed = self.dispatcher.claim(job, 1 + b)
        first = self.dispatcher._backlog[0] if self.dispatcher._backlog else None
        if claimed is None:
            assert self.workers or first is None or first.job is not job
            return
        start, stop = claimed
        assert not self.workers
        assert 1 <= stop - start <= 1 + b
        assert {(job, index) for index in range(start, stop)} <= self.reference.where("waits")
        self.reference.move(job, start, stop, "claimed")

    def do_unclaim(self, a, b):
        claims = sorted({job.number for job, _ in self.reference.where("claimed")})
        if claims:
            self._unclaim(next(job for job in self.reference.jobs if job.number == claims[a % len(claims)]))

    def _unclaim(self, job):
        self.dispatcher.unclaim(job)
        for task in [task for task in self.reference.where("claimed") if task[0] is job]:
            del self.reference.place[task]

    def do_give_up(self, a, b):
        jobs = [job for job in self.reference.jobs if not job.given_up]
        if jobs:
            job = jobs[a % len(jobs)]
            job.given_up = True
            self.dispatcher.drop(job)
            self._unclaim(job)
            for task in self.reference.where("waits"):
                if task[0] is job:
                    del self.reference.place[task]

    def do_close(self, a, b):
        if a:
            return  # rarely
        taken = {(job, i) for job, start, stop in self.dispatcher.take_waiting() for i in range(start, stop)}
        assert taken == self.reference.where("waits")
        for task in taken:
            del self.reference.place[task]

    def check(self):
        dispatcher, reference = self.dispatcher, self.reference
        assert dispatcher.waiting == len(reference.where("waits"))
        for number in self.workers:
            owed = [(span.job, i) for span in dispatcher.spans_at(number) for i in range(span.start, span.stop)]
            assert set(owed) == reference.where(number)
            assert len(owed) == dispatcher.in_flight(number) == len(reference.where(number))
            assert dispatcher.spans_with(number) == len(dispatcher.spans_at(number))
            assert (number in dispatcher.loaded()) == (len(owed) > 1)
        assert dispatcher.has_work == bool(reference.place)
        for job in reference.jobs:
            flying = [
                place
                for (owner, _), place in reference.place.items()
                if owner is job and place not in ("waits", "claimed")
            ]
            assert sum(len(span) for _, span in dispatcher.spans_of(job)) == len(flying)


@settings(max_examples=200, deadline=None)
@given(steps, st.none() | st.integers(1, 5))
def test_any_history_agrees_with_the_reference(history, max_tasks):
    play = History(max_tasks)
    for step in history:
        play.play(*step)
    # And then everything gets done.
    while play.dispatcher.has_work:
        play.play("ready", 0, 0)
        play.play("assign", 0, 0)
        play.play("finish", 0, 0)
        play.play("unclaim", 0, 0)


# --- workers that lie ---------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "count"), [(1, 1), (0, 4), (-1, 1), (3, 1), (0, 99)])
def test_a_report_that_does_not_fit_the_span_is_for_nobody(first, count):
    dispatcher, job = Dispatcher(), Job(12, cost_s=1e-6)
    dispatcher.worker_ready(0)
    dispatcher.add(job, 0, 12)
    ((_, span), *_) = dispatcher.assign()
    span_size = len(span)
    assert span_size >= 3
    if count > 1:
        count = span_size + count
    assert dispatcher.finished(0, span.id, first, count) is None
    assert len(span) == span_size


def test_reports_of_strangers_are_for_nobody():
    dispatcher, _, span = with_one_span()
    assert dispatcher.finished(1, span.id, 0, 1) is None
    assert dispatcher.finished(0, span.id + 99, 0, 1) is None
    dispatcher.handed_back(1, span.id, 0)
    dispatcher.handed_back(0, span.id, span.stop)
    dispatcher.handed_back(0, span.id + 99, 0)
    assert not dispatcher.cut(0, span.id, span.stop)
    assert dispatcher.owes(0, span.id) is span
    assert dispatcher.owes(1, span.id) is None
    assert dispatcher.worker_gone(5, (span.id, 0)) is None


def test_an_announcement_outside_of_what_is_owed_blames_nobody():
    dispatcher, _, span = with_one_span()
    dispatcher.finished(0, span.id, span.start, 1)
    assert dispatcher.worker_gone(0, (span.id, span.stop)) is None


# --- single rules -------------------------------------------------------------------------------


def test_what_was_lost_silently_too_often_is_blamed_all_the_same():
    dispatcher, job = Dispatcher(), Job(1)
    dispatcher.add(job, 0, 1)
    for number in range(SILENT_LOSSES):
        dispatcher.worker_ready(number)
        assert len(dispatcher.assign()) == 1
        culprit = dispatcher.worker_gone(number, None)
        assert culprit == ((job, 0) if number == SILENT_LOSSES - 1 else None)
    assert not dispatcher.has_work


def test_what_comes_back_goes_first_and_in_order():
    dispatcher = Dispatcher()
    jobs = [Job(1, cost_s=1e-6) for _ in range(8)]
    for job in jobs:
        dispatcher.add(job, 0, 1)
    dispatcher.worker_ready(0)
    dispatcher.assign()
    dispatcher.worker_gone(0, None)
    assert [job for job, _, _ in dispatcher.take_waiting()] == jobs


def test_a_retired_worker_is_handed_nothing():
    dispatcher = Dispatcher(5)
    dispatcher.worker_ready(0)
    dispatcher.worker_ready(1)
    dispatcher.retire(0)
    dispatcher.add(Job(8), 0, 8)
    assert {number for number, _ in dispatcher.assign()} == {1}
    assert dispatcher.spent() == [0]


def test_a_task_is_dropped_once():
    dispatcher = Dispatcher()
    span = dispatcher.add(Job(1), 0, 1)
    assert dispatcher.drop_waiting(span)
    assert not dispatcher.drop_waiting(span)
    assert dispatcher.waiting == 0
    assert not dispatcher.has_work


def test_a_task_that_was_taken_or_is_in_flight_is_not_dropped():
    dispatcher = Dispatcher()
    taken = dispatcher.add(Job(1), 0, 1)
    dispatcher.take_waiting()
    assert not dispatcher.drop_waiting(taken)
    flying = dispatcher.add(Job(1), 0, 1)
    dispatcher.worker_ready(0)
    dispatcher.assign()
    assert not dispatcher.drop_waiting(flying)
    assert dispatcher.waiting == 0


def test_a_submitted_call_keeps_its_span_through_hand_over_and_back():
    dispatcher = Dispatcher()
    span = dispatcher.add(Job(1), 0, 1)
    dispatcher.worker_ready(0)
    ((_, handed),) = dispatcher.assign()
    assert handed is span
    dispatcher.handed_back(0, span.id, 0)
    assert dispatcher.drop_waiting(span)


def test_the_last_task_of_a_span_can_be_cut_off():
    dispatcher, _, span = with_one_span(1)
    assert dispatcher.cut(0, span.id, 0)
    assert dispatcher.in_flight(0) == 0
    assert dispatcher.idle == 1


# --- tasks the caller runs itself -----------------------------------------------------------------


def test_a_caller_claims_from_the_front_until_nothing_is_left():
    dispatcher, job = Dispatcher(), Job(5)
    dispatcher.add(job, 0, 5)
    assert dispatcher.claim(job, 2) == (0, 2)
    assert (dispatcher.waiting, dispatcher.has_work) == (3, True)
    dispatcher.unclaim(job)
    assert dispatcher.claim(job, 99) == (2, 5)
    assert (dispatcher.waiting, dispatcher.has_work) == (0, True)  # the pool does not end yet
    assert dispatcher.claim(job, 1) is None
    dispatcher.unclaim(job)
    assert not dispatcher.has_work


def test_a_claim_ends_when_a_worker_is_ready():
    dispatcher, job = Dispatcher(), Job(5)
    dispatcher.add(job, 0, 5)
    dispatcher.claim(job, 2)
    dispatcher.worker_ready(0)
    assert dispatcher.claim(job, 2) is None
    ((_, span), *_) = dispatcher.assign()
    assert span.start == 2  # what was claimed is not handed out


def test_a_claim_takes_nothing_of_others_that_come_first():
    dispatcher, job, other = Dispatcher(), Job(5), Job(1)
    dispatcher.add(other, 0, 1)
    dispatcher.add(job, 0, 5)
    assert dispatcher.claim(job, 2) is None
    assert dispatcher.waiting == 6


def test_a_claim_skips_what_was_dropped():
    dispatcher, job, other = Dispatcher(), Job(5), Job(1)
    span = dispatcher.add(other, 0, 1)
    dispatcher.add(job, 0, 5)
    dispatcher.drop_waiting(span)
    assert dispatcher.claim(job, 2) == (0, 2)


def test_dropping_a_job_drops_what_is_left_behind_the_claimed():
    dispatcher, job = Dispatcher(), Job(5)
    dispatcher.add(job, 0, 5)
    dispatcher.claim(job, 2)
    dispatcher.drop(job)
    assert (dispatcher.waiting, dispatcher.has_work) == (0, True)
    dispatcher.unclaim(job)
    assert not dispatcher.has_work


def test_a_claim_that_nobody_has_is_ended_in_peace():
    dispatcher, job = Dispatcher(), Job(5)
    dispatcher.unclaim(job)
    assert not dispatcher.has_work


def test_a_million_tasks_are_one_span():
    dispatcher = Dispatcher()
    dispatcher.add(Job(10**6), 0, 10**6)
    assert dispatcher.waiting == 10**6
    assert len(dispatcher._backlog) == 1
