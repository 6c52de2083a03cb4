"""Pasting parameters: their VAE is found by its hash, or the panel says that it is missing and where to get it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from sd_vae_kit.hosts.base import WebuiHost
from sd_vae_kit.settings.sections import AUTOMATIC, NONE
from sd_vae_kit.ui.markup import marked
from sd_vae_kit.webui.vae_page import service_of

NAMES = ("VAE", "SD VAE")
HASHES = ("VAE hash", "SD VAE hash")


def name_by_hash(host: WebuiHost, parameters: dict[str, str]) -> None:
    """Let pasted parameters name the file here that has the hash they speak of, whatever it is called there.

    Only hashes that are known count: pasting reads no file.
    """
    for name, digits in zip(NAMES, HASHES, strict=True):
        wanted = parameters.get(digits, "").strip().lower()
        found = host.library.find_by_hash(wanted) if wanted else None
        if found is not None and parameters.get(name) not in (None, found.name):
            parameters[name] = found.name


def message(host: WebuiHost, parameters: Mapping[str, str]) -> str:
    """HTML for the panel after a paste; "" where the text names no VAE or one that is here.

    Nothing is read for it: a file whose hash was never worked out is looked for by its name only.
    """
    name = next((parameters[key] for key in NAMES if parameters.get(key)), "")
    digits = next((parameters[key] for key in HASHES if parameters.get(key)), "").strip().lower()
    service = service_of(host)
    if service is None or name in (NONE, AUTOMATIC) or not (name or digits):
        return ""
    if any(digits and (entry.sha256 or "").startswith(digits) for entry in host.library.entries):
        return ""
    named = next((entry for entry in host.library.entries if entry.name == name or entry.path.name == name), None)
    if named is not None and (not digits or named.sha256 is None):
        return ""
    entry, line = service.gallery.missing(digits)
    asked = f"<b>{escape(name or 'The VAE')}</b>" + (f" <code>{escape(digits)}</code>" if digits else "")
    other = "<span>of that text is another file than the one of that name here.</span>"
    said = other if named is not None else "<span>of that text is not here.</span>"
    host.page_notice(f"{name or 'The VAE'} of that text is not here. {line}".strip())  # the panel may be closed
    link = f' <a href="#" data-vae-kit-entry="{escape(entry)}">Install it</a>' if entry else ""
    hint = f" {marked(line)}" if line else ""
    return f'<p class="vae-kit-warning">{asked} {said}{hint}{link}</p>'
