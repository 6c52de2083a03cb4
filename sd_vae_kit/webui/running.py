"""The one host of this process, made when the first script is loaded and kept over Reload UI."""

from __future__ import annotations

from dataclasses import dataclass

from modules import shared

from sd_vae_kit.hosts import detect_host
from sd_vae_kit.hosts.protocol import WebuiHost
from sd_vae_kit.web.catalogue_service import CatalogueService
from sd_vae_kit.webui.catalogue import make_service
from sd_vae_kit.webui.messages import outlet

_ATTRIBUTE = "vae_kit_running"  # on the web UI's own object, so that nothing of ours has to be imported twice


@dataclass(frozen=True)
class Running:
    """What runs in this process.

    Attributes:
        host: The web UI.
        catalogue: The service behind the tab; None where the web UI looks after its files itself.
    """

    host: WebuiHost
    catalogue: CatalogueService | None


def running() -> WebuiHost | None:
    """The host, None if the extension is switched off or knows no way with this web UI."""
    found = _running()
    return found.host if found is not None else None


def catalogue_service() -> CatalogueService | None:
    """The service behind the tab, None where there is no tab."""
    found = _running()
    return found.catalogue if found is not None else None


def start() -> WebuiHost | None:
    """Make the host at the first call, and put its patches in place."""
    if getattr(shared.cmd_opts, "vae_kit_disable", False):
        return None
    if _running() is None:
        host = detect_host(outlet())
        setattr(shared, _ATTRIBUTE, Running(host, make_service(host)) if host is not None else None)
    host = running()
    if host is not None:
        host.install()
    return host


def _running() -> Running | None:
    return getattr(shared, _ATTRIBUTE, None)
