"""How SD.Next loads a VAE: the weights of `pipe.vae` change in place; what nobody here knows is left to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules import sd_vae

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.messages import DeferredErrors
from sd_vae_kit.hosts.models import ModelRegistry
from sd_vae_kit.hosts.parts import Decider
from sd_vae_kit.vaes.choice import Decision
from sd_vae_kit.wording import Sentence

OWN = Decision(None, "own", Sentence.of("The web UI looks after the VAE that was chosen."))
BY_RULES = object()  # in place of the web UI's own mark for "no file was named"


class SdNextLoader:
    """Makes VAEs live; it is the `VaeSwitch` of SD.Next.

    Args:
        base: What the host's parts share.
        registry: The models and their swappers.
        decider: Which VAE is chosen.
        deferred: Errors of a caller that cannot take one.
    """

    def __init__(self, base: HostBase, registry: ModelRegistry, decider: Decider, deferred: DeferredErrors) -> None:
        self._base = base
        self._registry = registry
        self._decider = decider
        self._deferred = deferred

    def install(self) -> None:
        """Put the patches in place; the web UI has listed its VAEs before it loads any extension (webui.py:87)."""
        features, wrap = self._base.options.features, self._base.patches.wrap
        if features.has("listing"):
            wrap(sd_vae, "refresh_vae_list", self._refresh_vae_list)
        if features.has("loading"):
            wrap(sd_vae, "reload_vae_weights", self._reload_vae_weights)
            wrap(sd_vae, "load_vae", self._load_vae)
        if not self._base.library.entries:
            self._base.library.refresh()

    def refresh(self) -> None:
        """Look for new and changed files."""
        if self._base.options.features.has("listing"):
            sd_vae.refresh_vae_list()
        else:
            self._base.library.refresh()

    def apply(self) -> None:
        model, repairs = self._registry.loaded.current, self._base.options.repairs
        if model is None or not repairs.loading:
            return
        swapper = self._registry.swapper(model)
        decision = self._decider.decide(model.sd_checkpoint_info.filename)
        if swapper is None:
            self._registry.refuse_foreign(decision)
            return
        active = swapper.activate(decision)
        entry = active.decision.entry
        sd_vae.loaded_vae_file = str(entry.path) if entry else None  # named in infotexts and messages

    def model_loaded(self) -> None:
        """Put the VAE that is chosen over the checkpoint's own, now that it is loaded.

        The web UI itself chooses one for Stable Diffusion only (sd_models.py:950).
        """
        model = self._registry.loaded.current
        if model is None or not self._is_for_us(model):
            return
        try:
            self.apply()
        except VaeKitError as error:
            line = f"{str(error).rstrip('.')}. The checkpoint's own VAE is used instead."
            self._base.messages.notify(line, "warning")

    def _refresh_vae_list(self, original: Callable[[], object]) -> object:
        listed = original()
        self._base.library.refresh()
        return listed

    def _load_vae(self, original: Callable[..., object], model_file: str, vae_file: Any = None, *source: Any) -> object:
        """While a checkpoint loads: its own VAE is loaded with it, so that it can be given back later."""
        if vae_file is None or not self._base.options.repairs.loading or not Path(vae_file).is_file():
            return original(model_file, vae_file, *source)
        return None

    def _reload_vae_weights(
        self, original: Callable[..., object], sd_model: Any = None, vae_file: Any = BY_RULES
    ) -> object:
        """Make the VAE live that is chosen now.

        Raises:
            VaeKitError: As `HostMessages.refused` shapes it; nothing has changed.
        """
        by_rules = vae_file is BY_RULES or vae_file is getattr(sd_vae, "unspecified", BY_RULES)
        model = self._registry.loaded.current
        if not by_rules:
            return original(sd_model, vae_file)
        if model is None:
            return original(sd_model)
        if not self._is_for_us(model):
            self._give_back(model)
            return original(sd_model)
        own = getattr(model, "original_vae", None)
        if own is not None and own is not model.vae:
            original(sd_model, None)  # it took a folder's VAE: back to the checkpoint's, over which a file is put
        try:
            self.apply()
        except VaeKitError as error:
            self._deferred.add(error)
        return model

    def _is_for_us(self, model: Any) -> bool:
        """Whether the choice is a file, or none, for a VAE that we know; a folder of diffusers is the web UI's."""
        if not self._base.options.features.has("loading"):
            return False
        path, _ = sd_vae.resolve_vae(model.sd_checkpoint_info.filename)
        known = self._base.options.repairs.loading and self._registry.swapper(model) is not None
        return known and (path is None or Path(path).is_file())

    def _give_back(self, model: Any) -> None:
        """Let the checkpoint's own weights be live: the web UI keeps the module as the one to come back to."""
        swapper = self._registry.swapper(model)
        if swapper is not None and swapper.active is not None:
            swapper.activate(OWN)
            sd_vae.loaded_vae_file = None
