"""Forge Neo, told by `modules.sd_vae.restore_vae_weights`: it swaps by itself for one request, by full path only.

Written from its source (2.26).  Its `process_images` takes `override_settings.sd_vae` out of the options, calls
`reload_vae_weights(path)` and after the request `restore_vae_weights()`; names, "Automatic" and files of other layouts
fail there.  Both are ours here; the setting SD VAE, which it shows greyed out, works as in Forge.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules import sd_vae, shared

from sd_vae_kit.hosts.a1111.host import data_folder, folders
from sd_vae_kit.hosts.forge.host import ForgeHost
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder


class NeoHost(ForgeHost):
    """Forge Neo."""

    name = "Forge Neo"

    def __init__(self, library: Library) -> None:
        super().__init__(library)
        self._request_choice: str | None = None  # of override_settings.sd_vae

    def install(self) -> None:
        super().install()
        self._replace(sd_vae, "restore_vae_weights", self._restore_vae_weights)

    def option(self, key: str, default: object = None) -> object:
        if key == "sd_vae" and self._request_choice is not None:
            return self._request_choice
        return super().option(key, default)

    def _reload_vae_weights(self, original: Callable[..., object], *args: Any, **kwargs: Any) -> object:
        """A request names a VAE; it is made live when the request begins.

        Returns:
            False: the program has nothing to do itself, and no module to write into the infotext.
        """
        wanted = args[0] if args else kwargs.get("vae")
        self._request_choice = self._name_for(str(wanted)) if wanted else None
        return False

    def _restore_vae_weights(self, original: Callable[[], None]) -> None:
        """The request is over, also one that failed."""
        if self._request_choice is not None:
            self._request_choice = None
            self._settle()

    def _name_for(self, wanted: str) -> str:
        """Our name for what was given: a name, "None", "Automatic" or, as the program asks for, a path."""
        at_path = (entry.name for entry in self.library.entries if str(entry.path) == wanted)
        return next(at_path, wanted)

    def _is_asked_for_by(self, p: Any) -> bool:
        return self._request_choice is not None


def create() -> NeoHost:
    """The adapter for this process."""
    further = [Folder(Path(folder), "vae") for folder in getattr(shared.cmd_opts, "vae_dirs", None) or ()]
    return NeoHost(Library([*folders(), *further], data_folder() / "library.json"))
