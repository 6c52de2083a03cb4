"""The stand-alone app's settings on disk."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from sd_vae_kit.errors import SettingError
from sd_vae_kit.settings.sections import Settings, specs, to_values, with_values


class SettingsStore:
    """Values in one JSON file, replaced atomically; safe to use from several threads.

    A file that cannot be read is kept beside the new one as `*.broken`, and `warnings` says so.  Keys this version does
    not know are kept, values that no longer fit fall back to the default with a warning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._lock = threading.RLock()
        self._listeners: list[Callable[[Settings], None]] = []
        self._unknown: dict[str, object] = {}
        self._settings = self._load()

    @property
    def settings(self) -> Settings:
        """The values now."""
        return self._settings

    def subscribe(self, listener: Callable[[Settings], None]) -> None:
        """Call `listener` after every change that was saved."""
        self._listeners.append(listener)

    def update(self, values: Mapping[str, object]) -> Settings:
        """Check, save and apply changes; on any error neither file nor values change.

        Raises:
            SettingError: A value does not fit, or the file cannot be written.
        """
        with self._lock:
            settings = with_values(self._settings, values)
            self._write(settings)
            self._settings = settings
        for listener in self._listeners:
            listener(settings)
        return settings

    def _load(self) -> Settings:
        try:
            stored = json.loads(self.path.read_text("utf-8"))
            if not isinstance(stored, dict):
                raise ValueError("not a JSON object")
        except FileNotFoundError:
            return Settings()
        except (OSError, ValueError) as error:
            return self._set_aside(error)
        settings, known = Settings(), {spec.key for spec in specs()}
        for key, value in stored.items():
            if key not in known:
                self._unknown[key] = value
                continue
            try:
                settings = with_values(settings, {key: value})
            except SettingError as error:
                self.warnings.append(f"{self.path.name}: {error} The default is used.")
        return settings

    def _set_aside(self, error: Exception) -> Settings:
        kept = self.path.with_name(self.path.name + ".broken")
        try:
            self.path.replace(kept)
        except OSError:
            kept = self.path
        self.warnings.append(
            f"{self.path} could not be read ({error}); defaults are used, the old file is {kept.name}."
        )
        return Settings()

    def _write(self, settings: Settings) -> None:
        text = json.dumps({**self._unknown, **to_values(settings)}, indent=2, ensure_ascii=False)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name, suffix=".part")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text + "\n")
                Path(temporary).replace(self.path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise SettingError(
                f"Settings were not saved to {self.path}: {error}. Check the folder's permissions."
            ) from error
