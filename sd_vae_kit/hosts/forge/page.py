"""The option SD VAE in Forge: the web UI's placeholder becomes a dropdown, and its settings page saves it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules import sd_vae, shared

from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.settings.sections import AUTOMATIC

CORE_OPTIONS = ("sd_vae", "sd_vae_encode_method", "sd_vae_decode_method", "show_progress_type")
QUICKSETTINGS = ("quick_setting_list", "quicksettings_list")  # Forge's and Neo's
OWN_KEY = "SD VAE"  # infotext key where the web UI keeps "VAE" for its modules


@dataclass(frozen=True)
class Dropdown:
    """What the dropdown shows and does.

    Attributes:
        choices: Names of VAEs.
        refresh: Looks for new and changed files.
        changed: Makes the choice live.
    """

    choices: Callable[[], list[str]]
    refresh: Callable[[], None]
    changed: Callable[[], None]


class SdVaeOption:
    """The web UI's declaration of sd_vae, kept while ours takes its place."""

    def __init__(self) -> None:
        self._own: object = None

    @property
    def infotext_key(self) -> str:
        """The key for the name of the VAE: "VAE" where the web UI declares it for sd_vae."""
        declared = self._own or shared.opts.data_labels["sd_vae"]
        return getattr(declared, "infotext", None) or OWN_KEY

    def declare(self, component: type, dropdown: Dropdown) -> None:
        """Put a dropdown in the placeholder's place."""
        if self._own is None:
            self._own = shared.opts.data_labels["sd_vae"]
        ours: Any = copy.copy(self._own)
        ours.label, ours.default, ours.infotext = "SD VAE", AUTOMATIC, self.infotext_key
        ours.component, ours.component_args = component, lambda: {"choices": dropdown.choices()}
        ours.refresh, ours.onchange = dropdown.refresh, dropdown.changed
        shared.opts.add_option("sd_vae", ours)

    def restore(self) -> None:
        """Put the web UI's own declaration back."""
        if self._own is not None:
            shared.opts.data_labels["sd_vae"], self._own = self._own, None


class ForgePage:
    """Forge's `HostPage`.

    Args:
        base: What the host's parts share.
        option: The web UI's declaration of sd_vae.
        dropdown: What ours shows and does.
    """

    core_options = CORE_OPTIONS
    sees_passes = True

    def __init__(self, base: HostBase, option: SdVaeOption, dropdown: Dropdown) -> None:
        self._base = base
        self._option = option
        self._dropdown = dropdown

    @property
    def quicksettings_key(self) -> str:
        return next((name for name in QUICKSETTINGS if name in shared.opts.data_labels), QUICKSETTINGS[0])

    def install(self) -> None:
        """The web UI makes this class anew on Reload UI."""
        if self._base.options.features.has("page"):
            from modules import ui_settings

            self._base.patches.wrap(ui_settings.UiSettings, "run_settings", self._run_settings)

    def declare_sd_vae(self, dropdown: type) -> None:
        self._option.declare(dropdown, self._dropdown)

    def own_routes(self) -> dict[str, Callable[[], object]]:
        return {"/sdapi/v1/sd-vae": lambda: [{"model_name": k, "filename": v} for k, v in sd_vae.vae_dict.items()]}

    def remove(self) -> None:
        self._option.restore()

    def _run_settings(self, original: Callable[..., Any], page: Any, *values: Any) -> Any:
        """Apply on the settings page: the web UI passes over sd_vae there (ui_settings.py:88)."""
        for key, value, component in zip(shared.opts.data_labels, values, page.components, strict=False):
            if key == "sd_vae" and component != page.dummy_component:
                shared.opts.set(key, value)
        return original(page, *values)
