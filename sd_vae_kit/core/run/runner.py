"""Running one encoder or decoder: the plan is made from the memory there is, and what was done is kept for the user.

`VaeRunner.run` is the one way in, for hosts, the stand-alone app and the command line.  A network it does not
understand is not run but answered with `StepAsideError`, so that the caller's ordinary forward is used.
"""

from __future__ import annotations

import dataclasses
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import Tensor, nn

from sd_vae_kit.core.graph.from_module import LayerGraph, decoder_graph, encoder_graph
from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.plan.cost import predict
from sd_vae_kit.core.plan.plan import OnStep, Plan, RunStats
from sd_vae_kit.core.plan.planner import PlanReport, choose_plan
from sd_vae_kit.core.plan.schedule import make_schedule
from sd_vae_kit.core.run.oom_retry import release_cached
from sd_vae_kit.core.run.precision import Guarded, run_guarded
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.precision_policy import Precision
from sd_vae_kit.core.run.weights_key import weights_key
from sd_vae_kit.errors import NoMemoryError, PlanError, StepAsideError, UnsupportedVaeError
from sd_vae_kit.settings.sections import TILING_MODES, TilingSettings

MakeRoom = Callable[[int], bool]

MB = 2**20
SMALLEST_BAND = 4096  # bytes
# written only where a picture was streamed
INFOTEXT_KEYS: dict[Half, str] = {"decoder": "VAE Kit tiling", "encoder": "VAE Kit tiling of encode"}


@dataclass(frozen=True)
class RunReport:
    """What one encode or decode did.

    Attributes:
        part: "encoder" or "decoder".
        plan: "whole", "stream", "stream-lean" or "stream-host"; the one that worked.
        bands: Bands of the step that took most of them; 1: the picture ran whole.
        steps: Layers, counted as the graph runs them.
        dtype: What was computed in, "fp16".
        predicted_mb, whole_mb: Activations as planned, and of the picture as a whole.
        budget_mb: What the plan had to fit into; None: it was not chosen by size.
        fits: False: even the smallest plan was predicted to be too large, and was tried all the same.
        seconds: Wall time.
        failures: One line for each plan that ran out of memory before this one worked.
        steps_shifted, steps_fp32: Steps that precision was rescued in.
        steps_recomputed: Steps' worth of work that this cost; 0 once the VAE is known.
        precision: One sentence on it, "" if nothing was done; `precision_infotext` for a picture's parameters.
    """

    part: Half
    plan: str
    bands: int
    steps: int
    dtype: str
    predicted_mb: int
    whole_mb: int
    budget_mb: int | None
    fits: bool
    seconds: float
    failures: tuple[str, ...] = ()
    steps_shifted: int = 0
    steps_fp32: int = 0
    steps_recomputed: float = 0.0
    precision: str = ""
    precision_infotext: str = ""

    @property
    def is_streamed(self) -> bool:
        return self.plan != "whole"

    @property
    def infotext(self) -> str:
        """The value for a picture's parameters: what was run, "stream-lean in 12 bands"."""
        return f"{self.plan} in {self.bands} bands"

    @property
    def rescue(self) -> str:
        """One sentence on how memory ran out on the way; empty if it did not."""
        if not self.failures:
            return ""
        more = len(self.failures) - 1
        others = f", and so did {more} smaller plan{'s' if more > 1 else ''}" if more else ""
        return f"{self.failures[0]}{others}; {self.plan} was used instead, the result is the same."

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**dataclasses.asdict(self), "failures": list(self.failures)}


def graph_of(network: nn.Module, part: Half) -> LayerGraph:
    """The steps of a network.

    Args:
        network: A VAE, or its encoder or decoder alone.

    Raises:
        StepAsideError: Its structure is not known.
    """
    try:
        return encoder_graph(network) if part == "encoder" else decoder_graph(network)
    except UnsupportedVaeError as error:
        raise StepAsideError(str(error)) from error
    except (AttributeError, TypeError, IndexError) as error:  # a part of a known name that is something else
        raise StepAsideError(f"the {part} ({type(network).__name__}) is built in an unknown way: {error}") from error


def planned(
    graph: LayerGraph, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, tiling: TilingSettings
) -> tuple[Plan, PlanReport]:
    """How a network is run for an input of shape (B, C, h, w).

    Raises:
        StepAsideError: The input is too small for this network.
    """
    try:
        chosen = choose_plan(graph, shape, dtype, device, tiling.budget_bytes, mode_of(tiling, graph.name))
        return chosen if chosen[0].kind == "whole" else _in_bands(graph, shape, *chosen)
    except (UnsupportedVaeError, PlanError) as error:
        raise StepAsideError(str(error)) from error


def _in_bands(graph: LayerGraph, shape: tuple[int, ...], plan: Plan, report: PlanReport) -> tuple[Plan, PlanReport]:
    """A plan that streams has at least two bands: a small picture gets smaller ones, so that it takes less memory."""
    finer = plan
    while finer.band_bytes and finer.band_bytes > SMALLEST_BAND and most_bands(graph, finer, shape) == 1:
        finer = dataclasses.replace(finer, band_bytes=finer.band_bytes // 2)
    if finer == plan or most_bands(graph, finer, shape) == 1:
        return plan, report
    cost = predict(graph, finer, shape)
    return finer, dataclasses.replace(report, predicted_mb=ceil(cost.peak_bytes / MB), bands=cost.bands)


def most_bands(graph: LayerGraph, plan: Plan, shape: tuple[int, ...]) -> int:
    """Bands of the step that a plan cuts into most of them; 1: the picture runs whole."""
    return max(len(event.bands) for event in make_schedule(graph, plan, (shape[2], shape[3])))


def mode_of(tiling: TilingSettings, part: str) -> Literal["auto", "always", "never"]:
    """The planner's word for the settings."""
    if not tiling.enabled or not getattr(tiling, part):
        return "never"
    return "always" if tiling.mode == TILING_MODES[1] else "auto"


class VaeRunner:
    """Runs encoders and decoders; keeps the report of the last run of each kind, and what precision each VAE needed.

    Several threads may run at once; each finds its own last report in `mine`.
    """

    def __init__(self, needs: PrecisionFixesFile | None = None) -> None:
        self.needs = PrecisionFixesFile(None) if needs is None else needs
        self._keys: weakref.WeakKeyDictionary[nn.Module, tuple[object, str]] = weakref.WeakKeyDictionary()
        self.last: dict[Half, RunReport] = {}
        self._here = threading.local()

    def status(self) -> dict[str, object]:
        """What the last encode and decode did, for the HTTP API."""
        parts: dict[str, Half] = {"last_encode": "encoder", "last_decode": "decoder"}
        return {name: self.last[part].as_dict() if part in self.last else None for name, part in parts.items()}

    @property
    def mine(self) -> RunReport | None:
        """The report of this thread's last run that worked."""
        return getattr(self._here, "report", None)

    def run(
        self,
        network: nn.Module,
        part: Half,
        x: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device,
        tiling: TilingSettings,
        on_step: OnStep | None = None,
        make_room: MakeRoom | None = None,
        precision: Precision = Precision(),  # noqa: B008 - frozen
    ) -> Tensor:
        """One encode or decode, exactly as the network's own forward but by the plan that fits.

        Args:
            network: A VAE, or its encoder or decoder alone; its modules are called, never changed.
            part: Which half.
            x: (B, C, h, w), never written to.
            dtype, device: What is computed in and where; the modules accept such inputs.
            tiling: The settings that hold for this call; switched off means whole, without falling back to bands.
            on_step: Called with (done, total) bands; False stops the work.
            make_room: Asked for bytes that are missing; frees other models and says whether it freed anything.
            precision: What may be done where half precision overflows, and what messages call the VAE.

        Returns:
            (B, C', h', w') on x's device in `dtype`.

        Raises:
            StepAsideError: The network is not understood; nothing was computed, run its own forward.
            NoMemoryError: Memory ran out with every plan.
            NanError: Input or weights are not finite, or no allowed precision was enough; the message says which.
            Interrupted: `on_step` returned False.
        """
        began = time.perf_counter()
        graph = graph_of(network, part)
        shape = tuple(x.shape)
        plan, chosen = planned(graph, shape, dtype, device, tiling)
        if not chosen.fits and make_room is not None and make_room(chosen.predicted_mb * MB):
            plan, chosen = planned(graph, shape, dtype, device, tiling)
        stats = RunStats()
        key = self._key(network, graph) if precision.is_on else ""
        try:
            done = run_guarded(
                graph, x, plan, policy=precision.policy, label=precision.label, before=precision.before,
                needs=self.needs.get(key, part), replan=lambda other: planned(graph, shape, other, device, tiling)[0],
                on_step=on_step, stats=stats, make_room=make_room, has_ladder=mode_of(tiling, part) != "never",
            )  # fmt: skip
        except NoMemoryError:
            release_cached(device)
            raise
        except (PlanError, UnsupportedVaeError) as error:
            raise StepAsideError(str(error)) from error
        if precision.is_on:
            self.needs.put(key, part, done.needs)
        self._keep(_report(part, chosen, stats, done, tiling, began))
        return done.result

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

    def _keep(self, report: RunReport) -> None:
        self.last[report.part] = self._here.report = report


def _report(
    part: Half, chosen: PlanReport, stats: RunStats, done: Guarded, tiling: TilingSettings, began: float
) -> RunReport:
    found = done.report
    return RunReport(
        part=part,
        plan=done.plan.kind,
        bands=max((bands for _, bands in stats.bands_by_step), default=1),
        steps=found.steps,
        dtype=found.dtype,
        predicted_mb=chosen.predicted_mb,
        whole_mb=chosen.whole_mb,
        budget_mb=chosen.budget_mb if mode_of(tiling, part) != "never" else None,
        fits=chosen.fits,
        seconds=round(time.perf_counter() - began, 3),
        failures=done.failures,
        steps_shifted=found.steps_shifted,
        steps_fp32=found.steps_fp32,
        steps_recomputed=round(found.steps_recomputed, 3),
        precision=found.sentence,
        precision_infotext=found.infotext if found.sentence else "",
    )
