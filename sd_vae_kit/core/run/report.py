"""What one encode or decode did, for people, programs and a picture's parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from sd_vae_kit.core.engine.ranges import PrecisionFixes
from sd_vae_kit.core.halves import Half

# each is written only where there is something to say
TILING_KEYS: dict[Half, str] = {"decoder": "VAE Kit tiling", "encoder": "VAE Kit tiling of encode"}
PRECISION_KEYS: dict[Half, str] = {"decoder": "VAE Kit precision", "encoder": "VAE Kit precision of encode"}


@dataclass(frozen=True)
class RunReport:
    """What one encode or decode did.

    Attributes:
        half: "encoder" or "decoder".
        plan: "whole", "stream", "stream-lean" or "stream-host"; the one that worked.
        bands: Bands of the step that took most of them; 1: the picture ran whole.
        steps: Layers, counted as the graph runs them; None: the network ran by its own forward.
        dtype, asked_dtype: What was computed in, and what was asked for: "fp16".
        predicted_mb, whole_mb: Activations as planned, and of the picture as a whole; None where nothing was planned.
        budget_mb: What the plan had to fit into; None: it was not chosen by size.
        fits: False: even the smallest plan was predicted to be too large, and was tried all the same.
        peak_mb: Activations as measured; None where nobody asked or the system does not tell.
        seconds: Wall time.
        failures: One line for each plan that ran out of memory before this one worked.
        steps_shifted: Steps whose values were kept divided by a power of two.
        steps_fp32: Steps that were computed in fp32 because half precision was not enough.
        steps_recomputed: Steps' worth of work that was done twice; 0 once the VAE is known.
        rescued: (step, first row) of each band that was not finite at first.
        stepped_aside: Why the network ran by its own forward, "" if it did not.
    """

    half: Half
    plan: str
    bands: int
    steps: int | None
    dtype: str
    asked_dtype: str
    predicted_mb: int | None = None
    whole_mb: int | None = None
    budget_mb: int | None = None
    fits: bool = True
    peak_mb: float | None = None
    seconds: float = 0.0
    failures: tuple[str, ...] = ()
    steps_shifted: int = 0
    steps_fp32: int = 0
    steps_recomputed: float = 0.0
    rescued: tuple[tuple[str, int], ...] = ()
    stepped_aside: str = ""

    @property
    def is_streamed(self) -> bool:
        return self.plan != "whole"

    @property
    def precision(self) -> str:
        """One sentence on what was done so that the picture is not black; "" if nothing was."""
        if self.dtype != self.asked_dtype:
            return f"all {self.steps} steps were computed in {self.dtype}: {self.asked_dtype} overflowed"
        parts = []
        if self.steps_shifted:
            parts.append(f"{self.steps_shifted} of {self.steps} steps were shifted to stay in range")
        if self.steps_fp32:
            parts.append(f"{self.steps_fp32} of {self.steps} steps were computed in fp32")
        return ", ".join(parts)

    @property
    def rescue(self) -> str:
        """One sentence on how memory ran out on the way; "" if it did not."""
        if not self.failures:
            return ""
        more = len(self.failures) - 1
        others = f", and so did {more} smaller plan{'s' if more > 1 else ''}" if more else ""
        return f"{self.failures[0]}{others}; {self.plan} was used instead, the result is the same."

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything that the user may want to know, one sentence each."""
        return tuple(self._warnings())

    def _warnings(self) -> Iterator[str]:
        if self.stepped_aside:
            yield f"run whole by its own forward: {self.stepped_aside}"
        if self.precision:
            yield f"{self.precision}."
        if not self.fits and self.budget_mb is not None:
            yield (
                f"nothing fits into {self.budget_mb} MiB: the smallest plan was run ({self.plan}, about "
                f"{self.predicted_mb} MiB)"
            )
        if self.rescue:
            yield self.rescue

    def infotext(self) -> dict[str, str]:
        """Fields of a picture's parameters: {"VAE Kit tiling": "stream in 12 bands"}; empty for a plain run."""
        fields = {}
        if self.is_streamed:
            fields[TILING_KEYS[self.half]] = f"{self.plan} in {self.bands} bands"
        if self.precision:
            fields[PRECISION_KEYS[self.half]] = self.precision_infotext
        return fields

    @property
    def precision_infotext(self) -> str:
        """In short: "fp16, 3 shifted, 1 in fp32"; "" if nothing out of the ordinary was done."""
        if not self.precision:
            return ""
        parts = [self.dtype]
        if self.steps_shifted:
            parts.append(f"{self.steps_shifted} shifted")
        if self.steps_fp32 and self.dtype != "fp32":
            parts.append(f"{self.steps_fp32} in fp32")
        return ", ".join(parts)

    def as_dict(self) -> dict[str, object]:
        """For JSON; its keys are an interface."""
        own = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("half", "rescued")}
        return {
            "part": self.half,
            **own,
            "steps_recomputed": round(self.steps_recomputed, 3),
            "failures": list(self.failures),
            "warnings": list(self.warnings),
            "precision": self.precision,
            "precision_infotext": self.precision_infotext,
        }


def status_of(last: Mapping[Half, RunReport]) -> dict[str, object]:
    """What the last encode and decode did, for the HTTP API."""
    halves: dict[str, Half] = {"last_encode": "encoder", "last_decode": "decoder"}
    return {name: last[half].as_dict() if half in last else None for name, half in halves.items()}


@dataclass(frozen=True)
class RunResult:
    """What came of one encode or decode.

    Attributes:
        tensor: (B, C', h', w') on the input's device, in the type that was asked for.
        report: How it was made.
        fixes: What the next call of the same weights starts with.
    """

    tensor: Tensor
    report: RunReport
    fixes: PrecisionFixes
