"""Which plan to run: the fastest that fits the memory there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch

from sd_vae_kit.core.graph.nodes import LayerGraph
from sd_vae_kit.core.plan.candidates import PlanSearch
from sd_vae_kit.core.plan.cost import Cost
from sd_vae_kit.core.plan.free_memory import free_memory
from sd_vae_kit.core.plan.plan import Plan
from sd_vae_kit.core.plan.search_cache import SEARCHES
from sd_vae_kit.units import MIB

PlanMode = Literal["auto", "always", "never"]

MARGIN = 0.9  # of the free memory: the model is within 15 %, and other programs breathe
UNKNOWN_FREE = 1 << 30  # budget on devices that do not tell (DirectML)


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
    with SEARCHES.opened(graph, shape, dtype, device) as search:
        return _choose(search, free, budget, mode)


def _choose(search: PlanSearch, free: int | None, budget: int, mode: PlanMode) -> PlanChoice:
    plans = search.candidates(budget)
    plan = next(plans)
    cost = whole = search.cost(plan)
    why = "tiling is off" if mode == "never" else "the whole picture fits"
    if mode == "always" or (mode == "auto" and whole.peak_bytes > budget):
        plan, cost, number = _first_fitting(search, plans, budget)
        why = "storing every activation does not fit"
        if number == 0:
            why = "always stream" if mode == "always" else "the whole picture does not fit"
    return PlanChoice(plan, cost, whole, free, budget, why)


def _first_fitting(search: PlanSearch, plans: Iterator[Plan], budget: int) -> tuple[Plan, Cost, int]:
    """The first plan that fits, what it takes and how many were tried before; the smallest if none fits."""
    tried: list[tuple[Plan, Cost]] = []
    for plan in plans:
        cost = search.cost(plan)
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
