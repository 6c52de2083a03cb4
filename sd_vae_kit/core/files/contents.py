"""What opening a file of either format gives."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import Tensor

from sd_vae_kit.core.files.header import Header


@dataclass(frozen=True)
class Contents:
    """An open file's header and the way to its tensors."""

    header: Header
    read: Callable[[Collection[str]], dict[str, Tensor]]
