"""What to do when memory was not enough: release everything, then go on with a smaller plan."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor

from sd_vae_kit.core.engine.band_guard import BandGuard
from sd_vae_kit.core.engine.stream import run_streamed
from sd_vae_kit.core.graph.nodes import LayerGraph
from sd_vae_kit.core.plan.candidates import LeanLimits, PlanSearch
from sd_vae_kit.core.plan.cost import Cost, predict
from sd_vae_kit.core.plan.plan import OnStep, Plan, RunStats
from sd_vae_kit.core.plan.planner import fits_ram
from sd_vae_kit.core.run.planning import plan_mode
from sd_vae_kit.core.run.request import DEFAULT, RunRequest
from sd_vae_kit.errors import NoMemoryError

OUT_OF_MEMORY_TEXTS = (
    "out of memory",  # CUDA, HIP, MPS
    "std::bad_alloc",
    "can't allocate memory",  # torch's CPU allocator on Linux
    "not enough memory",  # the same on Windows; DirectML
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "unable to find an engine",  # cuDNN tries algorithms until one gets its workspace; an unsupported GPU says it, too
    "unable to find a valid cudnn algorithm",
    "out_of_device_memory",  # XPU: UR_RESULT_ERROR_..., ZE_RESULT_ERROR_...
    "out_of_host_memory",
    "out_of_resources",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    kinds: list[type[BaseException]] = [MemoryError, torch.cuda.OutOfMemoryError]
    if hasattr(torch, "OutOfMemoryError"):  # torch 2.5
        kinds.append(torch.OutOfMemoryError)
    if isinstance(error, tuple(kinds)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY_TEXTS)


def run_with_retries(
    graph: LayerGraph,
    x: Tensor,
    plan: Plan,
    request: RunRequest = DEFAULT,
    *,
    stats: RunStats | None = None,
    guard: BandGuard | None = None,
) -> tuple[Tensor, Plan, tuple[str, ...]]:
    """Run a plan; where memory runs out, release everything and go on with a smaller one.

    Args:
        graph, x, stats, guard: As for `run_streamed`.
        plan: The first to try, and the only one if tiling is switched off.
        request: Its `on_step` sees progress start anew with each plan.  Its `make_room` is asked once, for the bytes
            that the failed plan was predicted to take; if it freed anything, the same plan is tried again.

    Returns:
        The result as `run_streamed` gives it, the plan that worked, and a line for the user for each that did not.

    Raises:
        NoMemoryError: Memory ran out with every plan; the message lists them.
        Interrupted: `on_step` returned False.
    """
    if plan_mode(request.tiling, graph.name) == "never":
        return run_streamed(graph, x, plan, on_step=request.on_step, stats=stats, guard=guard), plan, ()
    failures: list[str] = []
    waiting, make_room = [plan], request.make_room
    while waiting:
        current = waiting.pop(0)
        outcome = _attempt(graph, x, current, request.on_step, stats, guard)
        if isinstance(outcome, Tensor):
            if current.on_host:
                release_pinned()
            return outcome, current, tuple(failures)
        # here, outside of any except block, nothing refers to the failed run's tensors any more
        release_cached(current.device)
        failures.append(f"{current.kind} ran out of memory ({outcome})")
        needed = predict(graph, current, x.shape).peak_bytes
        asked, make_room = make_room, None
        waiting = [current] if asked is not None and asked(needed) else _still_to_try(graph, x, current, waiting)
    raise NoMemoryError(
        f"Not enough memory for a {graph.name} input of {x.shape[2]}x{x.shape[3]} with any plan "
        f"({'; '.join(failures)}); close other programs or use a smaller picture."
    )


def _still_to_try(graph: LayerGraph, x: Tensor, failed: Plan, waiting: list[Plan]) -> list[Plan]:
    """Plans that take less than the failed one: those that wait already, else all there are."""
    needed = predict(graph, failed, x.shape).peak_bytes
    plans = waiting or _smaller_plans(graph, x, failed)
    return [plan for plan in plans if plan != failed and _is_smaller(predict(graph, plan, x.shape), needed)]


def _is_smaller(cost: Cost, than: int) -> bool:
    """Whether a plan is worth a try after one of `than` bytes; pinned memory cannot be swapped: it must be there."""
    return cost.peak_bytes < 0.95 * than and fits_ram(cost)


def _smaller_plans(graph: LayerGraph, x: Tensor, failed: Plan) -> list[Plan]:
    """The candidates, and leaner versions of a plan whose bands were already smaller than theirs."""
    search = PlanSearch(graph, x.shape, failed.dtype, failed.device)
    plans = list(search.candidates(0))
    if failed.band_bytes is not None:
        for extra, share in ((LeanLimits.extra, 2), (4.0, 8)):
            plans.append(search.lean(LeanLimits(extra, band_bytes=max(1, failed.band_bytes // share))))
    return plans


def _attempt(
    graph: LayerGraph, x: Tensor, plan: Plan, on_step: OnStep | None, stats: RunStats | None, guard: BandGuard | None
) -> Tensor | str:
    """The result, or the first line of the out-of-memory error: the exception itself would keep its frames' tensors."""
    if stats is not None:  # what a failed plan did is not what made the picture
        stats.bands = stats.chunks = 0
        stats.bands_by_step.clear()
    try:
        return run_streamed(graph, x, plan, on_step=on_step, stats=stats, guard=guard)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def release_cached(device: torch.device) -> None:
    """Return what torch's allocator keeps for reuse."""
    gc.collect()
    module: Any = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(module, "empty_cache"):
        module.empty_cache()
        release_pinned()


def release_pinned() -> None:
    """Return pinned host memory, which torch otherwise keeps until the process ends; torch 2.1 has no way to."""
    cuda: Any = torch.cuda
    if cuda.is_initialized():
        getattr(torch._C, "_host_emptyCache", lambda: None)()
