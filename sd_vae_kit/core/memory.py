"""How much memory a plan takes, how much there is, which plan to run, and what to do when it was not enough.

The cost model walks through the same schedule as the run: stored values by their lifetimes, the temporaries of one
band, packed weights.  It counts activations: the VAE's own weights are there before and after.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sd_vae_kit.core.program import AttentionStep, Conv, Program, Step
from sd_vae_kit.core.streaming import (
    HEAP_CHURN,
    BandGuard,
    Event,
    Handling,
    OnStep,
    Plan,
    RunStats,
    all_values,
    bytes_per_row,
    chain,
    is_subpixel,
    make_schedule,
    must_be_stored,
    run_streamed,
    source_range,
)
from sd_vae_kit.errors import PlanError

Mode = Literal["auto", "always", "never"]
MB = 1 << 20

MARGIN = 0.9  # of the free memory: the model is within 15 %, and other programs breathe
BAND_BYTES = {"cpu": 16 * MB}  # as fast as 32 and 64, measured; 4 is slower by a tenth
BAND_BYTES_DEVICE = 256 * MB  # enough work per kernel launch
LEAN_BAND_BYTES = {"cpu": 8 * MB}
LEAN_BAND_BYTES_DEVICE = 64 * MB
LEAN_EXTRA = 0.4  # extra arithmetic that `stream-lean` may spend unless told otherwise
PROXY_PIXELS = 512 * 512  # lean plans are searched on a picture of at most this size
UNKNOWN_FREE = 1 << 30  # budget on devices that do not tell (DirectML)


# the cost model


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
    result: int  # bytes of the rows themselves
    macs: float


class _Model:
    """Walks a plan's schedule as `streaming` does, with sizes instead of tensors."""

    def __init__(self, program: Program, plan: Plan, size: tuple[int, int]) -> None:
        self.program, self.plan = program, plan
        self.stored = all_values(program) if plan.stored is None else plan.stored
        self.shapes = program.shapes(size)
        self.schedule = make_schedule(program, plan, size)
        self.itemsize = plan.dtype.itemsize
        self.readers = program.readers

    def bytes_of(self, value: int, rows: int | None = None) -> int:
        channels, height, width = self.shapes[value]
        return channels * (height if rows is None else min(rows, height)) * width * self.itemsize

    def cost(self, batch: int) -> Cost:
        result = self.bytes_of(len(self.program.steps)) * batch
        alive = {0: self.bytes_of(0)}
        device, host, macs, bands = 0, 0, 0.0, 0
        for event in self.schedule:
            temporary, event_macs = self._event(event)
            if event.over is not None:
                alive[event.value] = alive.pop(event.over)
            elif event.is_stored and event.value != len(self.program.steps):
                alive[event.value] = self.bytes_of(event.value)
                if len(event.bands) == 1:
                    temporary -= self.bytes_of(event.value)  # the band itself is kept
            if len(event.bands) > 1 and self.plan.device.type == "cpu":
                # freed but not yet returned: see streaming._return_freed_memory; about a third of what may pile up
                temporary += min(HEAP_CHURN, self._churn(event)) // 3
            resident = sum(alive.values())
            if self.plan.on_host and self.plan.device.type != "cpu":
                host, resident = max(host, resident), 0
            device = max(device, resident + temporary)
            macs += event_macs
            bands += len(event.bands)
            for value in event.frees:
                alive.pop(value, None)
        return Cost(result + device, host, macs * batch, bands * batch)

    def _churn(self, event: Event) -> int:
        """Bytes of temporaries that a pass takes and frees."""
        per_row = bytes_per_row(self.program, self.stored, self.shapes, event.value, self.plan.dtype)
        return per_row * self.shapes[event.value][1] if per_row * event.bands[0][1] > MB else 0

    def _event(self, event: Event) -> tuple[int, float]:
        """(temporary bytes, multiplications) of a pass."""
        step = self.program.steps[event.value - 1]
        rows = event.bands[0][1] - event.bands[0][0]
        if isinstance(step, AttentionStep):
            return self._attention(step, event, rows)
        self.memo: set[int] = set()
        band = self._band(event.value, rows)
        weights = sum(self._weights(member) for member in chain(self.program, self.stored, event.value))
        held = event.held * self.bytes_of(event.value, 1)
        return band.peak + weights + held, band.macs * self.shapes[event.value][1] / rows

    def _attention(self, step: AttentionStep, event: Event, rows: int) -> tuple[int, float]:
        channels, height, width = self.shapes[step.source]
        count = height * width
        keys_values = 2 * self.bytes_of(step.source)
        # normed rows, queries, answers and their projection
        temporary = 4 * self.bytes_of(step.source, rows)
        return keys_values + temporary, 2.0 * count * count * channels + 4.0 * count * channels * channels

    def _band(self, value: int, rows: int) -> _BandCost:
        """Computing `rows` rows of a value, its unstored sources included."""
        step = self.program.steps[value - 1]
        assert isinstance(step, Step)
        rows = min(rows, self.shapes[value][1])
        result = self.bytes_of(value, rows)
        source = self._source(step.source, rows if step.conv is None else self._rows_in(step.conv, step.source, rows))
        entering, peak, macs = source.result, source.peak, source.macs
        if step.norm is not None or step.act is not None:
            in_rows = rows if step.conv is None else self._rows_in(step.conv, step.source, rows)
            entering = self.bytes_of(step.source, in_rows)
            peak = max(peak, source.result + entering)
        if step.conv is not None:
            inside = self._convolving(step.conv, step.source, rows, entering, result)
            peak = max(peak, inside)
            macs += self._macs(step.conv, value, rows)
        if step.residual is not None:
            other_rows = rows if step.shortcut is None else self._rows_in(step.shortcut, step.residual, rows)
            other = self._source(step.residual, other_rows)
            peak = max(peak, result + other.peak)
            macs += other.macs
            if step.shortcut is not None:
                peak = max(peak, 2 * result + other.result)
                macs += self._macs(step.shortcut, value, rows)
        return _BandCost(peak, result, macs)

    def _source(self, value: int, rows: int) -> _BandCost:
        """Reading rows of a value: nothing if it is stored (on the device), else computing them."""
        if value == 0 or value in self.stored or value in self.memo:
            size = self.bytes_of(value, rows) if self.plan.on_host and self.plan.device.type != "cpu" else 0
            return _BandCost(2 * size, 2 * size, 0.0)  # twice: the next band's rows are on their way
        if len(self.readers[value]) > 1:
            self.memo.add(value)
        return self._band(value, rows)

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

    def _weights(self, value: int) -> int:
        """Weights packed for bands, and once more in the layout that the convolution kernel wants."""
        step = self.program.steps[value - 1]
        convs = [conv for conv in (step.conv, step.shortcut) if conv is not None] if isinstance(step, Step) else []
        total = 0
        for conv in convs:
            taps = 16 if is_subpixel(conv) else conv.kernel[0] * conv.kernel[1]
            total += 2 * conv.channels_in * conv.channels_out * taps * self.itemsize
        return total

    def _macs(self, conv: Conv, value: int, rows: int) -> float:
        taps = 4 if is_subpixel(conv) else conv.kernel[0] * conv.kernel[1]
        return float(rows) * self.shapes[value][2] * conv.channels_in * conv.channels_out * taps


def predict(program: Program, plan: Plan, shape: Sequence[int]) -> Cost:
    """What `run_streamed` will take for an input of shape (B, C, h, w).

    Raises:
        PlanError: The plan does not fit the program.
        UnsupportedVaeError: The input is too small for this network.
    """
    return _Model(program, plan, (shape[2], shape[3])).cost(shape[0])


# plans


def whole_plan(device: torch.device, dtype: torch.dtype) -> Plan:
    """Every step in one band."""
    return Plan("whole", device, dtype)


def stream_plan(device: torch.device, dtype: torch.dtype, band_bytes: int | None = None) -> Plan:
    """Every value stored, bands about as large as the cache."""
    return Plan("stream", device, dtype, None, band_bytes or BAND_BYTES.get(device.type, BAND_BYTES_DEVICE))


def lean_plan(
    program: Program, shape: Sequence[int], device: torch.device, dtype: torch.dtype, *,
    extra: float = LEAN_EXTRA, budget_bytes: int = 0, band_bytes: int | None = None,
) -> Plan:  # fmt: skip
    """Some values are computed again instead of stored.

    At the worst moment, the value whose absence lowers the peak most is left out, and so on.

    Args:
        extra: Arithmetic that may be added, as a fraction of plain streaming's; 0 stores everything.
        budget_bytes: Stop as soon as the prediction fits.
        band_bytes: Temporaries of one band.
    """
    bands = band_bytes or LEAN_BAND_BYTES.get(device.type, LEAN_BAND_BYTES_DEVICE)
    small, shrunk = _proxy(program, shape)
    plan = Plan("stream-lean", device, dtype, all_values(program), max(1, bands // shrunk))
    cost = predict(program, plan, small)
    limit = cost.macs * (1.0 + extra)
    fixed = must_be_stored(program)
    while cost.peak_bytes > budget_bytes // shrunk:
        tried = [
            replace(plan, stored=all_of(plan) - group) for group in _omissions(program, all_of(plan) - fixed, small)
        ]
        costs = [(predict(program, other, small), other) for other in tried]
        fitting = [pair for pair in costs if pair[0].macs <= limit and pair[0].peak_bytes < cost.peak_bytes]
        if not fitting:
            break
        cost, plan = min(fitting, key=lambda pair: (pair[0].peak_bytes, pair[0].macs))
    return replace(plan, band_bytes=bands)


def all_of(plan: Plan) -> frozenset[int]:
    return plan.stored or frozenset()


def _proxy(program: Program, shape: Sequence[int]) -> tuple[tuple[int, int, int, int], int]:
    """A small picture of the same proportions, on which the same values are worth storing, and the ratio of areas."""
    height, width = shape[2], shape[3]
    factor = 1
    while max(h * w for _, h, w in program.shapes((height // factor, width // factor))) > PROXY_PIXELS:
        if min(height, width) // (2 * factor) < 16:
            break
        factor *= 2
    return (1, shape[1], height // factor, width // factor), factor * factor


def _omissions(program: Program, values: frozenset[int], shape: Sequence[int]) -> list[frozenset[int]]:
    """Sets of values worth leaving out together: a large one alone, or all of one kind at one resolution.

    Leaving out one of several equally large values lowers no peak, so single values alone would get stuck.
    """
    shapes = program.shapes((shape[2], shape[3]))
    largest = sorted(values, key=lambda v: -shapes[v][0] * shapes[v][1] * shapes[v][2])[:6]
    groups = [frozenset({value}) for value in largest]
    for height in sorted({shapes[value][1] for value in values}):
        # values between the two convolutions of a residual block, and those that a bare convolution makes
        between: set[int] = set()
        bare: set[int] = set()
        for value in values:
            step = program.steps[value - 1]
            if shapes[value][1] == height and isinstance(step, Step) and step.residual is None:
                (bare if step.norm is None else between).add(value)
        narrow = {value for value in between if shapes[value] == shapes[program.steps[value - 1].source]}
        groups += [frozenset(group) for group in (narrow, between, bare, narrow | bare, between | bare)]
    return [group for group in dict.fromkeys(groups) if group]


def host_plan(device: torch.device, dtype: torch.dtype, band_bytes: int | None = None) -> Plan:
    """Activations in host memory, bands on the device."""
    return replace(stream_plan(device, dtype, band_bytes or LEAN_BAND_BYTES_DEVICE), kind="stream-host", on_host=True)


def ladder(
    program: Program, shape: Sequence[int], dtype: torch.dtype, device: torch.device, budget_bytes: int
) -> list[Plan]:
    """Plans from the fastest to the smallest."""
    plans = [whole_plan(device, dtype), stream_plan(device, dtype)]
    plans.append(replace(lean_plan(program, shape, device, dtype, extra=0.0), kind="stream"))
    for extra in (LEAN_EXTRA, 1.0, 2.0):
        plans.append(lean_plan(program, shape, device, dtype, extra=extra, budget_bytes=int(budget_bytes * MARGIN)))
    small = 2 * MB
    if device.type != "cpu":
        plans += [host_plan(device, dtype), host_plan(device, dtype, small)]
    else:
        plans.append(lean_plan(program, shape, device, dtype, extra=4.0, band_bytes=small))
    return plans


# what there is


@dataclass(frozen=True)
class Free:
    """Memory that activations may take.

    Attributes:
        free_bytes: None where the device does not tell.
        source: What was asked, for messages.
    """

    free_bytes: int | None
    source: str


def free_memory(device: torch.device) -> Free:
    """Memory free on a device now, what torch's allocator has cached and could reuse included."""
    kind = device.type
    if kind == "cpu":
        return free_ram()
    if kind == "cuda":  # ROCm too
        free, _ = torch.cuda.mem_get_info(device)
        stats = torch.cuda.memory_stats(device)
        cached = stats.get("reserved_bytes.all.current", 0) - stats.get("active_bytes.all.current", 0)
        return Free(free + max(0, cached), "driver and torch's cache")
    if kind == "mps":
        mps: Any = torch.mps
        ram = free_ram().free_bytes
        if hasattr(mps, "recommended_max_memory") and ram is not None:
            return Free(min(ram, max(0, mps.recommended_max_memory() - mps.driver_allocated_memory())), "Metal")
        return Free(ram, "RAM shared with Metal")
    if kind == "xpu" and hasattr(getattr(torch, "xpu", None), "mem_get_info"):
        xpu: Any = torch.xpu
        try:
            return Free(int(xpu.mem_get_info(device)[0]), "driver")
        except RuntimeError:  # some Arc drivers do not tell
            return Free(None, "this XPU driver does not tell")
    return Free(None, f"{kind} does not tell")


def free_ram(root: Path = Path("/")) -> Free:
    """RAM that can be taken without swapping: what the system has, or what this container's limit leaves.

    Args:
        root: Where /proc and /sys are, for tests.
    """
    system = _system_ram(root)
    limit = _cgroup_room(root)
    if limit is not None and (system is None or limit < system):
        return Free(limit, "container limit")
    return Free(system, "RAM" if system is not None else "this system does not tell")


def _system_ram(root: Path) -> int | None:
    info = root / "proc/meminfo"
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return _windows_ram()
    try:
        psutil: Any = importlib.import_module("psutil")  # hosts ship it
    except ImportError:
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return None
    return int(psutil.virtual_memory().available)


def _windows_ram() -> int | None:
    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "available", "pages", "free_pages", "space", "room", "rest")
        ]

    status = Status(length=ctypes.sizeof(Status))
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 - exists on Windows only
    return int(status.available) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def _cgroup_room(root: Path) -> int | None:
    """Bytes that the control groups around this process leave it, page cache that can go included."""
    own = root / "proc/self/cgroup"
    if not own.is_file():
        return None
    rooms = []
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            rooms += _rooms_upwards(root / "sys/fs/cgroup", path, names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            rooms += _rooms_upwards(root / "sys/fs/cgroup/memory", path, names)
    return min(rooms, default=None)


def _rooms_upwards(mount: Path, path: str, names: tuple[str, str, str]) -> list[int]:
    """Room in the group and in each group above it; a limit may be set on any of them."""
    rooms = []
    folder = mount / path.lstrip("/")
    # inside a container the path may be that of the host: then the mount itself is the group
    folders = [folder, *folder.parents] if folder.is_dir() else [mount]
    for group in folders:
        if mount != group and mount not in group.parents:
            break
        limit, used = _number(group / names[0]), _number(group / names[1])
        if limit is None or used is None or limit >= 1 << 60:
            continue
        cache = 0
        stat = group / "memory.stat"
        if stat.is_file():
            fields = dict(line.split(" ", 1) for line in stat.read_text().splitlines() if " " in line)
            cache = int(fields.get(names[2], 0))
        rooms.append(max(0, limit - used + cache))
    return rooms


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


# the choice


@dataclass(frozen=True)
class PlanReport:
    """What was chosen and why, for sentences shown to the user.

    Attributes:
        kind: The plan's name.
        predicted_mb: Activations at the worst moment.
        whole_mb: The same for the whole picture at once.
        free_mb: Memory there is; None where the device does not tell.
        budget_mb: What the plan had to fit into.
        bands: Bands in all.
        fits: False if even the smallest plan is predicted to be too large.
        reason: One clause: why this plan.
    """

    kind: str
    predicted_mb: int
    whole_mb: int
    free_mb: int | None
    budget_mb: int
    bands: int
    fits: bool
    reason: str


def choose_plan(
    program: Program,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    budget_bytes: int | None = None,
    mode: Mode = "auto",
) -> tuple[Plan, PlanReport]:
    """The fastest plan that fits, with what to tell the user about it.

    Args:
        program: Encoder or decoder.
        shape: (B, C, h, w) of its input.
        dtype, device: Of the computation.
        budget_bytes: Activations may take this much; None: what is free now, less a margin.
        mode: "always" never runs whole, "never" always does.
    """
    free = free_memory(device)
    budget = budget_bytes
    if budget is None:
        budget = UNKNOWN_FREE if free.free_bytes is None else int(free.free_bytes * MARGIN)
    whole = predict(program, whole_plan(device, dtype), shape)
    plan, cost, reason = _choose(program, shape, dtype, device, budget, mode, whole)
    free_mb = None if free.free_bytes is None else free.free_bytes // MB
    fits = cost.peak_bytes <= budget
    if not fits:
        reason = "nothing smaller exists"
    report = PlanReport(
        plan.kind,
        ceil(cost.peak_bytes / MB),
        ceil(whole.peak_bytes / MB),
        free_mb,
        budget // MB,
        cost.bands,
        fits,
        reason,
    )
    return plan, report


def _choose(
    program: Program,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    budget: int,
    mode: Mode,
    whole: Cost,
) -> tuple[Plan, Cost, str]:
    if mode == "never":
        return whole_plan(device, dtype), whole, "tiling is off"
    if mode == "auto" and whole.peak_bytes <= budget:
        return whole_plan(device, dtype), whole, "the whole picture fits"
    stream = stream_plan(device, dtype)
    cost = predict(program, stream, shape)
    if cost.peak_bytes <= budget:
        return stream, cost, "always stream" if mode == "always" else "the whole picture does not fit"
    candidates = [(plan, predict(program, plan, shape)) for plan in ladder(program, shape, dtype, device, budget)[2:]]
    for plan, cost in candidates:
        if cost.peak_bytes <= budget:
            return plan, cost, "storing every activation does not fit"
    plan, cost = min(candidates, key=lambda pair: pair[1].peak_bytes)
    return plan, cost, ""


# when it was not enough

OUT_OF_MEMORY_TEXTS = (
    "out of memory",  # CUDA, HIP, MPS
    "std::bad_alloc",
    "can't allocate memory",  # torch's CPU allocator on Linux
    "not enough memory",  # the same on Windows; DirectML
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
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
class LadderResult:
    """What `run_with_ladder` did.

    Attributes:
        result: As `run_streamed` returns it.
        plan: The plan that worked.
        failures: One line for each plan that did not, in order; shown to the user.
    """

    result: Tensor
    plan: Plan
    failures: tuple[str, ...]


def run_with_ladder(
    program: Program,
    x: Tensor,
    plan: Plan,
    *,
    on_step: OnStep | None = None,
    stats: RunStats | None = None,
    guard: BandGuard | None = None,
    make_room: Callable[[int], bool] | None = None,
) -> LadderResult:
    """Run a plan; where memory runs out, release everything and go on with a smaller one.

    Args:
        program, x, on_step, stats, guard: As for `run_streamed`; progress starts anew with each plan.
        plan: The first to try.
        make_room: Asked once for the bytes that the failed plan was predicted to take; frees other models and says
            whether it freed anything.  If so, the same plan is tried again.

    Raises:
        PlanError: Memory ran out with every plan; the message lists them.
        Interrupted: `on_step` returned False.
    """
    failures: list[str] = []
    waiting = [plan]
    asked = False
    while waiting:
        current = waiting.pop(0)
        outcome = _attempt(program, x, current, on_step, stats, guard)
        if isinstance(outcome, Tensor):
            return LadderResult(outcome, current, tuple(failures))
        # here, outside of any except block, nothing refers to the failed run's tensors any more
        release_cached(current.device)
        failures.append(f"{current.kind} ran out of memory ({outcome})")
        needed = predict(program, current, x.shape).peak_bytes
        if make_room is not None and not asked:
            asked = True
            if make_room(needed):
                waiting = [current]
                continue
        waiting = waiting or _smaller_plans(program, x, current)
        waiting = [p for p in waiting if predict(program, p, x.shape).peak_bytes < 0.95 * needed and p != current]
    raise PlanError(
        f"Not enough memory for a {program.name} input of {x.shape[2]}x{x.shape[3]} with any plan "
        f"({'; '.join(failures)}); close other programs or use a smaller picture."
    )


def _smaller_plans(program: Program, x: Tensor, failed: Plan) -> list[Plan]:
    """The ladder, and leaner versions of a plan whose bands were already smaller than the ladder's."""
    plans = ladder(program, x.shape, failed.dtype, failed.device, 0)
    if failed.band_bytes is not None:
        for extra, share in ((LEAN_EXTRA, 2), (4.0, 8)):
            bands = max(1, failed.band_bytes // share)
            plans.append(lean_plan(program, x.shape, failed.device, failed.dtype, extra=extra, band_bytes=bands))
    return plans


def _attempt(
    program: Program, x: Tensor, plan: Plan, on_step: OnStep | None, stats: RunStats | None, guard: BandGuard | None
) -> Tensor | str:
    """The result, or the first line of the out-of-memory error: the exception itself would keep its frames' tensors."""
    try:
        return run_streamed(program, x, plan, on_step=on_step, stats=stats, guard=guard)
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
