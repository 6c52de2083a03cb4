"""Runs a graph over a picture in bands of rows, exactly: the result is the ordinary forward's.

Two things make a VAE global, GroupNorm and attention; both are treated for the whole picture.  Everything else is
local: a band of a node needs only a few more rows of the nodes before it.  So a plan says which nodes are *stored*
whole; any other node is computed again, band by band, wherever it is read.  Storing all of them is plain streaming,
storing fewer costs arithmetic and saves memory, and a single band as high as the picture is the ordinary forward.

While a band is in the processor's cache it is normalised (scale and shift per channel), activated, convolved, added to
the shortcut, and its statistics for the next norm are taken.  A node whose last reader makes a node of the same size
is overwritten by it; rows that the next band still reads are written one band later.

Nothing is kept on modules: calls from several threads on one VAE do not disturb each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sd_vae_kit.core.engine.attention import AttentionPass, AttentionSite
from sd_vae_kit.core.engine.band_computer import BandComputer
from sd_vae_kit.core.engine.band_guard import BandGuard
from sd_vae_kit.core.engine.device_tensors import without_autocast
from sd_vae_kit.core.engine.edges import edge_handlings
from sd_vae_kit.core.engine.group_norm import Moments
from sd_vae_kit.core.engine.malloc_trim import MallocTrimmer
from sd_vae_kit.core.engine.node_store import NodeStore
from sd_vae_kit.core.engine.overflow import RangeGuard
from sd_vae_kit.core.engine.repair import AttendedBands, ConvolvedBands, finite_band
from sd_vae_kit.core.engine.target import Target
from sd_vae_kit.core.graph.nodes import AttentionStep, LayerGraph
from sd_vae_kit.core.plan.devices import traits
from sd_vae_kit.core.plan.plan import OnStep, Plan, RunStats
from sd_vae_kit.core.plan.schedule import Sweep, make_schedule
from sd_vae_kit.core.plan.search_cache import SEARCHES
from sd_vae_kit.errors import Interrupted, PlanError

__all__ = ["BandGuard", "OnStep", "Plan", "RunStats", "run_streamed"]


def run_streamed(
    graph: LayerGraph,
    x: Tensor,
    plan: Plan,
    *,
    on_step: OnStep | None = None,
    stats: RunStats | None = None,
    guard: BandGuard | None = None,
) -> Tensor:
    """Run `graph` over `x` in bands, with the GroupNorm statistics and the attention of the whole picture.

    Args:
        graph: Steps of one encoder or decoder; their modules are called, not changed.
        x: (B, C_in, h, w), on any device; never written to.  Samples are run one after the other.
        plan: Which nodes are stored, how much a band may take, where it runs.
        on_step: Called with (done, total) bands after each band; False stops the work.
        stats: Filled with what was done.
        guard: Sees each band before it is committed.

    Returns:
        (B, C_out, h', w') on x's device in the plan's dtype; (B, 3, 8h, 8w) in about [-1, 1] for a KL decoder.

    Raises:
        Interrupted: `on_step` returned False.
        PlanError: A module is not local, or the plan does not fit the graph.
    """
    if x.dim() != 4 or x.shape[1] != graph.channels_in:
        raise PlanError(
            f"The {graph.name} takes (B, {graph.channels_in}, height, width); the input is {tuple(x.shape)}."
        )
    size = (x.shape[2], x.shape[3])
    shapes = graph.shapes(size)
    channels, height, width = shapes[-1]
    with torch.no_grad(), without_autocast(plan.device):
        handling = edge_handlings(graph, plan)
        schedule = make_schedule(graph, plan, size, handling)
        progress = _Progress(on_step, x.shape[0] * sum(len(sweep.bands) for sweep in schedule), stats or RunStats())
        result = torch.empty((x.shape[0], channels, height, width), dtype=plan.dtype, device=x.device)
        repairs = guard if isinstance(guard, RangeGuard) else None
        for sample in range(x.shape[0]):
            computer = BandComputer(graph, plan, NodeStore(plan, shapes), handling, repairs)
            passes = _Passes(computer, schedule, progress, guard)
            passes.run(x[sample : sample + 1], result[sample : sample + 1])
    return result


class _Progress:
    """Counts bands, and tells who wants to know."""

    def __init__(self, on_step: OnStep | None, total: int, stats: RunStats) -> None:
        self.on_step, self.total, self.stats, self.done = on_step, total, stats, 0

    def band_done(self) -> None:
        self.done += 1
        self.stats.bands += 1
        if self.on_step is not None and self.on_step(self.done, self.total) is False:
            raise Interrupted(f"Stopped after {self.done} of {self.total} bands.")


class _Passes:
    """The passes over one sample, one after the other."""

    def __init__(
        self, computer: BandComputer, schedule: list[Sweep], progress: _Progress, guard: BandGuard | None
    ) -> None:
        self.computer, self.schedule, self.progress, self.guard = computer, schedule, progress, guard
        self.graph, self.plan, self.store = computer.graph, computer.plan, computer.store
        self.trimmer: MallocTrimmer | None = None
        if traits(self.plan.device).keeps_heap:
            one = (1, *self.store.shapes[0])
            with SEARCHES.opened(self.graph, one, self.plan.dtype, self.plan.device) as search:
                self.trimmer = MallocTrimmer(self.plan, search.cost(self.plan).peak_bytes)

    def run(self, x: Tensor, result: Tensor) -> None:
        """Take x (1, C, h, w) through all passes; the last one writes `result`."""
        self.store.put_input(x)
        for sweep, following in zip(self.schedule, [*self.schedule[1:], None], strict=True):
            step = self.graph.steps[sweep.node - 1]
            self.progress.stats.bands_by_step.append((step.name, len(sweep.bands)))
            if sweep.needs_moments:
                self.computer.moments[sweep.node] = Moments()
            if isinstance(step, AttentionStep):
                self._attend(step, sweep)
            else:
                self._convolve(sweep, result if sweep.node == len(self.graph.steps) else None)
            self.computer.convolver.forget()
            self.store.free(sweep.frees)
            self.store.finish_writing()
            if self.trimmer is not None and following is not None:
                self.trimmer.freed(0, self._new_bytes(following) + _band_bytes(following))

    def _convolve(self, sweep: Sweep, result: Tensor | None) -> None:
        """Compute a node in bands; store it or only take its statistics."""
        target = Target(self.store, sweep, result)
        bands = ConvolvedBands(self.computer, sweep, target)
        for i, (top, bottom) in enumerate(sweep.bands):
            if self.store.link is not None:
                self.store.link.next_band()
                if i + 1 < len(sweep.bands):
                    self.store.prefetch(self.computer.needed_rows(sweep.node, *sweep.bands[i + 1]))
            band = finite_band(self.computer, bands, top, bottom, self.guard)
            if sweep.is_stored:
                target.commit(top, bottom, band)
            del band
            if self.trimmer is not None:
                self.trimmer.freed(sweep.row_bytes * (bottom - top), _band_bytes(sweep))
            self.progress.band_done()

    def _attend(self, step: AttentionStep, sweep: Sweep) -> None:
        """Attention over the whole picture: keys and values resident, queries in bands."""
        channels, height, width = self.store.shapes[step.source]
        site = AttentionSite(step, sweep.node, height * width, channels)
        attention = AttentionPass(site, self.plan, self.computer.ranges, self.progress.stats, self.computer.guard)
        target = Target(self.store, sweep, None)
        bands = AttendedBands(self.computer, attention, sweep, target)
        bands.take_keys()
        for top, bottom in sweep.bands:
            band = finite_band(self.computer, bands, top, bottom, self.guard)
            target.commit(top, bottom, band)
            del band
            self.progress.band_done()
        if self.trimmer is not None:
            # normed rows twice, queries, answers, keys and values
            self.trimmer.freed(6 * attention.keys.nbytes, 0)

    def _new_bytes(self, sweep: Sweep) -> int:
        """What a pass stores that is not written over something else."""
        if not sweep.is_stored or sweep.over is not None or sweep.node == len(self.graph.steps):
            return 0
        channels, height, width = self.store.shapes[sweep.node]
        return channels * height * width * self.plan.dtype.itemsize


def _band_bytes(sweep: Sweep) -> int:
    """What one band of a pass takes for a moment, halo and shortcut included."""
    return 2 * sweep.row_bytes * sweep.bands[0][1]
