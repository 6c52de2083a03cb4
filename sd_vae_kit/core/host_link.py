"""Activations in host memory: how a band's rows come to the device and how its result leaves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sd_vae_kit.core.plan import Plan


def is_remote(plan: Plan) -> bool:
    """Whether stored values live in another memory than the computation's; on the CPU there is only one."""
    return plan.on_host and plan.device.type != "cpu"


class HostLink:
    """Stored values in host memory: rows come to the device and go back beside the computation.

    On CUDA (ROCm) the copies run in streams of their own from and to pinned memory, so that the next band's rows arrive
    and the last band's leave while this one is computed; on other devices copies are plain.  The CUDA branch has not
    been run on a GPU yet.
    """

    def __init__(self, device: torch.device) -> None:
        cuda: Any = torch.cuda
        self.cuda, self.device, self.is_cuda = cuda, device, device.type == "cuda"
        self.arriving = cuda.Stream(device) if self.is_cuda else None
        self.leaving = cuda.Stream(device) if self.is_cuda else None
        # (value, top, bottom, rows on the device, event): those of this band and of the next
        self.prefetched: list[tuple[Tensor, int, int, Tensor, Any]] = []
        self.due: list[tuple[Tensor, int, int, Tensor, Any]] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last, pin_memory=self.is_cuda)

    def prefetch(self, value: Tensor, top: int, bottom: int) -> None:
        """Start copying rows of a host value; a later `fetch` inside of them takes them."""
        if self.arriving is None or value.device.type != "cpu":
            return
        with self.cuda.stream(self.arriving):
            rows = value[:, :, top:bottom].to(self.device, non_blocking=True)
            arrived = self.cuda.Event()
            arrived.record(self.arriving)
        self.prefetched.append((value, top, bottom, rows, arrived))

    def next_band(self) -> None:
        """What was sent for during the last band is due in this one; what was due then is let go."""
        self.due, self.prefetched = self.prefetched, []

    def fetch(self, value: Tensor, top: int, bottom: int) -> Tensor:
        """Rows of a value on the device."""
        for source, first, last, rows, arrived in self.due:
            if source is value and first <= top and bottom <= last:
                current = self.cuda.current_stream(self.device)
                current.wait_event(arrived)
                rows.record_stream(current)  # the allocator must not reuse it before this stream has read it
                return rows[:, :, top - first : bottom - first]
        return value[:, :, top:bottom].to(self.device, non_blocking=self.is_cuda)

    def write(self, place: Tensor, rows: Tensor) -> None:
        """Copy rows to their place, which may be on the host or (the result) on any device."""
        if self.leaving is None or not place.is_pinned():
            place.copy_(rows)
            return
        self.leaving.wait_stream(self.cuda.current_stream(self.device))
        with self.cuda.stream(self.leaving):
            place.copy_(rows, non_blocking=True)
        rows.record_stream(self.leaving)

    def finish(self) -> None:
        """Wait until everything written in this pass has arrived on the host."""
        self.prefetched, self.due = [], []
        if self.leaving is not None:
            self.leaving.synchronize()
