"""One host per web UI; `detect_host` says which one this process is."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sd_vae_kit.hosts.host_names import HostName, names_for

if TYPE_CHECKING:
    from sd_vae_kit.hosts.messages import Outlet
    from sd_vae_kit.hosts.protocol import WebuiHost

# without these nothing can be asked of a web UI
NEEDED = tuple(names_for("", "modules.shared", "opts.data", "opts.data_labels", "cmd_opts")) + tuple(
    names_for("", "modules.paths", "data_path")
)

NEO_SIGNS = (HostName("modules.sd_vae", "restore_vae_weights", ""), HostName("modules.shared", "cmd_opts.vae_dirs", ""))


def detect_host(outlet: Outlet) -> WebuiHost | None:
    """The host for the web UI this process runs; None where none fits, so that we step aside.

    Args:
        outlet: Where its lines go.
    """
    create = _find_create()
    if create is None:
        return None
    missing = [str(name) for name in NEEDED if not name.is_there]
    if missing:
        outlet.show(f"This web UI has no {' and '.join(missing)}, so VAE Kit is switched off.", "error")
        return None
    return create(outlet)


def _find_create() -> Callable[[Outlet], WebuiHost] | None:
    """How the host is made, by what the web UI has, not by its name.

    Where the `backend` package loads models, `modules.sd_vae` is a stub; where diffusers pipelines are the models,
    `modules.modeldata` holds them.
    """
    if find_spec("modules") is None or find_spec("modules.sd_vae") is None:
        return None
    if find_spec("backend") is not None and find_spec("modules_forge") is not None:
        from sd_vae_kit.hosts.forge import host as forge
        from sd_vae_kit.hosts.forge import neo as forge_neo

        is_neo = any(sign.is_there for sign in NEO_SIGNS)
        return forge_neo.create if is_neo else forge.create
    if find_spec("modules.modeldata") is not None and find_spec("modules.options_handler") is not None:
        from sd_vae_kit.hosts.sdnext import host as sdnext

        return sdnext.create
    if find_spec("modules.sd_hijack") is None:
        return None
    if find_spec("modules_forge") is not None and find_spec("modules_forge.main_thread") is not None:
        from sd_vae_kit.hosts.a1111 import reforge

        return reforge.create
    from sd_vae_kit.hosts.a1111 import host as a1111

    return a1111.create
