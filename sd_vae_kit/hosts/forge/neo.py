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

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.a1111.folders import data_folder, folders
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.forge.host import ForgeKind, build
from sd_vae_kit.hosts.forge.names import NEO_NAMES
from sd_vae_kit.hosts.forge.options import VaeInForce
from sd_vae_kit.hosts.forge.switch import ForgeSwitch
from sd_vae_kit.hosts.messages import Outlet
from sd_vae_kit.hosts.protocol import WebuiHost
from sd_vae_kit.settings.sections import AUTOMATIC, NONE
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder


class NeoRequests:
    """The VAE of one request.

    Args:
        base: What the host's parts share.
        switch: Makes VAEs live.
        in_force: Where the request's choice is written.
    """

    def __init__(self, base: HostBase, switch: ForgeSwitch, in_force: VaeInForce) -> None:
        self._base = base
        self._switch = switch
        self._in_force = in_force
        self._is_hosts = False  # the running request's VAE was put over a VAE that nobody here knows

    def install(self) -> None:
        """Put the patches in place."""
        if self._base.options.features.has("requests"):
            self._base.patches.wrap(sd_vae, "reload_vae_weights", self._reload_vae_weights)
            self._base.patches.wrap(sd_vae, "restore_vae_weights", self._restore_vae_weights)

    def _reload_vae_weights(self, original: Callable[..., object], *args: Any, **kwargs: Any) -> object:
        """Note the VAE that a request names; it is made live when the request begins.

        Returns:
            False where the web UI has nothing to do itself, and no module to write into the infotext.

        Raises:
            VaeKitError: As `HostMessages.refused` shapes it: there is no such file.
        """
        wanted = args[0] if args else kwargs.get("vae")
        self._in_force.request = None
        if not wanted:
            return False
        if self._switch.knows_vae:
            self._in_force.request = self._name_for(str(wanted))
            return False
        if wanted in (AUTOMATIC, NONE):
            return False
        self._is_hosts = True
        return original(self._path_for(str(wanted)))

    def _restore_vae_weights(self, original: Callable[[], None]) -> None:
        """The request is over, also one that failed."""
        if self._is_hosts:
            self._is_hosts = False
            original()
        if self._in_force.request is not None:
            self._in_force.request = None
            self._switch.apply_or_say()

    def _name_for(self, wanted: str) -> str:
        """Our name for what was given: a name, "None", "Automatic" or, as the web UI asks for, a path."""
        at_path = (entry.name for entry in self._base.library.entries if str(entry.path) == wanted)
        return next(at_path, wanted)

    def _path_for(self, wanted: str) -> str:
        """A path as the web UI wants it, for a path or one of our names."""
        if Path(wanted).is_file():
            return wanted
        try:
            return str(self._base.library.get(wanted).path)
        except VaeKitError as error:
            raise self._base.messages.refused(error) from error


def create(outlet: Outlet) -> WebuiHost:
    """The host of this process."""
    further = [Folder(Path(folder), "vae") for folder in getattr(shared.cmd_opts, "vae_dirs", None) or ()]
    library = Library([*folders(), *further], data_folder() / "library.json")
    return build(outlet, ForgeKind("Forge Neo", NEO_NAMES, library, NeoRequests))
