"""The app's settings, as its pages read and change them."""

from __future__ import annotations

from collections.abc import Mapping

from sd_vae_kit.settings.sections import spec_of, to_values
from sd_vae_kit.settings.spec import Value
from sd_vae_kit.settings.store import SettingsStore
from sd_vae_kit.standalone.vae_selection import VaeSelection


class PageSettings:
    """Implements `SettingsBackend`.

    Args:
        store: The settings.
        selection: Makes the VAE live that follows from them.
    """

    def __init__(self, store: SettingsStore, selection: VaeSelection) -> None:
        self._store = store
        self._selection = selection

    def values(self) -> dict[str, Value]:
        return to_values(self._store.settings)

    def change(self, values: Mapping[str, object]) -> None:
        with self._selection.held():
            before = {key: value for key, value in self.values().items() if key in values}
            self._store.update(values)
            if any(spec_of(key).section == "vae" for key in values):
                try:
                    self._selection.choose()
                except BaseException:
                    self._store.update(before)
                    raise
