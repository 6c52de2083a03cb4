"""Writing safetensors files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.state.atomic_write import atomic_write


def save(path: str | os.PathLike[str], state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in one step: whoever looks sees the old file or the whole new one.

    The target may be the file the weights were read from; it is replaced only when the new one is complete.

    Raises:
        VaeKitError: The file cannot be written; nothing is left behind.
    """
    target = Path(path)
    try:
        with atomic_write(target) as temporary:
            save_file(dict(state), temporary, metadata=dict(metadata))
    except Exception as error:
        raise VaeKitError(f"cannot write {target.name} in {target.parent}: {error}") from error
