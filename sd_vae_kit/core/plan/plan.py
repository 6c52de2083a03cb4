"""How a graph is run and what was done: the plain data of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from sd_vae_kit.units import MIB

Kind = Literal["whole", "stream", "stream-lean", "stream-host"]
OnStep = Callable[[int, int], bool]


@dataclass(frozen=True)
class Plan:
    """How a graph is run; every plan gives the same picture.

    Attributes:
        kind: Its name, for people.
        device, dtype: Where and in what type the activations are computed.
        stored: Indexes of the nodes that exist whole; others are computed again where they are read.  None: all.
        band_bytes: What the temporaries of one band may take; None: one band as high as the picture.
        attention_bytes: What the scores of one chunk of queries may take.
        on_host: Whether stored nodes live in host memory and visit the device band by band.
    """

    kind: Kind
    device: torch.device
    dtype: torch.dtype
    stored: frozenset[int] | None = None
    band_bytes: int | None = None
    attention_bytes: int = 64 * MIB
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


def is_remote(plan: Plan) -> bool:
    """Whether stored nodes live in another memory than the computation's; on the CPU there is only one."""
    return plan.on_host and plan.device.type != "cpu"


def churn_limit(plan: Plan) -> int:
    """Bytes of temporaries among which freed memory piles up unused: sixteen bands, or 256 MB."""
    return 256 * MIB if plan.band_bytes is None else min(256 * MIB, max(16 * MIB, 16 * plan.band_bytes))
