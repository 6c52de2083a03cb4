"""Who sees every band before it is committed, and how a refused band is told apart from an error."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sd_vae_kit.core.engine.group_norm import BandMoments
from sd_vae_kit.core.graph.nodes import AttentionStep, Step


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
