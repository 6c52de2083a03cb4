"""Giving freed memory back to the system while a run goes on (the CPU's heap)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import cast

HEAP_CHURN = 256 << 20  # bytes of temporaries on the CPU after which freed memory is returned in the middle of a pass


def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc; musl has none
    return None if trim is None else cast("Callable[[int], int]", trim)


_TRIM = _malloc_trim()


def return_freed_memory() -> None:
    """Give freed blocks back to the system, between passes and now and then in long ones.

    glibc keeps blocks of up to 32 MB for reuse, but passes want other sizes, and an aligned block rarely fits into the
    hole of one of its own size: without this the process grows to twice the activations that are alive.
    """
    if _TRIM is not None:
        _TRIM(0)
