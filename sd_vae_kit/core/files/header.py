"""What a model file says about itself without its tensors being read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch

from sd_vae_kit.core.dtypes import dtype_word

Container = Literal["safetensors", "pickle"]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's element type, `None` for one this program has no use for, and its shape."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a file says about itself without its tensors being read.

    Attributes:
        tensors: By the names in the file; a pickle's wrappers (`state_dict`) are taken off.
        metadata: safetensors' `__metadata__`; empty for pickles.
        container: Which of the two formats the bytes are in, whatever the suffix says.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    container: Container


def main_dtype(infos: Iterable[TensorInfo]) -> str:
    """The word for the type of most weights; norms are sometimes kept wider than the rest."""
    counts: Counter[str] = Counter()
    for info in infos:
        counts[dtype_word(info.dtype)] += prod(info.shape)
    return counts.most_common(1)[0][0] if counts else ""
