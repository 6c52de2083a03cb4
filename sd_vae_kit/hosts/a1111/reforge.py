"""reForge and Forge Classic: A1111's `modules.sd_vae`, but a chosen VAE is loaded by another thread.

Written from the sources of reForge (3b56b268) and Forge Classic (1f95d717), modules_forge/main_thread.py: an error
there is only printed, and the option that led to it keeps the refused value.
"""

from __future__ import annotations

from collections.abc import Callable

from modules import call_queue, sd_vae, shared

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.a1111.host import CORE_OPTIONS, build
from sd_vae_kit.hosts.a1111.names import REFORGE_NAMES
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.messages import DeferredErrors, Outlet
from sd_vae_kit.hosts.protocol import WebuiHost

CHOICES = ("sd_vae", "sd_vae_overrides_per_model_preferences")


class ReforgePage:
    """A1111's page, with errors of a choice brought back to the thread that made it.

    Args:
        base: What the host's parts share.
        deferred: Where `Options.set` looks for errors.
    """

    core_options = CORE_OPTIONS
    sees_passes = True
    quicksettings_key = "quicksettings_list"

    def __init__(self, base: HostBase, deferred: DeferredErrors) -> None:
        self._base = base
        self._deferred = deferred

    def install(self) -> None:
        if not self._base.options.features.has("page"):
            return
        for key in CHOICES:
            option = shared.opts.data_labels.get(key)
            if option is not None and getattr(option, "onchange", None) is not None:
                self._base.patches.wrap(option, "onchange", self._on_choice_changed)

    def declare_sd_vae(self, dropdown: type) -> None:
        """The web UI has the option."""

    def own_routes(self) -> dict[str, Callable[[], object]]:
        return {}

    def remove(self) -> None:
        """Nothing was declared."""

    def _on_choice_changed(self, original: Callable[[], object]) -> None:
        """Load where the web UI loads, and hand an error over to the thread that waits."""
        from modules_forge import main_thread

        with call_queue.queue_lock:
            errors: list[VaeKitError] = main_thread.run_and_wait_result(self._load) or []
        for error in errors:
            self._deferred.add(error)

    def _load(self) -> list[VaeKitError]:
        with self._deferred.collected() as errors:  # of the web UI's loading thread
            sd_vae.reload_vae_weights()
        return errors


def create(outlet: Outlet) -> WebuiHost:
    """The host of this process."""
    return build(outlet, "reForge", REFORGE_NAMES, ReforgePage)
