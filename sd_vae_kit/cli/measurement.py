"""How long a piece of work took and how far the memory grew, without more packages."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

MB = 2**20

T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """Cost of a piece of work.

    Attributes:
        seconds: Wall time.
        peak_mb: The most memory above what was in use before, in MiB: on a GPU of torch's own tensors, on Linux of the
            process; `None` where it cannot be told.
    """

    seconds: float
    peak_mb: float | None


def measure(work: Callable[[], T], device: torch.device) -> tuple[T, Measured]:
    """Run `work` and say what it cost."""
    before = _start(device)
    began = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    peak = _peak(device)
    grown = None if before is None or peak is None else round(max(0, peak - before) / MB, 1)
    return result, Measured(round(seconds, 3), grown)


def _start(device: torch.device) -> int | None:
    """Forget earlier peaks; bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to VmRSS
    except OSError:
        return None
    return _status_bytes("VmRSS")


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status_bytes("VmHWM")


def _status_bytes(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
