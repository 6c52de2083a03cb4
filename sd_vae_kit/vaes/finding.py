"""Whose VAE a file was found to be, and the file in which that is kept; it may be deleted or damaged at any time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import get_args

from sd_vae_kit.core.files.detection import FamilyKnownBy
from sd_vae_kit.core.networks.latent_format import FORMATS, split_family
from sd_vae_kit.state.json_store import JsonFormat
from sd_vae_kit.wording import Sentence


@dataclass(frozen=True)
class Finding:
    """Whose VAE a file is.

    Attributes:
        family: A name in `FORMATS`, or of a family this program does not run; "sd1|sdxl" where it stayed undecided.
        how: What told.
        known_as: Name of the catalogue's or library's VAE that it equals; "" if none.
    """

    family: str
    how: FamilyKnownBy
    known_as: str = ""

    @property
    def is_certain(self) -> bool:
        """Whether one family is left."""
        return bool(self.family) and "|" not in self.family

    @property
    def to_run_as(self) -> str | None:
        """The family whose latents it is run with; None where that is undecided, or one this program does not run."""
        return self.family if self.family in FORMATS else None

    @property
    def sentence(self) -> Sentence:
        """How it is known, for a user."""
        return {
            "hash": Sentence.of("its hash is that of {}", self.known_as),
            "weights": Sentence.of("its weights are those of {}", self.known_as),
            "metadata": Sentence.of("the file says so"),
            "checkpoint": Sentence.of("the file says so"),
            "behaviour": Sentence.of("tried on a small picture"),
            "channels": Sentence.of("by its number of latent channels"),
            "undecided": Sentence.of("it could not be told which"),
        }[self.how]

    @property
    def label(self) -> Sentence:
        """What to call the family; one that VAE Kit does not run by its bare name."""
        names = split_family(self.family)
        if not names:
            return Sentence.of("unknown")
        known = set(names) <= FORMATS.keys()
        return Sentence.joined(" or ", [FORMATS[name].label for name in names] if known else [self.family])


def still_there(found: Mapping[str, Finding]) -> dict[str, Finding]:
    """Findings about files that were not deleted; keys begin with the path."""
    return {key: finding for key, finding in found.items() if os.path.exists(key.split("|")[0])}  # noqa: PTH110


def _decoded(content: Mapping[str, object]) -> dict[str, Finding]:
    """Raises ValueError, TypeError or AttributeError for an entry that is not one."""
    found = {str(key): _finding(**values) for key, values in content["found"].items()}  # type: ignore[attr-defined]
    return {key: finding for key, finding in found.items() if finding is not None}


def _finding(family: str, how: str, known_as: str) -> Finding | None:
    if how == "file":  # version 0.1 did not tell metadata from checkpoints; a header says it again
        return None
    for possible in get_args(FamilyKnownBy):
        if how == possible and isinstance(family, str) and isinstance(known_as, str):
            return Finding(family, possible, known_as)
    raise ValueError(f"not a finding: {family!r}, {how!r}, {known_as!r}")


def _encoded(found: dict[str, Finding]) -> dict[str, object]:
    return {"found": {key: asdict(finding) for key, finding in found.items()}}


FINDINGS: JsonFormat[dict[str, Finding]] = JsonFormat(_decoded, _encoded, dict, version=("format", 1))
