"""Which rows are needed, in which bands and for how long: the geometry of a run, without tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import nn

from sd_vae_kit.core.graph.nodes import AttentionStep, Conv, LayerGraph
from sd_vae_kit.core.plan.plan import Plan
from sd_vae_kit.errors import PlanError

Handling = Literal["plain", "edge", "circular"]
"""How a convolution's edges behave: see `edges`."""

Shape = tuple[int, int, int]
"""(channels, height, width) of a node."""


def input_range(conv: Conv, top: int, bottom: int) -> tuple[int, int]:
    """Rows of the module's input that output rows [top, bottom) see; may reach outside of the picture."""
    stride, pad = conv.stride[0], conv.padding[0]
    return top * stride - pad, (bottom - 1) * stride - pad + conv.reach[0]


def source_range(conv: Conv, height: int, top: int, bottom: int, handling: Handling) -> tuple[int, int]:
    """Rows of the stored activation, `height` rows high, that output rows [top, bottom) are made of."""
    input_height = conv.input_size((height, 1))[0]
    first, last = rows_fetched(conv, input_height, top, bottom, handling)
    if first < 0 or last > input_height:
        return 0, height  # circular: the opposite edge is needed too
    if conv.resize == "up":
        return first // 2, (last + 1) // 2
    return first, min(last, height)


def rows_fetched(conv: Conv, input_height: int, top: int, bottom: int, handling: Handling) -> tuple[int, int]:
    """Rows of the module's input that are handed to it for output rows [top, bottom)."""
    first, last = input_range(conv, top, bottom)
    if handling == "plain":
        return max(first, 0), min(last, input_height)
    stride = conv.stride[0]
    first = first // stride * stride  # the module's own stride starts at the first row it is given
    return (first, last) if handling == "circular" else (max(first, 0), min(last, input_height))


@dataclass(frozen=True)
class Bands(Sequence[tuple[int, int]]):
    """(top, bottom) of bands that cover [0, height) once, each `rows` high, the last perhaps less.

    Computed when asked for: a plan for a huge picture is judged by its first bands, and there may be thousands.
    """

    height: int
    rows: int

    def __len__(self) -> int:
        return -(-self.height // self.rows)

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[int, int], ...]: ...
    def __getitem__(self, index: int | slice) -> tuple[int, int] | tuple[tuple[int, int], ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        top = range(0, self.height, self.rows)[index]
        return top, min(top + self.rows, self.height)


@dataclass(frozen=True)
class Sweep:
    """One pass over a node: it is computed in bands and stored, or only its statistics are taken.

    Attributes:
        node: Index of the node.
        is_stored: False for a pass that only takes statistics.
        bands: (top, bottom) of each, in rows of the node, from top to bottom.
        over: The node that is overwritten, if any.
        held: Rows at the end of a band that are written after the next band was computed.
        needs_moments: Whether a norm reads this node.
        frees: Nodes that nobody reads after this pass.
        members: The node and those that are computed on the way to it, because they are not stored.
        row_bytes: Temporary bytes for each row of the node.
    """

    node: int
    is_stored: bool
    bands: Bands
    over: int | None
    held: int
    needs_moments: bool
    frees: tuple[int, ...]
    members: tuple[int, ...]
    row_bytes: int


@dataclass(frozen=True)
class Geometry:
    """Which nodes of a graph exist whole, how large each is, and how the edges of each convolution behave.

    Attributes:
        stored: Indexes of the nodes that exist whole; the input, 0, always does.
        shapes: (channels, height, width) of every node.
    """

    graph: LayerGraph
    stored: frozenset[int]
    shapes: list[Shape]
    handling: dict[nn.Module, Handling]

    def rows_needed(self, node: int, top: int, bottom: int) -> dict[int, tuple[int, int]]:
        """Rows of stored nodes that are read to compute rows [top, bottom) of `node`."""
        needed: dict[int, tuple[int, int]] = {}
        waiting = [(node, top, bottom)]
        while waiting:
            for source, first, last in self._rows_read(*waiting.pop()):
                if source == 0 or source in self.stored:
                    known = needed.get(source, (first, last))
                    needed[source] = (min(known[0], first), max(known[1], last))
                else:
                    waiting.append((source, first, last))
        return needed

    def _rows_read(self, node: int, top: int, bottom: int) -> Iterator[tuple[int, int, int]]:
        """(source, first, last) of the rows that the node's own step reads."""
        step = self.graph.steps[node - 1]
        if isinstance(step, AttentionStep):
            yield step.source, 0, self.shapes[step.source][1]
            return
        for source, conv in ((step.source, step.conv), (step.residual, step.shortcut)):
            if source is not None and conv is not None:
                height, handling = self.shapes[source][1], self.handling[conv.module]
                yield (source, *source_range(conv, height, top, bottom, handling))
            elif source is not None:
                yield source, top, bottom

    def chain(self, node: int) -> tuple[int, ...]:
        """`node`, the last, and the nodes that are computed on the way to it because they are not stored."""
        members, waiting = set[int](), [node]
        while waiting:
            member = waiting.pop()
            if member not in members:
                members.add(member)
                waiting += [n for n in self.graph.steps[member - 1].reads if n != 0 and n not in self.stored]
        return tuple(sorted(members))

    def reads(self, members: tuple[int, ...]) -> set[int]:
        """Stored nodes, and perhaps the input, that computing `members` reads."""
        return {source for member in members for source in self.graph.steps[member - 1].reads} - set(members)


def all_nodes(graph: LayerGraph) -> frozenset[int]:
    """Every node but the input."""
    return frozenset(range(1, len(graph.steps) + 1))


def must_be_stored(graph: LayerGraph) -> frozenset[int]:
    """The result, and what attention reads and writes."""
    attention = [(i + 1, step.source) for i, step in enumerate(graph.steps) if isinstance(step, AttentionStep)]
    return frozenset({len(graph.steps), *(node for pair in attention for node in pair)} - {0})


def make_schedule(
    graph: LayerGraph, plan: Plan, size: tuple[int, int], handling: dict[nn.Module, Handling] | None = None
) -> list[Sweep]:
    """The passes of a plan over an input of (height, width), in order, with their bands and lifetimes.

    Args:
        handling: How each convolution's edges behave; None plans for zero padding.

    Raises:
        PlanError: The plan leaves out a node that has to be stored.
    """
    stored = all_nodes(graph) if plan.stored is None else plan.stored
    missing = must_be_stored(graph) - stored
    if missing:
        name = graph.steps[min(missing) - 1].name
        raise PlanError(f"The plan does not store {name}, which attention or the result needs.")
    edges = handling if handling is not None else plain_everywhere(graph)
    return _Scheduler(Geometry(graph, stored, graph.shapes(size), edges), plan).sweeps()


class _Scheduler:
    """Puts the passes of one plan in order and finds out how long each node lives."""

    def __init__(self, geometry: Geometry, plan: Plan) -> None:
        self.geometry, self.plan = geometry, plan
        self.normed = {step.source for step in geometry.graph.steps if step.norm is not None}
        self.passes = _passes(geometry)
        self.members = [geometry.chain(node) for node, _ in self.passes]
        self.reads = [geometry.reads(members) for members in self.members]
        self.last_read = {source: i for i, sources in enumerate(self.reads) for source in sources}

    def sweeps(self) -> list[Sweep]:
        """All passes in order."""
        return [self._sweep(i, node, is_stored) for i, (node, is_stored) in enumerate(self.passes)]

    def _sweep(self, i: int, node: int, is_stored: bool) -> Sweep:
        graph, shapes = self.geometry.graph, self.geometry.shapes
        row_bytes = bytes_per_row(graph, shapes, self.members[i], self.plan.dtype)
        bands = split_rows(shapes[node][1], band_rows(self.plan, shapes[node][1], row_bytes))
        dying = tuple(sorted(source for source in self.reads[i] if self.last_read[source] == i and source != 0))
        over, held = None, 0
        if is_stored and node != len(graph.steps):
            same_size = [source for source in dying if shapes[source] == shapes[node]]
            over, held = _overwritten(self.geometry, node, bands, same_size)
        return Sweep(node, is_stored, bands, over, held, node in self.normed, dying, self.members[i], row_bytes)


def plain_everywhere(graph: LayerGraph) -> dict[nn.Module, Handling]:
    """Zero padding at every convolution's edges."""
    return {conv.module: "plain" for conv in convolutions(graph)}


def convolutions(graph: LayerGraph) -> Iterator[Conv]:
    """Every convolution of a graph, those inside attention included."""
    for step in graph.steps:
        if isinstance(step, AttentionStep):
            for module in (step.query, step.key, step.value, step.out):
                if not step.linear:
                    yield Conv(module, step.name, channels_in=getattr(module, "in_channels", 0))
        else:
            yield from (conv for conv in (step.conv, step.shortcut) if conv is not None)


def _passes(geometry: Geometry) -> list[tuple[int, bool]]:
    """(node, is_stored) of every pass: statistics of nodes that are not stored come before their first reader."""
    passes: list[tuple[int, bool]] = []
    known: set[int] = set()

    def take_statistics(node: int) -> None:
        """Take the statistics that computing `node` needs, of nodes that are not stored."""
        step = geometry.graph.steps[node - 1]
        for source in step.reads:
            if source != 0 and source not in geometry.stored:
                take_statistics(source)
                if source == step.source and step.norm is not None and source not in known:
                    known.add(source)
                    passes.append((source, False))

    for node in sorted(geometry.stored):
        take_statistics(node)
        passes.append((node, True))
    return passes


def _overwritten(geometry: Geometry, node: int, bands: Bands, candidates: list[int]) -> tuple[int | None, int]:
    """Which dying node of the same size can take the result, and how many rows have to wait for the next band."""
    if not candidates:
        return None, 0
    if isinstance(geometry.graph.steps[node - 1], AttentionStep):
        return candidates[0], 0
    held = dict.fromkeys(candidates, 0)
    for top, bottom in {*bands[1:4], bands[-1]} - {bands[0]}:  # all others are shifted copies of these
        needed = geometry.rows_needed(node, top, bottom)
        for source in candidates:
            held[source] = max(held[source], top - needed[source][0] if source in needed else 0)
    best = min(candidates, key=lambda source: held[source])
    # a circular picture needs its first rows until the end: nothing is gained by overwriting them late
    return (best, held[best]) if held[best] <= max(8, bands[0][1]) else (None, 0)


def band_rows(plan: Plan, height: int, row_bytes: int) -> int:
    """How high a band of a node `height` rows high may be: `row_bytes` for each row fit `plan.band_bytes`."""
    if plan.band_bytes is None:
        return height
    # even, because nearest upsampling and stride 2 work on pairs of rows
    return min(height, max(2, plan.band_bytes // max(1, row_bytes) // 2 * 2))


def bytes_per_row(graph: LayerGraph, shapes: list[Shape], members: tuple[int, ...], dtype: torch.dtype) -> int:
    """Temporary bytes for each row of the last of `members`: input and output of the largest step among them."""
    largest = 0
    for member in members:
        taken = 0
        for node in (member, graph.steps[member - 1].source):
            channels, height, width = shapes[node]
            taken += channels * height * width
        largest = max(largest, taken)
    return -(-largest * dtype.itemsize // shapes[members[-1]][1])


def split_rows(height: int, rows: int) -> Bands:
    """Bands of about equal height, at most `rows` (even numbers), that cover [0, height) once."""
    count = -(-height // rows)
    even = -(-height // count)
    return Bands(height, min(rows, even + even % 2) if rows < height else height)
