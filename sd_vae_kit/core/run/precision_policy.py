"""What is allowed where half precision overflows: the user's settings, and a web UI's own options beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sd_vae_kit.core.engine.ranges import PrecisionFixes
from sd_vae_kit.settings.sections import PrecisionMode, PrecisionSettings

FILE_NAME = "vae_precision.json"


@dataclass(frozen=True)
class PrecisionPolicy:
    """What the user allows.

    Attributes:
        mode: "auto": repair what overflows; "fp32": everything in fp32 from the start; "never": look at nothing.
        prefer_bf16: Where half precision overflows, run the call in bf16 instead of repairing it.
        may_use_fp32: False: never compute anything in fp32 that was asked for in half precision.
    """

    mode: PrecisionMode = "auto"
    prefer_bf16: bool = False
    may_use_fp32: bool = True

    def first_dtype(self, asked: torch.dtype, fixes: PrecisionFixes) -> torch.dtype:
        """What to start in: the type asked for, unless the user or an earlier picture says otherwise."""
        if asked.itemsize >= 4 or self.mode == "never":
            return asked
        if self.mode == "fp32":
            return torch.float32
        if fixes.whole == "fp32" and self.may_use_fp32:
            return torch.float32
        # whatever an earlier picture needed, it needed because fp16 overflowed
        return torch.bfloat16 if asked == torch.float16 and fixes and self.prefer_bf16 else asked

    def next_dtype(self, failed: torch.dtype) -> torch.dtype | None:
        """What the whole call is run in after `failed`; None: nothing is left."""
        if failed == torch.float16 and self.prefer_bf16:
            return torch.bfloat16
        return torch.float32 if failed.itemsize < 4 and self.may_use_fp32 else None


def policy_of(settings: PrecisionSettings) -> PrecisionPolicy:
    """The settings in the core's words."""
    return PrecisionPolicy(settings.mode, settings.prefer_bf16)


def with_host_options(policy: PrecisionPolicy, *, may_use_fp32: bool, prefers_bf16: bool) -> PrecisionPolicy:
    """A web UI's own options beside ours: bf16 is wanted if either says so; fp32 is not used if its option is off."""
    return replace(policy, prefer_bf16=policy.prefer_bf16 or prefers_bf16, may_use_fp32=may_use_fp32)
