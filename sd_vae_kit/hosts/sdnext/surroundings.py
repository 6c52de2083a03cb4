"""What SD.Next does around VAEs and panels by itself: its own tiling, and a tab with a list of extensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.messages import HostMessages

PANELS = ("VAE Kit",)  # titles of our scripts


class ControlTab:
    """The tab Control, for which the web UI loads only extensions on a list of its own.

    Args:
        base: What the host's parts share.
    """

    def __init__(self, base: HostBase) -> None:
        self._features = base.options.features

    def install(self) -> None:
        """Put our panel on the list."""
        if self._features.has("control"):
            from modules import scripts_manager

            for title in PANELS:
                if title not in scripts_manager.control_extensions:
                    scripts_manager.control_extensions.append(title)


class TiledByHost:
    """What happens around a call of `AutoencoderKL.<name>(vae, x)`: the web UI's own tiling is said once.

    Args:
        messages: Say it.
    """

    def __init__(self, messages: HostMessages) -> None:
        self._messages = messages

    def __call__(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if getattr(args[0], "use_tiling", False):
            line = (
                "SD.Next cuts the VAE into tiles itself, which is not exact; switch off VAE tiling in its settings "
                "(diffusers_vae_tiling), and VAE Kit gives the exact picture in as little memory."
            )
            self._messages.notify_once(line, "warning")
        return original(*args, **kwargs)
