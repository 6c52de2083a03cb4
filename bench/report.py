"""Measurements as markdown, with a plot beside it."""

from __future__ import annotations

import math
import statistics
from datetime import datetime, timezone
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from bench.pictures import PictureError
from bench.plot import plot
from bench.records import Records, Row, find, measured
from bench.variants import FLOOR, ORDINARY

BEFORE_AFTER = Path(__file__).with_name("before_after.md")  # written by hand: a change is measured once


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
        *repeat_lines(records.rows),
        *prediction_lines(records.rows),
        "",
        f"![ratios]({picture})",
        "",
    ]
    for (part, dtype), block in groupby(measured(records.rows), key=lambda row: (row.part, row.dtype)):
        lines += [f"## {part}, {dtype}", ""]
        lines += [
            "| px | variant | time | processor time | of the floor | peak | peak MB | predicted MB | difference |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [table_line(row, records.rows) for row in block]
        lines.append("")
    lines += [*picture_lines(records.pictures), *left_out_lines(left_out)]
    return "\n".join([*lines, BEFORE_AFTER.read_text("utf-8")])


def repeat_lines(rows: list[Row]) -> list[str]:
    counts = [len(row.times) for row in rows if row.times]
    if not counts:
        return []
    least, most = min(counts), max(counts)
    return [f"Repeats: {most}." if least == most else f"Repeats: {least} to {most}."]


def prediction_lines(rows: list[Row]) -> list[str]:
    """How far predictions are from what was seen: the lowest and the highest."""
    errors = [(row.predicted_mb / row.peak_mb - 1, row) for row in measured(rows) if row.predicted_mb and row.peak_mb]
    if not errors:
        return []
    ends = min(errors, key=itemgetter(0)), max(errors, key=itemgetter(0))
    said = " to ".join(f"{error:+.0%} ({row.case}, {row.name})" for error, row in ends)
    return [
        f"Predictions beside the peaks seen: {said}. Peaks are resident memory, in which what was freed before is used "
        "again."
    ]


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
    base, floor = find(rows, row.case, ORDINARY), find(rows, row.case, FLOOR)
    share = row.peak_ratio(base)
    difference = "" if row.difference is None else f"{row.difference:.1e}, mean {row.mean_difference:.1e}"
    cells = [
        str(row.pixels), row.name,
        spread(row.ratios(base)), spread(row.ratios(base, "cpu")), spread(row.ratios(floor)),
        "" if share is None else f"{share:.2f}",
        "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
        "" if row.predicted_mb is None else f"{row.predicted_mb:.0f}",
        difference,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def spread(ratios: list[float]) -> str:
    """Median, with the smallest and the largest where there are several."""
    if not ratios:
        return ""
    ends = f" ({min(ratios):.2f} .. {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{ends}"
