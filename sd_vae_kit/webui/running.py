"""The one adapter of this process, made when the first script is loaded and kept over Reload UI."""

from __future__ import annotations

from modules import shared

from sd_vae_kit.hosts import detect_host
from sd_vae_kit.hosts.base import WebuiHost

_ATTRIBUTE = "vae_kit_host"  # on the host's own object, so that nothing of ours has to be imported twice


def running() -> WebuiHost | None:
    """The adapter, None if the extension is switched off or knows no way with this web UI."""
    return getattr(shared, _ATTRIBUTE, None)


def start() -> WebuiHost | None:
    """Make the adapter at the first call, and put its patches in place."""
    if getattr(shared.cmd_opts, "vae_kit_disable", False):
        return None
    host = running() or detect_host()
    setattr(shared, _ATTRIBUTE, host)
    if host is not None:
        host.install()
    return host
