"""Giving freed memory back to the system while a run goes on (the CPU's heap)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import cast

from sd_vae_kit.core.plan import Plan

PASS_CHURN = 32 << 20  # bytes of temporaries; small pictures never get there, and asking costs a walk over the heap


def churn_limit(plan: Plan) -> int:
    """Bytes of temporaries after which freed memory is returned in the middle of a pass.

    The next band has to take its pages from the system again, so that this costs a sixteenth of its temporaries.
    """
    return 256 << 20 if plan.band_bytes is None else min(256 << 20, max(16 << 20, 16 * plan.band_bytes))


def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc; musl has none
    return None if trim is None else cast("Callable[[int], int]", trim)


_TRIM = _malloc_trim()


class Heap:
    """Gives freed blocks back to the system, between passes and now and then in long ones.

    glibc keeps blocks of up to 32 MB for reuse, but passes want other sizes, and an aligned block rarely fits into the
    hole of one of its own size: without this the process grows to twice the activations that are alive.
    """

    def __init__(self, plan: Plan) -> None:
        self.churned, self.limit = 0, churn_limit(plan)

    def freed(self, count: int) -> None:
        """Bytes of temporaries that a band took and freed."""
        self.churned += count
        if self.churned >= self.limit:
            self._trim()

    def pass_done(self) -> None:
        if self.churned >= PASS_CHURN:
            self._trim()

    def _trim(self) -> None:
        self.churned = 0
        if _TRIM is not None:
            _TRIM(0)
