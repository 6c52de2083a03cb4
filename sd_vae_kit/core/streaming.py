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
import ctypes
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd_vae_kit.core.group_norm import BandMoments, Moments, ScaleShift, band_moments, scale_and_shift
from sd_vae_kit.core.program import AttentionStep, Conv, Program, Step
from sd_vae_kit.errors import Interrupted, PlanError

Kind = Literal["whole", "stream", "stream-lean", "stream-host"]
Handling = Literal["plain", "edge", "circular"]
Rows = Callable[[int, int], Tensor]
OnStep = Callable[[int, int], bool]

HEAP_CHURN = 256 << 20  # bytes of temporaries on the CPU after which freed memory is returned in the middle of a pass


@dataclass(frozen=True)
class Plan:
    """How a program is run; every plan gives the same picture.

    Attributes:
        kind: Its name, for people.
        device, dtype: Where and in what type the activations are computed.
        stored: Indexes of the values that exist whole; others are computed again where they are read.  None: all.
        band_bytes: What the temporaries of one band may take; None: one band as high as the picture.
        attention_bytes: What the scores of one chunk of queries may take.
        on_host: Whether stored values live in host memory and visit the device band by band.
    """

    kind: Kind
    device: torch.device
    dtype: torch.dtype
    stored: frozenset[int] | None = None
    band_bytes: int | None = None
    attention_bytes: int = 64 << 20
    on_host: bool = False


@dataclass
class RunStats:
    """What a run did, for tests, progress lines and infotext; filled while it runs.

    Attributes:
        bands: Bands computed, all samples together.
        bands_by_step: (step's name, bands) in the order of execution; a step computed again appears again.
        chunks: Query chunks of attention.
    """

    bands: int = 0
    chunks: int = 0
    bands_by_step: list[tuple[str, int]] = field(default_factory=list)


class BandGuard(Protocol):
    """Sees every band before it is committed; the precision guard builds on this."""

    def accept(
        self, step: Step | AttentionStep, rows: tuple[int, int], band: Tensor, moments: BandMoments | None
    ) -> Tensor:
        """Return the band to commit (the same or a repaired one), or raise.

        Args:
            step: The step that made it.
            rows: (top, bottom) of the band in the step's output.
            band: (1, C, bottom - top, W), not yet written anywhere.
            moments: Its statistics, non-finite if any value is; None where no norm reads this value.
        """


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
        handling = _handlings(program, plan)
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


# which rows are needed: geometry without tensors


def input_range(conv: Conv, top: int, bottom: int) -> tuple[int, int]:
    """Rows of the module's input that output rows [top, bottom) see; may reach outside of the picture."""
    stride, pad = conv.stride[0], conv.padding[0]
    return top * stride - pad, (bottom - 1) * stride - pad + conv.reach[0]


def source_range(conv: Conv, height: int, top: int, bottom: int, handling: Handling) -> tuple[int, int]:
    """Rows of the stored activation, `height` rows high, that output rows [top, bottom) are made of."""
    tall = conv.input_size((height, 1))[0]
    first, last = _fetched(conv, tall, top, bottom, handling)
    if first < 0 or last > tall:
        return 0, height  # circular: the opposite edge is needed too
    if conv.resize == "up":
        return first // 2, (last + 1) // 2
    return first, min(last, height)


def _fetched(conv: Conv, tall: int, top: int, bottom: int, handling: Handling) -> tuple[int, int]:
    """Rows of the module's input that are handed to it for output rows [top, bottom)."""
    first, last = input_range(conv, top, bottom)
    if handling == "plain":
        return max(first, 0), min(last, tall)
    stride = conv.stride[0]
    first = first // stride * stride  # the module's own stride starts at the first row it is given
    return (first, last) if handling == "circular" else (max(first, 0), min(last, tall))


def rows_needed(
    program: Program, stored: frozenset[int], shapes: list[tuple[int, int, int]], handling: dict[nn.Module, Handling],
    value: int, top: int, bottom: int,
) -> dict[int, tuple[int, int]]:  # fmt: skip
    """Rows of stored values that are read to compute rows [top, bottom) of `value`."""
    needed: dict[int, tuple[int, int]] = {}

    def read(source: int, first: int, last: int) -> None:
        if source == 0 or source in stored:
            known = needed.get(source, (first, last))
            needed[source] = (min(known[0], first), max(known[1], last))
        else:
            make(source, first, last)

    def make(target: int, first: int, last: int) -> None:
        step = program.steps[target - 1]
        if isinstance(step, AttentionStep):
            read(step.source, 0, shapes[step.source][1])
            return
        for source, conv in ((step.source, step.conv), (step.residual, step.shortcut)):
            if source is not None and conv is not None:
                read(source, *source_range(conv, shapes[source][1], first, last, handling[conv.module]))
            elif source is not None:
                read(source, first, last)

    make(value, top, bottom)
    return needed


@dataclass(frozen=True)
class Event:
    """One pass over a value: it is computed in bands and stored, or only its statistics are taken.

    Attributes:
        value: Index of the value.
        is_stored: False for a pass that only takes statistics.
        bands: (top, bottom) of each, in rows of the value, from top to bottom.
        over: The value that is overwritten, if any.
        held: Rows at the end of a band that are written after the next band was computed.
        needs_moments: Whether a norm reads this value.
        frees: Values that nobody reads after this event.
    """

    value: int
    is_stored: bool
    bands: tuple[tuple[int, int], ...]
    over: int | None
    held: int
    needs_moments: bool
    frees: tuple[int, ...]


def all_values(program: Program) -> frozenset[int]:
    return frozenset(range(1, len(program.steps) + 1))


def must_be_stored(program: Program) -> frozenset[int]:
    """The result, and what attention reads and writes."""
    attention = [(i + 1, step.source) for i, step in enumerate(program.steps) if isinstance(step, AttentionStep)]
    return frozenset({len(program.steps), *(value for pair in attention for value in pair)} - {0})


def make_schedule(
    program: Program, plan: Plan, size: tuple[int, int], handling: dict[nn.Module, Handling] | None = None
) -> list[Event]:
    """The passes of a plan over an input of (height, width), in order, with their bands and lifetimes.

    Args:
        handling: How each convolution's edges behave; None plans for zero padding.

    Raises:
        PlanError: The plan leaves out a value that has to be stored.
    """
    stored = all_values(program) if plan.stored is None else plan.stored
    missing = must_be_stored(program) - stored
    if missing:
        name = program.steps[min(missing) - 1].name
        raise PlanError(f"The plan does not store {name}, which attention or the result needs.")
    shapes = program.shapes(size)
    modes = handling if handling is not None else _plain_everywhere(program)
    normed = {step.source for step in program.steps if step.norm is not None}
    passes = _passes(program, stored, normed)
    reads = [set(rows_needed(program, stored, shapes, modes, value, 0, shapes[value][1])) for value, _ in passes]
    last_read = {source: i for i, sources in enumerate(reads) for source in sources}
    events = []
    for i, (value, is_stored) in enumerate(passes):
        bands = split_rows(shapes[value][1], band_rows(program, plan, stored, shapes, value))
        dying = sorted(source for source in reads[i] if last_read[source] == i and source != 0)
        over, held = None, 0
        if is_stored and value != len(program.steps):
            same_size = [source for source in dying if shapes[source] == shapes[value]]
            over, held = _overwritten(program, stored, shapes, modes, value, bands, same_size)
        events.append(Event(value, is_stored, bands, over, held, value in normed, tuple(dying)))
    return events


def _plain_everywhere(program: Program) -> dict[nn.Module, Handling]:
    return {conv.module: "plain" for conv in _convs(program)}


def _convs(program: Program) -> Iterator[Conv]:
    for step in program.steps:
        if isinstance(step, AttentionStep):
            for module in (step.query, step.key, step.value, step.out):
                if not step.linear:
                    yield Conv(module, step.name, channels_in=getattr(module, "in_channels", 0))
        else:
            yield from (conv for conv in (step.conv, step.shortcut) if conv is not None)


def _passes(program: Program, stored: frozenset[int], normed: set[int]) -> list[tuple[int, bool]]:
    """(value, is_stored) of every pass: statistics of values that are not stored come before their first reader."""
    passes: list[tuple[int, bool]] = []
    known: set[int] = set()

    def statistics(value: int) -> None:
        """Take the statistics that computing `value` needs, of values that are not stored."""
        step = program.steps[value - 1]
        for source in step.reads:
            if source != 0 and source not in stored:
                statistics(source)
                if source == step.source and step.norm is not None and source not in known:
                    known.add(source)
                    passes.append((source, False))

    for value in sorted(stored):
        statistics(value)
        passes.append((value, True))
    return passes


def _overwritten(
    program: Program, stored: frozenset[int], shapes: list[tuple[int, int, int]], modes: dict[nn.Module, Handling],
    value: int, bands: tuple[tuple[int, int], ...], candidates: list[int],
) -> tuple[int | None, int]:  # fmt: skip
    """Which dying value of the same size can take the result, and how many rows have to wait for the next band."""
    if not candidates:
        return None, 0
    if isinstance(program.steps[value - 1], AttentionStep):
        return candidates[0], 0
    held = dict.fromkeys(candidates, 0)
    for top, bottom in {*bands[1:4], bands[-1]} - {bands[0]}:  # all others are shifted copies of these
        needed = rows_needed(program, stored, shapes, modes, value, top, bottom)
        for source in candidates:
            held[source] = max(held[source], top - needed[source][0] if source in needed else 0)
    best = min(candidates, key=lambda source: held[source])
    # a circular picture needs its first rows until the end: nothing is gained by overwriting them late
    return (best, held[best]) if held[best] <= max(8, bands[0][1]) else (None, 0)


def band_rows(
    program: Program, plan: Plan, stored: frozenset[int], shapes: list[tuple[int, int, int]], value: int
) -> int:
    """How high a band of `value` may be: the temporaries of the steps it runs through fit `plan.band_bytes`."""
    height = shapes[value][1]
    if plan.band_bytes is None:
        return height
    rows = plan.band_bytes // max(1, bytes_per_row(program, stored, shapes, value, plan.dtype))
    # even, because nearest upsampling and stride 2 work on pairs of rows
    return min(height, max(2, rows // 2 * 2))


def bytes_per_row(
    program: Program, stored: frozenset[int], shapes: list[tuple[int, int, int]], value: int, dtype: torch.dtype
) -> int:
    """Temporary bytes for each row of `value`: input and output of the largest step in its chain."""
    height = shapes[value][1]
    largest = 0
    for member in chain(program, stored, value):
        step = program.steps[member - 1]
        taken = shapes[member][0] * shapes[member][1] * shapes[member][2]
        taken += shapes[step.source][0] * shapes[step.source][1] * shapes[step.source][2]
        largest = max(largest, taken)
    return -(-largest * dtype.itemsize // height)


def chain(program: Program, stored: frozenset[int], value: int) -> list[int]:
    """`value` and the values that are computed on the way to it because they are not stored."""
    members, waiting = set[int](), [value]
    while waiting:
        member = waiting.pop()
        if member not in members:
            members.add(member)
            waiting += [v for v in program.steps[member - 1].reads if v != 0 and v not in stored]
    return sorted(members)


def split_rows(height: int, rows: int) -> tuple[tuple[int, int], ...]:
    """Bands of about equal height, at most `rows` (even numbers), that cover [0, height) once."""
    count = -(-height // rows)
    even = -(-height // count)
    even = min(rows, even + even % 2) if rows < height else height
    return tuple((top, min(top + even, height)) for top in range(0, height, even))


# what the host's convolutions do at the edges


def _handlings(program: Program, plan: Plan) -> dict[nn.Module, Handling]:
    """How each convolution is run: by its weights, or called on a band with the edges that its padding wants.

    Raises:
        PlanError: A convolution whose forward was replaced is not local.
    """
    return {conv.module: _handling(conv, plan.device, plan.dtype) for conv in _convs(program)}


def _handling(conv: Conv, device: torch.device, dtype: torch.dtype) -> Handling:
    module: Any = conv.module
    if not has_stock_forward(conv.module):
        return _proven_handling(conv, device, dtype)
    mode = module.padding_mode if conv.padding[0] > 0 else "zeros"
    if mode == "circular":
        return "circular"
    is_ready = module.weight.dtype == dtype and module.weight.device == device
    sideways = module.padding_mode if conv.padding[1] > 0 else "zeros"
    return "plain" if is_ready and mode == sideways == "zeros" and not isinstance(module.padding, str) else "edge"


def has_stock_forward(module: nn.Module) -> bool:
    """Whether this is exactly torch's Conv2d: no subclass, patch, hook, parametrisation or instance override."""
    own = vars(module)
    if type(module) is not nn.Conv2d or "forward" in own or "_conv_forward" in own:
        return False
    if any(getattr(nn.Conv2d, name).__module__ != "torch.nn.modules.conv" for name in ("forward", "_conv_forward")):
        return False  # A1111's Lora extension replaces them for the whole program
    shared: Any = torch.nn.modules.module
    hooks = [module._forward_hooks, module._forward_pre_hooks]
    hooks += [shared._global_forward_hooks, shared._global_forward_pre_hooks]
    return not any(hooks) and type(module.weight) in (nn.Parameter, Tensor)


def _proven_handling(conv: Conv, device: torch.device, dtype: torch.dtype) -> Handling:
    """Try the module on a small picture, whole and in bands: it is local if one way of giving it edges agrees."""
    stride, reach = conv.stride[0], conv.reach[0]
    height, width = 4 * stride * max(2, reach), conv.reach[1] + 3
    generator = torch.Generator().manual_seed(0)  # the host's own random numbers are left alone
    x = torch.rand(1, conv.channels_in, height, width, generator=generator).sub_(0.5).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    whole = conv.module(x)
    out_rows = (height + 2 * conv.padding[0] - reach) // stride + 1
    tolerance = (1e-4 if dtype in (torch.float32, torch.float64) else 3e-2) * float(whole.abs().max() + 1e-6)
    modes: tuple[Handling, ...] = ("edge", "circular")
    for mode in modes:
        if whole.shape[2] != out_rows:
            break
        cuts = [0, out_rows // 3, out_rows // 2, out_rows]
        bands = [
            _call_on_band(conv, mode, lambda top, bottom: x[:, :, top:bottom], height, top, bottom)
            for top, bottom in pairwise(cuts)
        ]
        joined = torch.cat(bands, 2)
        if joined.shape == whole.shape and float((joined - whole).abs().max()) <= tolerance:
            return mode
    raise PlanError(f"{conv.name} ({type(conv.module).__name__}) was changed by another extension and is not local.")


def _call_on_band(conv: Conv, mode: Handling, rows: Rows, tall: int, top: int, bottom: int) -> Tensor:
    """Call the module on the input rows of output rows [top, bottom) and crop what its own padding spoiled.

    Args:
        rows: Gives rows [a, b) of the module's input, inside the picture of `tall` rows.
    """
    first, last = _fetched(conv, tall, top, bottom, mode)
    if first >= 0 and last <= tall:
        band = rows(first, last)
    else:
        band = torch.cat([rows(a, b) for a, b in _wrapped(first, last, tall)], 2)
    y: Tensor = conv.module(band)
    start = top - first // conv.stride[0]
    return y[:, :, start : start + bottom - top]


def _wrapped(first: int, last: int, period: int) -> list[tuple[int, int]]:
    """[first, last) on a circle of `period` rows, as ranges inside [0, period)."""
    pieces = []
    while first < last:
        start = first % period
        stop = min(period, start + last - first)
        pieces.append((start, stop))
        first += stop - start
    return pieces


# the run


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
        self.link = _HostLink(plan.device) if _is_remote(plan) else None

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
                _return_freed_memory()

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
                _return_freed_memory()
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
            y = _call_on_band(conv, handling, lambda a, b: _resized(conv, rows, height, a, b), tall, top, bottom)
            # hosts may compute in another type; a crop keeps the whole alive, and may belong to the module
            return y.to(self.plan.dtype, copy=True, memory_format=torch.channels_last)
        weight, bias = self._weight(conv)
        if is_subpixel(conv):
            return _upsampled(weight, bias, rows, height, top, bottom)
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
                weight, bias = _subpixel_weight(weight), None if bias is None else bias.detach().repeat(4)
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
            keys[:, top * width : bottom * width] = _tokens(step.key, normed, step.linear)
            values[:, top * width : bottom * width] = _tokens(step.value, normed, step.linear)
            del normed
        target = _Target(self, event, None)
        k, v = _heads(keys, step.heads), _heads(values, step.heads)
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
        q = _heads(_tokens(step.query, self._normed(step, value, top, bottom), step.linear), step.heads)
        chunk = attention_chunk(self.plan, k.shape[2], step.heads)
        answers = []
        for start in range(0, q.shape[2], chunk):
            # (1, heads, n, C/heads): with 3 dimensions or a flash kernel's limit of 256, torch would store n^2 scores
            answer = F.scaled_dot_product_attention(q[:, :, start : start + chunk], k, v)
            answers.append(answer.transpose(1, 2).reshape(1, answer.shape[2], -1))
            self.progress.stats.chunks += 1
        tokens = answers[0] if len(answers) == 1 else torch.cat(answers, 1)
        if step.linear:
            return _picture(step.out(tokens), bottom - top).to(self.plan.dtype, copy=True)
        y: Tensor = step.out(_picture(tokens, bottom - top))
        return y.to(self.plan.dtype, memory_format=torch.channels_last)


def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc; musl has none
    return None if trim is None else cast("Callable[[int], int]", trim)


_TRIM = _malloc_trim()


def _return_freed_memory() -> None:
    """Give freed blocks back to the system, between passes and now and then in long ones.

    glibc keeps blocks of up to 32 MB for reuse, but passes want other sizes, and an aligned block rarely fits into the
    hole of one of its own size: without this the process grows to twice the activations that are alive.
    """
    if _TRIM is not None:
        _TRIM(0)


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


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _is_remote(plan: Plan) -> bool:
    """Whether stored values live in another memory than the computation's; on the CPU there is only one."""
    return plan.on_host and plan.device.type != "cpu"


class _HostLink:
    """Stored values in host memory: rows come to the device and go back beside the computation.

    On CUDA (ROCm) the copies run in streams of their own from and to pinned memory, so that the next band's rows arrive
    and the last band's leave while this one is computed; on other devices copies are plain.  The CUDA branch has not
    been run on a GPU yet.
    """

    def __init__(self, device: torch.device) -> None:
        cuda: Any = torch.cuda
        self.cuda, self.device, self.is_cuda = cuda, device, device.type == "cuda"
        self.arriving = cuda.Stream(device) if self.is_cuda else None
        self.leaving = cuda.Stream(device) if self.is_cuda else None
        # (value, top, bottom, rows on the device, event): those of this band and of the next
        self.prefetched: list[tuple[Tensor, int, int, Tensor, Any]] = []
        self.due: list[tuple[Tensor, int, int, Tensor, Any]] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last, pin_memory=self.is_cuda)

    def prefetch(self, value: Tensor, top: int, bottom: int) -> None:
        """Start copying rows of a host value; a later `fetch` inside of them takes them."""
        if self.arriving is None or value.device.type != "cpu":
            return
        with self.cuda.stream(self.arriving):
            rows = value[:, :, top:bottom].to(self.device, non_blocking=True)
            arrived = self.cuda.Event()
            arrived.record(self.arriving)
        self.prefetched.append((value, top, bottom, rows, arrived))

    def next_band(self) -> None:
        """What was sent for during the last band is due in this one; what was due then is let go."""
        self.due, self.prefetched = self.prefetched, []

    def fetch(self, value: Tensor, top: int, bottom: int) -> Tensor:
        """Rows of a value on the device."""
        for source, first, last, rows, arrived in self.due:
            if source is value and first <= top and bottom <= last:
                current = self.cuda.current_stream(self.device)
                current.wait_event(arrived)
                rows.record_stream(current)  # the allocator must not reuse it before this stream has read it
                return rows[:, :, top - first : bottom - first]
        return value[:, :, top:bottom].to(self.device, non_blocking=self.is_cuda)

    def write(self, place: Tensor, rows: Tensor) -> None:
        """Copy rows to their place, which may be on the host or (the result) on any device."""
        if self.leaving is None or not place.is_pinned():
            place.copy_(rows)
            return
        self.leaving.wait_stream(self.cuda.current_stream(self.device))
        with self.cuda.stream(self.leaving):
            place.copy_(rows, non_blocking=True)
        rows.record_stream(self.leaving)

    def finish(self) -> None:
        """Wait until everything written in this pass has arrived on the host."""
        self.prefetched, self.due = [], []
        if self.leaving is not None:
            self.leaving.synchronize()


def _resized(conv: Conv, rows: Rows, height: int, top: int, bottom: int) -> Tensor:
    """Rows [top, bottom) of the module's input, made from the stored activation."""
    if conv.resize == "up":
        first = top // 2
        x = F.interpolate(rows(first, (bottom + 1) // 2), scale_factor=2.0, mode="nearest")
        return x[:, :, top - 2 * first : bottom - 2 * first]
    x = rows(top, min(bottom, height))
    return F.pad(x, (0, 1, 0, bottom - min(bottom, height))) if conv.resize == "down" else x


def is_subpixel(conv: Conv) -> bool:
    """Whether repetition and convolution can be one convolution of the small picture: see `_upsampled`."""
    facts = (conv.resize, conv.kernel, conv.stride, conv.padding, conv.dilation, getattr(conv.module, "groups", 0))
    return facts == ("up", (3, 3), (1, 1), (1, 1), (1, 1), 1)


def _subpixel_weight(weight: Tensor) -> Tensor:
    """(C_out, C_in, 3, 3) -> (4 * C_out, C_in, 2, 2), one part for each place in a 2x2 block of output pixels.

    A part holds the sums of the taps that fall on the same pixel of the small picture.
    """
    w = weight if weight.dtype == torch.float64 else weight.float()
    phases = []
    for taps in ((w[:, :, :1], w[:, :, 1:].sum(2, keepdim=True)), (w[:, :, :2].sum(2, keepdim=True), w[:, :, 2:])):
        v = torch.cat(taps, 2)
        phases.append(torch.cat((v[..., :1], v[..., 1:].sum(3, keepdim=True)), 3))
        phases.append(torch.cat((v[..., :2].sum(3, keepdim=True), v[..., 2:]), 3))
    return torch.cat(phases).to(weight.dtype)


def _upsampled(weight: Tensor, bias: Tensor | None, rows: Rows, height: int, top: int, bottom: int) -> Tensor:
    """Rows [top, bottom) of a 3x3 convolution of the picture with every pixel repeated 2x2, zeros outside.

    Three neighbouring rows of the large picture are two rows of the small one, so each of the four places in a 2x2
    block sees 2x2 small pixels: 4 products instead of 9.  Window m covers small rows m-1 and m; even output rows r use
    window r/2, odd ones (r+1)/2; columns likewise.
    """
    first, last = (top + 1) // 2, bottom // 2  # windows, inclusive
    a, b = max(first - 1, 0), min(last + 1, height)
    x = rows(a, b)
    above, below = a - (first - 1), last + 1 - b
    if above != below:
        x, above = F.pad(x, (0, 0, above, below)), 0
    y = F.conv2d(x, weight, bias, padding=(above, 1))
    del x
    channels, width = weight.shape[0] // 4, y.shape[3] - 1
    out = torch.empty(
        (1, channels, bottom - top, 2 * width), dtype=y.dtype, device=y.device, memory_format=torch.channels_last
    )
    for parity in (0, 1):
        row = top + (top + parity) % 2  # first row of this parity
        count = (bottom - row + 1) // 2
        window = (row + 1) // 2 - first
        for side in (0, 1):
            phase = (2 * parity + side) * channels
            part = y[:, phase : phase + channels, window : window + count, side : side + width]
            out[:, :, row - top :: 2, side::2] = part
    return out


def attention_chunk(plan: Plan, keys: int, heads: int) -> int:
    """How many queries at once: their scores, if torch stores them, fit `plan.attention_bytes`."""
    return max(16, plan.attention_bytes // max(1, keys * heads * max(4, plan.dtype.itemsize)))


def _tokens(module: nn.Module, picture: Tensor, linear: bool) -> Tensor:
    """(1, C, h, W) through a module without reach -> (1, h * W, C)."""
    if linear:
        y: Tensor = module(picture.permute(0, 2, 3, 1).flatten(1, 2))
        return y
    return module(picture).permute(0, 2, 3, 1).flatten(1, 2).to(picture.dtype)  # type: ignore[no-any-return]


def _heads(tokens: Tensor, heads: int) -> Tensor:
    """(1, n, C) -> (1, heads, n, C / heads)."""
    return tokens.reshape(1, tokens.shape[1], heads, -1).transpose(1, 2)


def _picture(tokens: Tensor, height: int) -> Tensor:
    """(1, h * W, C) -> (1, C, h, W)."""
    return tokens.reshape(1, height, -1, tokens.shape[2]).permute(0, 3, 1, 2)
