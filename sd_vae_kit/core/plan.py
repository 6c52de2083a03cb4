"""How a program is run, what was done, and who may look at it: the plain data of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from sd_vae_kit.core.group_norm import BandMoments
from sd_vae_kit.core.steps import AttentionStep, Step

Kind = Literal["whole", "stream", "stream-lean", "stream-host"]
OnStep = Callable[[int, int], bool]


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


class OutOfRange(Exception):  # noqa: N818 - not an error for users: the band is computed in another way
    """A band holds a value beyond the range of its type.

    Attributes:
        is_repaired: Whether what has to change for the next try was changed already.
    """

    def __init__(self, message: str, *, is_repaired: bool = False) -> None:
        super().__init__(message)
        self.is_repaired = is_repaired


class BandGuard(Protocol):
    """Sees every band before it is committed; `range_guard.RangeGuard` is the one that repairs."""

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
