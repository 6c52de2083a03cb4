"""Which plan to run: the fastest that fits the memory there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

import torch

from sd_vae_kit.core.graph.nodes import LayerGraph, Step
from sd_vae_kit.core.plan.cost import Cost, predict
from sd_vae_kit.core.plan.free_memory import free_memory
from sd_vae_kit.core.plan.plan import Plan
from sd_vae_kit.core.plan.schedule import all_values, bytes_per_row, must_be_stored
from sd_vae_kit.units import MIB

PlanMode = Literal["auto", "always", "never"]

MARGIN = 0.9  # of the free memory: the model is within 15 %, and other programs breathe
BAND_BYTES = {"cpu": 16 * MIB}  # as fast as 32 and 64, measured; 4 is slower by a tenth
BAND_BYTES_DEVICE = 256 * MIB  # enough work per kernel launch
LEAN_BAND_BYTES = {"cpu": 8 * MIB}
LEAN_BAND_BYTES_DEVICE = 64 * MIB
SMALL_BAND_BYTES = 2 * MIB  # where nothing else fits
BAND_ROWS = 12  # of the largest step at least: lower bands read and compute mostly halo
BAND_SHARE = 16  # but never more than this part of the picture's height
LEAN_EXTRA = 0.4  # extra arithmetic that `stream-lean` may spend unless told otherwise
UNKNOWN_FREE = 1 << 30  # budget on devices that do not tell (DirectML)


def band_bytes_for(graph: LayerGraph, shape: Sequence[int], dtype: torch.dtype, at_least: int) -> int:
    """Temporaries of one band: `at_least`, or what `BAND_ROWS` rows of the largest step take in a wide picture."""
    shapes = graph.shapes((shape[2], shape[3]))
    largest = 0
    for value in range(1, len(shapes)):
        rows = min(BAND_ROWS, shapes[value][1] // BAND_SHARE)
        largest = max(largest, rows * bytes_per_row(graph, shapes, (value,), dtype))
    return max(at_least, largest)


def whole_plan(device: torch.device, dtype: torch.dtype) -> Plan:
    """Every step in one band."""
    return Plan("whole", device, dtype)


def stream_plan(device: torch.device, dtype: torch.dtype, band_bytes: int | None = None) -> Plan:
    """Every value stored, bands about as large as the cache."""
    return Plan("stream", device, dtype, None, band_bytes or BAND_BYTES.get(device.type, BAND_BYTES_DEVICE))


def lean_plan(
    graph: LayerGraph, shape: Sequence[int], device: torch.device, dtype: torch.dtype, *,
    extra: float = LEAN_EXTRA, budget_bytes: int = 0, band_bytes: int | None = None,
) -> Plan:  # fmt: skip
    """Some values are computed again instead of stored.

    Args:
        extra: Arithmetic that may be added, as a fraction of plain streaming's; 0 stores everything.
        budget_bytes: Stop as soon as the prediction fits.
        band_bytes: Temporaries of one band.
    """
    return _LeanSearch(graph, shape, device, dtype, band_bytes).plan(extra, budget_bytes)


class _LeanSearch:
    """At the worst moment, the value whose absence lowers the peak most is left out, and so on.

    Searches with other limits on the arithmetic start alike, so what was predicted once is remembered.
    """

    def __init__(
        self, graph: LayerGraph, shape: Sequence[int], device: torch.device, dtype: torch.dtype, band_bytes: int | None
    ) -> None:
        self.graph, self.shape = graph, shape
        default = LEAN_BAND_BYTES.get(device.type, LEAN_BAND_BYTES_DEVICE)
        bands = band_bytes or band_bytes_for(graph, shape, dtype, default)
        self.all = all_values(graph)
        self.free = self.all - must_be_stored(graph)
        self.start = Plan("stream-lean", device, dtype, self.all, bands)
        self.shapes = graph.shapes((shape[2], shape[3]))
        self.costs: dict[frozenset[int], Cost] = {}

    def cost(self, stored: frozenset[int]) -> Cost:
        if stored not in self.costs:
            self.costs[stored] = predict(self.graph, replace(self.start, stored=stored), self.shape)
        return self.costs[stored]

    def plan(self, extra: float, budget_bytes: int) -> Plan:
        stored, cost = self.all, self.cost(self.all)
        limit = cost.macs * (1.0 + extra)
        while extra > 0.0 and cost.peak_bytes > budget_bytes:
            tried = {stored - group for group in _omissions(self.graph, stored & self.free, self.shapes)}
            fitting = [
                (found.peak_bytes, found.macs, sorted(other))
                for other in tried
                if (found := self.cost(other)).macs <= limit and found.peak_bytes < cost.peak_bytes
            ]
            if not fitting:
                break
            stored = frozenset(min(fitting)[2])
            cost = self.cost(stored)
        return replace(self.start, stored=stored)


def _omissions(graph: LayerGraph, values: frozenset[int], shapes: list[tuple[int, int, int]]) -> list[frozenset[int]]:
    """Sets of values worth leaving out together: a large one alone, or all of a kind, at one resolution or from it up.

    Leaving out one of several equally large values lowers no peak, so single values alone would get stuck.
    """
    largest = sorted(values, key=lambda v: -shapes[v][0] * shapes[v][1] * shapes[v][2])[:6]
    groups = [frozenset({value}) for value in largest]
    kinds = _kinds(graph, values, shapes)
    heights = sorted({shapes[value][1] for value in values})
    for kind in kinds:
        groups += [frozenset(v for v in kind if shapes[v][1] == height) for height in heights]
        groups += [frozenset(v for v in kind if shapes[v][1] >= height) for height in heights]
    return [group for group in dict.fromkeys(groups) if group]


def _kinds(graph: LayerGraph, values: frozenset[int], shapes: list[tuple[int, int, int]]) -> list[set[int]]:
    """Values between the two convolutions of a residual block, those that a bare convolution makes, and so on."""
    between: set[int] = set()
    bare: set[int] = set()
    for value in values:
        step = graph.steps[value - 1]
        if isinstance(step, Step) and step.residual is None:
            (bare if step.norm is None else between).add(value)
    narrow = {value for value in between if shapes[value] == shapes[graph.steps[value - 1].source]}
    return [narrow, between, bare, narrow | bare, between | bare, set(values)]


def host_plan(device: torch.device, dtype: torch.dtype, band_bytes: int | None = None) -> Plan:
    """Activations in host memory, bands on the device."""
    return replace(stream_plan(device, dtype, band_bytes or LEAN_BAND_BYTES_DEVICE), kind="stream-host", on_host=True)


def candidate_plans(
    graph: LayerGraph, shape: Sequence[int], dtype: torch.dtype, device: torch.device, budget_bytes: int
) -> Iterator[Plan]:
    """Plans from the fastest to the smallest; each is searched for when it is asked for."""
    yield whole_plan(device, dtype)
    default = BAND_BYTES.get(device.type, BAND_BYTES_DEVICE)
    yield stream_plan(device, dtype, band_bytes_for(graph, shape, dtype, default))
    search = _LeanSearch(graph, shape, device, dtype, None)
    yield replace(search.plan(0.0, 0), kind="stream")
    for extra in (LEAN_EXTRA, 1.0, 2.0):
        yield search.plan(extra, budget_bytes)
    if device.type != "cpu":
        yield host_plan(device, dtype, band_bytes_for(graph, shape, dtype, LEAN_BAND_BYTES_DEVICE))
        yield host_plan(device, dtype, SMALL_BAND_BYTES)
    else:
        yield lean_plan(graph, shape, device, dtype, extra=4.0, band_bytes=SMALL_BAND_BYTES)


@dataclass(frozen=True)
class PlanChoice:
    """What was chosen and why, for sentences shown to the user.

    Attributes:
        plan: The plan.
        cost: What it is predicted to take.
        whole: The same for the whole picture at once.
        free_bytes: Memory there is; None where the device does not tell.
        budget_bytes: What the plan had to fit into.
        why: One clause: why this plan, if it fits.
    """

    plan: Plan
    cost: Cost
    whole: Cost
    free_bytes: int | None
    budget_bytes: int
    why: str

    @property
    def kind(self) -> str:
        """The plan's name."""
        return self.plan.kind

    @property
    def predicted_mb(self) -> int:
        """Activations at the worst moment."""
        return ceil(self.cost.peak_bytes / MIB)

    @property
    def whole_mb(self) -> int:
        """The same for the whole picture at once."""
        return ceil(self.whole.peak_bytes / MIB)

    @property
    def free_mb(self) -> int | None:
        return None if self.free_bytes is None else self.free_bytes // MIB

    @property
    def budget_mb(self) -> int:
        return self.budget_bytes // MIB

    @property
    def fits(self) -> bool:
        """False if even the smallest plan is predicted to be too large."""
        return self.cost.peak_bytes <= self.budget_bytes

    @property
    def reason(self) -> str:
        return self.why if self.fits else "nothing smaller exists"


def choose_plan(
    graph: LayerGraph,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    budget_bytes: int | None = None,
    mode: PlanMode = "auto",
) -> PlanChoice:
    """The fastest plan that fits, with what to tell the user about it.

    Args:
        graph: Encoder or decoder.
        shape: (B, C, h, w) of its input.
        dtype, device: Of the computation.
        budget_bytes: Activations may take this much; None: what is free now, less a margin.
        mode: "always" never runs whole, "never" always does.
    """
    free = free_memory(device).free_bytes
    budget = budget_bytes
    if budget is None:
        budget = UNKNOWN_FREE if free is None else int(free * MARGIN)
    plans = candidate_plans(graph, shape, dtype, device, budget)
    plan = next(plans)
    cost = whole = predict(graph, plan, shape)
    why = "tiling is off" if mode == "never" else "the whole picture fits"
    if mode == "always" or (mode == "auto" and whole.peak_bytes > budget):
        plan, cost, number = _first_fitting(graph, shape, plans, budget)
        why = "storing every activation does not fit"
        if number == 0:
            why = "always stream" if mode == "always" else "the whole picture does not fit"
    return PlanChoice(plan, cost, whole, free, budget, why)


def _first_fitting(
    graph: LayerGraph, shape: Sequence[int], plans: Iterator[Plan], budget: int
) -> tuple[Plan, Cost, int]:
    """The first plan that fits, what it takes and how many were tried before; the smallest if none fits."""
    tried: list[tuple[Plan, Cost]] = []
    for plan in plans:
        cost = predict(graph, plan, shape)
        if not fits_ram(cost):
            continue
        if cost.peak_bytes <= budget:
            return plan, cost, len(tried)
        tried.append((plan, cost))
    plan, cost = min(tried, key=lambda pair: pair[1].peak_bytes)
    return plan, cost, len(tried)


def fits_ram(cost: Cost) -> bool:
    """Whether RAM holds what a plan keeps in host memory."""
    if not cost.host_bytes:
        return True
    ram = free_memory(torch.device("cpu")).free_bytes
    return ram is None or cost.host_bytes <= ram * MARGIN
