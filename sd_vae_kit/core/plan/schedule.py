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


def input_range(conv: Conv, top: int, bottom: int) -> tuple[int, int]:
    """Rows of the module's input that output rows [top, bottom) see; may reach outside of the picture."""
    stride, pad = conv.stride[0], conv.padding[0]
    return top * stride - pad, (bottom - 1) * stride - pad + conv.reach[0]


def source_range(conv: Conv, height: int, top: int, bottom: int, handling: Handling) -> tuple[int, int]:
    """Rows of the stored activation, `height` rows high, that output rows [top, bottom) are made of."""
    tall = conv.input_size((height, 1))[0]
    first, last = rows_fetched(conv, tall, top, bottom, handling)
    if first < 0 or last > tall:
        return 0, height  # circular: the opposite edge is needed too
    if conv.resize == "up":
        return first // 2, (last + 1) // 2
    return first, min(last, height)


def rows_fetched(conv: Conv, tall: int, top: int, bottom: int, handling: Handling) -> tuple[int, int]:
    """Rows of the module's input that are handed to it for output rows [top, bottom)."""
    first, last = input_range(conv, top, bottom)
    if handling == "plain":
        return max(first, 0), min(last, tall)
    stride = conv.stride[0]
    first = first // stride * stride  # the module's own stride starts at the first row it is given
    return (first, last) if handling == "circular" else (max(first, 0), min(last, tall))


def rows_needed(
    graph: LayerGraph, stored: frozenset[int], shapes: list[tuple[int, int, int]], handling: dict[nn.Module, Handling],
    value: int, top: int, bottom: int,
) -> dict[int, tuple[int, int]]:  # fmt: skip
    """Rows of stored values that are read to compute rows [top, bottom) of `value`."""
    needed: dict[int, tuple[int, int]] = {}

    def read(source: int, first: int, last: int) -> None:
        if source == 0 or source in stored:
            known = needed.get(source, (first, last))
            needed[source] = (min(known[0], first), max(known[1], last))
        else:
            make(source, first, last)

    def make(target: int, first: int, last: int) -> None:
        step = graph.steps[target - 1]
        if isinstance(step, AttentionStep):
            read(step.source, 0, shapes[step.source][1])
            return
        for source, conv in ((step.source, step.conv), (step.residual, step.shortcut)):
            if source is not None and conv is not None:
                read(source, *source_range(conv, shapes[source][1], first, last, handling[conv.module]))
            elif source is not None:
                read(source, first, last)

    make(value, top, bottom)
    return needed


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
    """One pass over a value: it is computed in bands and stored, or only its statistics are taken.

    Attributes:
        value: Index of the value.
        is_stored: False for a pass that only takes statistics.
        bands: (top, bottom) of each, in rows of the value, from top to bottom.
        over: The value that is overwritten, if any.
        held: Rows at the end of a band that are written after the next band was computed.
        needs_moments: Whether a norm reads this value.
        frees: Values that nobody reads after this event.
        members: The value and those that are computed on the way to it, because they are not stored.
        row_bytes: Temporary bytes for each row of the value.
    """

    value: int
    is_stored: bool
    bands: Bands
    over: int | None
    held: int
    needs_moments: bool
    frees: tuple[int, ...]
    members: tuple[int, ...]
    row_bytes: int


def all_values(graph: LayerGraph) -> frozenset[int]:
    return frozenset(range(1, len(graph.steps) + 1))


def must_be_stored(graph: LayerGraph) -> frozenset[int]:
    """The result, and what attention reads and writes."""
    attention = [(i + 1, step.source) for i, step in enumerate(graph.steps) if isinstance(step, AttentionStep)]
    return frozenset({len(graph.steps), *(value for pair in attention for value in pair)} - {0})


def make_schedule(
    graph: LayerGraph, plan: Plan, size: tuple[int, int], handling: dict[nn.Module, Handling] | None = None
) -> list[Sweep]:
    """The passes of a plan over an input of (height, width), in order, with their bands and lifetimes.

    Args:
        handling: How each convolution's edges behave; None plans for zero padding.

    Raises:
        PlanError: The plan leaves out a value that has to be stored.
    """
    stored = all_values(graph) if plan.stored is None else plan.stored
    missing = must_be_stored(graph) - stored
    if missing:
        name = graph.steps[min(missing) - 1].name
        raise PlanError(f"The plan does not store {name}, which attention or the result needs.")
    shapes = graph.shapes(size)
    modes = handling if handling is not None else plain_everywhere(graph)
    normed = {step.source for step in graph.steps if step.norm is not None}
    passes = _passes(graph, stored, normed)
    members = [chain(graph, stored, value) for value, _ in passes]
    reads = [_reads(graph, computed) for computed in members]
    last_read = {source: i for i, sources in enumerate(reads) for source in sources}
    events = []
    for i, (value, is_stored) in enumerate(passes):
        row_bytes = bytes_per_row(graph, shapes, members[i], plan.dtype)
        bands = split_rows(shapes[value][1], band_rows(plan, shapes[value][1], row_bytes))
        dying = sorted(source for source in reads[i] if last_read[source] == i and source != 0)
        over, held = None, 0
        if is_stored and value != len(graph.steps):
            same_size = [source for source in dying if shapes[source] == shapes[value]]
            over, held = _overwritten(graph, stored, shapes, modes, value, bands, same_size)
        needs_moments = value in normed
        events.append(Sweep(value, is_stored, bands, over, held, needs_moments, tuple(dying), members[i], row_bytes))
    return events


def plain_everywhere(graph: LayerGraph) -> dict[nn.Module, Handling]:
    return {conv.module: "plain" for conv in convolutions(graph)}


def convolutions(graph: LayerGraph) -> Iterator[Conv]:
    for step in graph.steps:
        if isinstance(step, AttentionStep):
            for module in (step.query, step.key, step.value, step.out):
                if not step.linear:
                    yield Conv(module, step.name, channels_in=getattr(module, "in_channels", 0))
        else:
            yield from (conv for conv in (step.conv, step.shortcut) if conv is not None)


def _passes(graph: LayerGraph, stored: frozenset[int], normed: set[int]) -> list[tuple[int, bool]]:
    """(value, is_stored) of every pass: statistics of values that are not stored come before their first reader."""
    passes: list[tuple[int, bool]] = []
    known: set[int] = set()

    def statistics(value: int) -> None:
        """Take the statistics that computing `value` needs, of values that are not stored."""
        step = graph.steps[value - 1]
        for source in step.reads:
            if source != 0 and source not in stored:
                statistics(source)
                if source == step.source and step.norm is not None and source not in known:
                    known.add(source)
                    passes.append((source, False))

    for value in sorted(stored):
        statistics(value)
        passes.append((value, True))
    return passes


def _overwritten(
    graph: LayerGraph, stored: frozenset[int], shapes: list[tuple[int, int, int]], modes: dict[nn.Module, Handling],
    value: int, bands: Bands, candidates: list[int],
) -> tuple[int | None, int]:  # fmt: skip
    """Which dying value of the same size can take the result, and how many rows have to wait for the next band."""
    if not candidates:
        return None, 0
    if isinstance(graph.steps[value - 1], AttentionStep):
        return candidates[0], 0
    held = dict.fromkeys(candidates, 0)
    for top, bottom in {*bands[1:4], bands[-1]} - {bands[0]}:  # all others are shifted copies of these
        needed = rows_needed(graph, stored, shapes, modes, value, top, bottom)
        for source in candidates:
            held[source] = max(held[source], top - needed[source][0] if source in needed else 0)
    best = min(candidates, key=lambda source: held[source])
    # a circular picture needs its first rows until the end: nothing is gained by overwriting them late
    return (best, held[best]) if held[best] <= max(8, bands[0][1]) else (None, 0)


def band_rows(plan: Plan, height: int, row_bytes: int) -> int:
    """How high a band of a value `height` rows high may be: `row_bytes` for each row fit `plan.band_bytes`."""
    if plan.band_bytes is None:
        return height
    # even, because nearest upsampling and stride 2 work on pairs of rows
    return min(height, max(2, plan.band_bytes // max(1, row_bytes) // 2 * 2))


def bytes_per_row(
    graph: LayerGraph, shapes: list[tuple[int, int, int]], members: tuple[int, ...], dtype: torch.dtype
) -> int:
    """Temporary bytes for each row of the last of `members`: input and output of the largest step among them."""
    largest = 0
    for member in members:
        taken = 0
        for value in (member, graph.steps[member - 1].source):
            channels, height, width = shapes[value]
            taken += channels * height * width
        largest = max(largest, taken)
    return -(-largest * dtype.itemsize // shapes[members[-1]][1])


def chain(graph: LayerGraph, stored: frozenset[int], value: int) -> tuple[int, ...]:
    """`value`, the last, and the values that are computed on the way to it because they are not stored."""
    members, waiting = set[int](), [value]
    while waiting:
        member = waiting.pop()
        if member not in members:
            members.add(member)
            waiting += [v for v in graph.steps[member - 1].reads if v != 0 and v not in stored]
    return tuple(sorted(members))


def _reads(graph: LayerGraph, members: tuple[int, ...]) -> set[int]:
    """Stored values, and perhaps the input, that computing `members` reads."""
    return {source for member in members for source in graph.steps[member - 1].reads} - set(members)


def split_rows(height: int, rows: int) -> Bands:
    """Bands of about equal height, at most `rows` (even numbers), that cover [0, height) once."""
    count = -(-height // rows)
    even = -(-height // count)
    return Bands(height, min(rows, even + even % 2) if rows < height else height)
