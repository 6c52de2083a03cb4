"""No black pictures: a call in half precision that stays finite, with as little done again as possible.

The ladder: half precision as configured; values stored divided by powers of two where they leave its range; single
steps in fp32; the whole call in fp32 (in bf16 before that, if the user prefers it).  Modules are never changed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sd_vae_kit.core.engine.overflow import HalfIsNotEnough, RangeGuard, check_weights
from sd_vae_kit.core.engine.ranges import PrecisionFixes, Ranges
from sd_vae_kit.core.engine.stream import run_streamed
from sd_vae_kit.core.graph.nodes import LayerGraph
from sd_vae_kit.core.plan.plan import OnStep, Plan, RunStats
from sd_vae_kit.core.run.oom_retry import RetryResult, run_with_retries
from sd_vae_kit.errors import NanError

Mode = Literal["auto", "fp32", "never"]
Replan = Callable[[torch.dtype], Plan]

WORDS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
DTYPES = {word: dtype for dtype, word in WORDS.items()}


@dataclass(frozen=True)
class Policy:
    """What the user allows.

    Attributes:
        mode: "auto": repair what overflows; "fp32": everything in fp32 from the start; "never": look at nothing.
        prefer_bf16: Where half precision overflows, run the call in bf16 instead of repairing it.
        may_use_fp32: False: never compute anything in fp32 that was asked for in half precision.
    """

    mode: Mode = "auto"
    prefer_bf16: bool = False
    may_use_fp32: bool = True

    def first_dtype(self, asked: torch.dtype, needs: PrecisionFixes) -> torch.dtype:
        """What to start in: the type asked for, unless the user or an earlier picture says otherwise."""
        if asked.itemsize >= 4 or self.mode == "never":
            return asked
        if self.mode == "fp32":
            return torch.float32
        if asked == torch.float16 and needs.whole == "bf16" and self.prefer_bf16:
            return torch.bfloat16
        return torch.float32 if needs.whole == "fp32" and self.may_use_fp32 else asked

    def next_dtype(self, failed: torch.dtype) -> torch.dtype | None:
        """What the whole call is run in after `failed`; None: nothing is left."""
        if failed == torch.float16 and self.prefer_bf16:
            return torch.bfloat16
        return torch.float32 if failed.itemsize < 4 and self.may_use_fp32 else None


@dataclass(frozen=True)
class PrecisionReport:
    """In which precision a call was run, for people and programs.

    Attributes:
        dtype: "fp16", "bf16" or "fp32": what the call ended in.
        steps: Steps of the encoder or decoder.
        steps_shifted: Of them, those whose values were kept divided by a power of two.
        steps_fp32: Of them, those computed in fp32 because half precision was not enough.
        steps_recomputed: Steps' worth of work that was done twice; 0 once the VAE is known.
        rescued: (step, first row) of each band that was not finite at first.
        started_in: What the call was asked for.
    """

    dtype: str
    steps: int
    steps_shifted: int = 0
    steps_fp32: int = 0
    steps_recomputed: float = 0.0
    rescued: tuple[tuple[str, int], ...] = ()
    started_in: str = ""

    @property
    def sentence(self) -> str:
        """One line for the user, "" if nothing out of the ordinary was done."""
        if self.dtype != self.started_in:
            return f"all {self.steps} steps were computed in {self.dtype}: {self.started_in} overflowed"
        parts = []
        if self.steps_shifted:
            parts.append(f"{self.steps_shifted} of {self.steps} steps were shifted to stay in range")
        if self.steps_fp32:
            parts.append(f"{self.steps_fp32} of {self.steps} steps were computed in fp32")
        return ", ".join(parts)

    @property
    def infotext(self) -> str:
        """For a picture's parameters: "fp16, 3 shifted, 1 in fp32"."""
        parts = [self.dtype]
        if self.steps_shifted:
            parts.append(f"{self.steps_shifted} shifted")
        if self.steps_fp32 and self.dtype != "fp32":
            parts.append(f"{self.steps_fp32} in fp32")
        return ", ".join(parts)


@dataclass(frozen=True)
class Guarded:
    """What `run_guarded` did.

    Attributes:
        result: As `run_streamed` returns it, in the type that was asked for.
        plan: The plan that worked.
        failures: One line for each plan that ran out of memory.
        report: In which precision.
        needs: What to give to the next call of this graph.
    """

    result: Tensor
    plan: Plan
    failures: tuple[str, ...]
    report: PrecisionReport
    needs: PrecisionFixes


@dataclass
class _Tally:
    """Work of the runs that were given up, and what was rescued in all."""

    recomputed: float = 0.0
    rescued: list[tuple[str, int]] = field(default_factory=list)

    def add(self, guard: RangeGuard) -> None:
        self.recomputed += sum(guard.recomputed.values())
        self.rescued += guard.rescued


def run_guarded(
    graph: LayerGraph,
    x: Tensor,
    plan: Plan,
    *,
    policy: Policy = Policy(),
    needs: PrecisionFixes | None = None,
    replan: Replan | None = None,
    label: str = "this VAE",
    on_step: OnStep | None = None,
    stats: RunStats | None = None,
    make_room: Callable[[int], bool] | None = None,
    before: Sequence[nn.Module] = (),
    has_ladder: bool = True,
) -> Guarded:
    """Run a graph so that its result is finite, in as little more than the plan's precision as possible.

    Args:
        graph, x, plan, on_step, stats, make_room: As for `run_with_retries`.
        policy: What the user allows.
        needs: What this graph needed before; None: nothing is known.
        replan: A plan for another type, where the whole call is run in it; None: the same plan in that type.
        label: What messages call the VAE.
        before: Layers outside of the graph that made its input (post_quant_conv, where the caller runs it).
        has_ladder: False: the plan as it is, without going on to smaller ones where memory runs out.

    Raises:
        NanError: The input or the weights are not finite, or no allowed precision is enough; the message says which.
        PlanError, Interrupted: As `run_with_retries`.
    """
    known = PrecisionFixes() if needs is None else needs
    counted = RunStats() if stats is None else stats
    dtype, tally = policy.first_dtype(plan.dtype, known), _Tally()
    while True:
        current = plan if dtype == plan.dtype else _replanned(plan, dtype, replan)
        ranges = Ranges(graph, known if dtype == torch.float16 else None)
        guard = RangeGuard(
            graph, x, dtype, ranges, label=label, may_widen=policy.may_use_fp32,
            may_repair=dtype == torch.float16 and not policy.prefer_bf16, before=before,
        )  # fmt: skip
        begun = len(counted.bands_by_step)
        watched = None if policy.mode == "never" else guard
        run = _with_ladder(make_room) if has_ladder else _as_planned
        try:
            done = run(graph, x, current, on_step=on_step, stats=counted, guard=watched)
        except HalfIsNotEnough as error:
            step = str(error)
        else:
            tally.add(guard)
            asked = torch.float32 if policy.mode == "fp32" and plan.dtype.itemsize < 4 else plan.dtype
            report, learnt = _found(guard, asked, dtype, graph, tally), _learnt(guard, asked, dtype, known)
            return Guarded(done.result.to(plan.dtype), done.plan, done.failures, report, learnt)
        tally.add(guard)
        tally.recomputed += max(0, len(counted.bands_by_step) - begun)
        dtype = _next(graph, policy, dtype, label, step)


def _with_ladder(make_room: Callable[[int], bool] | None) -> Callable[..., RetryResult]:
    return partial(run_with_retries, make_room=make_room)


def _as_planned(graph: LayerGraph, x: Tensor, plan: Plan, **watching: Any) -> RetryResult:
    """Where the caller has a ladder of its own."""
    return RetryResult(run_streamed(graph, x, plan, **watching), plan, ())


def _replanned(plan: Plan, dtype: torch.dtype, replan: Replan | None) -> Plan:
    return Plan(**{**vars(plan), "dtype": dtype}) if replan is None else replan(dtype)


def _next(graph: LayerGraph, policy: Policy, failed: torch.dtype, label: str, step: str) -> torch.dtype:
    """The next precision for the whole call.

    Raises:
        NanError: There is none.
    """
    following = policy.next_dtype(failed)
    if following is not None:
        return following
    word = WORDS.get(failed, str(failed))
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


def _found(
    guard: RangeGuard, asked: torch.dtype, dtype: torch.dtype, graph: LayerGraph, tally: _Tally
) -> PrecisionReport:
    rescued_whole = asked != dtype
    steps = len(graph.steps)
    return PrecisionReport(
        dtype=WORDS.get(dtype, str(dtype)),
        steps=steps,
        steps_shifted=0 if rescued_whole else guard.ranges.steps_shifted,
        steps_fp32=(steps if dtype == torch.float32 else 0) if rescued_whole else guard.ranges.steps_fp32,
        steps_recomputed=tally.recomputed,
        rescued=tuple(tally.rescued),
        started_in=WORDS.get(asked, str(asked)),
    )


def _learnt(guard: RangeGuard, asked: torch.dtype, dtype: torch.dtype, known: PrecisionFixes) -> PrecisionFixes:
    """What the next call should know: exponents and steps of this one, and whether all of it had to change type."""
    learnt = guard.ranges.needs.copy() if dtype == torch.float16 else known.copy()
    if asked == torch.float16 and dtype != asked:
        learnt.whole = WORDS[dtype]
    return learnt
