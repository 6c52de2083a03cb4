"""Activations in host memory: how a band's rows come to the device and how its result leaves."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import torch
from torch import Tensor

from sd_vae_kit.core.plan.devices import traits

BANDS_UNDER_WAY = 2  # asked of the device and not yet done: one is computed while another leaves


class CopyStreams(Protocol):
    """Copies that run beside the computation, each kind in its own order."""

    def bring(self, rows: Tensor) -> tuple[Tensor, object]:
        """Start copying host rows to the device: (where they will be, a ticket for `arrived`)."""

    def arrived(self, rows: Tensor, ticket: object) -> None:
        """From here on the computation may read `rows`, which `bring` returned."""

    def send(self, place: Tensor, rows: Tensor) -> None:
        """Start copying device rows, once all that was asked of the device before is done, to their host place."""

    def next_band(self) -> None:
        """A band has been asked for; wait until the one before the last is done, so that bands do not pile up."""

    def wait(self) -> None:
        """Until everything sent is in its place."""


class CudaCopyStreams:
    """Two CUDA streams, one for each direction; has not been run on a GPU yet.

    Args:
        device: The computation's.
        cuda: `torch.cuda`, or what a test puts in its place.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.cuda, self.device = cuda, device
        self.arriving, self.leaving = cuda.Stream(device), cuda.Stream(device)
        self.bands: deque[Any] = deque()  # events: each is over when its band has been computed and has left

    def bring(self, rows: Tensor) -> tuple[Tensor, object]:
        with self.cuda.stream(self.arriving):
            there = rows.to(self.device, non_blocking=True)
            ticket = self.cuda.Event()
            ticket.record(self.arriving)
        return there, ticket

    def arrived(self, rows: Tensor, ticket: object) -> None:
        current = self.cuda.current_stream(self.device)
        current.wait_event(ticket)
        rows.record_stream(current)  # the allocator must not reuse it before this stream has read it

    def send(self, place: Tensor, rows: Tensor) -> None:
        self.leaving.wait_stream(self.cuda.current_stream(self.device))
        with self.cuda.stream(self.leaving):
            place.copy_(rows, non_blocking=True)
        rows.record_stream(self.leaving)  # nor before it has left

    def next_band(self) -> None:
        self.leaving.wait_stream(self.cuda.current_stream(self.device))
        event = self.cuda.Event()
        event.record(self.leaving)
        self.bands.append(event)
        if len(self.bands) > BANDS_UNDER_WAY:
            self.bands.popleft().synchronize()

    def wait(self) -> None:
        self.leaving.synchronize()
        self.bands.clear()


class OffloadedStore:
    """Stored values in host memory: rows come to the device and go back beside the computation.

    While a band is computed, the next one's rows arrive and the last one's leave.  A value that is overwritten in place
    never disturbs this: rows of it that a later band reads are written only after that band was computed.  Devices
    without streams copy plainly.

    Args:
        device: The computation's.
        lanes: None for those of the device, if it has any.
    """

    def __init__(self, device: torch.device, lanes: CopyStreams | None = None) -> None:
        self.device = device
        self.lanes: CopyStreams | None = lanes or (CudaCopyStreams(device) if traits(device).has_streams else None)
        # (value, top, bottom, rows on the device, ticket): those of this band and of the next
        self.prefetched: list[tuple[Tensor, int, int, Tensor, object]] = []
        self.due: list[tuple[Tensor, int, int, Tensor, object]] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A new host picture in the layout of the device's bands, pinned if copies run beside the computation."""
        kind = traits(self.device)
        return torch.empty(shape, dtype=dtype, memory_format=kind.memory_format, pin_memory=kind.has_streams)

    def prefetch(self, value: Tensor, top: int, bottom: int) -> None:
        """Start copying rows of a host value; a later `fetch` inside of them takes them."""
        if self.lanes is not None:
            self.prefetched.append((value, top, bottom, *self.lanes.bring(value[:, :, top:bottom])))

    def next_band(self) -> None:
        """What was sent for during the last band is due in this one; what was due then is let go."""
        self.due, self.prefetched = self.prefetched, []
        if self.lanes is not None:
            self.lanes.next_band()

    def fetch(self, value: Tensor, top: int, bottom: int) -> Tensor:
        """Rows of a value on the device."""
        for source, first, last, rows, ticket in self.due:
            if source is value and first <= top and bottom <= last:
                assert self.lanes is not None
                self.lanes.arrived(rows, ticket)
                return rows[:, :, top - first : bottom - first]
        return value[:, :, top:bottom].to(self.device, non_blocking=self.lanes is not None)

    def write(self, place: Tensor, rows: Tensor) -> None:
        """Copy rows to their place, which may be on the host or (the result) on any device."""
        if self.lanes is None or place.device.type != "cpu" or (self.device.type != "cpu" and not place.is_pinned()):
            place.copy_(rows)
        else:
            self.lanes.send(place, rows)

    def finish(self) -> None:
        """Wait until everything written in this pass has arrived on the host."""
        self.prefetched, self.due = [], []
        if self.lanes is not None:
            self.lanes.wait()
