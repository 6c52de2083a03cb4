"""Which plan to run: the fastest that fits the memory there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

import torch

from sd_vae_kit.core.cost import MB, Cost, predict
from sd_vae_kit.core.free_memory import free_memory
from sd_vae_kit.core.plan import Plan
from sd_vae_kit.core.schedule import all_values, must_be_stored
from sd_vae_kit.core.steps import Program, Step

Mode = Literal["auto", "always", "never"]

MARGIN = 0.9  # of the free memory: the model is within 15 %, and other programs breathe
BAND_BYTES = {"cpu": 16 * MB}  # as fast as 32 and 64, measured; 4 is slower by a tenth
BAND_BYTES_DEVICE = 256 * MB  # enough work per kernel launch
LEAN_BAND_BYTES = {"cpu": 8 * MB}
LEAN_BAND_BYTES_DEVICE = 64 * MB
LEAN_EXTRA = 0.4  # extra arithmetic that `stream-lean` may spend unless told otherwise
PROXY_PIXELS = 512 * 512  # lean plans are searched on a picture of at most this size
UNKNOWN_FREE = 1 << 30  # budget on devices that do not tell (DirectML)


def whole_plan(device: torch.device, dtype: torch.dtype) -> Plan:
    """Every step in one band."""
    return Plan("whole", device, dtype)


def stream_plan(device: torch.device, dtype: torch.dtype, band_bytes: int | None = None) -> Plan:
    """Every value stored, bands about as large as the cache."""
    return Plan("stream", device, dtype, None, band_bytes or BAND_BYTES.get(device.type, BAND_BYTES_DEVICE))


def lean_plan(
    program: Program, shape: Sequence[int], device: torch.device, dtype: torch.dtype, *,
    extra: float = LEAN_EXTRA, budget_bytes: int = 0, band_bytes: int | None = None,
) -> Plan:  # fmt: skip
    """Some values are computed again instead of stored.

    At the worst moment, the value whose absence lowers the peak most is left out, and so on.

    Args:
        extra: Arithmetic that may be added, as a fraction of plain streaming's; 0 stores everything.
        budget_bytes: Stop as soon as the prediction fits.
        band_bytes: Temporaries of one band.
    """
    bands = band_bytes or LEAN_BAND_BYTES.get(device.type, LEAN_BAND_BYTES_DEVICE)
    small, shrunk = _proxy(program, shape)
    plan = Plan("stream-lean", device, dtype, all_values(program), max(1, bands // shrunk))
    cost = predict(program, plan, small)
    limit = cost.macs * (1.0 + extra)
    fixed = must_be_stored(program)
    while cost.peak_bytes > budget_bytes // shrunk:
        tried = [
            replace(plan, stored=all_of(plan) - group) for group in _omissions(program, all_of(plan) - fixed, small)
        ]
        costs = [(predict(program, other, small), other) for other in tried]
        fitting = [pair for pair in costs if pair[0].macs <= limit and pair[0].peak_bytes < cost.peak_bytes]
        if not fitting:
            break
        cost, plan = min(fitting, key=lambda pair: (pair[0].peak_bytes, pair[0].macs))
    return replace(plan, band_bytes=bands)


def all_of(plan: Plan) -> frozenset[int]:
    return plan.stored or frozenset()


def _proxy(program: Program, shape: Sequence[int]) -> tuple[tuple[int, int, int, int], int]:
    """A small picture of the same proportions, on which the same values are worth storing, and the ratio of areas."""
    height, width = shape[2], shape[3]
    factor = 1
    while max(h * w for _, h, w in program.shapes((height // factor, width // factor))) > PROXY_PIXELS:
        if min(height, width) // (2 * factor) < 16:
            break
        factor *= 2
    return (1, shape[1], height // factor, width // factor), factor * factor


def _omissions(program: Program, values: frozenset[int], shape: Sequence[int]) -> list[frozenset[int]]:
    """Sets of values worth leaving out together: a large one alone, or all of one kind at one resolution.

    Leaving out one of several equally large values lowers no peak, so single values alone would get stuck.
    """
    shapes = program.shapes((shape[2], shape[3]))
    largest = sorted(values, key=lambda v: -shapes[v][0] * shapes[v][1] * shapes[v][2])[:6]
    groups = [frozenset({value}) for value in largest]
    for height in sorted({shapes[value][1] for value in values}):
        # values between the two convolutions of a residual block, and those that a bare convolution makes
        between: set[int] = set()
        bare: set[int] = set()
        for value in values:
            step = program.steps[value - 1]
            if shapes[value][1] == height and isinstance(step, Step) and step.residual is None:
                (bare if step.norm is None else between).add(value)
        narrow = {value for value in between if shapes[value] == shapes[program.steps[value - 1].source]}
        groups += [frozenset(group) for group in (narrow, between, bare, narrow | bare, between | bare)]
    return [group for group in dict.fromkeys(groups) if group]


def host_plan(device: torch.device, dtype: torch.dtype, band_bytes: int | None = None) -> Plan:
    """Activations in host memory, bands on the device."""
    return replace(stream_plan(device, dtype, band_bytes or LEAN_BAND_BYTES_DEVICE), kind="stream-host", on_host=True)


def ladder(
    program: Program, shape: Sequence[int], dtype: torch.dtype, device: torch.device, budget_bytes: int
) -> list[Plan]:
    """Plans from the fastest to the smallest."""
    plans = [whole_plan(device, dtype), stream_plan(device, dtype)]
    plans.append(replace(lean_plan(program, shape, device, dtype, extra=0.0), kind="stream"))
    for extra in (LEAN_EXTRA, 1.0, 2.0):
        plans.append(lean_plan(program, shape, device, dtype, extra=extra, budget_bytes=int(budget_bytes * MARGIN)))
    small = 2 * MB
    if device.type != "cpu":
        plans += [host_plan(device, dtype), host_plan(device, dtype, small)]
    else:
        plans.append(lean_plan(program, shape, device, dtype, extra=4.0, band_bytes=small))
    return plans


@dataclass(frozen=True)
class PlanReport:
    """What was chosen and why, for sentences shown to the user.

    Attributes:
        kind: The plan's name.
        predicted_mb: Activations at the worst moment.
        whole_mb: The same for the whole picture at once.
        free_mb: Memory there is; None where the device does not tell.
        budget_mb: What the plan had to fit into.
        bands: Bands in all.
        fits: False if even the smallest plan is predicted to be too large.
        reason: One clause: why this plan.
    """

    kind: str
    predicted_mb: int
    whole_mb: int
    free_mb: int | None
    budget_mb: int
    bands: int
    fits: bool
    reason: str


def choose_plan(
    program: Program,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    budget_bytes: int | None = None,
    mode: Mode = "auto",
) -> tuple[Plan, PlanReport]:
    """The fastest plan that fits, with what to tell the user about it.

    Args:
        program: Encoder or decoder.
        shape: (B, C, h, w) of its input.
        dtype, device: Of the computation.
        budget_bytes: Activations may take this much; None: what is free now, less a margin.
        mode: "always" never runs whole, "never" always does.
    """
    free = free_memory(device)
    budget = budget_bytes
    if budget is None:
        budget = UNKNOWN_FREE if free.free_bytes is None else int(free.free_bytes * MARGIN)
    whole = predict(program, whole_plan(device, dtype), shape)
    plan, cost, reason = _choose(program, shape, dtype, device, budget, mode, whole)
    free_mb = None if free.free_bytes is None else free.free_bytes // MB
    fits = cost.peak_bytes <= budget
    if not fits:
        reason = "nothing smaller exists"
    report = PlanReport(
        plan.kind,
        ceil(cost.peak_bytes / MB),
        ceil(whole.peak_bytes / MB),
        free_mb,
        budget // MB,
        cost.bands,
        fits,
        reason,
    )
    return plan, report


def _choose(
    program: Program,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    budget: int,
    mode: Mode,
    whole: Cost,
) -> tuple[Plan, Cost, str]:
    if mode == "never":
        return whole_plan(device, dtype), whole, "tiling is off"
    if mode == "auto" and whole.peak_bytes <= budget:
        return whole_plan(device, dtype), whole, "the whole picture fits"
    stream = stream_plan(device, dtype)
    cost = predict(program, stream, shape)
    if cost.peak_bytes <= budget:
        return stream, cost, "always stream" if mode == "always" else "the whole picture does not fit"
    candidates = [(plan, predict(program, plan, shape)) for plan in ladder(program, shape, dtype, device, budget)[2:]]
    for plan, cost in candidates:
        if cost.peak_bytes <= budget:
            return plan, cost, "storing every activation does not fit"
    plan, cost = min(candidates, key=lambda pair: pair[1].peak_bytes)
    return plan, cost, ""
