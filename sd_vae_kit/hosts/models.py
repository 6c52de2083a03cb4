"""The models of a web UI and what is live in them: one swapper per VAE that is understood."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from sd_vae_kit.core.live_weights import LiveWeights
from sd_vae_kit.errors import VaeKitError, VaeMismatchError
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.parts import HostFiles, LoadedModels
from sd_vae_kit.settings.sections import Settings
from sd_vae_kit.vaes.choice import Decision
from sd_vae_kit.vaes.host_protocol import Checkpoint, Level
from sd_vae_kit.vaes.swap import Active, Swapper

ASKED_FOR = ("job", "setting")  # rules by which somebody names a file


class ModelView:
    """One model of the web UI as choosing and exchanging its VAE see it.

    Args:
        base: What the host's parts share.
        loaded: The models.
        model: Gives the model, None once it is gone; a view keeps none in memory.
        checkpoint_file: Its file, where the web UI only names that.
    """

    can_replace_first_stage = False

    def __init__(
        self,
        base: HostBase,
        loaded: LoadedModels,
        model: Callable[[], object | None],
        checkpoint_file: str | None = None,
    ) -> None:
        self._base = base
        self._loaded = loaded
        self._model = model
        self._checkpoint_file = checkpoint_file

    @property
    def name(self) -> str:
        return self._base.name

    @property
    def settings(self) -> Settings:
        return self._base.options.settings

    @property
    def checkpoint(self) -> Checkpoint | None:
        return self._loaded.checkpoint_of(self._model(), self._checkpoint_file)

    @property
    def forced_vae(self) -> Path | None:
        return self._base.options.source.forced_vae

    @property
    def first_stage(self) -> nn.Module | None:
        model = self._model()
        return self._loaded.first_stage_of(model) if model is not None else None

    def replace_first_stage(self, module: nn.Module) -> None:
        raise NotImplementedError(f"{self.name} keeps its VAE module")

    def vae_writing(self) -> AbstractContextManager[None]:
        return self._base.gate.writing()

    def on_vae_changed(self) -> None:
        """Nothing here remembers weights without a stamp of them."""

    def notify(self, message: str, level: Level = "info") -> None:
        self._base.messages.notify(message, level)


class ModelRegistry:
    """Swappers by VAE module: a web UI may put a new model object around the VAE it has.

    Args:
        base: What the host's parts share.
        loaded: The models.
        files: What swappers look at and write down; None where the web UI looks after that.
    """

    def __init__(self, base: HostBase, loaded: LoadedModels, files: HostFiles | None) -> None:
        self.loaded = loaded
        self._base = base
        self._files = files
        self._swappers: weakref.WeakKeyDictionary[nn.Module, Swapper] = weakref.WeakKeyDictionary()
        self._models: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Any]] = weakref.WeakKeyDictionary()
        self._is_known: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()

    def swapper(self, model: object) -> Swapper | None:
        """The swapper of one model; None for a VAE nobody here knows, where the web UI does as without us."""
        vae = self.loaded.first_stage_of(model)
        with self._lock:
            if vae is None or not self._knows(vae):
                return None
            self._models[vae] = weakref.ref(model)  # while a checkpoint loads, its model is not among the loaded ones
            if vae not in self._swappers:
                self._swappers[vae] = self._new_swapper(weakref.ref(vae))
            return self._swappers[vae]

    def refuse_foreign(self, decision: Decision) -> None:
        """Refuse a VAE that somebody chose for a model whose own VAE nobody here knows.

        Raises:
            VaeMismatchError: The running job or the setting names a file; of other rules one line says it.
        """
        if decision.entry is None:
            return
        line = (
            f"{decision.name} cannot take the place of this model's VAE, which is of a kind that VAE Kit does not "
            f"know; leave SD VAE on Automatic and choose the VAE in the way of {self._base.name} itself."
        )
        if decision.rule in ASKED_FOR:
            raise VaeMismatchError(line)
        self._base.messages.notify_once(line, "warning")

    def forget_swapper(self, model: object) -> None:
        """Let go of what was known of one model's VAE."""
        vae = self.loaded.first_stage_of(model)
        with self._lock:
            if vae is not None:
                self._swappers.pop(vae, None)

    def model_changed(self, model: object) -> None:
        """The web UI has put other weights into `model`: what was known of its VAE is void."""
        vae = self.loaded.first_stage_of(model)
        with self._lock:
            if vae is not None:
                self._is_known.pop(vae, None)
                if vae in self._swappers:
                    self._swappers[vae].checkpoint_changed()

    def forget_unloaded(self) -> None:
        """Let go of models that the web UI has dropped."""
        models = self.loaded.all()
        kept, kept_vaes = {id(model) for model in models}, {id(self.loaded.first_stage_of(model)) for model in models}
        with self._lock:
            for vae, reference in list(self._models.items()):
                model = reference()
                if model is not None and id(model) not in kept:
                    self._base.patches.undo(model)
                if id(vae) not in kept_vaes:
                    self._models.pop(vae, None)
                    self._swappers.pop(vae, None)

    def active(self) -> Active | None:
        """What is live in the model in use."""
        model = self.loaded.current
        vae = self.loaded.first_stage_of(model) if model is not None else None
        swapper = self._swappers.get(vae) if vae is not None else None
        return swapper.active if swapper is not None else None

    def label_of(self, vae: nn.Module) -> str:
        """What messages call a VAE."""
        active = self.active()
        entry = active.decision.entry if active is not None else None
        return entry.name if entry is not None else "the checkpoint's own VAE"

    def _new_swapper(self, vae: weakref.ref[nn.Module]) -> Swapper:
        view, files = ModelView(self._base, self.loaded, lambda: self._model_of(vae())), self._files
        if files is None:
            return Swapper(view, self._base.library)
        return Swapper(view, self._base.library, guard=files.guard, rules=files.rules, history=files.history)

    def _model_of(self, vae: nn.Module | None) -> object | None:
        """The model that a VAE is in."""
        if vae is None:
            return None
        reference = self._models.get(vae)
        model: object = reference() if reference is not None else None
        if model is not None and self.loaded.first_stage_of(model) is vae:
            return model
        found: object = next((other for other in self.loaded.all() if self.loaded.first_stage_of(other) is vae), None)
        return found

    def _knows(self, vae: nn.Module) -> bool:
        if vae not in self._is_known:
            try:
                LiveWeights(vae)
                self._is_known[vae] = True
            except VaeKitError as error:
                self._is_known[vae] = False
                line = f"VAE Kit leaves the VAE of this model to the web UI: {error}"
                self._base.messages.notify_once(line, "warning")
        return self._is_known[vae]
