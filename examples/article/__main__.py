"""The command: run the chapters, tell their verdicts, draw the overheads."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from examples.article.claims import FULL, QUICK, Chapter, Figures, Sizes, Verdict
from examples.article.telling import Telling, choose

#: The chapter whose figures are drawn.
DRAWN = 7
PICTURE = Path("build", "article-overheads.svg")


def chapters() -> tuple[Chapter, ...]:
    """Return all chapters, in order."""
    from examples.article import (
        ch1_listing,
        ch2_isolation,
        ch3_messages,
        ch4_race,
        ch5_reliability,
        ch6_cores,
        ch7_overhead,
    )

    modules = ch1_listing, ch2_isolation, ch3_messages, ch4_race, ch5_reliability, ch6_cores, ch7_overhead
    return tuple(module.CHAPTER for module in modules)


def parse(argv: Sequence[str] | None, all_chapters: Sequence[Chapter]) -> tuple[argparse.Namespace, list[Chapter]]:
    parser = argparse.ArgumentParser(
        prog="python -m examples.article",
        description="Seven claims about processes, measured here and now. Exits with 1 if one does not hold.",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything; figures mean less, too")
    parser.add_argument("--only", default="", metavar="NUMBERS", help="chapters, such as 4,7")
    parser.add_argument(
        "--picture",
        type=Path,
        default=PICTURE,
        metavar="FILE",
        help="where the overheads are drawn (default: %(default)s)",
    )
    asked = parser.parse_args(argv)
    wanted = {word.strip() for word in asked.only.split(",") if word.strip()}
    known = {str(chapter.number) for chapter in all_chapters}
    if unknown := sorted(wanted - known):
        parser.error(f"--only: there is no chapter {', '.join(unknown)}; they go from 1 to {len(all_chapters)}")
    return asked, [chapter for chapter in all_chapters if not wanted or str(chapter.number) in wanted]


def read(chapter: Chapter, sizes: Sizes, telling: Telling) -> tuple[list[Verdict], list[Figures]]:
    """Run a chapter to its end. What goes wrong in it is a claim that does not hold."""
    verdicts, figures = [], []
    telling.begin(chapter)
    try:
        for said in chapter.run(sizes, telling.doing):
            if isinstance(said, Verdict):
                verdicts.append(said)
                telling.verdict(said)
            else:
                figures.append(said)
                telling.figures(said)
    except Exception as error:
        verdicts.append(Verdict("this chapter can be measured to its end", holds=False, figure=repr(error)))
        telling.verdict(verdicts[-1])
    return verdicts, figures


def main(argv: Sequence[str] | None = None) -> int:
    if importlib.util.find_spec("numpy") is None:
        print("error: the chapters use numpy, which is not installed\nhint: pip install numpy", file=sys.stderr)
        return 2
    asked, wanted = parse(argv, chapters())
    telling = choose()
    try:
        return tell(asked, wanted, telling)
    except KeyboardInterrupt:
        telling.end("interrupted", well=False)
        return 130


def tell(asked: argparse.Namespace, wanted: Sequence[Chapter], telling: Telling) -> int:
    """Run what was asked for, and return the exit code."""
    sizes, start = QUICK if asked.quick else FULL, time.monotonic()
    verdicts: list[Verdict] = []
    drawn: list[Figures] = []
    for chapter in wanted:
        said, figures = read(chapter, sizes, telling)
        verdicts += said
        drawn += figures if chapter.number == DRAWN else []
    where = ""
    if drawn:
        from examples.article.picture import draw

        asked.picture.parent.mkdir(parents=True, exist_ok=True)
        asked.picture.write_text(draw("What processes cost here", drawn), encoding="utf-8")
        where = f"; the overheads are drawn in {asked.picture}"
    held = sum(verdict.holds for verdict in verdicts)
    well = held == len(verdicts)
    telling.end(f"{held} of {len(verdicts)} claims hold here, in {time.monotonic() - start:.0f} s{where}", well=well)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
