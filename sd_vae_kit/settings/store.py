"""The stand-alone app's settings on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sd_vae_kit.errors import SettingError
from sd_vae_kit.settings.sections import SPEC_BY_KEY, Settings, settings_from, to_values, with_values
from sd_vae_kit.settings.spec import Spec
from sd_vae_kit.state.json_store import JsonFormat, JsonStore


@dataclass(frozen=True)
class SavedSettings:
    """What a settings file holds.

    Attributes:
        settings: The values in force.
        unknown: Keys that this version does not know, kept for the version that does.
        misfits: A sentence for each value that did not fit.
    """

    settings: Settings = field(default_factory=Settings)
    unknown: Mapping[str, object] = field(default_factory=dict)
    misfits: tuple[str, ...] = ()


def _decoded(content: Mapping[str, object]) -> SavedSettings:
    misfits: list[str] = []

    def complain(spec: Spec, error: SettingError) -> None:
        misfits.append(f"{error} The default is used.")

    settings = settings_from(content, complain)
    unknown = {key: value for key, value in content.items() if key not in SPEC_BY_KEY}
    return SavedSettings(settings, unknown, tuple(misfits))


def _encoded(saved: SavedSettings) -> dict[str, object]:
    return {**saved.unknown, **to_values(saved.settings)}


FORMAT: JsonFormat[SavedSettings] = JsonFormat(
    _decoded,
    _encoded,
    SavedSettings,
    damaged="{path} could not be read ({error}); defaults are used, the old file is {kept}.",
    sets_aside=True,
    indent=2,
    mode=0o600,  # an address of a proxy may hold a password
)


class SettingsStore:
    """Values in one JSON file, replaced atomically; safe to use from several threads and programs.

    A file that cannot be read is kept beside the new one as `*.broken`, and `warnings` says so.  Keys this version does
    not know are kept, values that no longer fit fall back to the default with a warning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._damage: list[str] = []
        self._store = JsonStore(path, FORMAT, self._damage.append)

    @property
    def settings(self) -> Settings:
        """The values now."""
        return self._store.value.settings

    @property
    def warnings(self) -> list[str]:
        """One line for each thing that was not right with the file."""
        return [*self._damage, *(f"{self.path.name}: {misfit}" for misfit in self._store.value.misfits)]

    def update(self, values: Mapping[str, object]) -> Settings:
        """Check, save and apply changes; on any error neither file nor values change.

        Raises:
            SettingError: A value does not fit, or the file cannot be written.
        """
        try:
            return self._store.update(lambda saved: _changed(saved, values)).settings
        except OSError as error:
            raise SettingError(
                f"Settings were not saved to {self.path}: {error}. Check the folder's permissions."
            ) from error


def _changed(saved: SavedSettings, values: Mapping[str, object]) -> SavedSettings:
    return replace(saved, settings=with_values(saved.settings, values))
