"""A pool as its dispatcher sees it: the real dispatcher, and workers and a pump that are models.

Role: the world of `test_dispatcher`. Owner: that test.

The worker runs its spans in order, each from its start; reports in order; may be recalled at any step; may die at any
step. What it wrote (socket and journal) stays readable after its death; its page keeps the last announcement. The pump
hears one message at a time; a hand-over is sent in a step of its own, because in the pool that is done without the lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from shoal._pool.batching import WHOLE, Grain, Pace
from shoal._pool.dispatcher import Dispatcher, Span
from tests.model.explore import Step

UNKNOWN, SHORT, LONG = None, 1e-4, 0.02
WORKERS = 2


@dataclass(eq=False)
class WorldJob:
    """A job that counts how often each of its tasks is settled."""

    name: str
    size: int
    pace: Pace = field(default_factory=Pace)
    grain: Grain = WHOLE
    given_up: bool = False
    settled: list[str] = field(default_factory=list)  # "" or how
    aside: set[int] = field(default_factory=set)
    claimed: set[int] = field(default_factory=set)  # the caller runs them itself
    span: Span | None = None  # what a submitted call remembers, to be taken out of the queue

    def settle(self, index: int, how: str) -> None:
        assert not self.given_up
        assert not self.settled[index], f"{self.name}[{index}] settled twice: {self.settled[index]}, then {how}"
        self.settled[index] = how


@dataclass(eq=False)
class Stretch:
    """What a worker has of one span: `start..at` is finished and not reported, `at` is next or runs."""

    span_id: int
    start: int
    at: int
    stop: int


@dataclass(eq=False)
class ModelWorker:
    number: int
    queue: list[Stretch] = field(default_factory=list)
    running: bool = False  # the first of the queue is announced and runs
    announced: tuple[int, int] | None = None
    done: int = 0  # tasks of it that were heard of
    said: list[tuple[Any, ...]] = field(default_factory=list)  # written, unread
    last_heard: tuple[Any, ...] | None = None
    alive: bool = True


@dataclass(frozen=True)
class Limits:
    """What may happen, and how often in one history."""

    deaths: int = 0
    recalls: int = 0
    give_ups: int = 0
    claims: int = 0  # the caller takes some while no worker is there; of up to this many tasks
    closes: int = 0  # everything that waits is taken out and fails
    retries: int = 0
    slow_sends: bool = False  # anything may happen between handing over and sending
    unsendable: tuple[str, int] | None = None  # this task cannot be pickled


@dataclass(eq=False)
class Pool:
    """The world: see `explore.World`."""

    limits: Limits
    jobs: list[WorldJob]
    max_tasks: int | None
    dispatcher: Dispatcher
    workers: dict[int, ModelWorker] = field(default_factory=dict)
    unsent: list[tuple[int, Span]] = field(default_factory=list)
    next_number: int = 0

    @classmethod
    def of(cls, limits: Limits, max_tasks: int | None, *jobs: tuple[int, float | None]) -> Pool:
        made = [WorldJob("abc"[place], size, settled=[""] * size) for place, (size, _) in enumerate(jobs)]
        pool = cls(limits, made, max_tasks, Dispatcher(max_tasks))
        for job, (size, cost_s) in zip(made, jobs, strict=True):
            job.pace.cost_s = cost_s
            job.span = pool.dispatcher.add(job, 0, size)
        return pool

    # --- what can happen ------------------------------------------------------------------------

    def steps(self) -> tuple[list[Step], list[Step]]:
        must: list[Step] = []
        may: list[Step] = []
        limits = self.limits
        if len(self.workers) < WORKERS and self.unsettled():
            must.append(("join",))
        if self.dispatcher.waiting:
            must.append(("assign",))
        if self.unsent:
            must.append(("send",))
        if self.dispatcher.spent():
            must.append(("retire",))
        for worker in self.workers.values():
            self._steps_of(worker, must, may)
        for place, job in enumerate(self.jobs):
            must += [(how, place, index) for index in job.aside for how in ("again", "fail")]
            if limits.give_ups and not job.given_up and not all(job.settled):
                may.append(("give_up", place))
            if job.claimed:
                must.append(("settle", place))
            elif not job.given_up and not self.dispatcher._slots:
                may += [("claim", place, most) for most in range(1, limits.claims + 1)]
        if limits.closes and self.dispatcher.waiting:
            may.append(("close",))
        return must, may

    def _steps_of(self, worker: ModelWorker, must: list[Step], may: list[Step]) -> None:
        number = worker.number
        if not worker.alive:
            must.append(("bury", number))
            return
        if worker.said:
            must.append(("hear", number))
        if worker.running:
            must.append(("finish", number))
            if worker.queue[0].at + 1 < worker.queue[0].stop:
                must.append(("go_on", number))  # the next one of the stretch, reporting both together
        elif worker.queue:
            must.append(("start", number))
        if self.limits.recalls and worker.queue:
            may.append(("recall", number))
        if self.limits.deaths and number < WORKERS:
            may.append(("die", number))

    def unsettled(self) -> bool:
        return any(not job.given_up and not all(job.settled) for job in self.jobs)

    def take(self, step: Step) -> None:
        getattr(self, "_" + step[0])(*step[1:])

    # --- the pool's side ------------------------------------------------------------------------

    def _join(self) -> None:
        number, self.next_number = self.next_number, self.next_number + 1
        self.workers[number] = ModelWorker(number)
        self.dispatcher.worker_ready(number)

    def _assign(self) -> None:
        closed = set(self.dispatcher.spent())
        hands = self.dispatcher.assign()
        assert not (self.dispatcher.waiting and self.dispatcher.idle), "D6: work waits beside an idle worker"
        for number, span in hands:
            assert number not in closed, "D5: a retiring worker was handed work"
            assert len(span) > 0
            assert not span.job.given_up, "D1: work of a given-up job is handed out"
        self.unsent += hands
        while self.unsent and not self.limits.slow_sends:
            self._send()

    def _send(self) -> None:
        """Send one span; a task that cannot be pickled fails, what is behind it goes back."""
        number, span = self.unsent.pop(0)
        job: Any = span.job
        bad = self.limits.unsendable
        if bad and job.name == bad[0] and span.start <= bad[1] < span.stop and self._owes(number, span):
            self.dispatcher.handed_back(number, span.id, bad[1] + 1)
            self.dispatcher.cut(number, span.id, bad[1])
            if not job.given_up:
                job.settle(bad[1], "unsendable")
        worker = self.workers.get(number)
        if worker is not None and worker.alive and len(span) and self._owes(number, span):
            worker.queue.append(Stretch(span.id, span.start, span.start, span.stop))

    def _owes(self, number: int, span: Span) -> bool:
        return self.dispatcher.owes(number, span.id) is span

    def _hear(self, number: int) -> None:
        worker = self.workers[number]
        message = worker.said.pop(0)
        worker.last_heard = message
        self._heard(number, message)

    def _heard(self, number: int, message: tuple[Any, ...]) -> None:
        if message[0] == "back":
            self.dispatcher.handed_back(number, *message[1:])
            return
        _, _, first, count = message
        job: Any = self.dispatcher.finished(number, *message[1:])
        assert job is not None, f"a result of worker {number} was thrown away: {message}"
        if job.pace.cost_s is None:
            job.pace.cost_s = SHORT
        if number in self.workers:
            self.workers[number].done += count
        if not job.given_up:
            for index in range(first, first + count):
                job.settle(index, "done")

    def _retire(self) -> None:
        for number in self.dispatcher.spent():
            worker = self.workers.pop(number)
            assert not worker.queue
            assert not worker.said
            assert self.dispatcher.worker_gone(number, None) is None

    def _bury(self, number: int) -> None:
        """Its process is gone: what it wrote counts, and only what it ran is blamed."""
        worker = self.workers.pop(number)
        guilty = self._truth(worker)
        for message in worker.said:
            self._heard(number, message)
        for message in [worker.last_heard, *worker.said]:  # a journal may hold what was sent as well
            if message is not None and message[0] != "back":
                assert self.dispatcher.finished(number, *message[1:]) is None, "D3: a result counts twice"
        culprit: Any = self.dispatcher.worker_gone(number, worker.announced)
        assert culprit == guilty, f"blamed {culprit}, ran {guilty}"
        assert not self.dispatcher.in_flight(number), "D2"
        self.unsent = [hand for hand in self.unsent if hand[0] != number]
        if culprit is not None and not culprit[0].given_up:
            if self.limits.retries:
                culprit[0].aside.add(culprit[1])
            else:
                culprit[0].settle(culprit[1], "failed")

    def _truth(self, worker: ModelWorker) -> tuple[WorldJob, int] | None:
        """Return the task the worker was running, or had finished without saying so."""
        if worker.announced is None:
            return None
        span = self.dispatcher.owes(worker.number, worker.announced[0])
        if span is None or (not worker.running and (not worker.queue or worker.queue[0].start == worker.queue[0].at)):
            return None
        job: Any = span.job
        return job, worker.announced[1]

    def _again(self, place: int, index: int) -> None:
        job = self.jobs[place]
        job.aside.remove(index)
        span = self.dispatcher.add_first(job, index, index + 1)
        if job.size == 1:
            job.span = span

    def _fail(self, place: int, index: int) -> None:
        self.jobs[place].aside.remove(index)
        self.jobs[place].settle(index, "failed")

    def _give_up(self, place: int) -> None:
        self.limits = replace(self.limits, give_ups=self.limits.give_ups - 1)
        job = self.jobs[place]
        job.given_up = True
        job.aside.clear()
        job.claimed.clear()
        self.dispatcher.unclaim(job)  # type: ignore[arg-type]
        if job.size > 1:
            self.dispatcher.drop(job)
        elif job.span is not None:
            self.dispatcher.drop_waiting(job.span)

    def _claim(self, place: int, most: int) -> None:
        job: Any = self.jobs[place]
        claimed = self.dispatcher.claim(job, most)
        if claimed is not None:
            assert 0 < claimed[1] - claimed[0] <= most
            job.claimed.update(range(*claimed))

    def _settle(self, place: int) -> None:
        job: Any = self.jobs[place]
        self.dispatcher.unclaim(job)
        for index in job.claimed:
            job.settle(index, "here")
        job.claimed.clear()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy of the world has jobs of its own."""
        self.__dict__.update(state)
        self.dispatcher._claims = {id(job): len(job.claimed) for job in self.jobs if job.claimed}

    def _close(self) -> None:
        self.limits = replace(self.limits, closes=0)
        for job, start, stop in self.dispatcher.take_waiting():  # they fail in a moment, without the lock
            job.aside.update(range(start, stop))  # type: ignore[attr-defined]

    # --- the worker's side ----------------------------------------------------------------------

    def _start(self, number: int) -> None:
        worker = self.workers[number]
        worker.running = True
        worker.announced = worker.queue[0].span_id, worker.queue[0].at

    def _finish(self, number: int) -> None:
        worker = self.workers[number]
        worker.running = False
        stretch = worker.queue[0]
        stretch.at += 1
        worker.said.append(("part", stretch.span_id, stretch.start, stretch.at - stretch.start))
        stretch.start = stretch.at
        if stretch.start == stretch.stop:
            del worker.queue[0]

    def _go_on(self, number: int) -> None:
        worker = self.workers[number]
        worker.queue[0].at += 1
        worker.announced = worker.queue[0].span_id, worker.queue[0].at

    def _recall(self, number: int) -> None:
        self.limits = replace(self.limits, recalls=self.limits.recalls - 1)
        worker = self.workers[number]
        kept = worker.queue[:1] if worker.running else []
        for stretch in reversed(worker.queue[len(kept) :]):
            worker.said.append(("back", stretch.span_id, stretch.start))
        for stretch in kept:
            if stretch.at + 1 < stretch.stop:
                stretch.stop = stretch.at + 1
                worker.said.append(("back", stretch.span_id, stretch.stop))
        worker.queue = kept

    def _die(self, number: int) -> None:
        self.limits = replace(self.limits, deaths=0)
        self.workers[number].alive = False

    # --- what must hold -------------------------------------------------------------------------

    def check(self) -> None:
        dispatcher = self.dispatcher
        waiting = [span for span in dispatcher._backlog if not span.dropped]
        assert dispatcher.waiting == sum(map(len, waiting)), f"waiting says {dispatcher.waiting}: {waiting}"
        places = {(job.name, index): [] for job in self.jobs for index in range(job.size)}
        for span in waiting:
            _put(places, span, "backlog")
        for number in dispatcher._slots:
            for span in dispatcher.spans_at(number):
                _put(places, span, f"worker {number}")
                assert span.worker == number
        for job in self.jobs:
            for index in job.aside:
                places[job.name, index].append("aside")
            for index in job.claimed:
                places[job.name, index].append("claimed")
            assert self.dispatcher._claims.get(id(job), 0) == len(job.claimed)
            for index, how in enumerate(job.settled):
                where = places[job.name, index] + ([how] if how else [])
                assert len(where) == 1 or (job.given_up and len(where) <= 1), f"D1: {job.name}[{index}] is at {where}"
                assert not (job.given_up and where == ["backlog"]), f"a given-up task waits: {job.name}[{index}]"
        for worker in self.workers.values():
            if worker.alive:
                self._check_worker(worker)

    def _check_worker(self, worker: ModelWorker) -> None:
        """D4: what the dispatcher thinks it owes is what it has, as soon as all it said is heard."""
        slot = self.dispatcher._slots[worker.number]
        if slot.allowance is not None and self.limits.unsendable is None:
            assert slot.allowance + worker.done + self.dispatcher.in_flight(worker.number) == self.max_tasks
        owed = {span.id: [span.start, span.stop] for span in self.dispatcher.spans_at(worker.number)}
        for kind, span_id, first, *count in worker.said:
            if kind == "back":
                owed[span_id][1] = first
            else:
                assert owed[span_id][0] == first
                owed[span_id][0] += count[0]
        left = [(key, start, stop) for key, (start, stop) in owed.items() if start < stop]
        has = [(one.span_id, one.start, one.stop) for one in worker.queue]
        has += [(span.id, span.start, span.stop) for number, span in self.unsent if number == worker.number]
        assert left == has, f"D4: owes {left}, has {has}"

    def check_end(self) -> None:
        for job in self.jobs:
            assert job.given_up or all(job.settled), f"lost: {job.name} {job.settled}"
        assert not self.dispatcher.has_work
        assert not self.dispatcher.waiting

    # --- which states behave alike --------------------------------------------------------------

    def key(self) -> Any:
        dispatcher = self.dispatcher
        names: dict[int, int] = {}

        def short(span_id: int) -> int:
            return names.setdefault(span_id, len(names))

        def flat(span: Span) -> tuple[Any, ...]:
            return span.job.name, span.start, span.stop, span.lost, span.dropped  # type: ignore[attr-defined]

        slots = tuple(
            (
                number,
                slot.allowance,
                slot.retiring,
                round(slot.held_s, 6),
                tuple((short(span.id), round(span.cost_s, 6), *flat(span)) for span in slot.in_flight.values()),
            )
            for number, slot in dispatcher._slots.items()
        )
        mortal = bool(self.limits.deaths) or not all(worker.alive for worker in self.workers.values())
        workers = tuple(
            (
                worker.number,
                worker.alive,
                worker.running,
                tuple((short(one.span_id), one.start, one.at, one.stop) for one in worker.queue),
                mortal and worker.announced and (names.get(worker.announced[0]), worker.announced[1]),
                tuple((kind, short(span_id), *rest) for kind, span_id, *rest in worker.said),
                # what was heard last only matters to a death
                mortal and worker.last_heard and (names.get(worker.last_heard[1]), worker.last_heard[2:]),
            )
            for worker in self.workers.values()
        )
        jobs = tuple(
            (
                job.given_up,
                job.pace.cost_s,
                tuple(job.settled),
                tuple(sorted(job.aside)),
                tuple(sorted(job.claimed)),
                flat(job.span) if job.size == 1 and job.span is not None else None,
            )
            for job in self.jobs
        )
        queue = tuple(flat(span) for span in dispatcher._backlog)
        unsent = tuple((number, short(span.id)) for number, span in self.unsent)
        return slots, workers, jobs, queue, unsent, tuple(dispatcher._idle), tuple(dispatcher._hungry), self.limits


def _put(places: dict[tuple[str, int], list[str]], span: Span, where: str) -> None:
    job: Any = span.job
    for index in range(span.start, span.stop):
        places[job.name, index].append(where)
