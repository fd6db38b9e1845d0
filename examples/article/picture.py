"""Draw figures side by side, a block for each, as SVG text. Pure: figures in, text out.

Role: the picture of the overheads. Owner: the command, which writes it to a file. Looks like the pictures of the benchmarks.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from benchmarks.picture import WIDTH, Axis, decades, style
from examples.article.claims import Figure, Figures

LEFT, RIGHT, TOP = 24, 24, 62
#: Room for the names left of the bars, and for the figures right of them.
NAMES, VALUES = 270, 96
#: Height of a bar's lane and of the bar, and what a block has above and below its bars.
LANE, BAR, HEAD, FOOT = 24, 12, 34, 40
#: Which colour of the style sheet a kind has.
COLOUR = {"ours": 0, "standard": 1, "thread": 3}
LEGEND = (("ours", "shoal"), ("standard", "multiprocessing"), ("thread", "threads"))


def draw(title: str, blocks: Sequence[Figures]) -> str:
    """Return the picture. Raises ValueError if there is nothing to show."""
    if not blocks:
        raise ValueError(f"{title}: nothing to show")
    height = TOP + sum(_height(block) for block in blocks)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title">',
        f'<title id="title">{html.escape(title)}</title>',
        style(),
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="8"/>',
        f'<text class="heading" x="{LEFT}" y="30">{html.escape(title)}</text>',
        *_legend(),
    ]
    top = TOP
    for block in blocks:
        parts += _block(block, top)
        top += _height(block)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _height(block: Figures) -> int:
    return HEAD + LANE * len(block.figures) + FOOT


def _legend() -> Iterator[str]:
    x = WIDTH - RIGHT - 330
    for kind, words in LEGEND:
        yield f'<rect class="fill c{COLOUR[kind]}" x="{x}" y="20" width="22" height="10" rx="2"/>'
        yield f'<text x="{x + 30}" y="30">{words}</text>'
        x += 54 + 8 * len(words)


def _block(block: Figures, top: int) -> Iterator[str]:
    low, high = decades([figure.value for figure in block.figures])
    axis = Axis(block.unit, low, high, LEFT + NAMES, WIDTH - RIGHT - VALUES)
    better = "longer is better" if block.higher_is_better else "shorter is better"
    yield f'<text class="value" x="{LEFT}" y="{top + 18}">{html.escape(block.title)}, {block.unit}</text>'
    yield f'<text class="tick" x="{WIDTH - RIGHT}" y="{top + 18}" text-anchor="end">{better}</text>'
    yield from _grid(axis, top + HEAD, LANE * len(block.figures))
    for number, figure in enumerate(block.figures):
        yield from _lane(axis, figure, block.unit, top + HEAD + LANE * number)


def _grid(axis: Axis, top: int, height: int) -> Iterator[str]:
    decade = axis.low
    while decade < axis.high * 1.001:
        px = axis.place(decade)
        yield f'<path class="grid" d="M{px:.1f} {top - 4}v{height + 4}"/>'
        yield f'<text class="tick" x="{px:.1f}" y="{top + height + 16}" text-anchor="middle">{decade:.6g}</text>'
        decade *= 10


def _lane(axis: Axis, figure: Figure, unit: str, top: int) -> Iterator[str]:
    width = max(2.0, axis.place(figure.value) - axis.start)
    yield f'<text x="{axis.start - 10}" y="{top + 15}" text-anchor="end">{html.escape(figure.title)}</text>'
    yield (
        f'<rect class="fill c{COLOUR[figure.kind]}" x="{axis.start}" y="{top + 5}" width="{width:.1f}" '
        f'height="{BAR}" rx="2"/>'
    )
    yield f'<text class="value" x="{WIDTH - RIGHT}" y="{top + 15}" text-anchor="end">{figure.value:.3g} {unit}</text>'
