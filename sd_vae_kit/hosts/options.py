"""A web UI's options as settings of ours: values that fit, switches for its faults, what a request must give back."""

from __future__ import annotations

from collections.abc import Iterable

from sd_vae_kit.errors import SettingError
from sd_vae_kit.hosts.host_names import HostFeatures
from sd_vae_kit.hosts.messages import HostMessages
from sd_vae_kit.hosts.parts import OptionSource
from sd_vae_kit.settings.repairs import REPAIR_SPECS, Repairs
from sd_vae_kit.settings.sections import AUTOMATIC, SPECS, Settings, settings_from
from sd_vae_kit.settings.spec import Spec


class HostOptions:
    """The values now; nothing is kept.

    Args:
        source: The web UI's options and flags.
        features: What this web UI can have.
        messages: Hear of values that do not fit.
    """

    def __init__(self, source: OptionSource, features: HostFeatures, messages: HostMessages) -> None:
        self.source = source
        self.features = features
        self._messages = messages

    @property
    def settings(self) -> Settings:
        """The values now; one that does not fit is taken as its default."""
        values = {spec.key: self.source.value(spec.key, spec.default) for spec in SPECS}
        if values["sd_vae"] in ("auto", ""):
            values["sd_vae"] = AUTOMATIC

        def complain(spec: Spec, error: SettingError) -> None:
            self._messages.notify_once(f"{error} The default, {spec.default!r}, is used.", "warning")

        return settings_from(values, complain)

    @property
    def repairs(self) -> Repairs:
        """Which faults are repaired; none that this web UI does not have or cannot be repaired of."""
        value, has = self.source.value, self.features.has
        return Repairs(**{spec.name: has(spec.name) and bool(value(spec.key, spec.default)) for spec in REPAIR_SPECS})

    def save_defaults_of(self, keys: Iterable[str]) -> None:
        """Give options their place among the saved ones; the web UI restores only those after a request."""
        if not self.repairs.override_leak:
            return
        declared, saved = self.source.declared, self.source.saved
        for key in keys:
            info = declared.get(key)
            if info is not None and not getattr(info, "do_not_save", False):
                saved.setdefault(key, info.default)
