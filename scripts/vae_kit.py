"""Entry point for web UIs.  The host runs this file again on Reload UI; everything else lives in sd_vae_kit."""

from sd_vae_kit.webui import callbacks
from sd_vae_kit.webui.script import VaeKitScript
from sd_vae_kit.webui.tiled_vae_script import TiledVaeScript

callbacks.register()

__all__ = ["TiledVaeScript", "VaeKitScript"]
