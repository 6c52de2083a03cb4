"""Running one encoder or decoder: the plan is made from the memory there is, and what was done is kept for the user.

`Runner.run` is the one way in, for hosts, the stand-alone app, the HTTP API, the command line and scripts.  A network
it does not understand is not run but answered with `StepAsideError`, so that the caller's ordinary forward is used;
`run_or_step_aside` does that for networks of this package.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from sd_vae_kit.core.dtypes import dtype_word
from sd_vae_kit.core.engine.ranges import PrecisionFixes
from sd_vae_kit.core.graph.nodes import LayerGraph
from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.plan.planner import PlanChoice
from sd_vae_kit.core.run.oom_retry import release_cached
from sd_vae_kit.core.run.peak_memory import PeakMemory
from sd_vae_kit.core.run.planning import graph_of, plan_mode, planned
from sd_vae_kit.core.run.precision import run_guarded
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.report import RunReport, RunResult, status_of
from sd_vae_kit.core.run.request import DEFAULT, RunRequest
from sd_vae_kit.core.run.weights_key import weights_key
from sd_vae_kit.errors import NoMemoryError, PlanError, StepAsideError, UnsupportedVaeError
from sd_vae_kit.units import MIB


class OwnForwards(Protocol):
    """A VAE of this package's kinds, whose halves can be run without any plan."""

    def encode(self, x: Tensor) -> Tensor: ...
    def decode(self, x: Tensor) -> Tensor: ...


class Runner:
    """Runs encoders and decoders, and remembers what precision each VAE needed; several threads may run at once.

    Args:
        fixes: Where it is remembered what VAEs needed; None: only as long as this object lives.

    Attributes:
        last: The report of the last run of each half that worked, of any thread.
    """

    def __init__(self, fixes: PrecisionFixesFile | None = None) -> None:
        self.fixes = PrecisionFixesFile(None) if fixes is None else fixes
        self.last: dict[Half, RunReport] = {}
        self._keys: weakref.WeakKeyDictionary[nn.Module, tuple[object, str]] = weakref.WeakKeyDictionary()

    def status(self) -> dict[str, object]:
        """What the last encode and decode did, for the HTTP API."""
        return status_of(self.last)

    def run(self, network: nn.Module, half: Half, x: Tensor, request: RunRequest = DEFAULT) -> RunResult:
        """One encode or decode, exactly as the network's own forward but by the plan that fits.

        Args:
            network: A VAE, or its encoder or decoder alone; its modules are called, never changed.
            half: Which half.
            x: (B, C, h, w), never written to.
            request: How.

        Raises:
            StepAsideError: The network is not understood; nothing was computed, run its own forward.
            NoMemoryError: Memory ran out with every plan.
            NanError: Input or weights are not finite, or no allowed precision was enough; the message says which.
            Interrupted: `on_step` returned False.
        """
        began = time.perf_counter()
        device = x.device if request.device is None else request.device
        peak = PeakMemory(device) if request.measures_peak else None
        graph = graph_of(network, half)
        plans = partial(planned, graph, tuple(x.shape), device=device, tiling=request.tiling)
        chosen = _with_room(plans, request.dtype or x.dtype, request.make_room)
        key = "" if request.policy.mode == "never" else self._key(network, graph)
        known = self.fixes.get(key, half) if key else None
        try:
            result = run_guarded(graph, x, chosen.plan, request, known, lambda dtype: plans(dtype=dtype).plan)
        except NoMemoryError:
            release_cached(device)
            raise
        except (PlanError, UnsupportedVaeError) as error:
            raise StepAsideError(str(error)) from error
        if key:
            self.fixes.put(key, half, result.fixes)
        report = replace(
            result.report,
            predicted_mb=chosen.predicted_mb,
            whole_mb=chosen.whole_mb,
            budget_mb=chosen.budget_mb if plan_mode(request.tiling, half) != "never" else None,
            fits=chosen.fits,
            peak_mb=None if peak is None else peak.taken_mb(),
            seconds=round(time.perf_counter() - began, 3),
        )
        self.last[half] = report
        return replace(result, report=report)

    def run_or_step_aside(self, network: nn.Module, half: Half, x: Tensor, request: RunRequest = DEFAULT) -> RunResult:
        """As `run`; a network that is not understood is run by its own `encode` or `decode`, and the report says why.

        Args:
            network: A whole VAE of this package's kinds; x has the device and type of its weights.

        Raises:
            NoMemoryError, NanError, Interrupted: As `run`; only a network that is understood is guarded.
        """
        try:
            return self.run(network, half, x, request)
        except StepAsideError as error:
            reason = str(error)
        began, word, vae = time.perf_counter(), dtype_word(x.dtype), cast("OwnForwards", network)
        peak = PeakMemory(x.device) if request.measures_peak else None
        with torch.no_grad():
            tensor = vae.encode(x) if half == "encoder" else vae.decode(x)
        report = RunReport(
            half, "whole", 1, None, word, word, stepped_aside=reason,
            peak_mb=None if peak is None else peak.taken_mb(), seconds=round(time.perf_counter() - began, 3),
        )  # fmt: skip
        self.last[half] = report
        return RunResult(tensor, report, PrecisionFixes())

    def _key(self, network: nn.Module, graph: LayerGraph) -> str:
        """`weights_key`, taken again only if a tensor was exchanged or written to since."""
        if any(parameter.is_inference() for parameter in network.parameters()):
            return weights_key(graph)  # Forge's live weights: such tensors do not count how often they are written to
        tensors = [(tensor.data_ptr(), tensor._version) for tensor in network.parameters()]
        stamp = (graph.name, tensors)
        known = self._keys.get(network)
        if known is None or known[0] != stamp:
            known = self._keys[network] = (stamp, weights_key(graph))
        return known[1]


def _with_room(
    plans: Callable[..., PlanChoice], dtype: torch.dtype, make_room: Callable[[int], bool] | None
) -> PlanChoice:
    """The plan, chosen again if nothing fitted and other models could be moved away."""
    chosen = plans(dtype=dtype)
    if chosen.fits or make_room is None or not make_room(chosen.predicted_mb * MIB):
        return chosen
    return plans(dtype=dtype)
