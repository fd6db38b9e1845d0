"""The command: run the chapters, tell their verdicts, draw the overheads."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from examples.article import (
    ch1_listing,
    ch2_isolation,
    ch3_messages,
    ch4_race,
    ch5_reliability,
    ch6_cores,
    ch7_overhead,
)
from examples.article.claims import FULL, QUICK, Chapter, Figures, Sizes, Verdict
from examples.article.telling import Telling, choose

CHAPTERS: tuple[Chapter, ...] = (
    ch1_listing.CHAPTER,
    ch2_isolation.CHAPTER,
    ch3_messages.CHAPTER,
    ch4_race.CHAPTER,
    ch5_reliability.CHAPTER,
    ch6_cores.CHAPTER,
    ch7_overhead.CHAPTER,
)
PICTURE = Path("build", "article-overheads.svg")


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[Chapter]]:
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
    known = {str(chapter.number) for chapter in CHAPTERS}
    if unknown := sorted(wanted - known):
        parser.error(f"--only: there is no chapter {', '.join(unknown)}; they go from 1 to {len(CHAPTERS)}")
    return asked, [chapter for chapter in CHAPTERS if not wanted or str(chapter.number) in wanted]


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
    asked, chapters = parse(argv)
    sizes = QUICK if asked.quick else FULL
    telling, start = choose(), time.monotonic()
    verdicts: list[Verdict] = []
    drawn: list[Figures] = []
    for chapter in chapters:
        said, figures = read(chapter, sizes, telling)
        verdicts += said
        drawn += figures if chapter is ch7_overhead.CHAPTER else []
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
