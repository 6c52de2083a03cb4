"""Runs a program over a picture in bands of rows, exactly: the result is the ordinary forward's.

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

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd_vae_kit.core.attention import attention_chunk, heads_of, picture_of, tokens_of
from sd_vae_kit.core.edges import Rows, call_on_band, edge_handlings
from sd_vae_kit.core.group_norm import Moments, ScaleShift, band_moments, scale_and_shift
from sd_vae_kit.core.heap import HEAP_CHURN, return_freed_memory
from sd_vae_kit.core.host_link import HostLink, is_remote
from sd_vae_kit.core.plan import BandGuard, OnStep, Plan, RunStats
from sd_vae_kit.core.schedule import Event, Handling, all_values, bytes_per_row, input_range, make_schedule, rows_needed
from sd_vae_kit.core.steps import AttentionStep, Conv, Program, Step
from sd_vae_kit.core.subpixel import is_subpixel, subpixel_weight, upsampled
from sd_vae_kit.errors import Interrupted, PlanError

__all__ = ["BandGuard", "OnStep", "Plan", "RunStats", "run_streamed"]


def run_streamed(
    program: Program,
    x: Tensor,
    plan: Plan,
    *,
    on_step: OnStep | None = None,
    stats: RunStats | None = None,
    guard: BandGuard | None = None,
) -> Tensor:
    """Run `program` over `x` in bands, with the GroupNorm statistics and the attention of the whole picture.

    Args:
        program: Steps of one encoder or decoder; their modules are called, not changed.
        x: (B, C_in, h, w), on any device; never written to.  Samples are run one after the other.
        plan: Which values are stored, how much a band may take, where it runs.
        on_step: Called with (done, total) bands after each band; False stops the work.
        stats: Filled with what was done.
        guard: Sees each band before it is committed.

    Returns:
        (B, C_out, h', w') on x's device in the plan's dtype; (B, 3, 8h, 8w) in about [-1, 1] for a KL decoder.

    Raises:
        Interrupted: `on_step` returned False.
        PlanError: A module is not local, or the plan does not fit the program.
    """
    if x.dim() != 4 or x.shape[1] != program.channels_in:
        raise PlanError(
            f"The {program.name} takes (B, {program.channels_in}, height, width); the input is {tuple(x.shape)}."
        )
    size = (x.shape[2], x.shape[3])
    channels, height, width = program.shapes(size)[-1]
    with torch.no_grad(), _without_autocast(plan.device.type):
        handling = edge_handlings(program, plan)
        schedule = make_schedule(program, plan, size, handling)
        progress = _Progress(on_step, x.shape[0] * sum(len(event.bands) for event in schedule), stats or RunStats())
        result = torch.empty((x.shape[0], channels, height, width), dtype=plan.dtype, device=x.device)
        for sample in range(x.shape[0]):
            stream = _Stream(program, plan, size, schedule, handling, progress, guard)
            stream.run(x[sample : sample + 1], result[sample : sample + 1])
    return result


@contextlib.contextmanager
def _without_autocast(device_type: str) -> Iterator[None]:
    """A host may have autocast on around us; it would change dtypes in the middle of a step."""
    try:
        context = torch.autocast(device_type, enabled=False)
    except RuntimeError:  # this device type has no autocast (DirectML)
        yield
        return
    with context:
        yield


class _Progress:
    def __init__(self, on_step: OnStep | None, total: int, stats: RunStats) -> None:
        self.on_step, self.total, self.stats, self.done = on_step, total, stats, 0

    def band_done(self) -> None:
        self.done += 1
        self.stats.bands += 1
        if self.on_step is not None and self.on_step(self.done, self.total) is False:
            raise Interrupted(f"Stopped after {self.done} of {self.total} bands.")


class _Stream:
    """One sample on its way through a program."""

    def __init__(
        self, program: Program, plan: Plan, size: tuple[int, int], schedule: list[Event],
        handling: dict[nn.Module, Handling], progress: _Progress, guard: BandGuard | None,
    ) -> None:  # fmt: skip
        self.program, self.plan, self.schedule, self.handling = program, plan, schedule, handling
        self.progress, self.guard = progress, guard
        self.shapes, self.readers = program.shapes(size), program.readers
        self.values: dict[int, Tensor] = {}
        self.moments: dict[int, Moments] = {}
        self.norms: dict[int, ScaleShift] = {}
        self.exponents: dict[int, int] = {}  # value -> k: it is stored divided by 2**k (for the precision guard)
        self.weights: dict[Conv, tuple[Tensor, Tensor | None]] = {}  # packed for the pass that runs
        self.computed: dict[int, tuple[int, int, Tensor]] = {}  # rows of values that are not stored, for one band
        self.link = HostLink(plan.device) if is_remote(plan) else None

    def run(self, x: Tensor, result: Tensor) -> None:
        """Take x (1, C, h, w) through all passes; the last one writes `result`."""
        self.values[0] = x.to(self.plan.device, self.plan.dtype).contiguous(memory_format=torch.channels_last)
        for event in self.schedule:
            step = self.program.steps[event.value - 1]
            self.progress.stats.bands_by_step.append((step.name, len(event.bands)))
            if event.needs_moments:
                self.moments[event.value] = Moments()
            if isinstance(step, AttentionStep):
                self._attend(step, event)
            else:
                self._sweep(step, event, result if event.value == len(self.program.steps) else None)
            self.weights.clear()
            for value in event.frees:
                self.values.pop(value, None)
            if self.link is not None:
                self.link.finish()
            if self.plan.device.type == "cpu":
                return_freed_memory()

    def _sweep(self, step: Step, event: Event, result: Tensor | None) -> None:
        """Compute a value in bands; store it or only take its statistics."""
        target = _Target(self, event, result)
        stored = all_values(self.program) if self.plan.stored is None else self.plan.stored
        per_row = bytes_per_row(self.program, stored, self.shapes, event.value, self.plan.dtype)
        churned = 0
        for i, (top, bottom) in enumerate(event.bands):
            if self.link is not None:
                self.link.next_band()
                if i + 1 < len(event.bands):
                    self._prefetch(event.value, *event.bands[i + 1])
            band = self._compute(event.value, top, bottom)
            self.computed.clear()
            band = self._checked(step, event, top, bottom, band)
            if event.is_stored:
                target.commit(top, bottom, band)
            del band
            churned += per_row * (bottom - top)
            if self.plan.device.type == "cpu" and churned >= HEAP_CHURN:
                return_freed_memory()
                churned = 0
            self.progress.band_done()

    def _prefetch(self, value: int, top: int, bottom: int) -> None:
        """Send for the rows of the next band while this one is computed.

        They are never rows that this band's result overwrites: those wait in `_Target.pending`.
        """
        assert self.link is not None
        stored = frozenset(self.values)
        needed = rows_needed(self.program, stored, self.shapes, self.handling, value, top, bottom)
        for source, (first, last) in needed.items():
            if source in self.values and last - first < self.shapes[source][1]:
                self.link.prefetch(self.values[source], first, last)

    def _checked(self, step: Step | AttentionStep, event: Event, top: int, bottom: int, band: Tensor) -> Tensor:
        """Take the statistics of a band that is still in cache, before it is written anywhere."""
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
        step = self.program.steps[value - 1]
        assert isinstance(step, Step)
        if step.conv is None:
            y = self._entered(step, value, top, bottom)
        else:
            height = self.shapes[step.source][1]
            y = self._convolve(step.conv, lambda a, b: self._entered(step, value, a, b), height, top, bottom)
        if step.residual is not None:
            source = step.residual
            if step.shortcut is None:
                y.add_(self._rows(source, top, bottom)[0])
            else:
                height = self.shapes[source][1]
                y.add_(self._convolve(step.shortcut, lambda a, b: self._rows(source, a, b)[0], height, top, bottom))
        if step.divisor != 1.0:
            y.div_(step.divisor)
        return y if step.post is None else step.post(y)

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

    def _entered(self, step: Step, value: int, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom) of the step's source, normalised and activated."""
        x, is_mine = self._rows(step.source, top, bottom)
        if step.norm is not None:
            x, is_mine = self._norm(step, value)(x), True
        if step.act is not None:
            x = step.act(x if is_mine else x.clone())
        elif step.conv is None and not is_mine:
            x = x.clone()
        return x

    def _norm(self, step: Step | AttentionStep, value: int) -> ScaleShift:
        if value not in self.norms:
            assert step.norm is not None
            exponent = self.exponents.get(step.source, 0)
            self.norms[value] = scale_and_shift(
                step.norm, self.moments[step.source], self.plan.device, self.plan.dtype, exponent
            )
        return self.norms[value]

    def _convolve(self, conv: Conv, rows: Rows, height: int, top: int, bottom: int) -> Tensor:
        """Output rows [top, bottom) of a convolution whose source, `height` rows high, `rows` gives."""
        tall = conv.input_size((height, 1))[0]
        handling = self.handling[conv.module]
        if handling != "plain":
            y = call_on_band(conv, handling, lambda a, b: _resized(conv, rows, height, a, b), tall, top, bottom)
            # hosts may compute in another type; a crop keeps the whole alive, and may belong to the module
            return y.to(self.plan.dtype, copy=True, memory_format=torch.channels_last)
        weight, bias = self._weight(conv)
        if is_subpixel(conv):
            return upsampled(weight, bias, rows, height, top, bottom)
        first, last = input_range(conv, top, bottom)
        a, b = max(first, 0), min(last, tall)
        x = _resized(conv, rows, height, a, b)
        above, below = a - first, last - b
        if above != below:
            x, above = F.pad(x, (0, 0, above, below)), 0
        groups: Any = conv.module
        return F.conv2d(x, weight, bias, conv.stride, (above, conv.padding[1]), conv.dilation, groups.groups)

    def _weight(self, conv: Conv) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a stock convolution in the layout of the bands, packed once per pass."""
        if conv not in self.weights:
            module: Any = conv.module
            weight, bias = module.weight.detach(), module.bias
            if is_subpixel(conv):
                weight, bias = subpixel_weight(weight), None if bias is None else bias.detach().repeat(4)
            self.weights[conv] = (weight.contiguous(memory_format=torch.channels_last), bias)
        return self.weights[conv]

    def _attend(self, step: AttentionStep, event: Event) -> None:
        """Attention over the whole picture: keys and values resident, queries in chunks of rows."""
        channels, height, width = self.shapes[step.source]
        device, dtype = self.plan.device, self.plan.dtype
        count = height * width
        keys = torch.empty(1, count, channels, device=device, dtype=dtype)
        values = torch.empty_like(keys)
        for top, bottom in event.bands:
            normed = self._normed(step, event.value, top, bottom)
            keys[:, top * width : bottom * width] = tokens_of(step.key, normed, step.linear)
            values[:, top * width : bottom * width] = tokens_of(step.value, normed, step.linear)
            del normed
        target = _Target(self, event, None)
        k, v = heads_of(keys, step.heads), heads_of(values, step.heads)
        for top, bottom in event.bands:
            band = self._attended(step, event.value, k, v, top, bottom)
            if step.residual:
                band.add_(self._rows(step.source, top, bottom)[0])
            if step.divisor != 1.0:
                band.div_(step.divisor)
            target.commit(top, bottom, self._checked(step, event, top, bottom, band))
            self.progress.band_done()

    def _normed(self, step: AttentionStep, value: int, top: int, bottom: int) -> Tensor:
        x = self._rows(step.source, top, bottom)[0]
        return x if step.norm is None else self._norm(step, value)(x)

    def _attended(self, step: AttentionStep, value: int, k: Tensor, v: Tensor, top: int, bottom: int) -> Tensor:
        """out(attention(query)) of rows [top, bottom): (1, C, bottom - top, W), newly computed."""
        q = heads_of(tokens_of(step.query, self._normed(step, value, top, bottom), step.linear), step.heads)
        chunk = attention_chunk(self.plan, k.shape[2], step.heads)
        answers = []
        for start in range(0, q.shape[2], chunk):
            # (1, heads, n, C/heads): with 3 dimensions or a flash kernel's limit of 256, torch would store n^2 scores
            answer = F.scaled_dot_product_attention(q[:, :, start : start + chunk], k, v)
            answers.append(answer.transpose(1, 2).reshape(1, answer.shape[2], -1))
            self.progress.stats.chunks += 1
        tokens = answers[0] if len(answers) == 1 else torch.cat(answers, 1)
        if step.linear:
            return picture_of(step.out(tokens), bottom - top).to(self.plan.dtype, copy=True)
        y: Tensor = step.out(picture_of(tokens, bottom - top))
        return y.to(self.plan.dtype, memory_format=torch.channels_last)


class _Target:
    """Where the bands of one pass go: a new tensor, over a dying value, or the result."""

    def __init__(self, stream: _Stream, event: Event, result: Tensor | None) -> None:
        self.stream, self.event, self.held = stream, event, event.held
        self.height = stream.shapes[event.value][1]
        self.pending: Tensor | None = None
        self.written = 0
        self.buffer = result
        if event.over is not None and event.over in stream.values:
            self.buffer = stream.values[event.over]

    def commit(self, top: int, bottom: int, band: Tensor) -> None:
        """Write rows [top, bottom), but keep back the last rows that the next band still reads as they were."""
        if self.buffer is None or (self.event.over is not None and len(self.event.bands) == 1):
            if len(self.event.bands) == 1:
                self._keep(band.contiguous(memory_format=torch.channels_last))
                return
            self.buffer = torch.empty(
                (1, *self.stream.shapes[self.event.value]), dtype=band.dtype, device=band.device,
                memory_format=torch.channels_last,
            )  # fmt: skip
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


def _resized(conv: Conv, rows: Rows, height: int, top: int, bottom: int) -> Tensor:
    """Rows [top, bottom) of the module's input, made from the stored activation."""
    if conv.resize == "up":
        first = top // 2
        x = F.interpolate(rows(first, (bottom + 1) // 2), scale_factor=2.0, mode="nearest")
        return x[:, :, top - 2 * first : bottom - 2 * first]
    x = rows(top, min(bottom, height))
    return F.pad(x, (0, 1, 0, bottom - min(bottom, height))) if conv.resize == "down" else x
