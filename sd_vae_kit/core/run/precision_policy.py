"""The precision guard as a feature: what the settings and the caller allow for one encode or decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from sd_vae_kit.core.run.precision import Mode, Policy
from sd_vae_kit.settings.sections import PRECISION_MODES, PrecisionSettings

FILE_NAME = "vae_precision.json"
INFOTEXT_KEYS = {"encoder": "VAE Kit precision of encode", "decoder": "VAE Kit precision"}  # only if something was done
MODES: dict[str, Mode] = dict(zip(PRECISION_MODES, ("auto", "fp32", "never"), strict=True))


@dataclass(frozen=True)
class Precision:
    """What one call may do.

    Attributes:
        policy: What the user allows.
        label: What messages call the VAE.
        before: Layers of the VAE that made the input (post_quant_conv), if the caller runs them.
    """

    policy: Policy = field(default_factory=Policy)
    label: str = "this VAE"
    before: Sequence[nn.Module] = ()

    @property
    def is_on(self) -> bool:
        return self.policy.mode != "never"


def policy_of(settings: PrecisionSettings) -> Policy:
    """The core's words for the settings."""
    return Policy(MODES[settings.mode], settings.prefer_bf16)


def with_host_options(policy: Policy, *, may_use_fp32: bool, prefers_bf16: bool) -> Policy:
    """A web UI's own options beside ours: bf16 is wanted if either says so; fp32 is not used if its option is off."""
    return replace(policy, prefer_bf16=policy.prefer_bf16 or prefers_bf16, may_use_fp32=may_use_fp32)
