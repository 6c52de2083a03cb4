"""Writing safetensors files whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from safetensors.torch import save_file
from torch import Tensor

from sd_vae_kit.errors import VaeKitError


def save(path: str | os.PathLike[str], state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in one step: whoever looks sees the old file or the whole new one.

    The target may be the file the weights were read from; it is replaced only when the new one is complete.

    Raises:
        VaeKitError: The file cannot be written; nothing is left behind.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid4().hex[:8]}.part")
    try:
        save_file(dict(state), temporary, metadata=dict(metadata))
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except Exception as error:
        with suppress(OSError):
            temporary.unlink()
        raise VaeKitError(f"cannot write {target.name} in {target.parent}: {error}") from error
