"""Time, memory and exactness of the streamed VAE beside the ordinary forward and diffusers' tiling.

    python launch.py bench                   encode and decode, 512, 768 and 1024 px, fp32 and bf16, 3 repeats
    python launch.py bench --minutes 25      as much of it as fits, the most telling first; run again to go on
    python launch.py bench --full            1536 px too
    python launch.py bench --sizes 512 --parts decode --dtypes fp32 --repeats 1

Times are taken interleaved in one process, so that a busy machine disturbs all variants alike; wall clock and
processor time are both given: threads that wait spin for a while, which the second counts.  OMP_WAIT_POLICY is left as
it is in a web UI, unset; PASSIVE costs bands 8 % of wall time.  Peaks are taken in one process each: resident memory
above what the process with the weights had before.  What was measured is kept in `RESULTS.json`, and the next run adds
what is missing, unless the machine, torch or the engine changed since.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # AMX rounds fp32 to bf16

import torch

from bench.measure import DTYPES, child_peak, measure_peak, measure_times
from bench.pictures import picture_errors
from bench.records import Case, Records, load
from bench.report import write_report
from bench.variants import DEFAULT_VARIANTS, FLOOR, VARIANTS, arithmetic

FIRST_SIZE = 768  # the goals are set from here up
NO_PEAK = (FLOOR, "ordinary, channels_last")  # the one stores nothing, the other what the ordinary forward stores
RATES = {"fp32": 3.0e10, "bf16": 6.0e10}  # multiplications per second of two cores, until the first measurement


@dataclass(frozen=True)
class Unit:
    """A piece of work: what it does, and the multiplications of all its variants."""

    label: str
    dtype: str
    work: float
    run: Callable[[], None]


def main() -> None:
    options = parse(sys.argv[1:])
    if options.child:
        print(json.dumps(measure_peak(*options.child)))
        return
    torch.set_num_threads(options.threads)
    records = load(options.out.with_suffix(".json"), options.threads, options.fresh)
    left_out = work_off(list(units(options, records)), records, options)
    write_report(records, options.out, left_out)
    print(options.out.read_text("utf-8"))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Time, peak memory and exactness of every plan.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 768, 1024], help="pixels, multiples of 8")
    parser.add_argument("--full", action="store_true", help="1536 px, and the plan `whole`, too")
    parser.add_argument("--parts", nargs="+", choices=["decode", "encode"], default=["encode", "decode"])
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--repeats", type=int, default=3, help="0 measures peaks only")
    parser.add_argument("--minutes", type=float, help="start nothing that is expected to end later")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--no-peaks", action="store_true")
    parser.add_argument("--no-pictures", action="store_true", help="leave out the photographs")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "RESULTS.md")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if any(size % 8 or size < 64 for size in options.sizes):
        parser.error("sizes are multiples of 8, from 64 up")
    options.sizes = sorted({*options.sizes, *([1536] if options.full else [])})
    options.variants = options.variants or list(VARIANTS if options.full else DEFAULT_VARIANTS)
    return options


def units(options: argparse.Namespace, records: Records) -> Iterator[Unit]:
    """What is still to be measured, the most telling first: the goals' size in fp32, then peaks, then repeats."""
    if not options.no_pictures and not records.pictures:
        yield Unit("photographs", "fp32", 3.5e12, lambda: records.pictures.extend(picture_errors()))
    cases = [Case(dtype, part, size) for dtype in options.dtypes for size in options.sizes for part in options.parts]
    cases.sort(key=importance)
    arithmetics = {case: arithmetic(case.part, case.pixels) for case in cases}
    for turn in range(max(1, options.repeats)):
        for case, work in arithmetics.items():
            if turn < options.repeats and len(records.row(case, options.variants[0]).times) <= turn:
                run = lambda case=case: measure_times(case, options.variants, records)  # noqa: E731
                yield Unit(f"{case}, times {turn + 1}", case.dtype, work * len(options.variants), run)
            if turn > 0 or options.no_peaks:
                continue
            for name in (name for name in options.variants if name not in NO_PEAK):
                if records.row(case, name).peak_mb is None:
                    run = lambda case=case, name=name: child_peak(case, name, options.threads, records)  # noqa: E731
                    yield Unit(f"{case}, peak of {name}", case.dtype, work, run)


def importance(case: Case) -> tuple[bool, ...]:
    """The goals' size in fp32, then smaller pictures in every type, the goals' size in half precision, larger ones."""
    is_half, is_first = case.dtype == "bf16", case.pixels == FIRST_SIZE
    return case.pixels > FIRST_SIZE, is_first and is_half, not is_first, is_half


def work_off(waiting: list[Unit], records: Records, options: argparse.Namespace) -> list[str]:
    """Run what fits the time; the labels of what did not."""
    start, rates, left_out = time.monotonic(), dict(RATES), []
    for unit in waiting:
        expected = unit.work / rates[unit.dtype]
        if options.minutes is not None and time.monotonic() - start + expected > 60 * options.minutes:
            left_out.append(unit.label)
            continue
        print(f"{unit.label} (about {expected:.0f} s)", file=sys.stderr, flush=True)
        before = time.monotonic()
        unit.run()
        if "times" in unit.label:
            rates[unit.dtype] = unit.work / (time.monotonic() - before)
        records.save(options.out.with_suffix(".json"))
        write_report(records, options.out, left_out)
    if left_out:
        print(f"No time left for: {'; '.join(left_out)}. Run the same again to go on.", file=sys.stderr)
    return left_out


if __name__ == "__main__":
    main()
