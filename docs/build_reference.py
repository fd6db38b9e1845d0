"""Write docs/reference.md from the docstrings of the public names.

Role: `python docs/build_reference.py` writes it, `--check` says whether it is current. Owner: the documents.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shoal
from shoal import errors

errors.be_broken_process_pools()  # the page shows what they are when it matters

PAGE = Path(__file__).with_name("reference.md")

HEAD = """\
# Reference

Every public name of `shoal`, from its docstring. This page is written by `python docs/build_reference.py`;
`tests/process/test_docs.py` checks that it is current. Times are seconds, and `None` is no limit.
"""

#: (heading, names, words before them), in the order of the page.
SECTIONS: list[tuple[str, list[str], str]] = [
    (
        "The default pool",
        ["map", "imap", "submit", "explain", "cpu_count"],
        "Started at first use, ended with the program.",
    ),
    ("Pools", ["Pool", "PoolView"], ""),
    ("Futures", ["Future"], ""),
    (
        "Processes",
        ["Process", "current_process", "active_children"],
        "What they are for: [processes of your own](guides/processes.md).",
    ),
    (
        "Supervision",
        ["Supervisor", "SupervisedChild", "ChildInfo", "ChildCounts", "SupervisorStatistics"],
        "What it is for: [processes that are restarted](guides/supervision.md).",
    ),
    (
        "What supervisors tell",
        ["ChildEvent", "ChildStarted", "ChildReady", "ChildExited", "ChildRestarting", "ChildStopped", "GaveUp"],
        "",
    ),
    (
        "Actors",
        ["actor", "Actor", "ActorMethod", "ActorFuture", "ActorStatistics"],
        "What they are for: [objects in processes of their own](guides/actors.md).",
    ),
    (
        "Shared memory",
        ["share", "Shared", "empty", "zeros", "full", "array", "SharedArray"],
        "What it is for: [large data](guides/large-data.md). The arrays need numpy.",
    ),
    (
        "Locks and their kin",
        ["Lock", "RLock", "Hold", "Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier"],
        "How to use them: [locks](guides/locks.md).",
    ),
    (
        "Queues and channels",
        ["Queue", "QueueStatistics", "LostItem", "Channel", "ChannelStatistics"],
        "How to use them: [queues and channels](guides/queues.md).",
    ),
    ("Looking at a pool", ["PoolStatistics", "WorkerInfo", "Explanation", "FunctionReport", "AutoReport"], ""),
]

#: Errors that exist for limits that do not.
RESERVED = "`MemoryLimitExceeded`"

#: Sections of a docstring that are lists of names.
LISTS = ("Args", "Attributes", "Raises")


def annotation(value: Any) -> str:
    text = value if isinstance(value, str) else getattr(value, "__name__", str(value))
    return text.replace("EllipsisType", "...").replace("snapshots.", "").replace("explaining.", "")


def parameter(one: inspect.Parameter) -> str:
    stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    text = stars + one.name
    if one.annotation is not one.empty:
        text += f": {annotation(one.annotation)}"
    if one.default is not one.empty:
        shown = "..." if one.default is ... else repr(one.default).replace("'", '"')
        text += f" = {shown}" if one.annotation is not one.empty else f"={shown}"
    return text


def signature(name: str, fn: Any, *, method: bool) -> str:
    """Return a call as a reader would write its head, on one line if it fits."""
    sig = inspect.signature(fn)
    words: list[str] = []
    kinds = [one.kind for one in sig.parameters.values()]
    for index, one in enumerate(sig.parameters.values()):
        if one.kind is one.KEYWORD_ONLY and one.VAR_POSITIONAL not in kinds[:index] and "*" not in words:
            words.append("*")
        words.append(parameter(one))
        if one.kind is one.POSITIONAL_ONLY and kinds[index + 1 : index + 2] != [one.POSITIONAL_ONLY]:
            words.append("/")
    if method and words[0] == "self":
        del words[0]
        words[:] = words[1:] if words[:1] == ["/"] else words
    end = "" if sig.return_annotation is sig.empty else f" -> {annotation(sig.return_annotation)}"
    line = f"{name}({', '.join(words)}){end}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){end}"


def prose(text: str) -> Iterator[str]:
    """Turn one Google-style docstring into Markdown."""
    for block in re.split(r"\n{2,}", text.replace("``", "`")):
        head, _, rest = block.partition("\n")
        name = head.rstrip(":")
        if head.endswith(":") and name in LISTS:
            yield f"{'Parameters' if name == 'Args' else name}:"
            yield "\n".join(items(rest))
        else:
            yield block


def items(text: str) -> Iterator[str]:
    """Yield the entries of a list section as list items."""
    entries: list[str] = []
    for line in inspect.cleandoc(text).splitlines():
        if entries and (line.startswith(" ") or not re.match(r"\*{0,2}\w+(, \S+)*: ", line)):
            entries[-1] += " " + line.strip()
        else:
            entries.append(line.strip())
    for entry in entries:
        names, colon, words = entry.partition(": ")
        quoted = re.sub(r"[*]*[A-Za-z_]+", r"`\g<0>`", names)
        yield f"- {quoted}: {words}" if colon else f"- {entry}"


def documented(value: Any) -> str:
    text = inspect.getdoc(value)
    if not text:
        raise ValueError(f"{value!r} has no docstring")
    return "\n\n".join(prose(text))


def code(text: str) -> str:
    # Not fenced as python: a head of a call is no program (see tests/process/test_docs.py).
    return f"```\n{text}\n```"


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield what a reader may call on `cls` that shoal wrote, in the order it was written."""
    seen = set()
    for base in (cls, *cls.__mro__[1:]):
        if not base.__module__.startswith("shoal"):
            continue
        for name, value in vars(base).items():
            if name.startswith("_") or name in seen or not (inspect.isfunction(value) or isinstance(value, property)):
                continue
            if inspect.getdoc(value):
                seen.add(name)
                yield name, value


def named_bases(cls: type) -> str:
    known = ("builtins", "shoal")
    shown = [base for base in cls.__bases__ if not base.__name__.startswith("_") and base is not object]
    return ", ".join(
        base.__name__
        if base.__module__.startswith(known)
        else f"{base.__module__.removesuffix('._base').lstrip('_')}.{base.__name__}"
        for base in shown
    )


def class_page(cls: type) -> Iterator[str]:
    bases = named_bases(cls)
    if cls is shoal.Pool:
        yield code(f"class {signature('Pool', cls.__init__, method=True).removesuffix(' -> None')}")
    elif bases:
        yield code(f"class {cls.__name__}({bases})")
    yield documented(cls)
    if cls is shoal.PoolView:
        yield "It has `submit`, `map`, `imap`, `starmap`, `using` and `shutdown`, as the pool itself."
        return
    for name, value in methods(cls):
        yield f"#### {cls.__name__}.{name}"
        if isinstance(value, property):
            yield code(f"{cls.__name__}.{name}  # a property")
        else:
            yield code(signature(f"{cls.__name__}.{name}", value, method=True))
        yield documented(value)


def error_page(cls: type) -> Iterator[str]:
    yield code(f"class {cls.__name__}({named_bases(cls)})")
    yield documented(cls)
    init = vars(cls).get("__init__")
    fields = [name for name in inspect.signature(init).parameters if name != "self"] if init else []
    if fields and "Attributes:" not in (cls.__doc__ or ""):
        yield "Attributes: " + ", ".join(f"`{name}`" for name in fields) + "."


def tree() -> str:
    """The drawing of the exception tree, from the top of errors.py."""
    lines = (errors.__doc__ or "").splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip() == "ShoalError")
    stop = next(index for index, line in enumerate(lines) if index > start and not line.strip())
    return inspect.cleandoc("\n".join(["", *lines[start:stop]]))


def blocks() -> Iterator[str]:
    yield HEAD.rstrip()
    for heading, names, words in SECTIONS:
        yield f"## {heading}"
        if words:
            yield words
        for name in names:
            value = getattr(shoal, name)
            yield f"### shoal.{name}"
            if isinstance(value, type):
                yield from class_page(value)
            else:
                yield code(signature(f"shoal.{name}", value, method=False))
                yield documented(value)
    yield "## Errors"
    yield "All of them survive pickling, with their fields and notes."
    yield f"{RESERVED} is a name for what is not built yet; nothing raises it."
    yield code(tree())
    yield "### shoal.Obituary"
    yield from class_page(shoal.Obituary)
    shown = {name for _, names, _ in SECTIONS for name in names} | {"Obituary"}
    for name in errors.__all__:
        if name not in shown:
            yield f"### shoal.{name}"
            yield from error_page(getattr(shoal, name))
            shown.add(name)
    forgotten = {name for name in dir(shoal) if not name.startswith("_")} - shown
    if forgotten:
        raise SystemExit(f"not in the reference: {', '.join(sorted(forgotten))}")


def main(words: list[str]) -> int:
    text = "\n\n".join(blocks()) + "\n"
    if words == ["--check"]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        sys.stderr.write("docs/reference.md is not current; run: python docs/build_reference.py\n")
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
