"""Draw how many times better or worse somebody is, one lane for each figure, as SVG text. Pure: figures in, text out.

Role: the picture of a whole table. Owner: `report.py`, which writes what this returns to a file.

A lane shows how far everybody is from the best of the others, on one logarithmic axis for all lanes: better is to the right,
whichever direction the figure itself has.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.picture import WIDTH, Axis, style

LEFT, RIGHT, TOP, BOTTOM = 24, 24, 84, 46
#: Room for the factor, in words, right of the axis.
FACTOR = 72
#: Height of a lane: its words, and the bar below them.
LANE, WORDS, BAR = 50, 20, 12
#: Whoever is further behind than this stands at the edge.
FURTHEST = 1e-3


@dataclass(frozen=True, slots=True)
class Lane:
    """One figure.

    Attributes:
        ours: How many times better we are than the best of the others; below 1 is worse.
        others: The same of each of the others, who are at most 1.
        target: Where we want to be, on the same scale.
        says: The figures themselves, at the right.
    """

    title: str
    ours: float
    others: tuple[float, ...]
    target: float | None = None
    says: str = ""


def better(value: float, best: float, *, higher_is_better: bool) -> float:
    """Return how many times better `value` is than `best`."""
    return value / best if higher_is_better else best / value


def draw(title: str, lanes: Sequence[Lane]) -> str:
    """Return the picture. Raises ValueError if there is nothing to show."""
    if not lanes:
        raise ValueError(f"{title}: nothing to compare")
    height = TOP + LANE * len(lanes) + BOTTOM
    axis = _axis(lanes, height)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title">',
        f'<title id="title">{html.escape(title)}</title>',
        style(),
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="8"/>',
        f'<text class="heading" x="{LEFT}" y="30">{html.escape(title)}</text>',
        *_legend(),
        *_grid(axis, height),
        *(part for number, lane in enumerate(lanes) for part in _lane(axis, lane, TOP + LANE * number)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axis(lanes: Sequence[Lane], height: int) -> Axis:
    """Return an axis from a power of ten to a 1, 2 or 5, with 1 well inside."""
    values = [value for lane in lanes for value in (lane.ours, lane.target or 1.0, *lane.others)]
    low = max(FURTHEST, min(0.1, *values))
    high = max(2.0, *values) * 1.05
    return Axis("", 10.0 ** math.floor(math.log10(low) + 1e-9), _nice_above(high), LEFT + 6, WIDTH - RIGHT - FACTOR)


def _nice_above(value: float) -> float:
    decade = 10.0 ** math.floor(math.log10(value))
    return next(decade * step for step in (1, 2, 5, 10) if decade * step >= value)


def _legend() -> Iterator[str]:
    y = 52
    yield f'<rect class="fill c0" x="{LEFT}" y="{y - 9}" width="22" height="10" rx="2"/>'
    yield f'<text x="{LEFT + 30}" y="{y}">shoal</text>'
    yield f'<circle class="other" cx="{LEFT + 92}" cy="{y - 4}" r="4"/>'
    yield f'<text x="{LEFT + 102}" y="{y}">each of the others</text>'
    yield f'<path class="target" d="M{LEFT + 240} {y - 11}v14"/>'
    yield f'<text x="{LEFT + 248}" y="{y}">what is aimed at</text>'


def _grid(axis: Axis, height: int) -> Iterator[str]:
    bottom = height - BOTTOM
    decade = axis.low
    while decade < axis.high:
        for step in (1, 2, 5):
            value = decade * step
            if value > axis.high * 1.001:
                break
            px = axis.place(value)
            kind = "axis" if math.isclose(value, 1.0) else "grid" if step == 1 else "grid minor"
            yield f'<path class="{kind}" d="M{px:.1f} {TOP - 8}V{bottom}"/>'
            if step == 1 or value >= 1:
                yield f'<text class="tick" x="{px:.1f}" y="{bottom + 18}" text-anchor="middle">{value:.4g} x</text>'
        decade *= 10
    yield (
        f'<text class="tick" x="{axis.place(1.0):.1f}" y="{TOP - 14}" text-anchor="middle">the best of the others</text>'
    )
    yield f'<text class="tick" x="{axis.end}" y="{bottom + 36}" text-anchor="end">better →</text>'
    yield f'<text class="tick" x="{axis.start}" y="{bottom + 36}">← worse</text>'


def _lane(axis: Axis, lane: Lane, top: int) -> Iterator[str]:
    middle = top + WORDS + BAR / 2
    one, ours = axis.place(1.0), axis.place(_inside(axis, lane.ours))
    yield f'<text class="row" x="{LEFT}" y="{top + 12}">{html.escape(lane.title)}</text>'
    yield f'<text class="tick row" x="{WIDTH - RIGHT}" y="{top + 12}" text-anchor="end">{html.escape(lane.says)}</text>'
    left, width = min(one, ours), max(abs(ours - one), 2.0)
    yield f'<rect class="fill c0" x="{left:.1f}" y="{top + WORDS}" width="{width:.1f}" height="{BAR}" rx="2"/>'
    for other in lane.others:
        yield f'<circle class="other" cx="{axis.place(_inside(axis, other)):.1f}" cy="{middle}" r="4"/>'
    if lane.target is not None:
        yield f'<path class="target" d="M{axis.place(_inside(axis, lane.target)):.1f} {top + WORDS - 3}v{BAR + 6}"/>'
    yield f'<text class="value" x="{WIDTH - RIGHT}" y="{middle + 4}" text-anchor="end">{_times(lane.ours)}</text>'


def _inside(axis: Axis, value: float) -> float:
    return min(max(value, axis.low), axis.high)


def _times(value: float) -> str:
    return f"{value:.3g} x" if value < 100 else f"{value:.0f} x"
