"""How much memory and arithmetic a plan takes, told before it runs.

The model walks through the same schedule as the run: stored nodes by their lifetimes, the temporaries of one band,
packed weights.  It counts activations: the VAE's own weights are there before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sd_vae_kit.core.graph.nodes import AttentionStep, Conv, LayerGraph, Step, is_subpixel
from sd_vae_kit.core.plan.devices import traits
from sd_vae_kit.core.plan.plan import Plan, churn_limit, is_remote
from sd_vae_kit.core.plan.schedule import Handling, Sweep, all_nodes, make_schedule, source_range
from sd_vae_kit.units import MIB


@dataclass(frozen=True)
class Cost:
    """What a plan is predicted to take.

    Attributes:
        peak_bytes: Activations on the plan's device at the worst moment, the result included.
        host_bytes: Activations in host memory (stream-host), else 0.
        macs: Multiplications, all samples.
        bands: Bands in all, of all samples.
    """

    peak_bytes: int
    host_bytes: int
    macs: float
    bands: int


@dataclass(frozen=True)
class _BandCost:
    peak: int  # bytes while the rows are computed
    result: int  # bytes of the rows themselves, freed when they were read
    macs: float
    kept: int = 0  # bytes of rows that were computed on the way and will be read again


class _Model:
    """Walks a plan's schedule as the engine does, with sizes instead of tensors."""

    def __init__(self, graph: LayerGraph, plan: Plan, size: tuple[int, int]) -> None:
        self.graph, self.plan = graph, plan
        self.stored = all_nodes(graph) if plan.stored is None else plan.stored
        self.shapes = graph.shapes(size)
        self.schedule = make_schedule(graph, plan, size)
        self.itemsize = plan.dtype.itemsize
        self.readers = graph.readers

    def bytes_of(self, node: int, rows: int | None = None) -> int:
        channels, height, width = self.shapes[node]
        return channels * (height if rows is None else min(rows, height)) * width * self.itemsize

    def cost(self, batch: int) -> Cost:
        result = self.bytes_of(len(self.graph.steps)) * batch
        alive = {0: self.bytes_of(0)}
        device, host, macs, bands = 0, 0, 0.0, 0
        for sweep in self.schedule:
            temporary, sweep_macs = self._sweep(sweep)
            if sweep.over is not None:
                alive[sweep.node] = alive.pop(sweep.over)
            elif sweep.is_stored and sweep.node != len(self.graph.steps):
                alive[sweep.node] = self.bytes_of(sweep.node)
                if len(sweep.bands) == 1:
                    temporary -= self.bytes_of(sweep.node)  # the band itself is kept
            if traits(self.plan.device).keeps_heap:
                temporary += self._slack(sweep)
            resident = sum(alive.values())
            if is_remote(self.plan):
                host, resident = max(host, sum(map(self._pinned, alive.values()))), 0
            device = max(device, resident + temporary)
            macs += sweep_macs
            bands += len(sweep.bands)
            for node in sweep.frees:
                alive.pop(node, None)
        return Cost(result + device, host, macs * batch, bands * batch)

    def _pinned(self, size: int) -> int:
        """What a host node really takes: torch's allocator of pinned memory hands out powers of two."""
        return 1 << (size - 1).bit_length() if traits(self.plan.device).has_streams else size

    def _slack(self, sweep: Sweep) -> int:
        """Bytes that were freed but not yet returned to the system: see `malloc_trim`; measured, not derived.

        The temporaries of a single step find the holes of the band before; those of a chain are of many sizes.
        """
        band = sweep.row_bytes * sweep.bands[0][1]
        if len(sweep.bands) == 1 or band <= MIB:
            return 0
        piled = min(churn_limit(self.plan), sweep.row_bytes * self.shapes[sweep.node][1]) // 2
        return piled if len(sweep.members) > 1 else min(piled, 3 * band)

    def _sweep(self, sweep: Sweep) -> tuple[int, float]:
        """(temporary bytes, multiplications) of a pass."""
        step = self.graph.steps[sweep.node - 1]
        rows = sweep.bands[0][1] - sweep.bands[0][0]
        if isinstance(step, AttentionStep):
            return self._attention(step, sweep, rows)
        self.memo: dict[int, int] = {}
        band = self._band(sweep.node, rows)
        packed = [self._weights(member) for member in sweep.members]
        weights = sum(packed) + max(packed)  # one at a time once more, in the layout that its kernel wants
        held = sweep.held * self.bytes_of(sweep.node, 1)
        return band.peak + weights + held, band.macs * self.shapes[sweep.node][1] / rows

    def _attention(self, step: AttentionStep, sweep: Sweep, rows: int) -> tuple[int, float]:
        channels, height, width = self.shapes[step.source]
        count = height * width
        keys_values = 2 * self.bytes_of(step.source)
        # normed rows, queries, answers and their projection
        temporary = 4 * self.bytes_of(step.source, rows)
        return keys_values + temporary, 2.0 * count * count * channels + 4.0 * count * channels * channels

    def _band(self, node: int, rows: int) -> _BandCost:
        """Computing `rows` rows of a node, its unstored sources included."""
        step = self.graph.steps[node - 1]
        assert isinstance(step, Step)
        rows = min(rows, self.shapes[node][1])
        result = self.bytes_of(node, rows)
        source = self._source(step.source, rows if step.conv is None else self._rows_in(step.conv, step.source, rows))
        entering, peak, macs, kept = source.result, source.peak, source.macs, source.kept
        if step.norm is not None or step.act is not None:
            in_rows = rows if step.conv is None else self._rows_in(step.conv, step.source, rows)
            entering = self.bytes_of(step.source, in_rows)
            peak = max(peak, kept + source.result + entering)
        if step.conv is not None:
            inside = self._convolving(step.conv, step.source, rows, entering, result)
            peak = max(peak, kept + inside)
            macs += self._macs(step.conv, node, rows)
        if step.residual is not None:
            other_rows = rows if step.shortcut is None else self._rows_in(step.shortcut, step.residual, rows)
            other = self._source(step.residual, other_rows)
            peak = max(peak, kept + result + other.peak)
            macs, kept = macs + other.macs, kept + other.kept
            if step.shortcut is not None:
                peak = max(peak, kept + 2 * result + other.result)
                macs += self._macs(step.shortcut, node, rows)
            kept -= self.memo.pop(step.residual, 0)
        return _BandCost(peak, result, macs, kept)

    def _source(self, node: int, rows: int) -> _BandCost:
        """Reading rows of a node: nothing if it is stored (on the device), else computing them."""
        if node == 0 or node in self.stored or node in self.memo:
            size = self.bytes_of(node, rows) if is_remote(self.plan) else 0
            return _BandCost(2 * size, 2 * size, 0.0)  # twice: the next band's rows are on their way
        band = self._band(node, rows)
        if len(self.readers[node]) < 2:
            return band
        self.memo[node] = band.result
        return _BandCost(band.peak, 0, band.macs, band.kept + band.result)

    def _rows_in(self, conv: Conv, source: int, rows: int) -> int:
        height = self.shapes[source][1]
        top = min(height, 64) // 2 * 2  # somewhere inside, where both halos exist
        mode: Handling = "plain"
        first, last = source_range(conv, 1 << 30, top + 64, top + 64 + rows, mode)
        return min(height, last - first)

    def _convolving(self, conv: Conv, source: int, rows: int, entering: int, result: int) -> int:
        if is_subpixel(conv):
            return max(entering + result, 2 * result)  # the four phases, then the picture they are put together to
        if conv.resize == "down":
            return 2 * self.bytes_of(source, 2 * rows + 1) + result
        return entering + result

    def _weights(self, node: int) -> int:
        """Weights packed for bands."""
        step = self.graph.steps[node - 1]
        convs = [conv for conv in (step.conv, step.shortcut) if conv is not None] if isinstance(step, Step) else []
        total = 0
        for conv in convs:
            taps = 16 if is_subpixel(conv) else conv.kernel[0] * conv.kernel[1]
            total += conv.channels_in * conv.channels_out * taps * self.itemsize
        return total

    def _macs(self, conv: Conv, node: int, rows: int) -> float:
        taps = 4 if is_subpixel(conv) else conv.kernel[0] * conv.kernel[1]
        return float(rows) * self.shapes[node][2] * conv.channels_in * conv.channels_out * taps


def predict(graph: LayerGraph, plan: Plan, shape: Sequence[int]) -> Cost:
    """What `run_streamed` will take for an input of shape (B, C, h, w).

    Raises:
        PlanError: The plan does not fit the graph.
        UnsupportedVaeError: The input is too small for this network.
    """
    return _Model(graph, plan, (shape[2], shape[3])).cost(shape[0])
