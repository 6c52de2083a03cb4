"""Which VAE is chosen in Forge, and how it is made live: the engine's VAE is exchanged in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from modules import sd_models, sd_vae

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.choice import RuleDecider
from sd_vae_kit.hosts.models import ModelRegistry
from sd_vae_kit.hosts.parts import Decider
from sd_vae_kit.settings.sections import AUTOMATIC
from sd_vae_kit.vaes.choice import Decision
from sd_vae_kit.wording import Sentence

LOADED_BY_THE_WEB_UI = Decision(None, "own", Sentence.of("Loading is left to the web UI."))


class ForgeDecider:
    """Chooses for the model in use; a VAE chosen under VAE / Text Encoder counts as the checkpoint's own.

    Args:
        base: What the host's parts share.
        rules: The rules that all web UIs share.
    """

    def __init__(self, base: HostBase, rules: RuleDecider) -> None:
        self._base = base
        self._rules = rules
        self._modules: tuple[str, ...] = ()  # of the model in use: files merged into it by the web UI's own way

    def note_modules(self) -> None:
        """Note with which modules the model was loaded."""
        parameters = getattr(getattr(sd_models, "model_data", None), "forge_loading_parameters", {})
        self._modules = tuple(parameters.get("additional_modules") or ())

    def decide(self, checkpoint_file: str) -> Decision:
        """By the rules; a module was chosen by hand, so with SD VAE on Automatic it goes before card and neighbour."""
        decision = self._rules.decide(checkpoint_file)
        module = self._vae_module()
        if module is None:
            return decision
        if self._base.options.settings.vae.sd_vae == AUTOMATIC and decision.rule in ("card", "beside", "own"):
            words = "Automatic: {} is chosen under VAE / Text Encoder, which makes it the checkpoint's own VAE."
            return Decision(None, "module", Sentence.of(words, module))
        if decision.entry is None:
            reason = Sentence.of("{} That is {} from VAE / Text Encoder.", decision.reason, module)
            return Decision(None, decision.rule, reason)
        return decision

    def _vae_module(self) -> str | None:
        """Name of the VAE among the model's modules."""
        entries = self._base.library.entries
        listed = {entry.path.resolve(): entry.name for entry in entries if entry.kind == "kl"}
        names = (listed.get(Path(module).resolve()) for module in self._modules)
        return next((name for name in names if name), None)


class ForgeSwitch:
    """Makes VAEs live; it is the `VaeSwitch` of Forge.

    Args:
        base: What the host's parts share.
        registry: The models and their swappers.
        decider: Which VAE is chosen.
    """

    def __init__(self, base: HostBase, registry: ModelRegistry, decider: Decider) -> None:
        self._base = base
        self._registry = registry
        self._decider = decider

    @property
    def knows_vae(self) -> bool:
        """Whether the VAE of the model in use is one that we can exchange; True while there is no model."""
        model = self._registry.loaded.current
        return model is None or self._registry.swapper(model) is not None

    def apply(self) -> None:
        model, repairs = self._registry.loaded.current, self._base.options.repairs
        if model is None:
            return
        swapper = self._registry.swapper(model)
        decision = self._decider.decide("") if repairs.loading else LOADED_BY_THE_WEB_UI
        if swapper is None:
            self._registry.refuse_foreign(decision)
            return
        # models are loaded, and this is called, in inference mode: what the swapper remembers must outlive it
        with torch.inference_mode(False):
            active = swapper.activate(decision)
        entry = active.decision.entry
        sd_vae.loaded_vae_file = str(entry.path) if entry else None  # the web UI makes names of files from it

    def apply_or_say(self) -> None:
        """As `apply` where nobody waits for an error: one line says it, the live VAE stays."""
        try:
            self.apply()
        except VaeKitError as error:
            self.say_it_stays(error)

    def say_it_stays(self, error: VaeKitError) -> None:
        """Say that the VAE which was chosen cannot be used."""
        self._base.messages.notify(f"{str(error).rstrip('.')}. The VAE stays as it is.", "warning")


class StubbedLoading:
    """`modules.sd_vae.reload_vae_weights`, a stub in Forge, called when a related option changed and after X/Y/Z plots.

    Args:
        base: What the host's parts share.
        switch: Makes VAEs live.
    """

    def __init__(self, base: HostBase, switch: ForgeSwitch) -> None:
        self._base = base
        self._switch = switch

    def install(self) -> None:
        """Put the patch in place."""
        if self._base.options.features.has("requests"):
            self._base.patches.wrap(sd_vae, "reload_vae_weights", self._reload_vae_weights)

    def _reload_vae_weights(self, original: Callable[..., object], *args: Any, **kwargs: Any) -> object:
        self._switch.apply_or_say()
        return None
