"""Takes requests that were written for the old "Tiled VAE" extension, where that is not installed itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from modules import scripts

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.multidiffusion_compat import DEFAULTS, tile_sizes
from sd_vae_kit.webui.running import running

OLD_FILE = "tilevae.py"


class TiledVaeScript(scripts.Script):
    """An entry of `alwayson_scripts` named "Tiled VAE"; on the page there is nothing to see of it."""

    def title(self) -> str:
        return "Tiled VAE"

    def show(self, is_img2img: bool) -> object:
        return scripts.AlwaysVisible if running() and not is_installed() else False

    def ui(self, is_img2img: bool) -> list[Any]:
        """The arguments in the old extension's order, for the host to know how many there are."""
        kinds: dict[type, Any] = {bool: gr.Checkbox, int: gr.Number}
        return [kinds[type(value)](value=value, visible=False) for value in DEFAULTS]

    def process(self, p: Any, *arguments: object) -> None:
        host = running()
        if host is None:
            return
        try:
            host.interceptor.settings.choose_tile_sizes(tile_sizes(arguments))
        except VaeKitError as error:
            host.base.messages.notify(str(error), "error")


def is_installed() -> bool:
    """Whether the old extension is here, loaded or about to be."""
    loaded = (Path(str(getattr(data, "path", ""))).name for data in scripts.scripts_data)
    return OLD_FILE in loaded
