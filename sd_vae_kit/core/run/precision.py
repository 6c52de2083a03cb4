"""No black pictures: a call in half precision that stays finite, with as little done again as possible.

The ladder: half precision as configured; values stored divided by powers of two where they leave its range; single
steps in fp32; the whole call in fp32 (in bf16 before that, if the user prefers it).  Modules are never changed for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sd_vae_kit.core.dtypes import dtype_word
from sd_vae_kit.core.engine.overflow import HalfIsNotEnough, Origin, RangeGuard, RepairLimits, check_weights
from sd_vae_kit.core.engine.ranges import PrecisionFixes, Ranges
from sd_vae_kit.core.graph.nodes import LayerGraph
from sd_vae_kit.core.plan.plan import Plan, RunStats
from sd_vae_kit.core.run.oom_retry import run_with_retries
from sd_vae_kit.core.run.report import RunReport, RunResult
from sd_vae_kit.core.run.request import DEFAULT, RunRequest
from sd_vae_kit.errors import NanError

Replan = Callable[[torch.dtype], Plan]


def run_guarded(
    graph: LayerGraph,
    x: Tensor,
    plan: Plan,
    request: RunRequest = DEFAULT,
    fixes: PrecisionFixes | None = None,
    replan: Replan | None = None,
) -> RunResult:
    """Run a graph so that its result is finite, in as little more than the plan's precision as possible.

    Args:
        graph, x, plan: As for `run_with_retries`.
        request: What the user allows, and who is told on the way.
        fixes: What this graph needed before; None: nothing is known.
        replan: A plan for another type, where the whole call is run in it; None: the same plan in that type.

    Returns:
        The result in the plan's type, with a report that says nothing of what was predicted and how long it took.

    Raises:
        NanError: The input or the weights are not finite, or no allowed precision is enough; the message says which.
        PlanError, Interrupted: As `run_with_retries`.
    """
    attempts = _Attempts(graph, x, request, PrecisionFixes() if fixes is None else fixes)
    dtype = request.policy.first_dtype(plan.dtype, attempts.known)
    while True:
        current = plan
        if dtype != plan.dtype:
            current = replace(plan, dtype=dtype) if replan is None else replan(dtype)
        outcome = attempts.run(plan.dtype, current)
        if isinstance(outcome, RunResult):
            return outcome
        dtype = attempts.next_dtype(dtype, outcome)


class _Attempts:
    """The attempts at one call, each in another precision, and the work of those that were given up."""

    def __init__(self, graph: LayerGraph, x: Tensor, request: RunRequest, known: PrecisionFixes) -> None:
        self.graph, self.x, self.request, self.known = graph, x, request, known
        self.recomputed = 0.0
        self.rescued: list[tuple[str, int]] = []

    def run(self, wanted: torch.dtype, plan: Plan) -> RunResult | str:
        """The result in the type `wanted`, or the name of the step that half precision is not enough for."""
        request, stats, guard = self.request, RunStats(), self._guard(plan.dtype)
        watching = None if request.policy.mode == "never" else guard
        try:
            tensor, used, failures = run_with_retries(self.graph, self.x, plan, request, stats=stats, guard=watching)
        except HalfIsNotEnough as error:
            step: str | None = str(error)
        else:
            step = None
        self.recomputed += sum(guard.recomputed.values())
        self.rescued += guard.rescued
        if step is not None:
            self.recomputed += len(stats.bands_by_step)
            return step
        asked = torch.float32 if request.policy.mode == "fp32" and wanted.itemsize < 4 else wanted
        report = replace(self._report(guard, asked, plan.dtype, stats), plan=used.kind, failures=failures)
        return RunResult(tensor.to(wanted), report, self._learnt(guard, asked, plan.dtype))

    def _guard(self, dtype: torch.dtype) -> RangeGuard:
        policy = self.request.policy
        ranges = Ranges(self.graph, self.known if dtype == torch.float16 else None)
        limits = RepairLimits(dtype == torch.float16 and not policy.prefer_bf16, policy.may_use_fp32)
        origin = Origin(self.request.label, self.request.before)
        return RangeGuard(self.graph, self.x, dtype, ranges, limits, origin)

    def next_dtype(self, failed: torch.dtype, step: str) -> torch.dtype:
        """The next precision for the whole call.

        Raises:
            NanError: There is none.
        """
        following, graph, label = self.request.policy.next_dtype(failed), self.graph, self.request.label
        if following is not None:
            return following
        word = dtype_word(failed)
        if failed.itemsize < 4:
            raise NanError(
                f"{label} overflows {word} in {step} and computing in fp32 is switched off; "
                "allow it in the settings (A1111: Automatically revert VAE to 32-bit floats) or use --no-half-vae"
            )
        if graph.root is not None:
            check_weights(graph, label, [m for m in graph.root.modules() if not any(True for _ in m.children())])
        raise NanError(
            f"{label} gives NaN in {step} even in {word}, though latent and weights are sound; "
            "switch off extensions that change the VAE, or choose another VAE"
        )

    def _report(self, guard: RangeGuard, asked: torch.dtype, dtype: torch.dtype, stats: RunStats) -> RunReport:
        is_whole, steps = asked != dtype, len(self.graph.steps)
        return RunReport(
            half=self.graph.name,
            plan="",
            bands=max((bands for _, bands in stats.bands_by_step), default=1),
            steps=steps,
            dtype=dtype_word(dtype),
            asked_dtype=dtype_word(asked),
            steps_shifted=0 if is_whole else guard.ranges.steps_shifted,
            steps_fp32=(steps if dtype == torch.float32 else 0) if is_whole else guard.ranges.steps_fp32,
            steps_recomputed=self.recomputed,
            rescued=tuple(self.rescued),
        )

    def _learnt(self, guard: RangeGuard, asked: torch.dtype, dtype: torch.dtype) -> PrecisionFixes:
        """What the next call should know: exponents and steps, and whether the whole call had to change type."""
        learnt = guard.ranges.fixes.copy() if dtype == torch.float16 else self.known.copy()
        if asked == torch.float16 and dtype != asked:
            learnt.whole = dtype_word(dtype)
        return learnt
