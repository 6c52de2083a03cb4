"""What to do when memory was not enough: release everything, then go on with a smaller plan."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sd_vae_kit.core.engine.band_guard import BandGuard
from sd_vae_kit.core.engine.stream import run_streamed
from sd_vae_kit.core.graph.nodes import LayerGraph
from sd_vae_kit.core.plan.cost import Cost, predict
from sd_vae_kit.core.plan.plan import OnStep, Plan, RunStats
from sd_vae_kit.core.plan.planner import LEAN_EXTRA, fits_ram, ladder, lean_plan
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


@dataclass(frozen=True)
class RetryResult:
    """What `run_with_retries` did.

    Attributes:
        result: As `run_streamed` returns it.
        plan: The plan that worked.
        failures: One line for each plan that did not, in order; shown to the user.
    """

    result: Tensor
    plan: Plan
    failures: tuple[str, ...]


def run_with_retries(
    graph: LayerGraph,
    x: Tensor,
    plan: Plan,
    *,
    on_step: OnStep | None = None,
    stats: RunStats | None = None,
    guard: BandGuard | None = None,
    make_room: Callable[[int], bool] | None = None,
) -> RetryResult:
    """Run a plan; where memory runs out, release everything and go on with a smaller one.

    Args:
        graph, x, on_step, stats, guard: As for `run_streamed`; progress starts anew with each plan.
        plan: The first to try.
        make_room: Asked once for the bytes that the failed plan was predicted to take; frees other models and says
            whether it freed anything.  If so, the same plan is tried again.

    Raises:
        NoMemoryError: Memory ran out with every plan; the message lists them.
        Interrupted: `on_step` returned False.
    """
    failures: list[str] = []
    waiting = [plan]
    asked = False
    while waiting:
        current = waiting.pop(0)
        outcome = _attempt(graph, x, current, on_step, stats, guard)
        if isinstance(outcome, Tensor):
            if current.on_host:
                release_pinned()
            return RetryResult(outcome, current, tuple(failures))
        # here, outside of any except block, nothing refers to the failed run's tensors any more
        release_cached(current.device)
        failures.append(f"{current.kind} ran out of memory ({outcome})")
        needed = predict(graph, current, x.shape).peak_bytes
        if make_room is not None and not asked:
            asked = True
            if make_room(needed):
                waiting = [current]
                continue
        waiting = waiting or _smaller_plans(graph, x, current)
        waiting = [p for p in waiting if p != current and _is_smaller(predict(graph, p, x.shape), needed)]
    raise NoMemoryError(
        f"Not enough memory for a {graph.name} input of {x.shape[2]}x{x.shape[3]} with any plan "
        f"({'; '.join(failures)}); close other programs or use a smaller picture."
    )


def _is_smaller(cost: Cost, than: int) -> bool:
    """Whether a plan is worth a try after one of `than` bytes; pinned memory cannot be swapped: it must be there."""
    return cost.peak_bytes < 0.95 * than and fits_ram(cost)


def _smaller_plans(graph: LayerGraph, x: Tensor, failed: Plan) -> list[Plan]:
    """The ladder, and leaner versions of a plan whose bands were already smaller than the ladder's."""
    plans = list(ladder(graph, x.shape, failed.dtype, failed.device, 0))
    if failed.band_bytes is not None:
        for extra, share in ((LEAN_EXTRA, 2), (4.0, 8)):
            bands = max(1, failed.band_bytes // share)
            plans.append(lean_plan(graph, x.shape, failed.device, failed.dtype, extra=extra, band_bytes=bands))
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
