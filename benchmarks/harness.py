"""Run the cases of a suite: a fresh interpreter each, interleaved round by round, and leave nothing behind.

Role: start, bound, collect, clean up. What is measured is in the suite, what it means in `model.py`.

Invariants
    H1  Every process of a case is gone before the next case starts, however the case ended.
    H2  Only processes that carry the case's mark, or sit in the process group made for it, are ended.
    H3  A case that hangs costs its own `limit_s`; every stack of it is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import machine, procs, report
from benchmarks.contenders import BY_NAME, CONTENDERS
from benchmarks.model import OURS, Board, Case, Outcome, Suite, interleave

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

#: How long a hanging case may take to print its stacks. Seconds.
STACKS_S = 1.0
#: Lines of a failed case's output that are shown.
TAIL_LINES = 12


# --- one case -----------------------------------------------------------------------------------


def run_case(case: Case, contender: str, params: Mapping[str, Any]) -> Outcome:
    """Run one case for one contender in a fresh interpreter."""
    mark = uuid.uuid4().hex
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result_file = Path(folder, "result.json")
        with Path(folder, "output").open("w+b") as output:
            command = [sys.executable, "-m", "benchmarks.child", case.function, contender, json.dumps(params)]
            # A session of its own: a process group we made and may therefore kill.
            process = subprocess.Popen(
                [*command, str(result_file)],
                cwd=ROOT,
                env=_environment(mark),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                in_time = _wait(process, case.limit_s)
                if not in_time:
                    os.kill(process.pid, signal.SIGUSR1)  # child.py answers with every stack
                    _wait(process, STACKS_S)
                left = procs.wait_until_gone(mark) if in_time else []
            finally:
                _end(process, mark)
            output.seek(0)
            text = output.read().decode("utf-8", "replace").replace(f"{ROOT}/", "")  # a record names no folder of ours
            tail = text.splitlines()[-TAIL_LINES:]
        outcome = _outcome(in_time, process.returncode, result_file, tail, len(left), case.limit_s)
    return replace(outcome, took_s=time.monotonic() - start)


def _environment(mark: str) -> dict[str, str]:
    """Keep what a user's shell has, without switches that change what is measured."""
    kept = {"PYTHONPATH", "PYTHONHOME"}
    plain = {k: v for k, v in os.environ.items() if k in kept or not k.startswith(("PYTHON", "SHOAL_"))}
    return {**plain, procs.MARK: mark}


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    """Wait for the end without waking up in between, which would disturb what is measured."""
    poll = select.poll()
    handle = os.pidfd_open(process.pid)
    try:
        poll.register(handle, select.POLLIN)
        ended = bool(poll.poll(limit_s * 1e3))
    finally:
        os.close(handle)
    if ended:
        process.wait()
    return ended


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill whatever is left of a case (H1, H2)."""
    if process.returncode is None:  # not reaped: the group still is the one we made
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    procs.kill_marked(mark)


def _outcome(in_time: bool, code: int, result_file: Path, tail: list[str], left: int, limit_s: float) -> Outcome:
    if not in_time:
        return Outcome("hung", reason=f"hung: killed after {limit_s:.0f} s", note="\n".join(tail))
    if not result_file.exists():
        last = next((line for line in reversed(tail) if line.strip()), "no output")
        return Outcome("failed", reason=f"failed (exit {code}): {last.strip()[:200]}", note="\n".join(tail))
    answer = json.loads(result_file.read_text(encoding="utf-8"))
    if "not_applicable" in answer:
        return Outcome("n/a", reason=answer["not_applicable"], left_behind=left)
    note = answer.pop("note", "")
    return Outcome("ok", figures=answer, note=note, left_behind=left)


# --- a whole run --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for on the command line."""

    suite: Suite
    quick: bool
    cases: tuple[Case, ...]
    contenders: tuple[str, ...]
    rounds: int
    budget_s: float
    #: Everything was asked for, in full: the result is fit to be shown.
    complete: bool
    #: Contenders that only a full run has.
    left_to_full: tuple[str, ...] = ()


def parse(suite: Suite, argv: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{suite.name}", description=suite.question)
    known = list(suite.contenders) or [one.name for one in CONTENDERS if one.name not in suite.leaves_out]
    parser.add_argument("--quick", action="store_true", help="less of everything; not written to the page")
    parser.add_argument("--only", default="", metavar="NAMES", help=f"contenders: {','.join(known)}")
    parser.add_argument("--rows", default="", metavar="NAMES", help=f"cases: {','.join(c.key for c in suite.cases)}")
    parser.add_argument("--rounds", type=int, help="at most this many rounds")
    parser.add_argument("--budget-s", type=float, help="begin no round that would end after this many seconds")
    asked = parser.parse_args(argv)
    names = _chosen(parser, "--only", asked.only, known)
    keys = _chosen(parser, "--rows", asked.rows, [case.key for case in suite.cases])
    left = [name for name in names if asked.quick and not asked.only and name in suite.quick_leaves_out]
    if asked.rounds is not None and asked.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {asked.rounds}")
    return Plan(
        suite=suite,
        quick=asked.quick,
        cases=tuple(c for c in suite.cases if c.key in keys and (c.quick_too or asked.rows or not asked.quick)),
        contenders=tuple(name for name in names if name not in left),
        rounds=asked.rounds or (suite.quick_rounds if asked.quick else suite.full_rounds),
        budget_s=asked.budget_s or (suite.quick_budget_s if asked.quick else suite.full_budget_s),
        complete=not (asked.quick or asked.only or asked.rows),
        left_to_full=tuple(left),
    )


def _chosen(parser: argparse.ArgumentParser, option: str, text: str, known: list[str]) -> list[str]:
    wanted = [word.strip() for word in text.split(",") if word.strip()]
    if unknown := [word for word in wanted if word not in known]:
        parser.error(f"{option}: unknown {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in wanted] if wanted else known


def run(plan: Plan, smoke: Case | None) -> tuple[Board, dict[str, str], dict[str, Any]]:
    """Run the plan. Returns (outcomes, why contenders were skipped, facts about the run)."""
    start = time.monotonic()
    noise = machine.Noise()
    skipped = {name: reason for name in plan.contenders if (reason := BY_NAME[name].missing())}
    if smoke is not None:
        skipped |= _smoke(smoke, [name for name in plan.contenders if name not in skipped])
    present = [name for name in plan.contenders if name not in skipped]
    board = Board()
    done = 0
    while done < plan.rounds:
        due = [plan.suite.limits, *(case for case in plan.cases if case.due(done))]
        names = plan.suite.taking_part(present, done)
        if done and time.monotonic() - start + board.next_round_s(due, ["machine", *names]) > plan.budget_s:
            break
        began = time.monotonic()
        _round(plan, board, names, done)
        done += 1
        now = time.monotonic()
        _say(f"round {done} of at most {plan.rounds}: {now - began:.0f} s, {now - start:.0f} s in all")
    took = time.monotonic() - start
    facts = {
        "rounds": done,
        "took_s": round(took, 1),
        "quick": plan.quick,
        "case_seconds": {case: round(seconds, 1) for case, seconds in board.seconds().items()},
    }
    return board, skipped, facts | noise.report()


def _smoke(smoke: Case, names: Iterable[str]) -> dict[str, str]:
    bad = {}
    for name in names:
        outcome = run_case(smoke, name, {})
        if outcome.status != "ok":
            bad[name] = outcome.reason
            _say(f"{name} is left out: {outcome.reason}\n{outcome.note}")
    return bad


def _round(plan: Plan, board: Board, present: list[str], number: int) -> None:
    bounds = plan.suite.limits
    limits = run_case(bounds, "-", bounds.params(quick=plan.quick))
    board.add(bounds.key, "machine", limits)
    if limits.status != "ok":
        _say(f"the machine's own limits: {limits.reason}\n{limits.note}")
    for case, name in interleave(plan.cases, present, number):
        lacking = [reason for need in reversed(case.needs) if (reason := BY_NAME[name].lack(need))]
        if lacking and not board.outcomes(case.key, name):
            board.add(case.key, name, Outcome("n/a", reason=lacking[0]))
        if board.struck_out(case.key, name):
            continue
        outcome = run_case(case, name, case.params(quick=plan.quick))
        board.add(case.key, name, outcome)
        if outcome.status in {"failed", "hung"}:
            _say(f"round {number + 1}, {case.key}, {name}: {outcome.reason}\n{outcome.note}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _on_sigterm(*_: object) -> NoReturn:
    sys.exit(143)  # an exception, so that the current case is cleaned up


def run_from_command_line(suite: Suite, *, smoke: Case | None = None, argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, store the results; a complete run also renders the page."""
    plan = parse(suite, argv)
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        board, skipped, facts = run(plan, smoke)
    except KeyboardInterrupt:
        sys.exit(130)
    distributions = [BY_NAME[name].distribution for name in plan.contenders if name not in skipped]
    versions = [*(name for name in distributions if name), *suite.libraries]
    record = report.record(plan.suite, plan.cases, plan.contenders, board, skipped)
    record |= {"run": facts, "machine": machine.describe(versions)}
    if plan.left_to_full:
        record["notes"].append(f"a quick run leaves out {', '.join(plan.left_to_full)}; --only names them.")
    RESULTS.mkdir(exist_ok=True)
    # A partial run must not replace the figures that the page shows.
    target = RESULTS / (f"{suite.name}.json" if plan.complete else f"{suite.name}.partial.json")
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    report.print_table(record)
    _say(f"written: {target.relative_to(ROOT)}")
    if plan.complete:
        from benchmarks.suites import SUITES

        page = report.write_page(SUITES)
        _say(f"written: {page.relative_to(ROOT)}")
    if OURS in plan.contenders and OURS in skipped:
        _say(f"note: {OURS} itself was left out: {skipped[OURS]}")
