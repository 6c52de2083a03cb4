"""What a file is, all of it: what its header says, its hash, the fingerprint of its weights, whose VAE it is.

Every part of the program that says what a file is asks here: the command line, the HTTP API, the VAE tab, scripts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sd_vae_kit.core.files.detection import FamilyKnownBy, Kind, LayoutName
from sd_vae_kit.core.files.inspection import HeaderInspection, inspect_header
from sd_vae_kit.core.halves import Part
from sd_vae_kit.core.vae import VaeWeights, choose_format
from sd_vae_kit.settings.sections import GuardSettings
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.finding import Finding
from sd_vae_kit.vaes.library import Library, Progress


@dataclass(frozen=True)
class Inspection:
    """What one file is.

    Attributes:
        path: Where it lies.
        name: What the library calls it.
        layout: How its tensors are named: "ldm", "diffusers", "taesd" or "taesd-diffusers".
        kind: "kl" for a KL autoencoder, "tiny" for a TAESD.
        part: Which halves it holds.
        family: Whose latents it makes: "sd1", "sdxl", ...; "sd1|sdxl" where undecided, "" where none fits.
        family_known_by: What told; see `FamilyKnownBy`.
        known_as: Name of the known VAE whose hash or weights it has; "" if none.
        z_channels: Channels of a latent.
        downscale: Pixels per latent cell along each side.
        scale_factor, shift_factor: Of the family; of the first one that fits where it is undecided.
        parameters: How many weights: "encoder", "decoder", "total".
        dtype: The type of most weights, "fp16".
        sha256: Of the file; None if it was not worked out.
        fingerprint: Of the weights, the same in every layout and in half and full precision; None as above.
        warnings: Sentences for the user.
    """

    path: Path
    name: str
    layout: LayoutName
    kind: Kind
    part: Part
    family: str
    family_known_by: FamilyKnownBy
    known_as: str
    z_channels: int
    downscale: int
    scale_factor: float
    shift_factor: float
    parameters: Mapping[str, int]
    dtype: str
    sha256: str | None
    fingerprint: str | None
    warnings: tuple[str, ...]

    @property
    def finding(self) -> Finding:
        """Its family with the words for it."""
        return Finding(self.family, self.family_known_by, self.known_as)


class Inspector:
    """Inspects the files of a library; safe to use from several threads.

    Args:
        finder: Tells families; its library keeps hashes and fingerprints.
        ways: Which ways of finding out a family may be used, asked for at every look.
    """

    def __init__(self, finder: FamilyFinder, ways: Callable[[], GuardSettings] = GuardSettings) -> None:
        self.finder = finder
        self.library = finder.library
        self._ways = ways

    def inspect(
        self, entry: Entry, weights: VaeWeights | None = None, on_progress: Progress | None = None
    ) -> Inspection:
        """Everything about a file as it is now; what was worked out before is not worked out again.

        Args:
            entry: The file.
            weights: The file's, if they were read.
            on_progress: Called with (bytes hashed, bytes in total); `False` stops.

        Raises:
            Interrupted: `on_progress` returned `False`.
            VaeKitError: The file cannot be used; as in `Library.load`.
        """
        sha256 = self.library.sha256(entry, on_progress)
        if weights is None and entry.fingerprint is None:
            weights = self.library.load(entry)
        identity = self.library.identify(entry, weights)
        finding = self.family(entry, weights)
        header = HeaderInspection(weights.detection, weights.dtype) if weights else inspect_header(entry.path)
        return _inspection(replace(entry, sha256=sha256, fingerprint=identity.fingerprint), header, finding)

    def inspect_path(self, path: str | os.PathLike[str], on_progress: Progress | None = None) -> Inspection:
        """As `inspect`, for a file by its path, in the library's folders or not."""
        entry = self.library.recall(path)
        if entry is not None:
            return self.inspect(entry, on_progress=on_progress)
        entry, weights = self.library.read(path)
        return self.inspect(entry, weights, on_progress)

    def family(self, entry: Entry, weights: VaeWeights | None = None) -> Finding:
        """Whose VAE a file is; its weights are read where needed if they are not at hand.

        Raises:
            VaeKitError: The file cannot be read.
        """
        return self.finder.find(entry, self._ways(), weights)

    def glance(self, entry: Entry) -> Inspection:
        """What is known without reading the weights; hash, fingerprint and family as they were found before.

        Raises:
            VaeKitError: The file cannot be used.
        """
        return _inspection(entry, inspect_header(entry.path), self.finder.remembered(entry))


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Say what a file is: a VAE, or a checkpoint with one inside.

    Raises:
        VaeKitError: The file cannot be used; the message says what it is instead, or what is wrong with it.
    """
    inspector = Inspector(FamilyFinder(Library([], None), None))
    return inspector.inspect_path(path)


def _inspection(entry: Entry, header: HeaderInspection, finding: Finding) -> Inspection:
    detection = header.detection
    latent_format, warning = choose_format(detection, finding.to_run_as, label=entry.name)
    return Inspection(
        path=entry.path,
        name=entry.name,
        layout=detection.layout,
        kind=detection.kind,
        part=detection.part,
        family=finding.family,
        family_known_by=finding.how,
        known_as=finding.known_as,
        z_channels=detection.z_channels,
        downscale=detection.downscale,
        scale_factor=latent_format.scale_factor,
        shift_factor=latent_format.shift_factor,
        parameters=header.parameters,
        dtype=header.dtype,
        sha256=entry.sha256,
        fingerprint=entry.fingerprint,
        warnings=(*detection.warnings, *([warning] if warning else [])),
    )
