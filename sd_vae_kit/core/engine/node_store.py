"""The nodes of one sample that exist whole: on the device, or in host memory with their rows on the way to and fro."""

from __future__ import annotations

import torch
from torch import Tensor

from sd_vae_kit.core.engine.device_tensors import dense, empty
from sd_vae_kit.core.engine.offload import OffloadedStore
from sd_vae_kit.core.plan.plan import Plan, is_remote
from sd_vae_kit.core.plan.schedule import Shape


class NodeStore:
    """Stored nodes by their index; 0 is the input.

    Args:
        plan: Where they are kept.
        shapes: (channels, height, width) of every node.

    Attributes:
        shapes: The same.
        link: How rows come from host memory and go there; None where nodes are on the device.
    """

    def __init__(self, plan: Plan, shapes: list[Shape]) -> None:
        self.plan, self.shapes = plan, shapes
        self.link = OffloadedStore(plan.device) if is_remote(plan) else None
        self._nodes: dict[int, Tensor] = {}

    def __contains__(self, node: int) -> bool:
        return node in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def indexes(self) -> frozenset[int]:
        return frozenset(self._nodes)

    def put_input(self, x: Tensor) -> None:
        """Take the input (1, C, h, w), which is never written to."""
        if self.link is None:
            self._nodes[0] = dense(x.to(self.plan.device, self.plan.dtype))
        else:
            self._nodes[0] = self.link.empty(tuple(x.shape), self.plan.dtype).copy_(x)

    def made(self, node: int, dtype: torch.dtype) -> Tensor:
        """A new tensor for a node, not yet stored."""
        shape = (1, *self.shapes[node])
        return empty(shape, dtype, self.plan.device) if self.link is None else self.link.empty(shape, dtype)

    def whole(self, node: int) -> Tensor:
        """The node as it lies in memory."""
        return self._nodes[node]

    def rows(self, node: int, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom) on the device; not to be written to."""
        if self.link is not None:
            return self.link.fetch(self._nodes[node], top, bottom)
        return self._nodes[node][:, :, top:bottom]

    def write(self, place: Tensor, rows: Tensor) -> None:
        """Copy rows of a band to their place."""
        if self.link is not None:
            self.link.write(place, rows)
        else:
            place.copy_(rows)

    def keep(self, node: int, tensor: Tensor, over: int | None) -> None:
        """Store a node, perhaps in the memory of another one, which is gone then."""
        if over is not None:
            self._nodes.pop(over, None)
        self._nodes[node] = tensor

    def free(self, nodes: tuple[int, ...]) -> None:
        """Let go of nodes that nobody reads any more."""
        for node in nodes:
            self._nodes.pop(node, None)

    def prefetch(self, needed: dict[int, tuple[int, int]]) -> None:
        """Send for rows of the next band while this one is computed.

        They are never rows that this band's result overwrites: those wait in `Target.pending`.
        """
        assert self.link is not None
        for node, (first, last) in needed.items():
            if node in self._nodes and last - first < self.shapes[node][1]:
                self.link.prefetch(self._nodes[node], first, last)

    def finish_writing(self) -> None:
        """Wait until every row has arrived in host memory."""
        if self.link is not None:
            self.link.finish()
