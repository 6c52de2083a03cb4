"""VAEs that are recognised by their weights, in whatever copy: those of the TAESD family come with the program."""

from __future__ import annotations

import base64
import functools
import json
import struct
from dataclasses import dataclass
from pathlib import Path

from sd_vae_kit.core.files.identity import weight_sketches_match
from sd_vae_kit.vaes.library_cache import Identity

DATA = Path(__file__).with_name("family_marks.json")


@dataclass(frozen=True)
class KnownWeights:
    """The weights of a known VAE."""

    name: str
    family: str
    identity: Identity

    def match(self, other: Identity) -> bool:
        """Whether these are the weights of a file, in any precision."""
        mine = self.identity
        return mine.fingerprint == other.fingerprint or weight_sketches_match(mine.weight_sketch, other.weight_sketch)


@functools.cache
def shipped_weights() -> tuple[KnownWeights, ...]:
    """The TAESD family's weights (vaes/family_marks.json, made by tools/make_family_probe.py)."""
    listed = json.loads(DATA.read_text("utf-8"))["marks"]
    return tuple(
        KnownWeights(item["name"], item["family"], Identity(item["fingerprint"], _unpacked(item["sketch"])))
        for item in listed
    )


def _unpacked(text: str) -> tuple[float, ...]:
    data = base64.b64decode(text)
    return struct.unpack(f"<{len(data) // 4}f", data)
