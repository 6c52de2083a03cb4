"""How A1111 loads a VAE: its functions keep their names and signatures, our swap is underneath.

Written against v1.10.1.  Functions of `modules.sd_vae` are replaced one by one and keep their module's globals
(`vae_dict`, `base_vae`, `loaded_vae_file`, `checkpoint_info`), which `sd_models` itself reads and writes while several
checkpoints stay loaded (sd_models.py:706, :930).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules import script_callbacks, sd_vae, shared
from torch import Tensor

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.a1111.decider import A1111Decider
from sd_vae_kit.hosts.a1111.records import LiveVaeRecords
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.messages import DeferredErrors
from sd_vae_kit.hosts.models import ModelRegistry
from sd_vae_kit.hosts.status import StatusReport
from sd_vae_kit.vaes.choice import Decision
from sd_vae_kit.vaes.swap import Active, Key, Swapper, key_of
from sd_vae_kit.wording import Sentence, pieces_of

BY_RULES = object()  # in place of the web UI's own mark for "no file was named"


class A1111Loader:
    """Makes VAEs live; it is the `VaeSwitch` of A1111.

    Args:
        base: What the host's parts share.
        registry: The models and their swappers.
        decider: Which VAE is chosen.
        records: Tell the web UI what is live.
        deferred: Errors of a caller that cannot take one.
        report: Knows how to say that a checkpoint came without a VAE.
    """

    def __init__(
        self,
        base: HostBase,
        registry: ModelRegistry,
        decider: A1111Decider,
        records: LiveVaeRecords,
        deferred: DeferredErrors,
        report: StatusReport,
    ) -> None:
        self._base = base
        self._registry = registry
        self._decider = decider
        self._records = records
        self._deferred = deferred
        self._report = report
        self._decided = Decision(None, "own", Sentence.of("The checkpoint's own VAE."))
        self._refused: dict[int, Key] = {}  # id of a model -> the VAE that could not be used when it was loaded
        self._is_fresh = False  # a checkpoint's weights were just put into the model, its own VAE is live
        self._left_to_host: weakref.WeakSet[Any] = weakref.WeakSet()

    def install(self) -> None:
        """Put the patches in place."""
        if self._base.options.features.has("loading"):
            wrap = self._base.patches.wrap
            wrap(sd_vae, "resolve_vae", self._resolve_vae)
            wrap(sd_vae, "load_vae", self._load_vae)
            wrap(sd_vae, "reload_vae_weights", self._reload_vae_weights)
            wrap(sd_vae, "clear_loaded_vae", self._clear_loaded_vae)

    def apply(self) -> None:
        model = self._registry.loaded.current
        if model is None:
            return
        decision = self._decider.decide(model.sd_checkpoint_info.filename)
        swapper = self._our_swapper(model)
        if swapper is not None:
            self._switch(model, swapper, decision)
        elif self._base.options.features.has("loading"):
            sd_vae.reload_vae_weights(model, str(decision.entry.path) if decision.entry else None)

    # -- while a checkpoint loads ------------------------------------------------------------------------------------

    def _resolve_vae(self, original: Callable[[str], object], checkpoint_file: str) -> object:
        """Never raises: a checkpoint must load even if the VAE that was chosen for it is gone."""
        if not self._base.options.repairs.loading:
            return original(checkpoint_file)
        try:
            self._decided = self._decider.decide(checkpoint_file)
        except VaeKitError as error:
            self._decided = self._own_instead(error)
        entry = self._decided.entry
        return sd_vae.VaeResolution(str(entry.path) if entry else None, self._decided.reason, entry is not None)

    def _clear_loaded_vae(self, original: Callable[[], None]) -> None:
        """The web UI calls this between loading a checkpoint's weights and choosing its VAE (sd_models.py:536)."""
        original()
        self._is_fresh = True

    def _load_vae(
        self, original: Callable[..., None], model: Any, vae_file: str | None = None, vae_source: str = "by the web UI"
    ) -> None:
        """Never raises for a VAE's sake: called while a checkpoint loads, which must not fail for it."""
        is_fresh, self._is_fresh = self._is_fresh, False
        if is_fresh:
            self._registry.model_changed(model)
            self._left_to_host.discard(model)
            self._decider.without_vae.look_at(model)
        swapper = self._our_swapper(model)
        if swapper is None:
            return original(model, vae_file, vae_source)
        self._refused.pop(id(model), None)
        decision = self._decision_for(vae_file, vae_source)
        if is_fresh and decision.rule == "own":
            decision = self._decider.without_vae.standard_for(model) or decision
        try:
            active = swapper.activate(decision)
        except VaeKitError as error:
            self._refused[id(model)] = key_of(decision.entry)
            active = swapper.activate(self._own_instead(error))
        self._records.record(model, swapper, active)
        self._say_if_blank(model, active)
        return None

    def _say_if_blank(self, model: Any, active: Active) -> None:
        checkpoint = self._registry.loaded.checkpoint_of(model)
        for warning in self._report.without_weights(checkpoint, active, model) if checkpoint else ():
            self._base.messages.notify(warning, "warning")

    def _own_instead(self, error: VaeKitError) -> Decision:
        said = f"{str(error).rstrip('.')}."
        reason = Sentence.of("{} The checkpoint's own VAE is used instead.", Sentence(pieces_of(said)))
        self._base.messages.notify(reason, "warning")
        return Decision(None, "own", reason)

    # -- while one is loaded -----------------------------------------------------------------------------------------

    def _reload_vae_weights(
        self, original: Callable[..., object], sd_model: Any = None, vae_file: Any = BY_RULES
    ) -> object:
        """Make the VAE live that the rules choose or the caller names; the model stays where it is.

        Raises:
            VaeKitError: As `HostMessages.refused` shapes it; nothing has changed.
        """
        by_rules = vae_file is BY_RULES or vae_file is getattr(sd_vae, "unspecified", BY_RULES)
        model = sd_model or shared.sd_model
        swapper = self._our_swapper(model, original) if model is not None else None
        if swapper is None:
            return original(sd_model) if by_rules else original(sd_model, vae_file)
        if self._deferred.is_collecting:
            self._refused.pop(id(model), None)  # the user decides anew
        try:
            file = model.sd_checkpoint_info.filename
            decision = self._decider.decide(file) if by_rules else self._decision_for(vae_file, "named by the caller")
            changed = self._switch(model, swapper, decision)
        except VaeKitError as error:
            self._deferred.add(error)
            return None
        return model if changed else None

    def _our_swapper(self, model: Any, reload: Callable[..., object] | None = None) -> Swapper | None:
        """The model's swapper; None where loading is left to the web UI.

        When it is taken back from the web UI, that first restores the checkpoint's own VAE: nobody else has it.
        """
        if not self._base.options.repairs.loading:
            self._left_to_host.add(model)
            return None
        if model in self._left_to_host and reload is not None:
            reload(model, None)
            self._left_to_host.discard(model)
            self._registry.forget_swapper(model)
        return self._registry.swapper(model)

    def _switch(self, model: Any, swapper: Swapper, decision: Decision) -> bool:
        """Make the decision's VAE live and tell everybody; whether anything changed."""
        active = self._activate(model, swapper, decision)
        self._records.record(model, swapper, active)
        if active.seconds:
            script_callbacks.model_loaded_callback(model)
        return bool(active.seconds)

    def _activate(self, model: object, swapper: Swapper, decision: Decision) -> Active:
        """As the swapper, but a VAE that was refused when the checkpoint was loaded means the one used instead."""
        if decision.entry is not None and self._refused.get(id(model)) == key_of(decision.entry):
            words = "{} could not be used when the checkpoint was loaded; its own VAE is used."
            return swapper.activate(Decision(None, "own", Sentence.of(words, decision.name)))
        return swapper.activate(decision)

    def _decision_for(self, vae_file: str | None, why: str) -> Decision:
        """The decision that led to a file, if it was the last one made here."""
        decided = self._decided.entry
        if vae_file == (str(decided.path) if decided else None):
            return self._decided
        if vae_file is None:
            return Decision(None, "own", Sentence.of("The checkpoint's own VAE was asked for."))
        entry = self._base.library.entry_at(Path(vae_file))
        return Decision(entry, "path", Sentence.of("{} was {}.", entry.name, Sentence(pieces_of(why))))


class MergerWeights:
    """The checkpoint merger's VAE, read from any layout.

    Args:
        base: What the host's parts share.
    """

    def __init__(self, base: HostBase) -> None:
        self._base = base

    def install(self) -> None:
        """Put the patch in place."""
        if self._base.options.features.has("merger"):
            self._base.patches.wrap(sd_vae, "load_vae_dict", self.load)

    def load(self, original: Callable[..., Any], filename: str, map_location: Any) -> Any:
        """Weights in ldm names: the merger writes them under first_stage_model.

        Raises:
            VaeKitError: As `HostMessages.refused` shapes it.
        """
        if not self._base.options.repairs.loading:
            return original(filename, map_location)
        return self.weights(filename, map_location)

    def weights(self, filename: str, map_location: Any) -> dict[str, Tensor]:
        """As `load`, whatever the switch says."""
        library = self._base.library
        try:
            state = library.load(library.entry_at(Path(filename))).state
        except VaeKitError as error:
            raise self._base.messages.refused(error) from error
        return {name: tensor.to(map_location) for name, tensor in state.items()}
