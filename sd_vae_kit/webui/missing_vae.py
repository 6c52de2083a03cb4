"""Pasting parameters: their VAE is found by its hash, or the panel says that it is missing and where to get it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from sd_vae_kit.hosts.protocol import WebuiHost
from sd_vae_kit.settings.sections import AUTOMATIC, NONE
from sd_vae_kit.ui.markup import marked
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.webui.running import catalogue_service
from sd_vae_kit.wording import Sentence

NAMES = ("VAE", "SD VAE")
HASHES = ("VAE hash", "SD VAE hash")
NOT_HERE = Sentence.of("of that text is not here.")
OTHER_FILE = Sentence.of("of that text is another file than the one of that name here.")


def name_by_hash(host: WebuiHost, parameters: dict[str, str]) -> None:
    """Let pasted parameters name the file here that has the hash they speak of, whatever it is called there.

    Only hashes that are known count: pasting reads no file.
    """
    for name, digits in zip(NAMES, HASHES, strict=True):
        wanted = parameters.get(digits, "").strip().lower()
        found = host.library.find_by_hash(wanted) if wanted else None
        if found is not None and parameters.get(name) not in (None, found.name):
            parameters[name] = found.name


@dataclass(frozen=True)
class PastedVae:
    """The VAE that pasted parameters speak of.

    Attributes:
        name: Its file's name there, "None" or "Automatic"; empty if the text names none.
        digits: The beginning of its hash, in small letters; empty if the text has none.
    """

    name: str
    digits: str

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> PastedVae:
        """What the first key that is there says."""
        return cls(_first(parameters, NAMES), _first(parameters, HASHES).strip().lower())

    @property
    def is_file(self) -> bool:
        return self.name not in (NONE, AUTOMATIC) and bool(self.name or self.digits)

    @property
    def shown_name(self) -> str:
        return self.name or "The VAE"

    def problem(self, entries: Sequence[Entry]) -> Sentence | None:
        """Why none of these files is it; None if one is or may be. Where no hash is known, the name counts."""
        if self.digits and any((entry.sha256 or "").startswith(self.digits) for entry in entries):
            return None
        named = next((entry for entry in entries if self.name in (entry.name, entry.path.name)), None)
        if named is None:
            return NOT_HERE
        return OTHER_FILE if self.digits and named.sha256 is not None else None


def message(host: WebuiHost, parameters: Mapping[str, str]) -> str:
    """HTML for the panel after a paste; "" where the text names no VAE or one that is here.

    Nothing is read for it: a file whose hash was never worked out is looked for by its name only.
    """
    service, wanted = catalogue_service(), PastedVae.of(parameters)
    problem = wanted.problem(host.library.entries) if service is not None and wanted.is_file else None
    if service is None or problem is None:
        return ""
    entry, hint = service.gallery.missing(wanted.digits)
    # the panel may be closed
    host.base.messages.notice(f"{wanted.shown_name} of that text is not here. {hint}".strip())
    digits = f"<code>{escape(wanted.digits)}</code>" if wanted.digits else ""
    link = f'<a href="#" data-vae-kit-entry="{escape(entry)}">Install it</a>' if entry else ""
    parts = (f"<b>{escape(wanted.shown_name)}</b>", digits, marked(problem), marked(hint), link)
    return f'<p class="vae-kit-warning">{" ".join(filter(None, parts))}</p>'


def _first(parameters: Mapping[str, str], keys: Sequence[str]) -> str:
    return next((parameters[key] for key in keys if parameters.get(key)), "")
