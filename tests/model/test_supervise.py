"""Every order of exits, starts and wishes of small trees: who should run runs, or all are stopped.

The policy is the real one; children and time are models. A child that is starting becomes ready or fails; one that is asked to
end ends sooner or later, or is killed when its time is over; one that is up may end, well or badly. In each state at most one
run of a child is alive, starts and stops keep their order (V1, V2, V3); when nothing has to happen any more, every child that is
wanted is up, or the supervisor has ended and nobody is alive (V4, V5).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from shoal._supervise.policy import Answer, Ask, Ended, Flags, Forget, Kill, Policy, Restarting, Spec, Start, State
from tests.model.explore import Step, explore


@dataclass(frozen=True)
class Limits:
    """How often what may happen does happen."""

    exits: int = 2
    failures: int = 0
    stops: int = 0
    kills: int = 0
    waits: int = 0
    wishes: tuple[tuple[str, str], ...] = ()


@dataclass(eq=False)
class Tree:
    policy: Policy
    limits: Limits
    specs: tuple[Spec, ...]
    alive: dict[str, tuple[int, str]] = field(default_factory=dict)  # id -> (run, starting, up, asked or killed)
    waiting: list[int] = field(default_factory=list)
    ended: bool = False
    runs: dict[str, int] = field(default_factory=dict)
    token: int = 0
    now: float = 0.0

    @classmethod
    def of(cls, flags: Flags, limits: Limits, *specs: Spec) -> Tree:
        tree = cls(Policy(flags), limits, specs)
        for spec in specs:
            tree._wish(tree.policy.start_child(spec, tree.token, 0.0))
            tree.take(("ready", spec.id))
        return tree

    # --- what can happen ------------------------------------------------------------------------

    def steps(self) -> tuple[list[Step], list[Step]]:
        must: list[Step] = []
        may: list[Step] = []
        limits = self.limits
        for id_, (_, state) in self.alive.items():
            if state == "starting":
                must.append(("ready", id_))
                may += [("fails", id_)] * (limits.failures > 0)
            elif state == "up":
                may += [("ends", id_), ("crashes", id_)] * (limits.exits > 0)
            elif state == "asked":
                may.append(("obeys", id_))  # or is killed when its time is over
            else:
                must.append(("dies", id_))
        if self.policy.next_due is not None:
            must.append(("tick",))
        may += [("wait",)] * (limits.waits > 0) + [("stop",)] * (limits.stops > 0) + [("kill",)] * (limits.kills > 0)
        may += [("wish", index) for index in range(len(limits.wishes))]
        return must, may

    def take(self, step: Step) -> None:
        name, *who = step
        policy = self.policy
        if name in ("ready", "fails", "ends", "crashes", "obeys", "dies"):
            self._child(name, who[0])
        elif name == "tick":
            self.now = max(self.now, policy.next_due or 0.0)
            self._do(policy.tick(self.now))
        elif name == "wait":
            self.limits = replace(self.limits, waits=self.limits.waits - 1)
            self.now += policy.flags.period + 0.1
        elif name == "wish":
            wishes = self.limits.wishes
            what, id_ = wishes[who[0]]
            self.limits = replace(self.limits, wishes=wishes[: who[0]] + wishes[who[0] + 1 :])
            if what == "start":
                self._wish(policy.start_child(next(one for one in self.specs if one.id == id_), self.token, self.now))
            else:
                self._wish(getattr(policy, f"{what}_child")(id_, self.token, self.now))
        else:
            left = {f"{name}s": getattr(self.limits, f"{name}s") - 1}
            self.limits = replace(self.limits, **left)
            self._wish(getattr(policy, name)(self.token, self.now))

    def _child(self, what: str, id_: str) -> None:
        run, _ = self.alive[id_]
        if what == "ready":
            self.alive[id_] = run, "up"
            self._do(self.policy.started(id_, run, self.now))
            return
        del self.alive[id_]
        if what == "fails":
            self.limits = replace(self.limits, failures=self.limits.failures - 1)
            self._do(self.policy.start_failed(id_, run, self.now))
        else:
            if what in ("ends", "crashes"):
                self.limits = replace(self.limits, exits=self.limits.exits - 1)
            self._do(self.policy.exited(id_, run, what in ("ends", "obeys"), self.now))

    def _wish(self, actions: list[Any]) -> None:
        self.waiting.append(self.token)
        self.token += 1
        self._do(actions)

    # --- what the policy does -------------------------------------------------------------------

    def _do(self, actions: list[Any]) -> None:
        for action in actions:
            assert not self.ended or isinstance(action, Answer), f"{action} after the end (V5)"
            match action:
                case Start(id=id_, run=run):
                    self._starts(id_, run)
                case Ask(id=id_, run=run):
                    assert self.alive[id_][0] == run
                    self._stops(id_)
                    self.alive[id_] = run, "asked"
                case Kill(id=id_, run=run):
                    assert self.alive[id_][0] == run
                    self.alive[id_] = run, "killed"
                case Answer(token=token):
                    assert isinstance(token, int)
                    self.waiting.remove(token)
                case Ended():
                    assert not self.alive, f"{self.alive} live on (V4)"
                    self.ended = True
                case Forget() | Restarting():
                    pass

    def _starts(self, id_: str, run: int) -> None:
        assert id_ not in self.alive, f"{id_} runs twice (V1)"
        spec = self.policy.children[id_].spec
        assert spec.restart != "temporary" or run == 1, f"{id_} is temporary (V3)"
        if self.policy.flags.strategy != "one_for_one":
            others = {one: state for one, (_, state) in self.alive.items()}
            assert "starting" not in others.values(), f"{id_} starts beside {others} (V2)"
            order = list(self.policy.children)
            later = [one for one in order[order.index(id_) + 1 :] if one in others]
            by_hand = self.policy._lane(id_).current.kind in ("restart", "terminate")  # type: ignore[union-attr]
            assert by_hand or not later, f"{id_} starts after {later} (V2)"
        self.alive[id_] = run, "starting"

    def _stops(self, id_: str) -> None:
        if self.policy.ending is None and self.policy.flags.strategy == "one_for_one":
            return
        stopping = [one for one, (_, state) in self.alive.items() if state in ("asked", "killed") and one != id_]
        assert not stopping, f"{id_} is stopped before {stopping} have ended (V2)"
        if self.policy.ending is not None:
            order = list(self.policy.children)
            later = [one for one in order[order.index(id_) + 1 :] if one in self.alive]
            assert not later, f"{id_} is stopped before {later} (V2)"

    # --- what must hold -------------------------------------------------------------------------

    def check(self) -> None:
        for child in self.policy.in_order():
            alive = self.alive.get(child.spec.id)
            runs = child.state in (State.STARTING, State.UP, State.STOPPING)
            assert runs == (alive is not None), f"{child} but {alive}"
            assert alive is None or alive[0] == child.run
        assert set(self.alive) <= set(self.policy.children)
        assert self.policy.flags.strategy == "one_for_one" or len(self.policy._lanes) <= 1
        recent = [one for one in self.policy._restarts if one >= self.now - self.policy.flags.period]
        assert self.policy.ending is not None or len(recent) <= self.policy.flags.intensity, "too many restarts (V4)"

    def check_end(self) -> None:
        if any(state == "asked" for _, state in self.alive.values()):
            return  # somebody without a time limit is waited for
        assert not self.waiting, f"{self.waiting} were never answered (V5)"
        if self.policy.ending is not None:
            assert self.ended
            assert not self.alive
            return
        for child in self.policy.in_order():
            assert child.state in (State.UP, State.DOWN), f"{child} is left so"
            assert child.wanted == (child.state is State.UP), f"{child} should run" if child.wanted else f"{child} runs"

    def key(self) -> Any:
        policy, now = self.policy, self.now
        children = tuple(
            (one.spec.id, one.state, one.run, one.wanted, one.failures, one.kill_at and one.kill_at - now,
             one.due_at and one.due_at - now, now - one.up_since > policy.flags.period)
            for one in policy.in_order()
        )  # fmt: skip
        lanes = tuple((name, repr(lane)) for name, lane in sorted(policy._lanes.items()))
        restarts = tuple(now - one for one in policy._restarts)
        return (
            children,
            lanes,
            restarts,
            tuple(self.alive.items()),
            self.limits,
            tuple(self.waiting),
            policy.ending,
            self.ended,
        )


THREE = (Spec("a"), Spec("b"), Spec("c"))
KINDS = (Spec("a"), Spec("b", "transient"), Spec("c", "temporary"))
GROUP = (Spec("a"), Spec("s", "transient", significant=True), Spec("t", "temporary", significant=True))
SHORT = (Spec("a", shutdown=1.0), Spec("b", shutdown="kill"))
BY_HAND = (("terminate", "a"), ("restart", "a"), ("delete", "a"))

WORLDS = {
    "one_for_one, failures": (Flags("one_for_one", 3), Limits(2, failures=1), THREE),
    "one_for_one, stop": (Flags("one_for_one", 3), Limits(2, failures=1, stops=1), KINDS),
    "one_for_all, failure": (Flags("one_for_all", 3), Limits(1, failures=1), THREE),
    "one_for_all, failures": (Flags("one_for_all", 4), Limits(2, failures=2), SHORT),
    "one_for_all, kinds, stop": (Flags("one_for_all", 3), Limits(2, stops=1), KINDS),
    "one_for_all, pauses": (Flags("one_for_all", 3, backoff_s=1.0), Limits(2, failures=1, waits=1), SHORT),
    "rest_for_one, failures": (Flags("rest_for_one", 3), Limits(2, failures=1), THREE),
    "rest_for_one, kinds, stop": (Flags("rest_for_one", 3), Limits(2, stops=1), KINDS),
    "rest_for_one, pauses": (Flags("rest_for_one", 3, backoff_s=1.0), Limits(2, failures=1), THREE),
    "giving up": (Flags("one_for_all", 1), Limits(3, failures=1, waits=1), SHORT),
    "giving up, independent": (Flags("one_for_one", 1), Limits(3, failures=1, waits=1), SHORT),
    "any significant": (Flags("one_for_all", 3, auto_shutdown="any_significant"), Limits(2, failures=1), GROUP),
    "all significant": (Flags("rest_for_one", 3, auto_shutdown="all_significant"), Limits(3), GROUP),
    "kill": (Flags("one_for_all", 3), Limits(1, failures=1, stops=1, kills=1), SHORT),
    "wishes, independent": (Flags("one_for_one", 3, backoff_s=1.0), Limits(1, wishes=BY_HAND), SHORT),
    "wishes": (Flags("one_for_all", 3), Limits(1, failures=1, wishes=BY_HAND), SHORT),
    "wishes, pauses": (Flags("rest_for_one", 3, backoff_s=1.0), Limits(1, failures=1, wishes=BY_HAND), SHORT),
    "wishes, start": (
        Flags("one_for_all", 3), Limits(1, failures=1, stops=1, wishes=(("start", "b"), ("terminate", "b"))), KINDS[:2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORLDS)
def test_in_every_order_of_events_who_should_run_runs_or_all_are_stopped(name):
    flags, limits, specs = WORLDS[name]
    began = time.monotonic()
    states = explore(Tree.of(flags, limits, *specs))
    print(f"{name}: {states} states in {time.monotonic() - began:.1f} s")
    assert states > 100
