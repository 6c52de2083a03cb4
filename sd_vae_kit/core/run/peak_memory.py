"""How far the memory grows while something runs, without more packages."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from sd_vae_kit.units import MIB


class PeakMemory:
    """The most memory above what is in use when the measurement starts: on a GPU torch's own, on Linux the process's.

    Starting it resets the record that torch or the system keeps for the whole process.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._start()

    def taken_mb(self) -> float | None:
        """MiB so far; None where the system does not tell."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            peak: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _status_bytes("VmHWM")
        return None if self._before is None or peak is None else round(max(0, peak - self._before) / MIB, 1)

    def _start(self) -> int | None:
        """Forget earlier peaks; bytes in use now."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return torch.cuda.memory_allocated(self._device)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to VmRSS
        except OSError:
            return None
        return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
