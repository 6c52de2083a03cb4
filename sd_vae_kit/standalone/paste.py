"""From an infotext to a form: which values it sets, and which VAE it means."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sd_vae_kit.errors import VaeKitError, VaeNotFoundError
from sd_vae_kit.pictures.infotext import Infotext
from sd_vae_kit.settings.job import TILING_SPECS
from sd_vae_kit.settings.sections import AUTOMATIC, FULL, NONE
from sd_vae_kit.standalone import job as jobs
from sd_vae_kit.standalone.job import Img2Img
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.library import Library

SIZE = re.compile(r"(\d+)\s*x\s*(\d+)")
NUMBERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "Steps": ("steps", int),
    "Seed": ("seed", int),
    "Denoising strength": ("denoising_strength", float),
}

VAE_TYPES = {"VAE Encoder": "vae_encoder", "VAE Decoder": "vae_decoder"}


@dataclass(frozen=True)
class WantedVae:
    """What an infotext's VAE means here: an entry, or a choice such as "None"; and what to tell the user."""

    name: str | None
    note: str
    entry: Entry | None = None


def values_of(info: Infotext) -> tuple[dict[str, object], list[str]]:
    """Values for the form by field name, and notes on those that cannot be taken."""
    values: dict[str, object] = {"prompt": info.prompt, "negative_prompt": info.negative_prompt}
    values |= {spec.name: spec.default for spec in TILING_SPECS if info.fields and spec.infotext not in info.fields}
    # as in the web UIs, a picture that says nothing was made by the VAE itself
    values |= {name: FULL for key, name in VAE_TYPES.items() if info.fields and key not in info.fields}
    notes = []
    for key, text in info.fields.items():
        try:
            values.update(_checked(_numbers(key, text)))
        except (ValueError, OverflowError) as error:  # OptionError and SettingError are, too
            reason = f" {error}" if isinstance(error, VaeKitError) else ""
            notes.append(f"{key} ({text}) was left out.{reason}")
    return values, notes


def find_vae(info: Infotext, library: Library) -> WantedVae | None:
    """The VAE a text names, by name and hash; None if it names none.

    The hash decides: a file of that hash is taken whatever it is called.  Files whose hash is not known yet are read
    for it, the ones of the same name first.
    """
    name, digits = info.fields.get("VAE", ""), info.fields.get("VAE hash", "").strip().lower()
    if name in (NONE, AUTOMATIC):
        return WantedVae(name, "")
    named = _get(library, name) if name else None
    if digits:
        return _found_by_hash(library, name, digits, named)
    if not name:
        return None
    if named is not None:
        return WantedVae(named.name, "", named)
    return WantedVae(None, f"The VAE {name} of that text is not here; the VAE stays as it is.")


def _found_by_hash(library: Library, name: str, digits: str, named: Entry | None) -> WantedVae:
    """The file of that hash, or the one of that name with a note that it is another file."""
    found = _by_hash(library, digits, named)
    if found is not None:
        note = "" if not name or found == named else _renamed(name, digits, found)
        return WantedVae(found.name, note, found)
    if named is not None:
        note = f"{named.name} here is another file than the one of that text, whose hash is {digits}; it is used."
        return WantedVae(named.name, note, named)
    asked = f"{name or 'The VAE'} (hash {digits})"
    return WantedVae(None, f"{asked} of that text is not here; the VAE stays as it is.")


def _renamed(name: str, digits: str, found: Entry) -> str:
    return f"The VAE {name} was found by its hash {digits}: here it is {found.name}."


def _numbers(key: str, text: str) -> dict[str, object]:
    chosen = {spec.infotext: spec for spec in TILING_SPECS}
    if key in chosen:
        return {chosen[key].name: chosen[key].check_text(text)}
    if key == "Size":
        match = SIZE.fullmatch(text.strip())
        if match is None:
            raise ValueError(text)
        return {"width": int(match[1]), "height": int(match[2])}
    if key in VAE_TYPES:
        return {VAE_TYPES[key]: text}
    if key in NUMBERS:
        name, convert = NUMBERS[key]
        return {name: convert(text)}
    return {}


def _checked(values: dict[str, object]) -> dict[str, object]:
    """`values` if a job may have them; raises `OptionError`."""
    jobs.make_job(Img2Img, {**values, "picture": "any"})
    return values


def _get(library: Library, name: str) -> Entry | None:
    try:
        return library.get(name)
    except VaeNotFoundError:
        return None


def _by_hash(library: Library, digits: str, named: Entry | None) -> Entry | None:
    """An entry whose sha256 begins with `digits`; hashes that are not known are worked out, one file at a time."""
    if named is not None and _hash_of(library, named).startswith(digits):
        return named
    known = library.find_by_hash(digits)
    if known is not None:
        return known
    unknown = (entry for entry in library.entries if entry.sha256 is None and entry.state == "ok")
    return next((entry for entry in unknown if _hash_of(library, entry).startswith(digits)), None)


def _hash_of(library: Library, entry: Entry) -> str:
    try:
        return library.sha256(entry)
    except VaeKitError:
        return ""
