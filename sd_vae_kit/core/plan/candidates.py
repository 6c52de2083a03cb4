"""Plans to choose among: of every kind, from the fastest to the smallest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from sd_vae_kit.core.graph.nodes import LayerGraph, Step
from sd_vae_kit.core.plan.cost import Cost, predict
from sd_vae_kit.core.plan.plan import Plan
from sd_vae_kit.core.plan.schedule import Shape, all_nodes, bytes_per_row, make_schedule, must_be_stored
from sd_vae_kit.units import MIB

BAND_BYTES = {"cpu": 16 * MIB}  # as fast as 32 and 64, measured; 4 is slower by a tenth
BAND_BYTES_DEVICE = 256 * MIB  # enough work per kernel launch
LEAN_BAND_BYTES = {"cpu": 8 * MIB}
LEAN_BAND_BYTES_DEVICE = 64 * MIB
SMALL_BAND_BYTES = 2 * MIB  # where nothing else fits
BAND_ROWS = 12  # of the largest step at least: lower bands read and compute mostly halo
BAND_SHARE = 16  # but never more than this part of the picture's height


def band_bytes_for(graph: LayerGraph, shape: Sequence[int], dtype: torch.dtype, at_least: int) -> int:
    """Temporaries of one band: `at_least`, or what `BAND_ROWS` rows of the largest step take in a wide picture."""
    shapes = graph.shapes((shape[2], shape[3]))
    largest = 0
    for node in range(1, len(shapes)):
        rows = min(BAND_ROWS, shapes[node][1] // BAND_SHARE)
        largest = max(largest, rows * bytes_per_row(graph, shapes, (node,), dtype))
    return max(at_least, largest)


def whole_plan(device: torch.device, dtype: torch.dtype) -> Plan:
    """Every step in one band."""
    return Plan("whole", device, dtype)


def stream_plan(device: torch.device, dtype: torch.dtype, band_bytes: int | None = None) -> Plan:
    """Every value stored, bands about as large as the cache."""
    return Plan("stream", device, dtype, None, band_bytes or BAND_BYTES.get(device.type, BAND_BYTES_DEVICE))


def host_plan(device: torch.device, dtype: torch.dtype, band_bytes: int | None = None) -> Plan:
    """Activations in host memory, bands on the device."""
    return replace(stream_plan(device, dtype, band_bytes or LEAN_BAND_BYTES_DEVICE), kind="stream-host", on_host=True)


@dataclass(frozen=True)
class LeanLimits:
    """How much may be computed again instead of stored.

    Attributes:
        extra: Arithmetic that may be added, as a fraction of plain streaming's; 0 stores everything.
        budget_bytes: No more is left out than it takes to fit into this.
        band_bytes: Temporaries of one band; None for what suits the device.
    """

    extra: float = 0.4
    budget_bytes: int = 0
    band_bytes: int | None = None


class PlanSearch:
    """The plans for one graph and input.  What was predicted once is remembered, and so is each search's path.

    Args:
        graph: Encoder or decoder; it is kept, so a search that is itself kept is given an outline.
        shape: (B, C, h, w) of the input.
        dtype, device: Of the computation.
    """

    def __init__(self, graph: LayerGraph, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.graph, self.shape, self.dtype, self.device = graph, tuple(shape), dtype, device
        self.shapes = graph.shapes((shape[2], shape[3]))
        self._costs: dict[Plan, Cost] = {}
        self._most_bands: dict[Plan, int] = {}
        self._paths: dict[tuple[float, int], _LeanPath] = {}

    def cost(self, plan: Plan) -> Cost:
        """What a plan will take."""
        if plan not in self._costs:
            self._costs[plan] = predict(self.graph, plan, self.shape)
        return self._costs[plan]

    def most_bands(self, plan: Plan) -> int:
        """Bands of the step that a plan cuts into most of them; 1: the picture runs whole."""
        if plan not in self._most_bands:
            schedule = make_schedule(self.graph, plan, (self.shape[2], self.shape[3]))
            self._most_bands[plan] = max(len(sweep.bands) for sweep in schedule)
        return self._most_bands[plan]

    def lean(self, limits: LeanLimits) -> Plan:
        """Some nodes are computed again instead of stored."""
        bands = limits.band_bytes
        if bands is None:
            bands = self.band_bytes(LEAN_BAND_BYTES.get(self.device.type, LEAN_BAND_BYTES_DEVICE))
        key = (limits.extra, bands)
        if key not in self._paths:
            self._paths[key] = _LeanPath(self, limits.extra, bands)
        return self._paths[key].down_to(limits.budget_bytes)

    def candidates(self, budget_bytes: int) -> Iterator[Plan]:
        """Plans from the fastest to the smallest; each is searched for when it is asked for."""
        device, dtype = self.device, self.dtype
        yield whole_plan(device, dtype)
        yield stream_plan(device, dtype, self.band_bytes(BAND_BYTES.get(device.type, BAND_BYTES_DEVICE)))
        yield replace(self.lean(LeanLimits(0.0)), kind="stream")
        for extra in (LeanLimits.extra, 1.0, 2.0):
            yield self.lean(LeanLimits(extra, budget_bytes))
        if device.type != "cpu":
            yield host_plan(device, dtype, self.band_bytes(LEAN_BAND_BYTES_DEVICE))
            yield host_plan(device, dtype, SMALL_BAND_BYTES)
        else:
            yield self.lean(LeanLimits(4.0, band_bytes=SMALL_BAND_BYTES))

    def band_bytes(self, at_least: int) -> int:
        """Temporaries of one band, as `band_bytes_for`."""
        return band_bytes_for(self.graph, self.shape, self.dtype, at_least)


class _LeanPath:
    """Which nodes are left out one after the other: at the worst moment, those whose absence lowers the peak most.

    The path does not depend on the budget, which only says how far along it to go, so it is walked once.
    """

    def __init__(self, search: PlanSearch, extra: float, band_bytes: int) -> None:
        self.search, self.extra = search, extra
        everything = all_nodes(search.graph)
        self.may_go = everything - must_be_stored(search.graph)
        self.start = Plan("stream-lean", search.device, search.dtype, everything, band_bytes)
        self.limit = self._cost(everything).macs * (1.0 + extra)
        self.walked = [everything]
        self.is_at_end = extra <= 0.0

    def down_to(self, budget_bytes: int) -> Plan:
        """The first plan on the path that fits the budget, or the last one."""
        for stored in self.walked:
            if self._cost(stored).peak_bytes <= budget_bytes:
                return self._plan(stored)
        while not self.is_at_end:
            further = self._further(self.walked[-1])
            self.is_at_end = further is None
            if further is not None:
                self.walked.append(further)
                if self._cost(further).peak_bytes <= budget_bytes:
                    break
        return self._plan(self.walked[-1])

    def _further(self, stored: frozenset[int]) -> frozenset[int] | None:
        """What is stored one step down the path; None at its end."""
        cost = self._cost(stored)
        tried = {stored - group for group in _omissions(self.search.graph, stored & self.may_go, self.search.shapes)}
        fitting = [
            (found.peak_bytes, found.macs, sorted(other))
            for other in tried
            if (found := self._cost(other)).macs <= self.limit and found.peak_bytes < cost.peak_bytes
        ]
        return frozenset(min(fitting)[2]) if fitting else None

    def _plan(self, stored: frozenset[int]) -> Plan:
        return replace(self.start, stored=stored)

    def _cost(self, stored: frozenset[int]) -> Cost:
        return self.search.cost(self._plan(stored))


def _omissions(graph: LayerGraph, nodes: frozenset[int], shapes: list[Shape]) -> list[frozenset[int]]:
    """Sets of nodes worth leaving out together: a large one alone, or all of a kind, at one resolution or from it up.

    Leaving out one of several equally large nodes lowers no peak, so single nodes alone would get stuck.
    """
    largest = sorted(nodes, key=lambda v: -shapes[v][0] * shapes[v][1] * shapes[v][2])[:6]
    groups = [frozenset({node}) for node in largest]
    kinds = _kinds(graph, nodes, shapes)
    heights = sorted({shapes[node][1] for node in nodes})
    for kind in kinds:
        groups += [frozenset(v for v in kind if shapes[v][1] == height) for height in heights]
        groups += [frozenset(v for v in kind if shapes[v][1] >= height) for height in heights]
    return [group for group in dict.fromkeys(groups) if group]


def _kinds(graph: LayerGraph, nodes: frozenset[int], shapes: list[Shape]) -> list[set[int]]:
    """Values between the two convolutions of a residual block, those that a bare convolution makes, and so on."""
    between: set[int] = set()
    bare: set[int] = set()
    for node in nodes:
        step = graph.steps[node - 1]
        if isinstance(step, Step) and step.residual is None:
            (bare if step.norm is None else between).add(node)
    narrow = {node for node in between if shapes[node] == shapes[graph.steps[node - 1].source]}
    return [narrow, between, bare, narrow | bare, between | bare, set(nodes)]
