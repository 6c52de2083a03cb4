"""Whether a VAE may serve the loaded model, judged before it is put to use, and what to choose instead."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from sd_vae_kit.core.files.family_of_header import fitting_families
from sd_vae_kit.core.networks.latent_format import split_family
from sd_vae_kit.core.vae import VaeWeights
from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.settings.sections import GuardSettings
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.finding import Finding
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.wording import NOTHING, Sentence

VerdictState = Literal["fits", "unsure", "wrong", "impossible"]


@dataclass(frozen=True)
class Verdict:
    """Whether a VAE may serve a checkpoint.

    Attributes:
        state: "impossible" (other channels), "wrong" (another family), "unsure" or "fits".
        finding: Whose VAE it is.
        message: One line for the user; "" if it fits.
        installed: Names of library files of the right family.
        available: Name of the catalogue's VAE to install, "" if one is installed or none is known.
    """

    state: VerdictState
    finding: Finding
    message: Sentence = NOTHING
    installed: tuple[str, ...] = ()
    available: str = ""


class FamilyGuard:
    """Judges VAEs; safe to use from several threads.

    Args:
        finder: Tells families, and has the library and catalogue whose VAEs are offered.
    """

    def __init__(self, finder: FamilyFinder) -> None:
        self.finder = finder
        self._library = finder.library
        self._catalogue = finder.catalogue

    def check(
        self, entry: Entry, checkpoint: Checkpoint, settings: GuardSettings, weights: VaeWeights | None = None
    ) -> Verdict:
        """Judge a file before it is put to use.

        Args:
            entry: The file.
            checkpoint: The loaded model.
            settings: Which ways of finding out may be used.
            weights: The file's, if they are at hand; they are read where needed otherwise.

        Raises:
            VaeKitError: The file cannot be read.
        """
        needed = checkpoint.latent_format
        if entry.z_channels and entry.z_channels != needed.z_channels:
            return self._impossible(entry, checkpoint)
        finding = self.finder.find(entry, settings, weights)
        if not finding.is_certain:
            if needed.name not in split_family(finding.family):
                return self._wrong(entry, finding, checkpoint)
            message = Sentence.of(
                "{} may be a VAE for {}, {}; if colours are off, choose another for {}.",
                entry.name,
                finding.label,
                finding.sentence,
                needed.label,
            )
            return Verdict("unsure", finding, message)
        return Verdict("fits", finding) if finding.family == needed.name else self._wrong(entry, finding, checkpoint)

    def _impossible(self, entry: Entry, checkpoint: Checkpoint) -> Verdict:
        needed = checkpoint.latent_format
        families = "|".join(fitting_families(entry.z_channels))
        installed, available = self._offers(needed.name)
        message = Sentence.of(
            "{} has {} latent channels, the loaded model ({}) needs {}{}",
            entry.name,
            entry.z_channels,
            needed.label,
            needed.z_channels,
            _remedy(needed.label, installed, available),
        )
        return Verdict("impossible", Finding(families, "channels"), message, installed, available)

    def _wrong(self, entry: Entry, finding: Finding, checkpoint: Checkpoint) -> Verdict:
        needed = checkpoint.latent_format
        installed, available = self._offers(needed.name)
        message = Sentence.of(
            "{} is a VAE for {} ({}), the loaded model is {}: colours would be wrong{}",
            entry.name,
            finding.label,
            finding.sentence,
            needed.label,
            _remedy(needed.label, installed, available),
        )
        return Verdict("wrong", finding, message, installed, available)

    def _offers(self, family: str) -> tuple[tuple[str, ...], str]:
        """Installed files known to be of the family, and what to install where there is none."""
        usable = (entry for entry in self._library.entries if entry.state == "ok")
        installed = tuple(entry.name for entry in usable if self.finder.remembered(entry).family == family)
        standard = self._catalogue.standard(family)
        return installed, "" if installed or standard is None or not standard.can_install else standard.name

    def standard(self, family: str) -> Entry | None:
        """The installed file that is the catalogue's standard VAE of a family, told by its hash; None without one."""
        known = self._catalogue.standard(family)
        if known is None or known.sha256 is None:
            return None
        alike = (e for e in self._library.entries if e.state == "ok" and known.size in (None, e.size))
        for entry in alike:  # a file of another size cannot be it, so few are read
            with suppress(VaeKitError):
                if self._library.sha256(entry) == known.sha256:
                    return entry
        return None


def _remedy(label: str, installed: Sequence[str], available: str) -> Sentence:
    if installed:
        return Sentence.of("; choose {}.", installed[0])
    if available:
        return Sentence.of("; install {} from the catalogue.", f'"{available}"')
    return Sentence.of("; choose a VAE for {}.", label)
