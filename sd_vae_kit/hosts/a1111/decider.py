"""Which VAE A1111 uses for a checkpoint: our rules, its own prefix rule if wanted, and checkpoints without a VAE."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from modules import sd_vae
from torch import nn

from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.choice import RuleDecider
from sd_vae_kit.hosts.model_facts import holds_no_vae, is_blank
from sd_vae_kit.hosts.parts import LoadedModels
from sd_vae_kit.vaes.choice import Decision
from sd_vae_kit.vaes.guard import FamilyGuard
from sd_vae_kit.wording import Sentence

NO_VAE_IS_NEAR = Sentence.of("Automatic: no VAE is near.")


class CheckpointsWithoutVae:
    """Which loaded models came from a checkpoint without a VAE.

    Args:
        loaded: The models.
        guard: Knows each family's standard VAE.
    """

    def __init__(self, loaded: LoadedModels, guard: FamilyGuard) -> None:
        self._loaded = loaded
        self._guard = guard
        self._models: weakref.WeakSet[Any] = weakref.WeakSet()

    def __call__(self, model: object, vae: nn.Module | None) -> bool:
        """Whether the checkpoint in a model, whose own VAE is live, came without one."""
        return model in self._models or (vae is not None and is_blank(vae))

    def look_at(self, model: Any) -> None:
        """Look whether the checkpoint that was just put into the model came without a VAE."""
        path = Path(model.sd_checkpoint_info.filename)
        without = is_blank(model.first_stage_model) or holds_no_vae(path)
        (self._models.add if without else self._models.discard)(model)

    def of_file(self, checkpoint_file: str) -> Decision | None:
        """The choice for a checkpoint's file, if a model of it came without a VAE."""
        found = (model for model in self._models if model.sd_checkpoint_info.filename == checkpoint_file)
        model = next(found, None)
        return self.standard_for(model) if model is not None else None

    def standard_for(self, model: object) -> Decision | None:
        """The standard VAE of a model's family, if it came without one and that VAE is installed."""
        if model not in self._models:
            return None
        checkpoint = self._loaded.checkpoint_of(model)
        entry = self._guard.standard(checkpoint.latent_format.name) if checkpoint else None
        if checkpoint is None or entry is None:
            return None
        words = "Automatic: {} holds no VAE of its own, so {} is used, the standard VAE of {}."
        reason = Sentence.of(words, checkpoint.name, entry.name, checkpoint.latent_format.label)
        return Decision(entry, "standard", reason)


class A1111Decider:
    """Chooses as `RuleDecider`, with what is A1111's.

    Args:
        base: What the host's parts share.
        rules: The rules that all web UIs share.
        without_vae: Checkpoints without a VAE, which have their family's standard one in place of their own.
    """

    def __init__(self, base: HostBase, rules: RuleDecider, without_vae: CheckpointsWithoutVae) -> None:
        self.without_vae = without_vae
        self._library = base.library
        self._options = base.options
        self._rules = rules

    def decide(self, checkpoint_file: str) -> Decision:
        decision = self._by_rules(checkpoint_file)
        standard = self.without_vae.of_file(checkpoint_file) if decision.rule == "own" else None
        return standard or decision

    def _by_rules(self, checkpoint_file: str) -> Decision:
        """By the rules; a VAE beside the checkpoint is looked for in the web UI's way, by its prefix, if wanted."""
        decision = self._rules.decide(checkpoint_file)
        overrides = self._options.settings.vae.overrides_per_model
        undecided = decision.rule in ("own", "beside") or (decision.rule == "setting" and not overrides)
        by_prefix = self._options.features.has("exact_stem") and not self._options.repairs.exact_stem
        if not by_prefix or not undecided:
            return decision
        near = sd_vae.find_vae_near_checkpoint(checkpoint_file)
        if near is None:
            return decision if decision.rule == "setting" else Decision(None, "own", NO_VAE_IS_NEAR)
        entry = self._library.entry_at(Path(near))
        reason = Sentence.of("Automatic: the name of {} begins like the checkpoint's.", entry.name)
        return Decision(entry, "beside", reason)
