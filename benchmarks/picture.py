"""Draw curves on two logarithmic axes as SVG text. Pure: figures in, text out.

Role: the pictures of the page. Owner: `report.py`, which writes what this returns to a file.

A picture brings its own background and follows the reader's light or dark setting, so that it is readable on any page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH, HEIGHT = 940, 500
LEFT, RIGHT, TOP, BOTTOM = 76, 282, 52, 62
#: Half the size of a marker.
MARK = 4.0

Kind = Literal["ours", "peer", "reference"]

#: What a colour is in the light, and in the dark. The first is ours alone.
COLOURS: tuple[tuple[str, str], ...] = (
    ("#c2185b", "#ff80ab"),
    ("#1c6fc4", "#7cc0ff"),
    ("#c75300", "#ffb066"),
    ("#2b8a3e", "#8ce99a"),
    ("#6741d9", "#b9a3ff"),
    ("#0b7285", "#66d9e8"),
    ("#7d5a1e", "#dcbf8c"),
    ("#5f6b12", "#d4e157"),
)
#: Outlines of the markers, as SVG paths around the origin, in the same order: colours may look alike, shapes do not.
SHAPES: tuple[str, ...] = (
    f"M-{MARK} 0a{MARK} {MARK} 0 1 0 {2 * MARK} 0a{MARK} {MARK} 0 1 0 -{2 * MARK} 0z",
    f"M-{MARK} -{MARK}h{2 * MARK}v{2 * MARK}h-{2 * MARK}z",
    f"M0 -{MARK + 1}L{MARK + 1} {MARK}L-{MARK + 1} {MARK}z",
    f"M0 -{MARK + 1.5}L{MARK + 1.5} 0L0 {MARK + 1.5}L-{MARK + 1.5} 0z",
    f"M0 {MARK + 1}L{MARK + 1} -{MARK}L-{MARK + 1} -{MARK}z",
    f"M-{MARK} -1h{MARK - 1}v-{MARK - 1}h2v{MARK - 1}h{MARK - 1}v2h-{MARK - 1}v{MARK - 1}h-2v-{MARK - 1}h-{MARK - 1}z",
)


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its name in the legend and its points, in any order."""

    title: str
    points: tuple[tuple[float, float], ...]
    #: "ours" is drawn thick and above the others, "reference" dashed and without colour.
    kind: Kind = "peer"


@dataclass(frozen=True, slots=True)
class Axis:
    """A logarithmic axis: what it shows, where it begins and ends, and how many pixels that is."""

    title: str
    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return self.start + share * (self.end - self.start)


def size_text(size: float) -> str:
    """Write a number of bytes: 4096 as "4 KiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:g} {unit}"
        size /= 1024
    return f"{size:g} GiB"


def decades(values: Sequence[float]) -> tuple[float, float]:
    """Return the powers of ten around positive `values`, at least one apart."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def draw(
    title: str, x_title: str, y_title: str, lines: Sequence[Line], *, x_text: Callable[[float], str] = size_text
) -> str:
    """Return the picture. Lines without points, and points that are not positive, are left out."""
    shown = [Line(line.title, _drawable(line), line.kind) for line in lines]
    shown = [line for line in shown if line.points]
    places = sorted({x for line in shown for x, _ in line.points})
    if len(places) < 2:
        raise ValueError(f"{title}: a curve needs points at two places, not at {places}")
    y_low, y_high = decades([y for line in shown for _, y in line.points])
    x = Axis(x_title, places[0], places[-1], LEFT, WIDTH - RIGHT)
    y = Axis(y_title, y_low, y_high, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title">',
        f'<title id="title">{html.escape(title)}</title>',
        style(),
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        f'<text class="heading" x="{LEFT}" y="30">{html.escape(title)}</text>',
        *_grid(x, y, places, x_text),
        *_curves(x, y, shown),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _drawable(line: Line) -> tuple[tuple[float, float], ...]:
    return tuple(sorted(point for point in line.points if min(point) > 0 and all(map(math.isfinite, point))))


def style() -> str:
    """Return the style sheet of every picture: colours for the light and for the dark, words, lines."""
    light = "".join(f"--c{number}:{colours[0]};" for number, colours in enumerate(COLOURS))
    dark = "".join(f"--c{number}:{colours[1]};" for number, colours in enumerate(COLOURS))
    strokes = "".join(f".c{n}{{stroke:var(--c{n});color:var(--c{n})}}" for n in range(len(COLOURS)))
    # Plain colours come before the variables, for viewers that know no variables.
    plain = "".join(f".c{n}{{stroke:{light_one};color:{light_one}}}" for n, (light_one, _) in enumerate(COLOURS))
    return (
        "<style>"
        f"svg{{{light}--ink:#212529;--faint:#6c757d;--grid:#dee2e6;--page:#ffffff}}"
        "@media (prefers-color-scheme:dark)"
        f"{{svg{{{dark}--ink:#e9ecef;--faint:#adb5bd;--grid:#373d44;--page:#15191e}}}}"
        "text{font:13px system-ui,sans-serif;fill:#212529;fill:var(--ink)}"
        ".heading{font-size:16px;font-weight:600}.tick{fill:#6c757d;fill:var(--faint);font-size:12px}"
        ".page{fill:#ffffff;fill:var(--page)}"
        ".grid{stroke:#dee2e6;stroke:var(--grid);stroke-width:1}.minor{opacity:.45}"
        ".line{fill:none;stroke-width:1.8;stroke-linejoin:round}.ours{stroke-width:3.6}"
        ".mark{fill:currentColor;stroke-width:0}"
        ".fill{fill:currentColor;stroke-width:0}.value{font-weight:600}"
        ".row{paint-order:stroke;stroke:#ffffff;stroke:var(--page);stroke-width:4px}"
        ".other{fill:#6c757d;fill:var(--faint);fill-opacity:.75;stroke:#ffffff;stroke:var(--page);stroke-width:1}"
        ".axis{stroke:#212529;stroke:var(--ink);stroke-width:1.2}"
        ".target{fill:none;stroke:#212529;stroke:var(--ink);stroke-width:2.4}"
        ".reference{fill:none;stroke:#6c757d;stroke:var(--faint);stroke-width:1.8;stroke-dasharray:6 5}"
        f"{plain}{strokes}</style>"
    )


def _grid(x: Axis, y: Axis, places: Sequence[float], x_text: Callable[[float], str]) -> Iterator[str]:
    for at in places:
        px = x.place(at)
        yield f'<line class="grid" x1="{px:.1f}" x2="{px:.1f}" y1="{y.start}" y2="{y.end}"/>'
        yield f'<text class="tick" x="{px:.1f}" y="{y.start + 22}" text-anchor="middle">{x_text(at)}</text>'
    decade = y.low
    while decade < y.high * 1.001:
        for step in range(1, 10):
            value = decade * step
            if value > y.high * 1.001:
                break
            py = y.place(value)
            kind = "grid" if step == 1 else "grid minor"
            yield f'<line class="{kind}" x1="{x.start}" x2="{x.end}" y1="{py:.1f}" y2="{py:.1f}"/>'
        yield (
            f'<text class="tick" x="{x.start - 8}" y="{y.place(decade) + 4:.1f}" text-anchor="end">{decade:.9g}</text>'
        )
        decade *= 10
    middle_x, middle_y = (x.start + x.end) / 2, (y.start + y.end) / 2
    yield f'<text x="{middle_x}" y="{HEIGHT - 14}" text-anchor="middle">{html.escape(x.title)}</text>'
    yield (
        f'<text x="18" y="{middle_y}" text-anchor="middle" transform="rotate(-90 18 {middle_y})">'
        f"{html.escape(y.title)}</text>"
    )


def _curves(x: Axis, y: Axis, lines: Sequence[Line]) -> Iterator[str]:
    """Draw the lines, ours last and so on top, and the legend by height at the lines' right ends."""
    looks = _looks(lines)
    for line in sorted(lines, key=lambda line: line.kind == "ours"):
        path = "M" + "L".join(f"{x.place(at):.1f} {y.place(value):.1f}" for at, value in line.points)
        yield f'<path class="{_class_of(line, looks)}" d="{path}"/>'
        if line.kind != "reference":
            yield from (_mark(looks[line.title], x.place(at), y.place(value)) for at, value in line.points)
    for row, line in enumerate(sorted(lines, key=lambda line: line.points[-1], reverse=True)):
        left, middle = WIDTH - RIGHT + 20, TOP + 10 + 24 * row
        yield f'<path class="{_class_of(line, looks)}" d="M{left} {middle}h28"/>'
        if line.kind != "reference":
            yield _mark(looks[line.title], left + 14, middle)
        yield f'<text x="{left + 36}" y="{middle + 4}">{html.escape(line.title)}</text>'


def _looks(lines: Sequence[Line]) -> dict[str, int]:
    """Return which colour and marker each line has; the first of them are ours even if we are not there."""
    peers = [line.title for line in lines if line.kind == "peer"]
    numbers = {title: 1 + number % (len(COLOURS) - 1) for number, title in enumerate(peers)}
    return numbers | {line.title: 0 for line in lines if line.kind == "ours"}


def _class_of(line: Line, looks: dict[str, int]) -> str:
    if line.kind == "reference":
        return "reference"
    return f"line c{looks[line.title]}" + (" ours" if line.kind == "ours" else "")


def _mark(number: int, px: float, py: float) -> str:
    shape = SHAPES[number % len(SHAPES)]
    return f'<path class="mark c{number}" transform="translate({px:.1f} {py:.1f})" d="{shape}"/>'
