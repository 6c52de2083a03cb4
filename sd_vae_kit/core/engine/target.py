"""Where the bands of one pass go: a new tensor, over a dying node, or the result."""

from __future__ import annotations

import torch
from torch import Tensor

from sd_vae_kit.core.engine.device_tensors import dense
from sd_vae_kit.core.engine.node_store import NodeStore
from sd_vae_kit.core.plan.schedule import Sweep


class Target:
    """Takes the bands of one pass from top to bottom.

    Args:
        store: Where the node will be kept.
        sweep: The pass.
        result: The last pass's: the caller's tensor.
    """

    def __init__(self, store: NodeStore, sweep: Sweep, result: Tensor | None) -> None:
        self.store, self.sweep, self.held = store, sweep, sweep.held
        self.height = store.shapes[sweep.node][1]
        self.pending: Tensor | None = None
        self.written = 0
        self.buffer = result
        if sweep.over is not None and sweep.over in store:
            self.buffer = store.whole(sweep.over)

    def commit(self, top: int, bottom: int, band: Tensor) -> None:
        """Write rows [top, bottom), but keep back the last rows that the next band still reads as they were."""
        is_single = len(self.sweep.bands) == 1
        if self.store.link is None and is_single and (self.buffer is None or self.sweep.over is not None):
            self._keep(dense(band))
            return
        if self.buffer is None:
            self.buffer = self.store.made(self.sweep.node, band.dtype)
        if self.pending is not None:
            if bottom - top < self.held:
                band = torch.cat([self.pending, band], 2)
            else:
                self._write(self.pending)
        stop = self.height if bottom == self.height else max(self.written, bottom - self.held)
        start = bottom - band.shape[2]
        self.pending = band[:, :, stop - start :].clone() if stop < bottom else None
        self._write(band[:, :, : stop - start])
        if bottom == self.height:
            self._keep(self.buffer)

    def divide(self, exponent: int) -> None:
        """Rows that are written or wait to be are from now on stored divided by 2**exponent."""
        if self.buffer is not None and self.written:
            self.store.finish_writing()  # rows may still be on their way to the host
            self.buffer[:, :, : self.written].mul_(0.5**exponent)
        if self.pending is not None:
            self.pending.mul_(0.5**exponent)

    def _write(self, rows: Tensor) -> None:
        assert self.buffer is not None
        self.store.write(self.buffer[:, :, self.written : self.written + rows.shape[2]], rows)
        self.written += rows.shape[2]

    def _keep(self, tensor: Tensor) -> None:
        self.store.keep(self.sweep.node, tensor, self.sweep.over)
