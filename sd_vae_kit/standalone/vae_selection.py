"""Which VAE file is live in the stand-alone app, by the settings and the user's rules."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.core.vae import Vae
from sd_vae_kit.errors import VaeKitError, VaeMismatchError
from sd_vae_kit.standalone.demo_vaes import as_vae, load_from
from sd_vae_kit.standalone.host import StandaloneHost
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.rules import Run
from sd_vae_kit.vaes.swap import Active, Swapper, refuse_other_channels
from sd_vae_kit.vaes.tiny import other_half


class VaeSelection:
    """Makes files live; safe to use from several threads.

    Args:
        host: The app; it is told what the user should know.
        library: The files.
        swapper: Exchanges the live weights.
        runner: Runs VAEs.
        own_file: The VAE that the checkpoint came with.
    """

    def __init__(
        self, host: StandaloneHost, library: Library, swapper: Swapper, runner: Runner, own_file: Path
    ) -> None:
        self._host = host
        self._library = library
        self._swapper = swapper
        self._runner = runner
        self._own_file = own_file
        self._lock = threading.RLock()
        self._preview: tuple[Entry, Vae] | None = None

    def held(self) -> AbstractContextManager[bool]:
        """Hold while the VAE is chosen, so that a job never takes one VAE's weights with another's name."""
        return self._lock

    @property
    def active(self) -> Active:
        """What is live, and why."""
        return self._swapper.active

    @property
    def live_entry(self) -> Entry:
        """The file whose weights are live: the chosen one, or the demo checkpoint's own."""
        return self._file_of(self._swapper.active.decision.entry)

    def begin(self) -> None:
        """List the files and make the chosen VAE live; a choice that cannot be honoured is said."""
        self._library.refresh()
        try:
            self.choose()
        except VaeKitError as error:
            self._host.notify(f"{error} The checkpoint's own VAE is used.", "warning")

    def choose(self) -> None:
        """Make the VAE live that settings and rules choose for a picture.

        Raises:
            VaeKitError: It cannot be used; the live VAE is what it was.
        """
        with self._lock:
            self._warn(self._swapper.choose())

    def choose_for(self, run: Run) -> None:
        """Make the VAE live that the rules choose for a pass; what is said of it is said when it changes."""
        with self._lock:
            before = self._swapper.active.decision.entry
            active = self._swapper.choose(run=run)
            if active.decision.entry != before:
                self._warn(active)

    def end_passes(self) -> None:
        """Make the picture's VAE live again: an interrupted job may have ended in a pass with another one."""
        try:
            self.choose_for("picture")
        except VaeKitError as error:
            self._host.notify(str(error), "warning")

    def live_vae(self) -> Vae:
        """The live module, called by its file's name."""
        return as_vae(self._host.first_stage, self.live_entry.name, self._runner)

    def live_hash(self) -> Callable[[], str]:
        """A function for the live file's sha256, which may have to read the whole file."""
        entry = self.live_entry
        return lambda: self._library.sha256(entry)

    def other_half(self) -> Vae | None:
        """The file beside a live TAESD decoder or encoder that holds the other half."""
        entry = other_half(self._library.entries, self.live_entry)
        return load_from(self._library, entry, self._runner) if entry else None

    def preview_vae(self) -> Vae | None:
        """The VAE that a rule names for previews, None without such a rule.

        Raises:
            VaeKitError: It is not there, cannot be read, or does not fit the loaded model.
        """
        decision = self._swapper.resolve(run="preview")
        if decision.rule != "rule":
            return None
        entry = self._file_of(decision.entry)
        if self._preview is None or self._preview[0] != entry:
            refuse_other_channels(entry.name, entry.z_channels, self._host.checkpoint)
            if entry.part == "encoder":
                raise VaeMismatchError(f"{decision.reason} It has no decoder; name a VAE that has one for previews.")
            self._preview = entry, load_from(self._library, entry, self._runner)
        return self._preview[1]

    def close(self) -> None:
        """Wait for background work; the live weights stay as they are."""
        self._swapper.close()

    def _file_of(self, entry: Entry | None) -> Entry:
        return entry or self._library.entry_at(self._own_file)

    def _warn(self, active: Active) -> None:
        for warning in active.warnings:
            self._host.notify(warning, "warning")
