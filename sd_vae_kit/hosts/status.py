"""What is live in a web UI and why, for the panel and the HTTP API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from sd_vae_kit.core.networks.latent_format import family_label
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.model_facts import is_blank, precision_of
from sd_vae_kit.hosts.models import ModelRegistry
from sd_vae_kit.settings.sections import NONE
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.swap import Active
from sd_vae_kit.wording import Sentence

NO_CHECKPOINT = Sentence.of("No checkpoint is loaded yet.")


@dataclass(frozen=True)
class VaeStatus:
    """Facts of the active VAE for panel and API.

    Attributes:
        name: File, or "None" for the checkpoint's own.
        checkpoint: The loaded model; empty while there is none.
        family: "SD 1.x / 2.x"; empty while there is no model.
        reason: One sentence: why this VAE.
        sha256: Of the file; empty for the checkpoint's own or where hashing is off.
        precision: "fp32", "fp16", "bf16"; empty while there is no model.
        warnings: Sentences.
    """

    name: str = NONE
    checkpoint: str = ""
    family: str = ""
    reason: Sentence = NO_CHECKPOINT
    sha256: str = ""
    precision: str = ""
    warnings: tuple[Sentence, ...] = ()


class BlankCheckpoints(Protocol):
    """Knows which checkpoints came without a VAE."""

    def __call__(self, model: object, vae: nn.Module | None) -> bool:
        """Whether the checkpoint in a model, whose own VAE is live, came without one."""


def has_blank_vae(model: object, vae: nn.Module | None) -> bool:
    """Whether a live VAE has no weights."""
    return vae is not None and is_blank(vae)


class StatusReport:
    """Says what is live.

    Args:
        base: What the host's parts share.
        registry: The models and what is live in them.
        has_no_vae: Knows which checkpoints came without a VAE.
    """

    def __init__(self, base: HostBase, registry: ModelRegistry, has_no_vae: BlankCheckpoints = has_blank_vae) -> None:
        self._base = base
        self._registry = registry
        self._has_no_vae = has_no_vae

    def status(self) -> VaeStatus:
        """Facts of the active VAE."""
        loaded = self._registry.loaded
        model = loaded.current
        checkpoint = loaded.checkpoint_of(model) if model is not None else None
        if model is None or checkpoint is None:
            return VaeStatus()
        active, module = self._registry.active(), loaded.first_stage_of(model)
        if active is None or module is None:
            reason = Sentence.of("The web UI looks after this model's VAE itself.")
            return VaeStatus(checkpoint=checkpoint.name, reason=reason)
        entry = active.decision.entry
        return VaeStatus(
            name=active.name,
            checkpoint=checkpoint.name,
            family=_family(entry) or checkpoint.latent_format.label,
            reason=active.decision.reason,
            sha256=self.hash_of(entry),
            precision=precision_of(module),
            warnings=(*active.warnings, *self.without_weights(checkpoint, active, model)),
        )

    def without_weights(self, checkpoint: Checkpoint, active: Active, model: object) -> tuple[Sentence, ...]:
        """A warning if a checkpoint was saved without its VAE, so that it does not pass for one with a bad VAE."""
        vae = self._registry.loaded.first_stage_of(model)
        if active.decision.entry is not None or not self._has_no_vae(model, vae):
            return ()
        needed, entries = checkpoint.latent_format, self._base.library.entries
        fitting = [e.name for e in entries if e.state == "ok" and e.z_channels == needed.z_channels]
        offer = Sentence.of("; install a VAE for {}", needed.label)
        if fitting:
            offer = Sentence.of("; choose {}", Sentence.joined(" or ", fitting[:3]))
        words = "{} holds no VAE of its own, so pictures would be spoiled{}."
        return (Sentence.of(words, checkpoint.name, offer),)

    def hash_of(self, entry: Entry | None) -> str:
        """sha256 of a file, empty where there is none or hashing is off."""
        may_hash = entry is not None and self._base.options.source.may_hash
        return self._base.library.sha256(entry) if entry is not None and may_hash else ""


def _family(entry: Entry | None) -> str:
    return family_label(entry.family) if entry is not None and entry.family else ""
