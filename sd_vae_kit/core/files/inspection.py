"""What the header of a file says of the VAE in it; no weights are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sd_vae_kit.core.files.checkpoint import read_header
from sd_vae_kit.core.files.completeness import parameter_counts
from sd_vae_kit.core.files.detect import detect
from sd_vae_kit.core.files.detection import Detection
from sd_vae_kit.core.files.header import Header, main_dtype


@dataclass(frozen=True)
class HeaderInspection:
    """A VAE as its file's header describes it.

    Attributes:
        detection: What it is.
        dtype: The type of most of its weights, "fp16".
    """

    detection: Detection
    dtype: str

    @property
    def parameters(self) -> Mapping[str, int]:
        """Weights by "encoder" and "decoder"; the "total" counts those between them too."""
        return parameter_counts(self.detection)


def inspect_header(path: str | os.PathLike[str]) -> HeaderInspection:
    """Read a file's header and say what is in the file.

    Raises:
        VaeNotFoundError, BrokenVaeError, UnsupportedVaeError, UnsafeFileError: As `open_checkpoint` and `detect` say.
    """
    return inspection_of(read_header(path), Path(path).name)


def inspection_of(header: Header, label: str) -> HeaderInspection:
    """As `inspect_header`, for a header that was read; `label` is what messages call the file."""
    detection = detect(header.tensors, header.metadata, label=label)
    return HeaderInspection(detection, main_dtype(header.tensors[name] for name in detection.names.values()))
