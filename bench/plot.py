"""A plot of the ratios as SVG: one block a direction and data type, one line a size and variant."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from html import escape
from itertools import groupby

from bench.records import Row, find, measured
from bench.variants import ORDINARY

WIDTH, LABELS, UNIT = 860, 330, 260  # pixels: of all, of the words, of the ratio 1.0
LINE, GAP, HEADING, TOP, MARGIN = 22, 8, 30, 34, 8
TIME, PEAK, SPREAD = "#27639b", "#b0561f", "#12324f"


def plot(rows: list[Row]) -> str:
    """Bars of time, with the spread as a thin line, and of peak memory beside the ordinary forward's."""
    shown = [row for row in measured(rows) if row.name != ORDINARY]
    body: list[str] = []
    top = TOP
    for (part, dtype), block in groupby(shown, key=lambda row: (row.part, row.dtype)):
        body.append(_text(MARGIN, top + 18, f"{part}, {dtype}", size=13, weight="bold"))
        top += HEADING
        for _, case in groupby(block, key=lambda row: row.pixels):
            for row in case:
                body += _line(row, rows, top)
                top += LINE
            top += GAP
    end = LABELS + UNIT
    frame = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + MARGIN}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(LABELS, 16, "time, median and spread", colour=TIME),
        _text(LABELS + 150, 16, "peak memory", colour=PEAK),
        _text(end, 16, "1.0 = ordinary forward (NCHW)"),
        f'<line x1="{end}" x2="{end}" y1="22" y2="{top}" stroke="#888" stroke-dasharray="3"/>',
    ]
    return "\n".join([*frame, *body, "</svg>"]) + "\n"


def _line(row: Row, rows: list[Row], top: int) -> Iterator[str]:
    base = find(rows, row.case, ORDINARY)
    yield _text(LABELS - MARGIN, top + 12, f"{row.pixels} px, {row.name}", anchor="end")
    times, peak = row.ratios(base), row.peak_ratio(base)
    if times:
        yield from _bar(top, statistics.median(times), TIME, max(times))
        low, high = (LABELS + UNIT * value for value in (min(times), max(times)))
        yield f'<line x1="{low:.0f}" x2="{high:.0f}" y1="{top + 4}" y2="{top + 4}" stroke="{SPREAD}" stroke-width="2"/>'
    if peak is not None:
        yield from _bar(top + 9, peak, PEAK, peak)


def _bar(top: int, value: float, colour: str, reach: float) -> Iterator[str]:
    """A bar, and its number right of `reach`."""
    yield f'<rect x="{LABELS}" y="{top}" width="{UNIT * value:.0f}" height="8" fill="{colour}"/>'
    yield _text(round(LABELS + UNIT * reach) + 4, top + 8, f"{value:.2f}", size=9, halo=True)


def _text(
    x: int, y: int, words: str, *, size: int = 11, colour: str = "#000", anchor: str = "start", weight: str = "normal",
    halo: bool = False,
) -> str:  # fmt: skip
    """A line of words; a halo keeps it readable over the line at 1.0."""
    outline = ' stroke="white" stroke-width="3" paint-order="stroke"' if halo else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{colour}" text-anchor="{anchor}"'
        f"{outline}>{escape(words)}</text>"
    )
