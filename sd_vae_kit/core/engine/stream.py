"""Runs a graph over a picture in bands of rows, exactly: the result is the ordinary forward's.

Two things make a VAE global, GroupNorm and attention; both are treated for the whole picture.  Everything else is
local: a band of a value needs only a few more rows of the values before it.  So a plan says which values are *stored*
whole; any other value is computed again, band by band, wherever it is read.  Storing all of them is plain streaming,
storing fewer costs arithmetic and saves memory, and a single band as high as the picture is the ordinary forward.

While a band is in the processor's cache it is normalised (scale and shift per channel), activated, convolved, added to
the shortcut, and its statistics for the next norm are taken.  A value whose last reader makes a value of the same size
is overwritten by it; rows that the next band still reads are written one band later.

Nothing is kept on modules: calls from several threads on one VAE do not disturb each other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from sd_vae_kit.core.engine.attention import AttentionPass
from sd_vae_kit.core.engine.band_guard import BandGuard, OutOfRange
from sd_vae_kit.core.engine.convolution import Convolver, Scaling
from sd_vae_kit.core.engine.device_tensors import dense, empty, without_autocast
from sd_vae_kit.core.engine.edges import Rows, edge_handlings
from sd_vae_kit.core.engine.group_norm import Moments, ScaleShift, band_moments, scale_and_shift
from sd_vae_kit.core.engine.malloc_trim import MallocTrimmer
from sd_vae_kit.core.engine.offload import OffloadedStore
from sd_vae_kit.core.engine.overflow import HalfIsNotEnough, RangeGuard
from sd_vae_kit.core.engine.ranges import SHIFT_STEP, Ranges, is_homogeneous
from sd_vae_kit.core.graph.nodes import AttentionStep, Conv, LayerGraph, Step
from sd_vae_kit.core.plan.cost import predict
from sd_vae_kit.core.plan.devices import traits
from sd_vae_kit.core.plan.plan import OnStep, Plan, RunStats, is_remote
from sd_vae_kit.core.plan.schedule import Handling, Sweep, make_schedule, rows_needed, split_rows
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
        plan: Which values are stored, how much a band may take, where it runs.
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
    channels, height, width = graph.shapes(size)[-1]
    with torch.no_grad(), without_autocast(plan.device):
        handling = edge_handlings(graph, plan)
        schedule = make_schedule(graph, plan, size, handling)
        progress = _Progress(on_step, x.shape[0] * sum(len(event.bands) for event in schedule), stats or RunStats())
        result = torch.empty((x.shape[0], channels, height, width), dtype=plan.dtype, device=x.device)
        for sample in range(x.shape[0]):
            stream = _Stream(graph, plan, size, schedule, handling, progress, guard)
            stream.run(x[sample : sample + 1], result[sample : sample + 1])
    return result


class _Progress:
    def __init__(self, on_step: OnStep | None, total: int, stats: RunStats) -> None:
        self.on_step, self.total, self.stats, self.done = on_step, total, stats, 0

    def band_done(self) -> None:
        self.done += 1
        self.stats.bands += 1
        if self.on_step is not None and self.on_step(self.done, self.total) is False:
            raise Interrupted(f"Stopped after {self.done} of {self.total} bands.")


Place = Literal["source", "inside", "result"]


class _Culprit(Exception):  # noqa: N818 - found while looking for it
    """A value that is not finite: read so, made so by the norm before the convolution, or by the rest of the step."""

    def __init__(self, value: int, place: Place) -> None:
        super().__init__(value, place)
        self.value, self.place = value, place


class _Stream:
    """One sample on its way through a graph."""

    def __init__(
        self, graph: LayerGraph, plan: Plan, size: tuple[int, int], schedule: list[Sweep],
        handling: dict[nn.Module, Handling], progress: _Progress, guard: BandGuard | None,
    ) -> None:  # fmt: skip
        self.graph, self.plan, self.schedule, self.handling = graph, plan, schedule, handling
        self.progress, self.guard = progress, guard
        self.shapes, self.readers = graph.shapes(size), graph.readers
        self.values: dict[int, Tensor] = {}
        self.moments: dict[int, Moments] = {}
        self.norms: dict[int, ScaleShift] = {}
        self.repairs = guard if isinstance(guard, RangeGuard) else None
        self.ranges = Ranges(graph) if self.repairs is None else self.repairs.ranges
        self.is_careful = False
        self.convolver = Convolver(plan, handling)
        self.computed: dict[int, tuple[int, int, Tensor]] = {}  # rows of values that are not stored, for one band
        self.link = OffloadedStore(plan.device) if is_remote(plan) else None
        self.heap: MallocTrimmer | None = None
        if traits(plan.device).keeps_heap:
            self.heap = MallocTrimmer(plan, predict(graph, plan, (1, graph.channels_in, *size)).peak_bytes)

    def run(self, x: Tensor, result: Tensor) -> None:
        """Take x (1, C, h, w) through all passes; the last one writes `result`."""
        self.values[0] = self._input(x)
        for event, following in zip(self.schedule, [*self.schedule[1:], None], strict=True):
            step = self.graph.steps[event.value - 1]
            self.progress.stats.bands_by_step.append((step.name, len(event.bands)))
            if event.needs_moments:
                self.moments[event.value] = Moments()
            if isinstance(step, AttentionStep):
                self._attend(step, event)
            else:
                self._sweep(step, event, result if event.value == len(self.graph.steps) else None)
            self.convolver.forget()
            for value in event.frees:
                self.values.pop(value, None)
            if self.link is not None:
                self.link.finish()
            if self.heap is not None and following is not None:
                self.heap.freed(0, self._new_bytes(following) + self._band_bytes(following))

    def _input(self, x: Tensor) -> Tensor:
        if self.link is None:
            return dense(x.to(self.plan.device, self.plan.dtype))
        host = self.link.empty(tuple(x.shape), self.plan.dtype)
        return host.copy_(x)

    def _sweep(self, step: Step, event: Sweep, result: Tensor | None) -> None:
        """Compute a value in bands; store it or only take its statistics."""
        target = _Target(self, event, result)
        make, repair = partial(self._compute, event.value), partial(self._repair, event, target)
        for i, (top, bottom) in enumerate(event.bands):
            if self.link is not None:
                self.link.next_band()
                if i + 1 < len(event.bands):
                    self._prefetch(event.value, *event.bands[i + 1])
            band = self._sound(event, top, bottom, make, repair)
            if event.is_stored:
                target.commit(top, bottom, band)
            del band
            if self.heap is not None:
                self.heap.freed(event.row_bytes * (bottom - top), self._band_bytes(event))
            self.progress.band_done()

    def _new_bytes(self, event: Sweep) -> int:
        """What a pass stores that is not written over something else."""
        if not event.is_stored or event.over is not None or event.value == len(self.graph.steps):
            return 0
        channels, height, width = self.shapes[event.value]
        return channels * height * width * self.plan.dtype.itemsize

    def _band_bytes(self, event: Sweep) -> int:
        """What one band of a pass takes for a moment, halo and shortcut included."""
        return 2 * event.row_bytes * event.bands[0][1]

    def _prefetch(self, value: int, top: int, bottom: int) -> None:
        """Send for the rows of the next band while this one is computed.

        They are never rows that this band's result overwrites: those wait in `_Target.pending`.
        """
        assert self.link is not None
        stored = frozenset(self.values)
        needed = rows_needed(self.graph, stored, self.shapes, self.handling, value, top, bottom)
        for source, (first, last) in needed.items():
            if source in self.values and last - first < self.shapes[source][1]:
                self.link.prefetch(self.values[source], first, last)

    def _checked(self, step: Step | AttentionStep, event: Sweep, top: int, bottom: int, band: Tensor) -> Tensor:
        """Take the statistics of a band that is still in cache, before it is written anywhere."""
        self.computed.clear()
        moments = band_moments(band) if event.needs_moments else None
        if self.guard is not None:
            accepted = self.guard.accept(step, (top, bottom), band, moments)
            if accepted is not band and moments is not None:
                moments = band_moments(accepted)
            band = accepted
        if moments is not None:
            self.moments[event.value].add(moments)
        return band

    def _compute(self, value: int, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom) of a value, newly computed; the caller may write into them."""
        dtype = self.ranges.compute_dtype(value, self.plan.dtype)
        if dtype == self.plan.dtype:
            return self._examined(self._computed(value, top, bottom, dtype), value, "result")
        # fp32 in the middle of a half-precision run: in pieces, so that it needs no more memory than the other steps
        channels, _, width = self.shapes[value]
        result = empty((1, channels, bottom - top, width), self.plan.dtype, self.plan.device)
        for first, last in split_rows(bottom - top, max(8, (bottom - top) // 8 * 2)):
            result[:, :, first:last] = self._computed(value, top + first, top + last, dtype)
        return self._examined(result, value, "result")

    def _computed(self, value: int, top: int, bottom: int, dtype: torch.dtype) -> Tensor:
        """Rows of a value, stored with its exponent, in the type they are computed in."""
        step = self.graph.steps[value - 1]
        assert isinstance(step, Step)
        scaling = Scaling(dtype, self.ranges.gain(value), self.ranges.exponent(value))
        if step.conv is None:
            y = self._entered(step, value, top, bottom, dtype, scaling.gain)
        else:
            conv, height = step.conv, self.shapes[step.source][1]
            gain = self.convolver.input_gain(conv, scaling)
            rows = lambda a, b: self._entered(step, value, a, b, dtype, gain)  # noqa: E731
            y = self.convolver(conv, rows, height, top, bottom, scaling)
        if step.residual is not None:
            self._add(y, step.residual, step.shortcut, value, top, bottom)
            self.computed.pop(step.residual, None)  # the block that needed it twice is done with it
        if step.divisor != 1.0:
            y.div_(step.divisor)
        return y if step.post is None else step.post(y)

    def _add(self, y: Tensor, source: int, shortcut: Conv | None, value: int, top: int, bottom: int) -> None:
        """Add the residual's rows to y, with y's exponent."""
        lift = self.ranges.exponent(source) - self.ranges.exponent(value)
        if shortcut is None:
            y.add_(self._examined(self._rows(source, top, bottom)[0], source, "source"), alpha=2.0**lift)
            return
        scaling = Scaling(y.dtype, lift, self.ranges.exponent(value))
        gain = self.convolver.input_gain(shortcut, scaling)

        def rows(a: int, b: int) -> Tensor:
            x = self._rows(source, a, b)[0].to(y.dtype)
            return x * 2.0**gain if gain else x

        y.add_(self.convolver(shortcut, rows, self.shapes[source][1], top, bottom, scaling))

    def _rows(self, value: int, top: int, bottom: int) -> tuple[Tensor, bool]:
        """(rows [top, bottom) of a value, whether the caller may write into them)."""
        if value in self.values:
            if self.link is not None:
                return self.link.fetch(self.values[value], top, bottom), False
            return self.values[value][:, :, top:bottom], False
        if value in self.computed:
            first, last, rows = self.computed[value]
            if first <= top and bottom <= last:
                return rows[:, :, top - first : bottom - first], False
        rows = self._compute(value, top, bottom)
        if len(self.readers[value]) < 2:
            return rows, True
        self.computed[value] = (top, bottom, rows)
        return rows, False

    def _entered(self, step: Step, value: int, top: int, bottom: int, dtype: torch.dtype, gain: int) -> Tensor:
        """Rows [top, bottom) of the step's source, normalised and activated, times 2**gain."""
        x, is_mine = self._rows(step.source, top, bottom)
        self._examined(x, step.source, "source")
        if x.dtype != dtype:
            x, is_mine = x.to(dtype), True
        if step.norm is not None:
            x, is_mine = self._examined(self._norm(step, value)(x), value, "inside"), True
        elif not is_homogeneous(step) and self.ranges.exponent(step.source):
            x, is_mine = self._examined(x * 2.0 ** self.ranges.exponent(step.source), value, "inside"), True
        if step.act is not None:
            x, is_mine = step.act(x if is_mine else x.clone()), True
        elif step.conv is None and not is_mine:
            x, is_mine = x.clone(), True
        if gain == 0:
            return x
        return x.mul_(2.0**gain) if is_mine else x * 2.0**gain

    def _norm(self, step: Step | AttentionStep, value: int) -> ScaleShift:
        if value not in self.norms:
            assert step.norm is not None
            self.norms[value] = scale_and_shift(
                step.norm, self.moments[step.source], self.plan.device, self.plan.dtype,
                self.ranges.exponent(step.source),
            )  # fmt: skip
        return self.norms[value]

    def _attend(self, step: AttentionStep, event: Sweep) -> None:
        """Attention over the whole picture: keys and values resident, queries in bands."""
        channels, height, width = self.shapes[step.source]
        attention = AttentionPass(
            step, event.value, self.plan, self.ranges, height * width, channels, self.progress.stats, self.repairs
        )
        self._take_keys(attention, step, event)
        target = _Target(self, event, None)
        make = partial(self._attended, attention, step, event, target)
        repair = partial(self._repair_attention, attention, step, event, target)
        for top, bottom in event.bands:
            band = self._sound(event, top, bottom, make, repair)
            target.commit(top, bottom, band)
            del band
            self.progress.band_done()
        if self.heap is not None:
            # normed rows twice, queries, answers, keys and values
            self.heap.freed(6 * attention.keys.nbytes, 0)

    def _take_keys(self, attention: AttentionPass, step: AttentionStep, event: Sweep) -> None:
        width, height = self.shapes[step.source][2], self.shapes[step.source][1]
        while True:
            try:
                for top, bottom in event.bands:
                    attention.take(self._normed(step, event.value, top, bottom), top * width)
                return
            except OutOfRange:
                assert self.repairs is not None
                self.repairs.note(step, top, bottom / height)
                attention.restart()

    def _normed(self, step: AttentionStep, value: int, top: int, bottom: int) -> Tensor:
        x = self._rows(step.source, top, bottom)[0].to(self.ranges.compute_dtype(value, self.plan.dtype))
        return x if step.norm is None else self._norm(step, value)(x)

    def _attended(
        self, attention: AttentionPass, step: AttentionStep, event: Sweep, target: _Target, top: int, bottom: int, *,
        is_careful: bool = False,
    ) -> Tensor:  # fmt: skip
        """Rows [top, bottom) of what attention makes, newly computed."""
        if attention.is_stale and top == 0:  # nothing has been written over the source yet
            attention.restart()
            self._take_keys(attention, step, event)
        value = event.value
        band = attention.answer(self._normed(step, value, top, bottom), is_careful=is_careful)
        if step.residual:
            lift = self.ranges.exponent(step.source) - self.ranges.exponent(value)
            band.add_(self._rows(step.source, top, bottom)[0], alpha=2.0**lift)
        if step.divisor != 1.0:
            band.div_(step.divisor)
        return band.to(self.plan.dtype)

    # repairs: how a band that is not finite is computed again

    def _sound(self, event: Sweep, top: int, bottom: int, make: Rows, repair: Callable[[int, int], None]) -> Tensor:
        """The band that `make` computes, once it is finite; until then `repair` changes how it is computed."""
        step = self.graph.steps[event.value - 1]
        while True:
            try:
                return self._checked(step, event, top, bottom, make(top, bottom))
            except OutOfRange as found:
                is_repaired = found.is_repaired
            assert self.repairs is not None, "only a RangeGuard calls a band out of range"
            self.computed.clear()
            self.repairs.note(step, top, (bottom - top) / self.shapes[event.value][1])
            if not is_repaired:
                repair(top, bottom)

    def _repair(self, event: Sweep, target: _Target, top: int, bottom: int) -> None:
        """Change how the first value on the way to this band that is not finite is computed.

        Raises:
            NanError: No precision helps.
            HalfIsNotEnough: Nothing else is left.
        """
        assert self.repairs is not None
        value, place = self._culprit(event.value, top, bottom)
        step = self.graph.steps[value - 1]
        self.repairs.examine(step)
        self.convolver.forget()
        if place == "result" and self.ranges.shift(value):
            self._divide(value, target if value == event.value else None)
        elif place == "source" or not self.repairs.widen(value):
            raise HalfIsNotEnough(step.name)

    def _repair_attention(
        self, attention: AttentionPass, step: AttentionStep, event: Sweep, target: _Target, top: int, bottom: int
    ) -> None:  # fmt: skip
        """As `_repair`, for a band of attention whose queries, keys and values are finite."""
        assert self.repairs is not None
        self.repairs.examine(step)
        try:
            self._attended(attention, step, event, target, top, bottom, is_careful=True)
        except OutOfRange:  # it was the scores, and they are repaired
            return
        if self.ranges.shift(event.value):
            self._divide(event.value, target)
        else:
            attention.widen()

    def _culprit(self, value: int, top: int, bottom: int) -> tuple[int, Place]:
        """Which value is the first that is not finite on the way to these rows, and where in its step."""
        self.is_careful = True
        try:
            self._compute(value, top, bottom)
        except _Culprit as found:
            return found.value, found.place
        finally:
            self.is_careful = False
            self.computed.clear()
        return value, "result"

    def _examined(self, x: Tensor, value: int, place: Place) -> Tensor:
        """x; while a culprit is looked for, only if it is finite."""
        if self.is_careful and self.repairs is not None and not self.repairs.is_sound(x):
            raise _Culprit(value, place)
        return x

    def _divide(self, value: int, target: _Target | None) -> None:
        """What exists of a value is stored with its new exponent; its norms are computed again."""
        if value in self.moments:
            self.moments[value].divide(SHIFT_STEP)
        for reader in self.readers[value]:
            self.norms.pop(reader, None)
        if target is not None:
            target.divide(SHIFT_STEP)


class _Target:
    """Where the bands of one pass go: a new tensor, over a dying value, or the result."""

    def __init__(self, stream: _Stream, event: Sweep, result: Tensor | None) -> None:
        self.stream, self.event, self.held = stream, event, event.held
        self.height = stream.shapes[event.value][1]
        self.pending: Tensor | None = None
        self.written = 0
        self.buffer = result
        if event.over is not None and event.over in stream.values:
            self.buffer = stream.values[event.over]

    def commit(self, top: int, bottom: int, band: Tensor) -> None:
        """Write rows [top, bottom), but keep back the last rows that the next band still reads as they were."""
        link, is_single = self.stream.link, len(self.event.bands) == 1
        if link is None and is_single and (self.buffer is None or self.event.over is not None):
            self._keep(dense(band))
            return
        if self.buffer is None:
            shape = (1, *self.stream.shapes[self.event.value])
            self.buffer = empty(shape, band.dtype, band.device) if link is None else link.empty(shape, band.dtype)
        if self.pending is not None:
            if bottom - top < self.held:
                band = torch.cat([self.pending, band], 2)
            else:
                self._write(self.pending)
        stop = self.height if bottom == self.height else max(self.written, bottom - self.held)
        start = bottom - band.shape[2]
        self.pending = band[:, :, stop - start :].clone() if stop < bottom else None
        self._write(band[:, :, : stop - start])
        if bottom == self.height:
            self._keep(self.buffer)

    def divide(self, exponent: int) -> None:
        """Rows that are written or wait to be are from now on stored divided by 2**exponent."""
        if self.buffer is not None and self.written:
            if self.stream.link is not None:
                self.stream.link.finish()  # rows may still be on their way to the host
            self.buffer[:, :, : self.written].mul_(0.5**exponent)
        if self.pending is not None:
            self.pending.mul_(0.5**exponent)

    def _write(self, rows: Tensor) -> None:
        assert self.buffer is not None
        place = self.buffer[:, :, self.written : self.written + rows.shape[2]]
        if self.stream.link is not None:
            self.stream.link.write(place, rows)
        else:
            place.copy_(rows)
        self.written += rows.shape[2]

    def _keep(self, value: Tensor) -> None:
        if self.event.over is not None:
            self.stream.values.pop(self.event.over, None)
        self.stream.values[self.event.value] = value
