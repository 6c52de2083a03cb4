"""Measurements as markdown, with a plot beside it."""

from __future__ import annotations

import math
import statistics
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path

from bench.pictures import PictureError
from bench.plot import plot
from bench.records import Records, Row, in_order, ratios, same_case
from bench.variants import FLOOR, ORDINARY


def write_report(records: Records, path: Path, left_out: list[str]) -> None:
    """Write `path` (markdown) and beside it an SVG with the ratios."""
    path.write_text(markdown(records, path.with_suffix(".svg").name, left_out), "utf-8")
    path.with_suffix(".svg").write_text(plot(records.rows), "utf-8")


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
    shown = in_order(row for row in records.rows if row.times or row.peak_mb)
    for (part, dtype), block in groupby(shown, key=lambda row: (row.part, row.dtype)):
        lines += [f"## {part}, {dtype}", ""]
        lines += [
            "| px | variant | time | processor time | of the floor | peak | peak MB | predicted MB | difference |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [table_line(row, records.rows) for row in block]
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
    found = ratios(values, base, clock)
    if not found:
        return ""
    spread = f" ({min(found):.2f} .. {max(found):.2f})" if len(found) > 1 else ""
    return f"{statistics.median(found):.2f}{spread}"
