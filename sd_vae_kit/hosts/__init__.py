"""One Host per program; `detect_host` says which web UI this process is."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sd_vae_kit.hosts.base import WebuiHost


def detect_host() -> WebuiHost | None:
    """The adapter for the web UI this process runs; None where no adapter fits, so that we step aside.

    Asked for by what the program has, not by its name: where the `backend` package loads models, `modules.sd_vae` is
    a stub; where diffusers pipelines are the models, `modules.modeldata` holds them.
    """
    if find_spec("modules") is None or find_spec("modules.sd_vae") is None:
        return None
    if find_spec("backend") is not None and find_spec("modules_forge") is not None:
        from modules import sd_vae

        from sd_vae_kit.hosts.forge import host as forge
        from sd_vae_kit.hosts.forge import neo as forge_neo

        return forge_neo.create() if hasattr(sd_vae, "restore_vae_weights") else forge.create()
    if find_spec("modules.modeldata") is not None and find_spec("modules.options_handler") is not None:
        from sd_vae_kit.hosts.sdnext import host as sdnext

        return sdnext.create()
    if find_spec("modules.sd_hijack") is None:
        return None
    if find_spec("modules_forge") is not None and find_spec("modules_forge.main_thread") is not None:
        from sd_vae_kit.hosts.a1111 import reforge

        return reforge.create()
    from sd_vae_kit.hosts.a1111 import host as a1111

    return a1111.create()
