"""Taking one measurement: times interleaved in this process, peaks in a process each."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from bench.records import Case, Records
from bench.variants import FLOOR, ORDINARY, STREAMED, Subject, clocks, floor_times, plan_for, runner, subject
from sd_vae_kit.core.plan.cost import predict
from sd_vae_kit.units import MIB

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@torch.no_grad()
def measure_times(case: Case, variants: list[str], records: Records) -> None:
    """One more repeat of every variant, and its difference to the ordinary forward."""
    it = subject(case.part, case.pixels, DTYPES[case.dtype])
    turn = len(records.row(case, variants[0]).times)
    # every other turn backwards, so that nobody always follows the same neighbour; the ordinary forward always first,
    # because the others are compared with its result
    order = [name for name in variants if name != ORDINARY]
    reference = None
    for name in [*([ORDINARY] if ORDINARY in variants else []), *(order if turn % 2 == 0 else order[::-1])]:
        row = records.row(case, name)
        result = None
        if name == FLOOR:
            wall, processor = floor_times(it)
        else:
            run = runner(name, it)
            before = clocks()
            result = run()
            wall, processor = (now - then for now, then in zip(clocks(), before, strict=True))
        row.times.append(wall)
        row.cpu.append(processor)
        print(f"  {name}: {wall:.1f} s, {processor:.1f} s of processor", file=sys.stderr, flush=True)
        if name == ORDINARY:
            reference = result
        elif reference is not None and isinstance(result, Tensor) and "tiling" not in name:
            # the tiling is diffusers' module with weights of its own: its error is measured on photographs
            difference = (result.float() - reference.float()).abs() / (2 * float(reference.abs().max()))
            row.difference = max(row.difference or 0.0, float(difference.max()))
            row.mean_difference = max(row.mean_difference or 0.0, float(difference.mean()))


def child_peak(case: Case, name: str, threads: int, records: Records) -> None:
    """Run a variant once in a process of its own and take its peak."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    arguments = [name, case.part, str(case.pixels), case.dtype]
    command = [sys.executable, "-m", "bench", "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        print(f"  {name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    row = records.row(case, name)
    row.peak_mb, row.predicted_mb = answer["peak_mb"], answer.get("predicted_mb")
    print(f"  {name}: peak {row.peak_mb:.0f} MB", file=sys.stderr, flush=True)


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
        cost = predict(it.graph, plan_for(name, it.graph, it.x.shape, it.x.dtype), it.x.shape)
        answer["predicted_mb"] = cost.peak_bytes / MIB
    return answer


def status(field: str) -> int:
    """A field of /proc/self/status in KB (Linux only)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def trim() -> None:
    """Give freed memory back to the system, so that it is not counted as there before."""
    ctypes.CDLL(None).malloc_trim(0)
