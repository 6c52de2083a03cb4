"""Finds values that left half precision's range, without reading any activation once more than the run does.

A value that is not finite makes the statistics of its band non-finite, and those are taken anyway for the next norm.
A value that a backend clamped to the largest number instead shows in them too: no value is further from its channel's
mean than sqrt(count * variance), so only a band for which that bound allows the largest number is looked through.  Of
the few values that no norm reads (the result, the latent, what an up- or down-sampling convolution reads, queries, keys
and values of attention) each band's smallest and largest number is taken instead of the statistics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sd_vae_kit.core.engine.band_guard import OutOfRange
from sd_vae_kit.core.engine.group_norm import BandMoments
from sd_vae_kit.core.engine.ranges import Ranges
from sd_vae_kit.core.graph.nodes import AttentionStep, LayerGraph, Step
from sd_vae_kit.core.plan.devices import traits
from sd_vae_kit.errors import NanError

OUTSIDE = {"decoder": "post_quant_conv", "encoder": "quant_conv"}  # layers between a half and the latent space


class HalfIsNotEnough(Exception):  # noqa: N818 - not an error for users: the call is run again in another precision
    """Neither an exponent nor fp32 for single steps keeps this call finite, or the user wants another way."""


@dataclass(frozen=True)
class RepairLimits:
    """What may be done where a value is out of range.

    Attributes:
        may_repair: False: the first value out of range ends the run.
        may_widen: False: exponents only, no step in fp32.
    """

    may_repair: bool = True
    may_widen: bool = True


@dataclass(frozen=True)
class Origin:
    """Whose values they are, for messages.

    Attributes:
        label: What messages call the VAE.
        before: Layers that made the input from somebody else's; they are looked at before that one is blamed.
    """

    label: str = "this VAE"
    before: Sequence[nn.Module] = ()


class RangeGuard:
    """Accepts bands that are finite, and says what may be done about others; one for each call.

    Args:
        graph: What runs.
        x: Its input, looked at only when something went wrong.
        dtype: Of the stored values.
        ranges: What is known already; it is changed as repairs need it.
        limits: What may be done.
        origin: Whose values they are.

    Attributes:
        recomputed: Step name -> how much of the step was computed again, in steps (a band of a quarter: 0.25).
        rescued: (step name, first row) of each band that was not finite at first.
    """

    def __init__(
        self, graph: LayerGraph, x: Tensor, dtype: torch.dtype, ranges: Ranges,
        limits: RepairLimits = RepairLimits(), origin: Origin = Origin(),
    ) -> None:  # fmt: skip
        self.graph, self.x, self.dtype, self.ranges = graph, x, dtype, ranges
        self.limits, self.origin = limits, origin
        self.limit = _limit(dtype)
        self.recomputed: dict[str, float] = defaultdict(float)
        self.rescued: list[tuple[str, int]] = []
        self._examined: set[str] = set()

    def accept(
        self, step: Step | AttentionStep, rows: tuple[int, int], band: Tensor, moments: BandMoments | None
    ) -> Tensor:
        """The band itself.

        Raises:
            OutOfRange: It holds a value that is not finite, or the largest number there is.
        """
        proven = moments is not None and self._proves_range(moments)
        if not proven and not self.is_in_range(band):
            raise OutOfRange(f"{step.name}, rows {rows[0]} to {rows[1]}")
        return band

    def is_in_range(self, x: Tensor) -> bool:
        """Whether all numbers are finite and none is the largest there is; reads x once, waits for the device."""
        return largest(x) < _limit(x.dtype)  # False for NaN

    def fits(self, x: Tensor, bits: int) -> bool:
        """Whether x times 2**bits would still be in range."""
        return largest(x) * 2.0**bits < _limit(x.dtype)

    def _proves_range(self, moments: BandMoments) -> bool:
        """Whether the statistics alone prove that every value is inside the range."""
        mean, variance = moments.host
        furthest = mean.abs() + (moments.count * variance).sqrt()
        return bool((furthest < self.limit).all())  # False for NaN

    def examine(self, step: Step | AttentionStep) -> None:
        """Called when a step's value is not finite, before anything is computed again.

        Raises:
            NanError: The input or the step's weights are to blame: no precision would help.
            HalfIsNotEnough: Repairs are not wanted.
        """
        if step.name not in self._examined:
            self._examined.add(step.name)
            check_weights(self.graph, self.origin.label, self.origin.before)
            check_input(self.graph, self.x)
            check_weights(self.graph, self.origin.label, step_modules(step))
        if not self.limits.may_repair:
            raise HalfIsNotEnough(step.name)

    def widen(self, node: int) -> bool:
        """Allow fp32 for this step; False if it has it already or must not have it."""
        return self.limits.may_widen and self.dtype.itemsize < 4 and self.ranges.widen(node)

    def note(self, step: Step | AttentionStep, top: int, share: float) -> None:
        """Remember that a band, `share` of its step, is computed again."""
        self.recomputed[step.name] += share
        if (step.name, top) not in self.rescued:
            self.rescued.append((step.name, top))


def _limit(dtype: torch.dtype) -> float:
    """The number that is too large; bf16 and fp32 overflow only where something else went wrong before."""
    return torch.finfo(dtype).max if dtype == torch.float16 else float("inf")


def largest(x: Tensor) -> float:
    """The largest |x|, NaN if there is one; reads x once and waits for its device."""
    if not traits(x.device).has_aminmax:
        return max(float(x.max()), -float(x.min()))
    ends: list[float] = torch.stack(torch.aminmax(x.detach())).tolist()
    low, high = ends
    return max(high, -low) if low == low else low


def check_input(graph: LayerGraph, x: Tensor) -> None:
    """Refuse an input that is not finite.

    Raises:
        NanError: It says who made the input.
    """
    if bool(torch.isfinite(x).all()):
        return
    word = "NaN" if bool(torch.isnan(x).any()) else "infinity"
    if graph.name == "encoder":
        raise NanError(f"the picture already contains {word}: the program that made it is to blame, not the VAE")
    raise NanError(
        f"the latent already contains {word}: the sampler, not the VAE; "
        "use another sampler, fewer LoRAs or a lower CFG scale, or run the model in higher precision"
    )


def check_weights(graph: LayerGraph, label: str, modules: Iterable[nn.Module]) -> None:
    """Refuse weights that are not finite.

    Raises:
        NanError: It names the first such weight.
    """
    names = module_names(graph)
    for module in modules:
        for own, parameter in module.named_parameters():
            plain: Any = parameter.detach()
            plain = plain.half() if plain.element_size() == 1 and plain.is_floating_point() else plain
            if plain.is_meta or not plain.is_floating_point() or bool(torch.isfinite(plain).all()):
                continue
            name = ".".join(part for part in (names.get(module, OUTSIDE[graph.name]), own) if part)
            if bool(torch.isnan(plain).any()):
                raise NanError(f"the weights of {label} contain NaN in {name}; download it again or choose another VAE")
            raise NanError(
                f"the weights of {label} contain infinity in {name}: that weight is beyond the range of "
                f"{str(plain.dtype).removeprefix('torch.')}; load the VAE in fp32 (--no-half-vae) or choose another"
            )


def module_names(graph: LayerGraph) -> dict[nn.Module, str]:
    """Names as in the whole VAE, where the graph was made of one half only, too."""
    root = graph.root
    if root is None:
        return {}
    before = "" if hasattr(root, graph.name) else f"{graph.name}."
    return {module: f"{before}{name}" for name, module in root.named_modules()}


def step_modules(step: Step | AttentionStep) -> list[nn.Module]:
    """The modules with weights that make a step's value."""
    if isinstance(step, AttentionStep):
        found: list[nn.Module | None] = [step.norm, step.query, step.key, step.value, step.out]
    else:
        found = [step.norm, *(conv.module for conv in (step.conv, step.shortcut) if conv is not None)]
    return [module for module in found if module is not None]
