"""Markdown table and a plot of measurements."""

from __future__ import annotations

import math
import statistics
from datetime import datetime, timezone
from pathlib import Path

from bench.pictures import PictureError
from bench.records import Records, Row
from bench.variants import FLOOR, ORDINARY


def write_report(records: Records, path: Path, left_out: list[str]) -> None:
    """Write `path` (markdown) and beside it an SVG with the ratios."""
    path.write_text(markdown(records, path.with_suffix(".svg").name, left_out), "utf-8")
    path.with_suffix(".svg").write_text(plot([row for row in records.rows if row.times or row.peak_mb]), "utf-8")


def markdown(records: Records, picture: str, left_out: list[str]) -> str:
    conditions = records.conditions
    lines = [
        "# Measurements",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, {conditions['machine']}, {conditions['threads']} threads, "
        f"torch {conditions['torch']}; 83.7 M parameters, random weights.",
        "Time and peak are ratios to the ordinary contiguous (NCHW) forward of the same size: medians (spread).",
        "Peak is memory above the weights; the cost model predicts it for plans. Differences are the largest and the "
        "mean one to the ordinary forward, relative to the picture's range.",
        "Absolute seconds say little on shared cores. Threads wait as they do in a web UI (OMP_WAIT_POLICY: "
        f"{conditions['waiting']}); where they spin, waiting counts as processor time.",
        "",
        f"![ratios]({picture})",
        "",
    ]
    for part, dtype in dict.fromkeys((row.part, row.dtype) for row in records.rows):
        lines += [f"## {part}, {dtype}", ""]
        lines += [
            "| px | variant | time | processor time | of the floor | peak | peak MB | predicted MB | difference |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        rows = [row for row in records.rows if (row.part, row.dtype) == (part, dtype) and (row.times or row.peak_mb)]
        lines += [table_line(row, records.rows) for row in sorted(rows, key=lambda row: row.pixels)]
        lines.append("")
    return "\n".join([*lines, *picture_lines(records.pictures), *left_out_lines(left_out)])


def picture_lines(pictures: list[PictureError]) -> list[str]:
    if not pictures:
        return []
    lines = [
        f"## Photographs, {pictures[0].pixels} px",
        "",
        "Encoded and decoded by the demo VAEs in fp32, beside the ordinary forward; the worst of two photographs.",
        "",
        "| VAE | variant | largest difference (of 255) | mean difference | PSNR | bands |",
        "|---|---|---|---|---|---|",
    ]
    for error in pictures:
        psnr = "equal" if math.isinf(error.psnr) else f"{error.psnr:.1f} dB"
        bands = error.bands or ""
        lines.append(f"| {error.vae} | {error.way} | {error.largest:.4f} | {error.mean:.5f} | {psnr} | {bands} |")
    return [*lines, ""]


def left_out_lines(left_out: list[str]) -> list[str]:
    return [f"Not measured for want of time: {'; '.join(left_out)}.", ""] if left_out else []


def same_case(row: Row, rows: list[Row], name: str) -> Row | None:
    wanted = (row.part, row.pixels, row.dtype, name)
    return next((r for r in rows if (r.part, r.pixels, r.dtype, r.name) == wanted), None)


def table_line(row: Row, rows: list[Row]) -> str:
    base, floor = same_case(row, rows, ORDINARY), same_case(row, rows, FLOOR)
    peak = f"{row.peak_mb / base.peak_mb:.2f}" if base and row.peak_mb and base.peak_mb else ""
    difference = "" if row.difference is None else f"{row.difference:.1e}, mean {row.mean_difference:.1e}"
    cells = [
        str(row.pixels), row.name, ratio(row.times, base), ratio(row.cpu, base, "cpu"), ratio(row.times, floor), peak,
        "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
        "" if row.predicted_mb is None else f"{row.predicted_mb:.0f}",
        difference,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def ratio(values: list[float], base: Row | None, clock: str = "times") -> str:
    """Median of the ratios of each repeat, with the smallest and the largest."""
    others: list[float] = [] if base is None else getattr(base, clock)
    ratios = [value / other for value, other in zip(values, others, strict=False)]  # a stopped run has unequal numbers
    if not ratios:
        return ""
    spread = f" ({min(ratios):.2f} .. {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{spread}"


def plot(rows: list[Row]) -> str:
    """Horizontal bars: processor time and peak of each variant as ratios to the ordinary forward."""
    bars = []
    for row in rows:
        base = same_case(row, rows, ORDINARY) or row
        label = f"{row.part} {row.pixels} px {row.dtype}, {row.name}"
        time = statistics.median(row.cpu) / statistics.median(base.cpu) if row.cpu and base.cpu else None
        peak = row.peak_mb / base.peak_mb if row.peak_mb and base.peak_mb else None
        if row.name != ORDINARY:
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
