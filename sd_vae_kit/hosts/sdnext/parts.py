"""SD.Next's options, models and own rules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules import modeldata, sd_vae, shared
from torch import nn

from sd_vae_kit.core.networks.latent_format import FORMATS, LatentFormat
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.choice import PassChoice, RuleDecider
from sd_vae_kit.hosts.models import ModelRegistry
from sd_vae_kit.hosts.status import StatusReport
from sd_vae_kit.settings.sections import AUTOMATIC, NONE
from sd_vae_kit.vaes.choice import Decision
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.wording import Sentence

OWN_NAMES = {"Default": NONE, "TAESD": NONE, "REPA-E": NONE}  # its names for what is no file
WHY = {
    "forced": "{} was given with --vae.",
    "near-checkpoint": "{} lies beside the checkpoint.",
    "automatic": "{} has the checkpoint's name.",
    "settings": "{} was chosen in the VAE dropdown.",
}
ASKED_FOR = ("forced", "settings")  # sources of a VAE that the user named
TOLERANCE = 1e-4  # of scale and shift factors


class SdNextOptions:
    """`modules.shared.opts` and `modules.shared.cmd_opts`, read at each question."""

    def value(self, key: str, default: object = None) -> object:
        value = getattr(shared.opts, key, default)
        return OWN_NAMES.get(str(value), value) if key == "sd_vae" else value

    @property
    def saved(self) -> dict[str, object]:
        data: dict[str, object] = shared.opts.data
        return data

    @property
    def declared(self) -> Mapping[str, Any]:
        labels: Mapping[str, Any] = shared.opts.data_labels
        return labels

    @property
    def forced_vae(self) -> Path | None:
        named = getattr(shared.cmd_opts, "vae", None)
        return Path(named) if named else None

    @property
    def may_hash(self) -> bool:
        return True


class SdNextModels:
    """`modules.modeldata.model_data`; the attribute is read that loads nothing."""

    @property
    def current(self) -> Any:
        return getattr(getattr(modeldata, "model_data", None), "sd_model", None)

    def all(self) -> list[Any]:
        current = self.current
        return [] if current is None else [current]

    def first_stage_of(self, model: Any) -> nn.Module | None:
        """The pipeline's VAE; none where its weights are streamed in and are not there between calls."""
        module = getattr(model, "vae", None)
        if not isinstance(module, nn.Module) or any(parameter.is_meta for parameter in module.parameters()):
            return None
        return module

    def checkpoint_of(self, model: Any, file: str | None = None) -> Checkpoint | None:
        model = self.current if model is None else model  # only one is ever loaded
        info, module = getattr(model, "sd_checkpoint_info", None), self.first_stage_of(model)
        if info is None or module is None:
            return None
        path = Path(info.filename)
        return Checkpoint(path.stem, path, latent_format_of(getattr(module, "config", None)))


class SdNextDecider:
    """Chooses as SD.Next's `resolve_vae` does; a job's own VAE goes before that, the user's rules before a namesake.

    Args:
        base: What the host's parts share.
        rules: The rules that all web UIs share.
        chosen: What the running pass asks for.
    """

    def __init__(self, base: HostBase, rules: RuleDecider, chosen: PassChoice) -> None:
        self._library = base.library
        self._rules = rules
        self._chosen = chosen

    def decide(self, checkpoint_file: str) -> Decision:
        """Raise VaeNotFoundError for a name that the web UI takes for the checkpoint's own VAE."""
        if self._chosen.vae is not None:
            return self._rules.decide(checkpoint_file)
        path, source = sd_vae.resolve_vae(checkpoint_file)
        if path is None and (unknown := self._unknown_name()):
            path, source = str(self._library.get(unknown).path), "settings"
        if source not in ASKED_FOR and shared.opts.sd_vae == AUTOMATIC:
            ruled = self._rules.decide(checkpoint_file)
            if ruled.rule == "rule":
                return ruled
        if path is None:
            return Decision(None, "own", Sentence.of("No VAE is chosen, so the checkpoint's own is used."))
        entry = self._entry_at(path)
        reason = Sentence.of(WHY.get(str(source), "{} was chosen."), entry.name)
        return Decision(entry, "setting" if source == "settings" else str(source), reason)

    def _unknown_name(self) -> str:
        """What the option names that the web UI has no file for; empty if it names none."""
        named = str(getattr(shared.opts, "sd_vae", AUTOMATIC))
        is_known = named in OWN_NAMES or named in (AUTOMATIC, NONE) or named in sd_vae.vae_dict
        return "" if is_known else named

    def _entry_at(self, path: str) -> Entry:
        same = (entry for entry in self._library.entries if str(entry.path) == path)
        return next(same, None) or self._library.entry_at(path)


class SdNextInfotext:
    """SD.Next's `InfotextNames`.

    Args:
        registry: Knows what is live.
        report: Works out hashes.
    """

    def __init__(self, registry: ModelRegistry, report: StatusReport) -> None:
        self._registry = registry
        self._report = report

    def write(self, p: Any) -> None:
        active = self._registry.active()
        entry = active.decision.entry if active else None
        p.sd_vae_name = entry.name if entry else None
        p.sd_vae_hash = self._report.hash_of(entry)[:10] if entry else None
        p.extra_generation_params["VAE hash"] = p.sd_vae_hash  # it writes the name by itself, of none a hash


def latent_format_of(config: Any) -> LatentFormat:
    """The family whose numbers the pipeline scales this VAE's latents with."""
    channels = int(getattr(config, "latent_channels", 0) or 0)
    scale = float(getattr(config, "scaling_factor", None) or 1.0)
    shift = float(getattr(config, "shift_factor", None) or 0.0)
    for known in FORMATS.values():
        difference = abs(known.scale_factor - scale) + abs(known.shift_factor - shift)
        if known.z_channels == channels and difference < TOLERANCE:
            return known
    return LatentFormat("unknown", "an unknown family", channels, scale, shift)
