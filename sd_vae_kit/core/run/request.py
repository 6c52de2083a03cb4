"""What a caller wants of one encode or decode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from sd_vae_kit.core.plan.plan import OnStep
from sd_vae_kit.core.run.precision_policy import PrecisionPolicy
from sd_vae_kit.settings.sections import TilingSettings

MakeRoom = Callable[[int], bool]


@dataclass(frozen=True)
class RunRequest:
    """How one half of a VAE is run; the default is exact, guarded, and in bands where memory is short.

    Attributes:
        tiling: When to run in bands, and in how much memory; switched off means whole, without falling back to bands.
        policy: What may be done where half precision overflows.
        label: What messages call the VAE.
        before: Layers of the VAE that made the input (post_quant_conv), where the caller runs them.
        dtype, device: What is computed in and where; None: the input's.  The network's modules accept such inputs.
        on_step: Called with (done, total) bands; False stops the work.
        make_room: Asked for bytes that are missing; frees other models and says whether it freed anything.
        measures_peak: Whether the report says how much memory the run took.  That resets the record that torch or the
            system keeps for the whole process, so only a program of its own asks for it.
    """

    tiling: TilingSettings = field(default_factory=TilingSettings)
    policy: PrecisionPolicy = field(default_factory=PrecisionPolicy)
    label: str = "this VAE"
    before: tuple[nn.Module, ...] = ()
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    on_step: OnStep | None = None
    make_room: MakeRoom | None = None
    measures_peak: bool = False

    def unguarded(self) -> RunRequest:
        """For a picture that is only shown for a moment: to look for overflows, each step waits for the device."""
        return replace(self, policy=PrecisionPolicy("never"))


DEFAULT = RunRequest()
