"""The VAE in Forge's infotexts: the web UI keeps "VAE" for its modules and writes neither name nor hash itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from modules import shared

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.a1111.listing import VaeListing
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.forge.page import SdVaeOption
from sd_vae_kit.pictures.infotext import parse_fields
from sd_vae_kit.settings.sections import AUTOMATIC, NONE

VAE_FIELD = re.compile(r'(?:^|(?<=,))\s*(?:SD )?VAE:\s*(?:"(?:\\.|[^\\"])*"|[^,]*),?')


class ForgeInfotext:
    """Forge's `InfotextNames`, and the way back from a pasted text.

    Args:
        base: What the host's parts share.
        option: Knows the key.
        listing: Knows name and hash of the live VAE.
    """

    def __init__(self, base: HostBase, option: SdVaeOption, listing: VaeListing) -> None:
        self._base = base
        self._option = option
        self._listing = listing

    def install(self) -> None:
        """Put the patch in place."""
        if self._base.options.features.has("infotext"):
            from modules import infotext_utils

            wrap = self._base.patches.wrap
            wrap(infotext_utils, "parse_generation_parameters", self._parse_generation_parameters)

    def write(self, p: Any) -> None:
        """The web UI has both lines in its infotext commented out (processing.py:756)."""
        self._listing.write(p)
        key, opts = self._option.infotext_key, shared.opts
        p.extra_generation_params[f"{key} hash"] = (
            p.sd_vae_hash if getattr(opts, "add_vae_hash_to_info", True) else None
        )
        p.extra_generation_params[key] = p.sd_vae_name if getattr(opts, "add_vae_name_to_info", True) else None

    def _parse_generation_parameters(
        self, original: Callable[..., dict[str, Any]], text: str, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """The web UI takes "VAE" for a module and would load the checkpoint again; a VAE we know is SD VAE's."""
        name = self._vae_in(text)
        if name is None:
            return original(text, *args, **kwargs)
        parameters = original(without_vae(text), *args, **kwargs)
        skipped = args[0] if args else kwargs.get("skip_fields")
        key = self._option.infotext_key
        if key not in (shared.opts.infotext_skip_pasting if skipped is None else skipped):
            parameters[key] = name
        return parameters

    def _vae_in(self, text: str) -> str | None:
        """Our name of the VAE a text speaks of, by its name or else by its hash."""
        fields, key, library = parse_fields(text.strip().split("\n")[-1]), self._option.infotext_key, self._base.library
        named = fields.get(key) or fields.get("VAE")
        if named is None or named in (AUTOMATIC, NONE):
            return named
        try:
            return library.get(named).name
        except VaeKitError:
            found = library.find_by_hash(fields.get(f"{key} hash") or fields.get("VAE hash", ""))
            return found.name if found else None


def without_vae(text: str) -> str:
    """The text without the name of its VAE, hash and all else left in place."""
    *lines, last = text.strip().split("\n")
    return "\n".join([*lines, VAE_FIELD.sub("", last)])
