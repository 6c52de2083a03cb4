"""Markdown table and a plot of measurements."""

from __future__ import annotations

import platform
import statistics
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

BASE = "ordinary, NCHW"


@dataclass(frozen=True)
class Row:
    """One variant at one size.

    Attributes:
        part: "decode" or "encode".
        times, cpu: Wall and processor seconds of each repeat.
        difference: Largest |difference| to the ordinary forward, relative to its range.
        peak_mb: Activations above the weights, in a process of its own.
        predicted_mb: What the cost model says, for plans.
    """

    part: str
    pixels: int
    dtype: str
    name: str
    times: list[float]
    cpu: list[float]
    difference: float | None
    peak_mb: float | None
    predicted_mb: float | None


def write_report(rows: list[Row], path: Path, threads: int) -> None:
    """Write `path` (markdown) and beside it an SVG with the ratios."""
    path.write_text(markdown(rows, threads, path.with_suffix(".svg").name))
    path.with_suffix(".svg").write_text(plot(rows))


def markdown(rows: list[Row], threads: int, picture: str) -> str:
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    lines = [
        "# Measurements",
        "",
        f"{today}, {machine()}, {threads} threads, torch {torch.__version__}; 83.7 M parameters, random weights.",
        "Time and peak are ratios to the ordinary contiguous (NCHW) forward of the same size: medians (spread).",
        "Peak is memory above the weights. Difference is the largest one, relative to the picture's range.",
        "Absolute seconds say little on shared cores; processor time is the steadier ratio there.",
        "",
        f"![ratios]({picture})",
        "",
    ]
    for key in dict.fromkeys((row.part, row.dtype) for row in rows):
        part, dtype = key
        lines += [
            f"## {part}, {dtype}",
            "",
            "| px | variant | time | processor time | peak | peak MB | predicted MB | difference |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            if (row.part, row.dtype) == key:
                lines.append(table_line(row, base_of(row, rows)))
        lines.append("")
    return "\n".join(lines)


def base_of(row: Row, rows: list[Row]) -> Row:
    same = [r for r in rows if (r.part, r.pixels, r.dtype, r.name) == (row.part, row.pixels, row.dtype, BASE)]
    return same[0] if same else row


def table_line(row: Row, base: Row) -> str:
    peak = f"{row.peak_mb / base.peak_mb:.2f}" if row.peak_mb and base.peak_mb else ""
    cells = [
        str(row.pixels), row.name, ratio(row.times, base.times), ratio(row.cpu, base.cpu), peak,
        "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
        "" if row.predicted_mb is None else f"{row.predicted_mb:.0f}",
        "" if row.difference is None else f"{row.difference:.1e}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def ratio(values: list[float], base: list[float]) -> str:
    """Median of the ratios of each repeat, with the smallest and the largest."""
    if not values or not base:
        return ""
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    spread = f" ({min(ratios):.2f} .. {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{spread}"


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return (names[0] if names else platform.machine()) if info.is_file() else platform.machine()


def plot(rows: list[Row]) -> str:
    """Horizontal bars: processor time and peak of each variant as ratios to the ordinary forward."""
    bars = []
    for row in rows:
        base = base_of(row, rows)
        label = f"{row.part} {row.pixels} px {row.dtype}, {row.name}"
        time = statistics.median(row.cpu) / statistics.median(base.cpu) if row.cpu and base.cpu else None
        peak = row.peak_mb / base.peak_mb if row.peak_mb and base.peak_mb else None
        if row.name != BASE:
            bars.append((label, time, peak))
    height = 22 * len(bars) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{height}" font-family="sans-serif"'
        ' font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="400" y="16" fill="#27639b">processor time</text>',
        '<text x="500" y="16" fill="#b0561f">peak memory</text>',
        '<text x="600" y="16">1.0 = ordinary forward</text>',
    ]
    for i, (label, time, peak) in enumerate(bars):
        top = 28 + 22 * i
        parts.append(f'<text x="390" y="{top + 11}" text-anchor="end">{label}</text>')
        for value, shift, colour in ((time, 0, "#27639b"), (peak, 9, "#b0561f")):
            if value is not None:
                parts.append(f'<rect x="400" y="{top + shift}" width="{200 * value:.0f}" height="8" fill="{colour}"/>')
                parts.append(
                    f'<text x="{404 + 200 * value:.0f}" y="{top + shift + 8}" font-size="9">{value:.2f}</text>'
                )
    parts.append(f'<line x1="600" x2="600" y1="22" y2="{height}" stroke="#888" stroke-dasharray="3"/></svg>')
    return "\n".join(parts) + "\n"
