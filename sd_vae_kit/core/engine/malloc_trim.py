"""Giving freed memory back to the system while a run goes on (the CPU's heap)."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import cast

from sd_vae_kit.core.plan.plan import Plan, churn_limit

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc; musl has none
    return None if trim is None else cast("Callable[[int], int]", trim)


_TRIM = _malloc_trim()


def resident_bytes() -> int:
    """Memory of this process that is in use, as the system sees it."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - asked for after every few bands
        return int(file.read().split()[1]) * PAGE


class MallocTrimmer:
    """Gives freed blocks back to the system where the process would grow beyond what the run was predicted to take.

    glibc keeps blocks of up to 32 MB for reuse, but passes want other sizes, and an aligned block rarely fits into the
    hole of one of its own size: left alone the process grows to twice the activations that are alive.  Giving back
    costs time, as the next band takes its pages from the system again: done after every pass, 5 % of a whole run.

    Args:
        plan: Of the run.
        allowed: Bytes that the process may grow by, from now on.
    """

    def __init__(self, plan: Plan, allowed: int) -> None:
        self.least, self.churned = churn_limit(plan) // 4, 0  # four bands: the next one takes its pages anew
        self.limit = resident_bytes() + allowed if _TRIM is not None else 0

    def freed(self, count: int, coming: int) -> None:
        """Bytes of temporaries that were taken and freed, and those that will be taken next."""
        self.churned += count
        if _TRIM is not None and self.churned >= self.least and resident_bytes() + coming > self.limit:
            self.churned = 0
            _TRIM(0)
