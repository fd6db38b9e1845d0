"""The supervisor's policy does what OTP's documentation says, row by row.

Each row names the rule it comes from: `sup` is the reference manual of `supervisor`, `princ` the chapter "Supervisor
Behaviour" of the design principles, `code` what OTP's own code does where both are silent, `ours` what OTP does not have.
A scenario is a list of events; `world` carries out what the policy asks for and writes it down.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal._supervise.policy import (
    BACKOFF_LIMIT_S,
    Answer,
    Ask,
    Ended,
    Flags,
    Forget,
    Kill,
    Policy,
    Restarting,
    Spec,
    Start,
    State,
)


class World:
    """Obedient children: what is started is ready at once, what is told to end ends at once; unless `stubborn` or `failing`."""

    def __init__(self, flags: Flags, *specs: Spec) -> None:
        self.policy = Policy(flags)
        self.now = 0.0
        self.alive: dict[str, int] = {}
        self.story: list[str] = []
        self.answers: dict[Any, str] = {}
        self.failing: dict[str, int] = {}  # how many of its next starts fail
        self.slow: set[str] = set()  # becomes ready, or ends, when told
        self.stubborn: set[str] = set()  # ends by being killed only
        for spec in specs:
            self.do(self.policy.start_child(spec, spec.id, self.now))
        self.story.clear()

    def do(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Start(id=id_, run=run):
                    assert id_ not in self.alive, f"{id_} runs twice"
                    self.alive[id_] = run
                    self.story.append(f"start {id_}")
                    if self.failing.get(id_):
                        self.failing[id_] -= 1
                        self.fail(id_)
                    elif id_ not in self.slow:
                        self.ready(id_)
                case Ask(id=id_):
                    self.story.append(f"ask {id_}")
                    if id_ not in self.stubborn:
                        self.exit(id_, normal=True)
                case Kill(id=id_):
                    self.story.append(f"kill {id_}")
                    self.exit(id_, normal=False)
                case Forget(id=id_):
                    self.story.append(f"forget {id_}")
                case Answer(token=token, refusal=refusal):
                    assert token not in self.answers, f"{token} is answered twice"
                    self.answers[token] = refusal
                case Ended(why=why):
                    assert not self.alive
                    self.story.append(why)
                case Restarting():
                    pass

    def exit(self, id_: str, *, normal: bool) -> None:
        self.do(self.policy.exited(id_, self.alive.pop(id_), normal, self.now))

    def crash(self, id_: str) -> None:
        self.exit(id_, normal=False)

    def ends(self, id_: str) -> None:
        self.exit(id_, normal=True)

    def fail(self, id_: str) -> None:
        self.do(self.policy.start_failed(id_, self.alive.pop(id_), self.now))

    def ready(self, id_: str) -> None:
        self.do(self.policy.started(id_, self.alive[id_], self.now))

    def wish(self, what: str, id_: str) -> str | None:
        """Ask for something; returns why it was refused, "" if it was done, None if it is not answered yet."""
        token = (what, id_, len(self.answers))
        self.do(getattr(self.policy, f"{what}_child")(id_, token, self.now))
        return self.answers.get(token)

    def start(self, spec: Spec) -> str | None:
        token = ("start", spec.id, len(self.answers))
        self.do(self.policy.start_child(spec, token, self.now))
        return self.answers.get(token)

    def stop(self) -> None:
        self.do(self.policy.stop("stop", self.now))

    def passes(self, seconds: float) -> None:
        """Let time pass, in the steps the policy asks for."""
        end = self.now + seconds
        while (due := self.policy.next_due) is not None and due <= end:
            self.now = due
            self.do(self.policy.tick(self.now))
        self.now = end

    def state(self, id_: str) -> State:
        return self.policy.children[id_].state


def permanent(*ids: str) -> list[Spec]:
    return [Spec(one) for one in ids]


ONE, ALL, REST = Flags("one_for_one", 9), Flags("one_for_all", 9), Flags("rest_for_one", 9)
ANY = Flags("one_for_one", 9, auto_shutdown="any_significant")
LAST = Flags("one_for_one", 9, auto_shutdown="all_significant")
LAST_ALL = Flags("one_for_all", 9, auto_shutdown="all_significant")


def kinds() -> list[Spec]:
    return [Spec("a"), Spec("b", "transient"), Spec("c", "temporary"), Spec("d")]


def significant(restart: Any, *ids: str) -> list[Spec]:
    return [Spec(one, restart, significant=True) for one in ids]


#: rule -> (flags, children, events, what it makes the supervisor do, who runs in the end)
RULES: dict[str, tuple[Flags, list[Spec], list[tuple[str, str]], str, str]] = {
    "sup: one_for_one: only the child that terminated is affected": (
        ONE, permanent("a", "b", "c"), [("crash", "b")], "start b", "a b c",
    ),
    "sup: one_for_all: all others are terminated, then all are restarted": (
        ALL, permanent("a", "b", "c"), [("crash", "b")], "ask c, ask a, start a, start b, start c", "a b c",
    ),
    "sup: rest_for_one: those after it in start order are terminated, then it and they are restarted": (
        REST, permanent("a", "b", "c"), [("crash", "b")], "ask c, start b, start c", "a b c",
    ),
    "sup: rest_for_one: nobody is after the last": (
        REST, permanent("a", "b", "c"), [("crash", "c")], "start c", "a b c",
    ),
    "sup: a permanent child is always restarted, after a normal end too": (
        ONE, permanent("a"), [("ends", "a")], "start a", "a",
    ),
    "sup: a transient child is not restarted after a normal end": (
        ONE, kinds(), [("ends", "b")], "", "a c d",
    ),
    "sup: a transient child is restarted after an abnormal end": (
        ONE, kinds(), [("crash", "b")], "start b", "a b c d",
    ),
    "sup: a temporary child is never restarted, and its specification goes with it": (
        ONE, kinds(), [("crash", "c")], "forget c", "a b d",
    ),
    "sup: a temporary child's death restarts nobody, under one_for_all either": (
        ALL, kinds(), [("crash", "c")], "forget c", "a b d",
    ),
    "sup: a temporary child that a sibling's death terminates is not restarted: one_for_all": (
        ALL, kinds(), [("crash", "a")], "ask d, ask c, forget c, ask b, start a, start b, start d", "a b d",
    ),
    "sup: a temporary child that a sibling's death terminates is not restarted: rest_for_one": (
        REST, kinds(), [("crash", "b")], "ask d, ask c, forget c, start b, start d", "a b d",
    ),
    "sup: a normal end of a transient child restarts no sibling": (
        ALL, kinds(), [("ends", "b")], "", "a c d",
    ),
    "code: a restart of all includes the transient child that had ended normally": (
        ALL, [Spec("a"), Spec("b", "transient")], [("ends", "b"), ("crash", "a")], "start a, start b", "a b",
    ),
    "sup: children are terminated in reverse start order when the supervisor terminates": (
        ONE, permanent("a", "b", "c"), [("stop", "")], "ask c, ask b, ask a, stopped", "",
    ),
    "sup: any_significant: a transient significant child that ends normally shuts everything down": (
        ANY, [*permanent("a", "b"), *significant("transient", "s")], [("ends", "s")], "ask b, ask a, auto shutdown", "",
    ),
    "sup: any_significant: a transient significant child that ends abnormally is restarted": (
        ANY, [*permanent("a"), *significant("transient", "s")], [("crash", "s")], "start s", "a s",
    ),
    "sup: any_significant: a temporary significant child shuts everything down however it ends": (
        ANY, [*permanent("a"), *significant("temporary", "s")], [("crash", "s")], "forget s, ask a, auto shutdown", "",
    ),
    "sup: any_significant: a child that is not significant shuts nothing down": (
        ANY, [Spec("a", "transient"), *significant("transient", "s")], [("ends", "a")], "", "s",
    ),
    "sup: all_significant: the first of two shuts nothing down": (
        LAST, [*permanent("a"), *significant("transient", "s", "t")], [("ends", "s")], "", "a t",
    ),
    "sup: all_significant: the last active one shuts everything down": (
        LAST, [*permanent("a"), *significant("transient", "s", "t")], [("ends", "s"), ("ends", "t")], "ask a, auto shutdown", "",
    ),
    "princ: a child terminated by terminate_child does not trigger an automatic shutdown": (
        ANY, [*permanent("a"), *significant("transient", "s")], [("terminate", "s")], "ask s", "a",
    ),
    "princ: a child terminated because of a sibling does not trigger an automatic shutdown": (
        LAST_ALL, [*permanent("a"), *significant("temporary", "s")], [("crash", "a")], "ask s, forget s, start a", "a",
    ),
    "princ: a significant child that was terminated by hand is not active": (
        LAST, [*permanent("a"), *significant("transient", "s", "t")],
        [("terminate", "s"), ("ends", "t")], "ask s, ask a, auto shutdown", "",
    ),
    "sup: terminate_child keeps the specification, unless the child is temporary": (
        ONE, kinds(), [("terminate", "a"), ("terminate", "c")], "ask a, ask c, forget c", "b d",
    ),
    "sup: a terminated child can be restarted explicitly": (
        ONE, permanent("a"), [("terminate", "a"), ("restart", "a")], "ask a, start a", "a",
    ),
    "sup: a terminated child can be restarted by the supervisor, with its siblings": (
        ALL, permanent("a", "b"), [("terminate", "a"), ("crash", "b")], "ask a, start a, start b", "a b",
    ),
    "sup: delete_child forgets a child that does not run": (
        ONE, permanent("a", "b"), [("terminate", "a"), ("delete", "a")], "ask a, forget a", "b",
    ),
    "sup: restart_child keeps the child's place in the order": (
        ONE, permanent("a", "b", "c"), [("terminate", "a"), ("restart", "a"), ("stop", "")],
        "ask a, start a, ask c, ask b, ask a, stopped", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    flags, specs, events, does, runs = RULES[rule]
    world = World(flags, *specs)
    for what, id_ in events:
        if what == "stop":
            world.stop()
        elif what in ("terminate", "restart", "delete"):
            assert not world.wish(what, id_)
        else:
            getattr(world, what)(id_)
    assert ", ".join(world.story) == does
    assert " ".join(world.alive) == runs or set(world.alive) == set(runs.split())


#: rule -> (what happened before, wish, child, answer)
WISHES = {
    "sup: restart_child of a running child: running": ([], "restart", "a", "running"),
    "sup: restart_child of an unknown child: not found": ([], "restart", "x", "not found"),
    "sup: temporary children cannot be restarted: not found": ([("ends", "c")], "restart", "c", "not found"),
    "sup: delete_child of a running child: running": ([], "delete", "a", "running"),
    "sup: delete_child of an unknown child: not found": ([], "delete", "x", "not found"),
    "sup: delete_child of a child about to be restarted: restarting": ([("pause", "a")], "delete", "a", "restarting"),
    "sup: restart_child of a child about to be restarted: restarting": ([("pause", "a")], "restart", "a", "restarting"),
    "sup: terminate_child of an unknown child: not found": ([], "terminate", "x", "not found"),
    "sup: terminate_child of a child that does not run: ok": ([("ends", "b")], "terminate", "b", ""),
    "sup: terminate_child of a child about to be restarted gives up its restart": (
        [("pause", "a")],
        "terminate",
        "a",
        "",
    ),
    "code: terminate_child of a temporary child that has ended: not found": (
        [("ends", "c")],
        "terminate",
        "c",
        "not found",
    ),
    "ours: nothing can be wished for of a supervisor that has ended": ([("stop", "")], "restart", "a", "stopping"),
}


@pytest.mark.parametrize("rule", WISHES)
def test_wish_is_answered_as_documented(rule):
    before, what, id_, answer = WISHES[rule]
    world = World(Flags(intensity=9, backoff_s=1.0), *kinds())
    for happened, whom in before:
        if happened == "stop":
            world.stop()
        else:
            world.crash(whom) if happened == "pause" else world.ends(whom)
    assert world.wish(what, id_) == answer
    world.passes(100.0)
    if happened_pause := ("pause", "a") in before:
        assert (world.state("a") is State.UP) == (what != "terminate"), happened_pause


def test_start_child_says_whether_a_known_child_runs():
    """sup: start_child: already_started or already_present, depending on if the process is running."""
    world = World(ONE, *kinds())
    assert world.start(Spec("a")) == "already started"
    world.ends("b")
    assert world.start(Spec("b")) == "already present"


def test_child_that_cannot_be_started_is_discarded():
    """sup: start_child: if the start function fails, the child specification is discarded."""
    world = World(ALL, *permanent("a"))
    world.failing["b"] = 1
    assert world.start(Spec("b")) == "failed"
    assert list(world.policy.children) == ["a"]
    assert world.start(Spec("b")) == ""


def test_child_that_cannot_be_restarted_by_hand_stays():
    """sup: restart_child: if the start function fails, an error is returned; code: and the child stays as it was."""
    world = World(ALL, *permanent("a", "b"))
    assert world.wish("terminate", "a") == ""
    world.failing["a"] = 1
    assert world.wish("restart", "a") == "failed"
    assert world.state("a") is State.DOWN
    assert world.wish("restart", "a") == ""


# --- intensity ----------------------------------------------------------------------------------


def test_as_many_restarts_as_allowed_are_made_and_one_more_ends_everything():
    """sup: if more than MaxR restarts occur within MaxT seconds, all children are terminated, then the supervisor."""
    world = World(Flags(intensity=3, period=10.0), *permanent("a", "b"))
    for _ in range(3):
        world.passes(1.0)
        world.crash("a")
    assert world.story == ["start a"] * 3
    world.crash("b")
    assert world.story[3:] == ["ask a", "gave up"]
    assert world.policy.ended == Ended("gave up", "b")


def test_intensity_zero_allows_no_restart():
    world = World(Flags(intensity=0), *permanent("a"))
    world.crash("a")
    assert world.story == ["gave up"]


@pytest.mark.parametrize(("apart_s", "survives"), [(4.9, False), (5.0, False), (5.1, True)])
def test_restarts_count_for_as_long_as_the_period(apart_s, survives):
    """code: a restart counts while it is not older than the period, to the instant."""
    world = World(Flags(intensity=1, period=5.0), *permanent("a"))
    world.crash("a")
    world.passes(apart_s)
    world.crash("a")
    assert (world.policy.ended is None) == survives


def test_restart_of_all_counts_once():
    world = World(Flags("one_for_all", intensity=1), *permanent("a", "b", "c"))
    world.crash("c")
    assert set(world.alive) == {"a", "b", "c"}
    assert [child.restarts for child in world.policy.in_order()] == [0, 0, 1]


def test_restart_that_fails_is_counted_and_tried_again():
    """code: a failed restart is tried again at once, and every try counts."""
    world = World(Flags(intensity=3), *permanent("a"))
    world.failing["a"] = 2
    world.crash("a")
    assert world.story == ["start a"] * 3
    world.failing["a"] = 9
    world.crash("a")
    assert world.policy.ended == Ended("gave up", "a")


def test_sibling_that_fails_to_restart_is_what_is_tried_again():
    """code: of several children that are restarted, the one that failed is tried again, with those it concerns."""
    world = World(Flags("rest_for_one", intensity=9), *permanent("a", "b", "c"))
    world.failing["b"] = 1
    world.crash("a")
    assert world.story == ["ask c", "ask b", "start a", "start b", "start b", "start c"]


def test_siblings_started_before_a_failure_are_stopped_again_for_the_next_try():
    world = World(Flags("one_for_all", intensity=9), *permanent("a", "b", "c"))
    world.failing["c"] = 1
    world.crash("a")
    again = ["start a", "start b", "start c"]
    assert world.story == ["ask c", "ask b", *again, "ask b", "ask a", *again]


def test_wishes_are_heard_between_two_tries():
    """code: control is left between tries, so that the child's termination, for one, can be handled."""
    world = World(Flags(intensity=9), *permanent("a"))
    world.slow.add("a")
    world.crash("a")
    assert world.wish("terminate", "a") is None  # a start is under way
    world.fail("a")
    assert world.state("a") is State.DOWN
    assert list(world.answers.values()) == ["", ""]


def test_end_of_a_sibling_meanwhile_is_part_of_the_restart():
    """code: the exit of a child that is terminated for its sibling's restart does not count by itself."""
    world = World(Flags("one_for_all", intensity=1), *permanent("a", "b"))
    world.slow.add("a")
    world.crash("a")
    world.slow.clear()
    world.ready("a")
    assert set(world.alive) == {"a", "b"}


def test_exits_wait_while_a_restart_is_under_way():
    """code: one exit after the other is dealt with, in the order in which they came."""
    world = World(Flags("rest_for_one", intensity=9), *permanent("a", "b"))
    world.slow.add("b")
    world.crash("b")
    world.crash("a")
    assert world.story == ["start b"]
    world.slow.clear()
    world.ready("b")
    assert world.story == ["start b", "ask b", "start a", "start b"]


def test_slow_start_holds_up_no_independent_sibling():
    """ours: under one_for_one a restart does not wait for another child's."""
    world = World(ONE, *permanent("a", "b"))
    world.slow.add("a")
    world.crash("a")
    world.crash("b")
    assert world.state("b") is State.UP


# --- shutdown -----------------------------------------------------------------------------------


def test_child_that_does_not_end_in_its_time_is_killed():
    """sup: shutdown: told to terminate, and unconditionally terminated when the time is over."""
    world = World(ONE, Spec("a", shutdown=3.0), Spec("b"))
    world.stubborn.add("a")
    world.stop()
    world.passes(2.9)
    assert world.story == ["ask b", "ask a"]
    world.passes(0.2)
    assert world.story == ["ask b", "ask a", "kill a", "stopped"]


def test_brutal_kill_does_not_ask():
    world = World(ONE, Spec("a", shutdown="kill"))
    world.stop()
    assert world.story == ["kill a", "stopped"]


def test_infinity_waits_for_as_long_as_it_takes():
    world = World(ONE, Spec("a", shutdown=None))
    world.stubborn.add("a")
    world.stop()
    world.passes(1e6)
    assert world.story == ["ask a"]
    world.ends("a")
    assert world.policy.ended == Ended("stopped", None)


def test_next_child_is_stopped_only_when_the_one_before_has_ended():
    world = World(ONE, *permanent("a", "b"))
    world.stubborn.add("b")
    world.stop()
    assert world.story == ["ask b"]
    world.ends("b")
    assert world.story == ["ask b", "ask a", "stopped"]


def test_stop_cuts_a_start_short():
    """ours: a supervisor that is told to stop does not wait for a child to become ready."""
    world = World(ALL, *permanent("a"))
    world.slow.add("b")
    assert world.start(Spec("b")) is None
    world.stop()
    assert world.story == ["start b", "ask b", "ask a", "stopped"]
    assert sorted(world.answers.values()) == ["", "", "stopping"]


def test_kill_ends_all_at_once():
    world = World(ONE, Spec("a", shutdown=None), Spec("b"), Spec("c"))
    world.stubborn |= {"a", "b"}
    world.stop()
    world.do(world.policy.kill("kill", world.now))
    assert world.policy.ended == Ended("stopped", None)
    assert world.story[-1] == "stopped"
    assert not world.alive


def test_stop_is_answered_each_time():
    world = World(ONE, *permanent("a"))
    world.stop()
    world.do(world.policy.stop("again", world.now))
    assert world.answers["stop"] == world.answers["again"] == ""
    assert world.story == ["ask a", "stopped"]


# --- backoff (ours) -----------------------------------------------------------------------------


def test_pauses_double_up_to_a_limit_and_begin_anew_after_staying_up():
    world = World(Flags(intensity=100, period=5.0, backoff_s=1.0), *permanent("a"))
    pauses = []
    for _ in range(9):
        before = world.now
        world.crash("a")
        assert world.state("a") is State.RESTARTING
        world.passes(world.policy.next_due - world.now)
        pauses.append(world.now - before)
        assert world.state("a") is State.UP
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, BACKOFF_LIMIT_S, BACKOFF_LIMIT_S, BACKOFF_LIMIT_S]
    world.passes(5.1)
    world.crash("a")
    assert world.policy.next_due - world.now == 1.0


def test_siblings_are_stopped_before_the_pause_and_started_after_it():
    world = World(Flags("one_for_all", 9, backoff_s=1.0), *permanent("a", "b"))
    world.crash("a")
    assert world.story == ["ask b"]
    world.passes(1.0)
    assert world.story == ["ask b", "start a", "start b"]


def test_siblings_need_not_wait_for_a_child_that_was_given_up():
    world = World(Flags("one_for_all", 9, backoff_s=1.0), *permanent("a", "b", "c"))
    assert world.wish("terminate", "c") == ""
    world.crash("a")
    assert world.wish("terminate", "a") == ""
    assert set(world.alive) == {"b"}


def test_failed_restart_waits_longer_each_time():
    world = World(Flags(intensity=9, backoff_s=1.0), *permanent("a"))
    world.failing["a"] = 2
    world.crash("a")
    world.passes(6.9)
    assert world.story == ["start a", "start a"]
    world.passes(0.1)
    assert world.state("a") is State.UP


# --- properties ---------------------------------------------------------------------------------

IDS = ("a", "b", "c", "d")


@st.composite
def trees(draw):
    strategy = draw(st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"]))
    auto = draw(st.sampled_from(["never", "any_significant", "all_significant"]))
    flags = Flags(
        strategy, draw(st.integers(0, 4)), draw(st.sampled_from([1.0, 5.0])), auto, draw(st.sampled_from([0.0, 0.5]))
    )
    specs = []
    for id_ in IDS[: draw(st.integers(1, 4))]:
        restart = draw(st.sampled_from(["permanent", "transient", "temporary"]))
        chosen = auto != "never" and restart != "permanent" and draw(st.booleans())
        specs.append(Spec(id_, restart, draw(st.sampled_from([1.0, "kill", None])), chosen))
    return flags, specs


EVENTS = st.tuples(
    st.sampled_from(
        ["crash", "ends", "fail", "slow", "quick", "wait", "terminate", "restart", "delete", "start", "stubborn"]
    ),
    st.sampled_from(IDS),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees(), st.lists(EVENTS, max_size=25))
def test_whatever_happens_who_should_run_runs_or_all_are_stopped(tree, events):
    flags, specs = tree
    world = World(flags, *specs)
    for what, id_ in events:
        if world.policy.ended is not None:
            break
        happen(world, specs, what, id_)
    world.slow.clear()
    for id_ in list(world.alive):
        if world.policy.children[id_].state is State.STARTING:
            world.ready(id_)
    world.passes(1e4)
    for id_ in [one for one in world.stubborn if one in world.alive]:
        if world.state(id_) is State.STOPPING:
            world.ends(id_)
    world.passes(1e4)
    if world.policy.ended is not None:
        assert not world.alive
        return
    for child in world.policy.in_order():
        assert (child.state is State.UP) == (child.spec.id in world.alive)
        assert child.state in (State.UP, State.DOWN)
        assert child.wanted == (child.state is State.UP)
    world.stubborn.clear()
    world.stop()
    assert not world.alive
    assert None not in world.answers.values()


def happen(world: World, specs: list[Spec], what: str, id_: str) -> None:
    """One event of the property test, if it can happen."""
    child = world.policy.children.get(id_)
    if what == "wait":
        world.passes(2.0)
    elif what == "slow":
        world.slow.add(id_)
    elif what == "quick":
        world.slow.discard(id_)
        if child is not None and child.state is State.STARTING:
            world.ready(id_)
    elif what == "stubborn":
        world.stubborn.add(id_)
    elif what == "fail":
        world.failing[id_] = 1
        if child is not None and child.state is State.STARTING:
            world.failing[id_] = 0
            world.fail(id_)
    elif what in ("crash", "ends"):
        if id_ in world.alive and child is not None and child.state is State.UP:
            getattr(world, what)(id_)
    elif what == "start":
        spec = next((one for one in specs if one.id == id_), None)
        if spec is not None:
            world.start(spec)
    else:
        world.wish(what, id_)
