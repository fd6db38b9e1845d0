"""Tell verdicts: in colour with what is being done on a terminal, as plain lines in a pipe.

Role: drawing. Owner: the command. NO_COLOR and dumb terminals are respected, by rich.
"""

from __future__ import annotations

import sys
from typing import Protocol

from rich.console import Console
from rich.padding import Padding
from rich.status import Status
from rich.text import Text

from examples.article.claims import Chapter, Figures, Verdict

HOLDS, DOES_NOT = "holds", "does not hold here"
#: Cells of the longest bar of a table on a terminal.
BAR = 24


class Telling(Protocol):
    """What the command says, whatever it is said on."""

    def begin(self, chapter: Chapter) -> None: ...

    def doing(self, what: str) -> None: ...

    def verdict(self, verdict: Verdict) -> None: ...

    def figures(self, figures: Figures) -> None: ...

    def end(self, text: str, *, well: bool) -> None: ...


class Plain:
    """A line for each fact, in the order they become known, so that a reader of a log sees how far it is."""

    def _say(self, text: str) -> None:
        print(text, flush=True)

    def begin(self, chapter: Chapter) -> None:
        self._say(f"{chapter.number}. {chapter.title}: {chapter.says}")

    def doing(self, what: str) -> None:
        """Nothing: what is done is told by its outcome."""

    def verdict(self, verdict: Verdict) -> None:
        self._say(f"  {HOLDS if verdict.holds else DOES_NOT}: {verdict.claim}")
        self._say(f"    {verdict.figure}")

    def figures(self, figures: Figures) -> None:
        self._say(f"  {figures.title}, {figures.unit}")
        for figure in figures.figures:
            self._say(f"    {number(figure.value):>8}  {figure.title}")

    def end(self, text: str, *, well: bool) -> None:  # noqa: ARG002 - for the colour
        self._say(text)


class Live:
    """The same on a terminal, with a line that says what is being measured."""

    COLOURS = {"ours": "magenta", "standard": "blue", "thread": "green"}  # noqa: RUF012 - rich's names, by kind

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None

    def begin(self, chapter: Chapter) -> None:
        self._quiet()
        self._console.print()
        self._console.print(Text.assemble((f"{chapter.number}. {chapter.title}  ", "bold"), (chapter.says, "dim")))

    def doing(self, what: str) -> None:
        if self._status is None:
            self._status = self._console.status(f"[dim]{what} ...")
            self._status.start()
        else:
            self._status.update(f"[dim]{what} ...")

    def verdict(self, verdict: Verdict) -> None:
        mark = ("✓ holds  ", "bold green") if verdict.holds else ("✗ does not hold here  ", "bold red")
        self._console.print(Text.assemble("  ", mark, verdict.claim))
        self._console.print(Padding(Text(verdict.figure, "dim"), (0, 0, 0, 4)))

    def figures(self, figures: Figures) -> None:
        most = max(figure.value for figure in figures.figures)
        width = max(len(figure.title) for figure in figures.figures)
        self._console.print(Text(f"    {figures.title}, {figures.unit}", "italic"))
        for figure in figures.figures:
            bar = "█" * max(1, round(BAR * figure.value / most))
            line = Text(f"    {figure.title:<{width}} {number(figure.value):>8} ")
            self._console.print(line.append(bar, self.COLOURS[figure.kind]))

    def end(self, text: str, *, well: bool) -> None:
        self._quiet()
        self._console.print()
        self._console.print(Text(text, "bold green" if well else "bold red"))

    def _quiet(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def number(value: float) -> str:
    """Write a figure with three digits that matter."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def choose() -> Telling:
    """Return how to tell it where standard output leads."""
    console = Console(highlight=False)
    return Live(console) if console.is_terminal and sys.stdout.isatty() else Plain()
