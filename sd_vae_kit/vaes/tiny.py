"""The TAESD of a latent space: which installed file it is, and what to install where there is none.

Files of equal shape (SD 1 and SDXL, SD 3 and FLUX.1) are told apart as any VAE: by hash, by weights, by
behaviour.  A file is used only if its family is certain, or undecided and named as its makers name it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import torch

from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.networks.latent_format import FORMATS, split_family
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.core.vae import Vae, make_vae
from sd_vae_kit.errors import VaeKitError, VaeNotFoundError
from sd_vae_kit.settings.sections import GuardSettings
from sd_vae_kit.vaes.catalogue import Catalogue, catalogue
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.library import Library

KEPT = 4  # networks in memory; a few MB each
PUBLISHED = {"sd1": "taesd", "sdxl": "taesdxl", "sd3": "taesd3", "flux": "taef1", "flux2": "taef2", "sana": "taesana"}

_Key = tuple[str, int, int, str, str]


class TinyVaes:
    """TAESD files of some libraries by family; safe to use from several threads.

    Args:
        libraries: Where to look, most important first.
        finder: Tells families of equal shape apart.
        settings: Which ways of finding out may be used, asked for at every look.
        known: The catalogue, for what to install.
        runner: Runs the networks; None for one of their own.
    """

    def __init__(
        self,
        libraries: Sequence[Library],
        finder: FamilyFinder,
        settings: Callable[[], GuardSettings] = GuardSettings,
        known: Catalogue | None = None,
        runner: Runner | None = None,
    ) -> None:
        self._libraries = tuple(libraries)
        self._finder = finder
        self._settings = settings
        self._catalogue = known or catalogue()
        self._runner = Runner() if runner is None else runner
        self._kept: OrderedDict[_Key, Vae] = OrderedDict()
        self._lock = threading.RLock()

    def find(self, family: str, half: Half) -> Entry | None:
        """The file that serves `half` of a family's latents, the published one first; None if there is none."""
        entries = [entry for library in self._libraries for entry in library.entries]
        fitting = [entry for entry in _unique(entries) if _may_serve(entry, family, half)]
        undecided = None
        for entry in sorted(fitting, key=lambda entry: not _is_named(entry, family)):
            found = self._family_of(entry)
            if found == family:
                return entry
            if family in split_family(found) and _is_named(entry, family):
                undecided = undecided or entry
        return undecided

    def load(self, family: str, half: Half, device: torch.device, dtype: torch.dtype | None = None) -> Vae:
        """The network, ready to run; kept in memory until `release`.

        Args:
            family: A name of `FORMATS`.
            half: What it is needed for; the file may hold both.
            device: Where it runs.
            dtype: What it computes in; `None` for the file's own.

        Raises:
            VaeNotFoundError: None is installed; the message says what to install.
            VaeKitError: The file cannot be read.
        """
        entry = self.find(family, half)
        if entry is None:
            raise VaeNotFoundError(self.missing(family, half))
        key = (str(entry.path), entry.size, entry.mtime_ns, f"{device} {dtype}", family)
        with self._lock, torch.inference_mode(False):  # inference tensors would be of no use to other threads
            if key not in self._kept:
                library = next(one for one in self._libraries if entry in one.entries)
                vae = make_vae(library.load(entry), family=family, dtype=dtype, label=entry.name, runner=self._runner)
                vae.module.to(device)
                self._kept[key] = vae
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def missing(self, family: str, half: Half) -> str:
        """One line: what is not there, and what helps."""
        label = FORMATS[family].label if family in FORMATS else "this model"
        pair = self._catalogue.tiny_pair(family)
        known = pair[half == "decoder"] if pair else None
        if known is None:
            hint = f"put {PUBLISHED[family]}_{half} into models/VAE-taesd" if family in PUBLISHED else "none is known"
        else:
            hint = f'install it in the VAE tab or with: python -m sd_vae_kit download "{known.name}"'
        return f"There is no TAESD {half} for {label} here; {hint}."

    def release(self) -> None:
        """Forget the networks; the files stay."""
        with self._lock:
            self._kept.clear()

    def _family_of(self, entry: Entry) -> str:
        if len(split_family(entry.family)) == 1:
            return entry.family
        try:
            return self._finder.find(entry, self._settings()).family
        except VaeKitError:
            return ""


def other_half(entries: Iterable[Entry], entry: Entry) -> Entry | None:
    """The file beside `entry` that holds the half it lacks: taesd_encoder for taesd_decoder; None if there is none."""
    if entry.kind != "tiny" or entry.part not in ("encoder", "decoder"):
        return None
    lacking = "encoder" if entry.part == "decoder" else "decoder"
    wanted = entry.path.stem.replace(entry.part, lacking)
    same_place = (e for e in entries if e.path.parent == entry.path.parent and e.path.stem == wanted)
    needed = ("tiny", "ok", lacking, entry.z_channels)
    alike = [e for e in same_place if (e.kind, e.state, e.part, e.z_channels) == needed]
    return min(alike, key=lambda e: e.path.suffix != entry.path.suffix, default=None)


def _unique(entries: Iterable[Entry]) -> list[Entry]:
    return list({entry.path: entry for entry in entries}.values())


def _may_serve(entry: Entry, family: str, half: Half) -> bool:
    is_usable = entry.kind == "tiny" and entry.state == "ok" and entry.part in (half, "both")
    return is_usable and family in split_family(entry.family) and entry.path.is_file()  # not removed since the listing


def _is_named(entry: Entry, family: str) -> bool:
    stem = entry.path.stem.lower()
    name = PUBLISHED.get(family, "taesd")
    return stem == name or stem.startswith((f"{name}_", f"{name}-", f"{name}."))
