"""Time and memory of the streamed VAE beside the ordinary forward.

    python -m bench                          decode and encode, 512, 768 and 1024 px, fp32 and bf16, 3 repeats
    python -m bench --sizes 512 --parts decode --dtypes fp32 --repeats 1
    python -m bench --full                   1536 px too

Times are taken interleaved in one process, so that a busy machine disturbs all variants alike; wall clock and
processor time are both given, because on shared cores only the second repeats.  Peaks are taken in one process each:
resident memory above what the process with the weights had before.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # AMX rounds fp32 to bf16
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads would count as processor time

import torch

from bench.report import Row, write_report
from bench.variants import FLOOR, ORDINARY, STREAMED, VARIANTS, Subject, clocks, floor_times, plan_for, runner, subject
from sd_vae_kit.core.cost import MB, predict

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    options = parse(sys.argv[1:])
    if options.child:
        print(json.dumps(measure_peak(*options.child)))
        return
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for dtype in options.dtypes:
        for part in options.parts:
            for pixels in options.sizes:
                rows += measure(part, pixels, dtype, options.repeats, options.variants, options)
                write_report(rows, options.out, options.threads)
    print(options.out.read_text())


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Time and peak memory of every plan.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 768, 1024], help="pixels, multiples of 8")
    parser.add_argument("--full", action="store_true", help="1536 px too")
    parser.add_argument("--parts", nargs="+", choices=["decode", "encode"], default=["decode", "encode"])
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=3, help="0 measures peaks only")
    parser.add_argument("--no-peaks", action="store_true")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "RESULTS.md")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.sizes = sorted({*options.sizes, *([1536] if options.full else [])})
    return options


def measure(
    part: str, pixels: int, dtype: str, repeats: int, variants: list[str], options: argparse.Namespace
) -> list[Row]:
    print(f"{part} {pixels} px {dtype}", file=sys.stderr, flush=True)
    times, cpu, differences = measure_times(part, pixels, dtype, repeats, variants)
    rows = []
    for name in variants:
        peak = {} if options.no_peaks or name == FLOOR else child_peak(name, part, pixels, dtype, options.threads)
        rows.append(
            Row(
                part,
                pixels,
                dtype,
                name,
                times.get(name, []),
                cpu.get(name, []),
                differences.get(name),
                peak.get("peak_mb"),
                peak.get("predicted_mb"),
            )
        )
    return rows


@torch.no_grad()
def measure_times(
    part: str, pixels: int, dtype: str, repeats: int, variants: list[str]
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, float]]:
    """(wall seconds, processor seconds, max |difference| to the ordinary forward) of every variant, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    differences: dict[str, float] = {}
    if repeats == 0:
        return times, cpu, differences
    it = subject(part, pixels, DTYPES[dtype])
    runners = {name: runner(name, it) for name in variants if name != FLOOR}
    reference = None
    for turn in range(repeats):
        # every other turn backwards, so that nobody always follows the same neighbour
        for name in variants if turn % 2 == 0 else variants[::-1]:
            if name == FLOOR:
                wall, processor = floor_times(it)
                times[name].append(wall)
                cpu[name].append(processor)
                continue
            before = clocks()
            result = runners[name]()
            wall, processor = (now - then for now, then in zip(clocks(), before, strict=True))
            times[name].append(wall)
            cpu[name].append(processor)
            print(f"  {name}: {times[name][-1]:.1f} s, {cpu[name][-1]:.1f} s of processor", file=sys.stderr, flush=True)
            if name == ORDINARY and reference is None:
                reference = result
            if reference is not None and "tiling" not in name and isinstance(result, torch.Tensor):
                difference = float((result - reference).abs().max() / reference.abs().max() / 2)
                differences[name] = max(differences.get(name, 0.0), difference)
            del result
    return times, cpu, differences


def child_peak(name: str, part: str, pixels: int, dtype: str, threads: int) -> dict[str, float]:
    """Run a variant once in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "bench", "--child", name, part, str(pixels), dtype]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        print(f"  {name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return {}
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {name}: {answer}", file=sys.stderr, flush=True)
    return answer


@torch.no_grad()
def measure_peak(name: str, part: str, pixels: str, dtype: str) -> dict[str, float]:
    """Resident memory above that of the process with the weights, after a small picture has warmed up the kernels."""
    warm = subject(part, 64, DTYPES[dtype])
    it = Subject(warm.vae, part, subject(part, int(pixels), DTYPES[dtype]).x)
    run_small = runner(name, warm)
    run_small()
    run = runner(name, it)
    del run_small
    trim()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    run()
    answer = {"peak_mb": (status("VmHWM") - before) / 1024}
    if name in STREAMED:
        cost = predict(it.program, plan_for(name, it), it.x.shape)
        answer["predicted_mb"] = cost.peak_bytes / MB
    return answer


def status(field: str) -> int:
    """A field of /proc/self/status in KB (Linux only)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def trim() -> None:
    """Give freed memory back to the system, so that it is not counted as there before."""
    ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    main()
