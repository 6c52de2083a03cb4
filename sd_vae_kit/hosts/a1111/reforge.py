"""reForge and Forge Classic: A1111's `modules.sd_vae`, but a chosen VAE is loaded by another thread.

Written from the sources of reForge (3b56b268) and Forge Classic (1f95d717), modules_forge/main_thread.py: an error
there is only printed, and the option that led to it keeps the refused value.
"""

from __future__ import annotations

from collections.abc import Callable

from modules import call_queue, sd_vae, shared
from modules_forge import main_thread

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.a1111.host import A1111Host, data_folder, folders
from sd_vae_kit.hosts.base import collected
from sd_vae_kit.vaes.library import Library

CHOICES = ("sd_vae", "sd_vae_overrides_per_model_preferences")


class ReforgeHost(A1111Host):
    """A1111's adapter, with errors of a choice brought back to the thread that made it."""

    name = "reForge"
    faultless = frozenset({"nan_check", "sticky_fp32"})  # it does not look for NaN at all

    def install_page(self) -> None:
        for key in CHOICES:
            option = shared.opts.data_labels.get(key)
            if option is not None and getattr(option, "onchange", None) is not None:
                self._replace(option, "onchange", self._on_choice_changed)

    def _on_choice_changed(self, original: Callable[[], object]) -> None:
        """Load where the program loads, and put an error aside where `_set_option` looks for it."""
        with call_queue.queue_lock:
            errors: list[VaeKitError] = main_thread.run_and_wait_result(self._load) or []
        aside: list[VaeKitError] | None = getattr(self._errors, "errors", None)
        if errors and aside is None:
            raise self.refusal(errors[0]) from errors[0]
        if aside is not None:
            aside.extend(errors)

    def _load(self) -> list[VaeKitError]:
        with collected(self._errors) as errors:  # of the program's loading thread
            sd_vae.reload_vae_weights()
        return errors


def create() -> ReforgeHost:
    """The adapter for this process."""
    return ReforgeHost(Library(folders(), data_folder() / "library.json"))
