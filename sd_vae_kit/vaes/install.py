"""Installing VAEs of the catalogue: what needs the user's consent, what runs in the background, what came of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sd_vae_kit.download import DownloadProgress, Source, download
from sd_vae_kit.errors import ConsentError, DownloadError, Interrupted, VaeKitError
from sd_vae_kit.settings.sections import DownloadSettings
from sd_vae_kit.vaes.catalogue import KnownVae
from sd_vae_kit.wording import NOTHING, Sentence, pieces_of

State = Literal["running", "done", "cancelled", "failed"]
MB = 1e6  # bytes, as files are shown everywhere


def source_of(known: KnownVae) -> Source:
    """What to fetch for a catalogue entry.

    Raises:
        DownloadError: The catalogue has no address for it, or this program cannot run it.
    """
    if not known.can_run:
        raise DownloadError(f"{known.name} is for {known.family_label} and is only recognised, not run; nothing to do.")
    if known.file is None or not known.url:
        raise DownloadError(f"No address is known for {known.name}; get it by hand and put it into models/VAE.")
    return Source(known.file, known.urls, known.max_bytes, known.sha256, known.git_blob_sha1, known.size)


def install(
    known: KnownVae,
    folder: Path,
    settings: DownloadSettings,
    *,
    accepted: bool = False,
    on_progress: Callable[[DownloadProgress], None] = lambda progress: None,
    cancel: threading.Event | None = None,
) -> Path:
    """Fetch an entry into `folder`, verified; `download` says what can go wrong.

    Args:
        accepted: The user has read the entry's cautions and agreed.

    Raises:
        ConsentError: There are cautions and they were not accepted.
        DownloadError, Interrupted: As `download`.
    """
    source = source_of(known)
    if known.cautions and not accepted:
        raise ConsentError(f"{known.name} is not installed without your consent: {' '.join(known.cautions)}")
    return download(source, folder, settings, on_progress=on_progress, cancel=cancel)


@dataclass(frozen=True)
class Installation:
    """One entry being installed.

    Attributes:
        name: The entry's.
        done, total: Bytes; the total is None while unknown.
        bytes_per_second: Of the running try.
        message: One line for the user once it ended.
        path: The file once it is there.
    """

    name: str
    state: State = "running"
    done: int = 0
    total: int | None = None
    bytes_per_second: float = 0.0
    message: Sentence = NOTHING
    path: Path | None = None

    @property
    def line(self) -> Sentence:
        """How far it is, for a user."""
        if self.state != "running":
            return self.message
        done, speed = f"{self.done / MB:,.1f}", f"{self.bytes_per_second / MB:,.1f} MB/s"
        so_far = Sentence.of("{}: {}", self.name, done if self.total else f"{done} MB")
        if self.total:
            so_far = Sentence.of("{} of {}", so_far, f"{self.total / MB:,.1f} MB")
        return Sentence.of("{}, {}", so_far, speed) if self.bytes_per_second else so_far


class Installer:
    """Installs in the background, several entries at a time; safe to use from several threads.

    Args:
        folder: Where an entry's file goes.
        settings: The values to use, asked for when a download starts.
        on_installed: Called in the download's thread with each file that has come, to list it.
    """

    def __init__(
        self,
        folder: Callable[[KnownVae], Path],
        settings: Callable[[], DownloadSettings],
        on_installed: Callable[[Path], object],
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._on_installed = on_installed
        self._changed = threading.Condition()
        self._states: dict[str, Installation] = {}
        self._cancels: dict[str, threading.Event] = {}

    @property
    def states(self) -> list[Installation]:
        """Every installation since the start, the latest last."""
        with self._changed:
            return list(self._states.values())

    @property
    def is_running(self) -> bool:
        return any(state.state == "running" for state in self.states)

    def start(self, known: KnownVae, *, accepted: bool = False) -> None:
        """Begin; progress and outcome are in `states`.

        Raises:
            ConsentError, DownloadError: It cannot even begin.
        """
        source_of(known)
        if known.cautions and not accepted:
            raise ConsentError(f"{known.name} is not installed without your consent: {' '.join(known.cautions)}")
        with self._changed:
            if known.name in self._states and self._states[known.name].state == "running":
                raise DownloadError(f"{known.name} is being installed already.")
            cancel = self._cancels[known.name] = threading.Event()
            self._states.pop(known.name, None)
            self._set(Installation(known.name, total=known.size))
        threading.Thread(target=self._run, args=(known, cancel), name="vae-kit-install", daemon=True).start()

    def cancel(self, name: str | None = None) -> None:
        """Stop one installation, or all of them."""
        with self._changed:
            for key, cancel in self._cancels.items():
                if name in (None, key):
                    cancel.set()

    def wait(self, seconds: float) -> None:
        """Return when something changed, at the latest after so long."""
        with self._changed:
            self._changed.wait(seconds)

    def _run(self, known: KnownVae, cancel: threading.Event) -> None:
        name = known.name
        try:
            folder, report = self._folder(known), self._reporter(name)
            path = install(known, folder, self._settings(), accepted=True, on_progress=report, cancel=cancel)
            self._on_installed(path)
        except Interrupted as error:
            self._end(name, "cancelled", Sentence(pieces_of(str(error))))
        except VaeKitError as error:
            self._end(name, "failed", Sentence(pieces_of(str(error))))
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            self._end(name, "failed", Sentence.of("{} was not installed ({}).", name, what))
            raise
        else:
            checked = Sentence.of("; its hash is right." if known.sha256 else "; unverified, since no hash is known.")
            self._end(name, "done", Sentence.of("{} is installed as {}{}", name, path.name, checked), path)

    def _reporter(self, name: str) -> Callable[[DownloadProgress], None]:
        def report(progress: DownloadProgress) -> None:
            with self._changed:
                before = self._states[name]
                total = progress.total if progress.total is not None else before.total
                speed = progress.bytes_per_second
                self._set(replace(before, done=progress.done, total=total, bytes_per_second=speed))

        return report

    def _end(self, name: str, state: State, message: Sentence, path: Path | None = None) -> None:
        with self._changed:
            self._set(replace(self._states[name], state=state, message=message, path=path))

    def _set(self, state: Installation) -> None:
        with self._changed:
            self._states[state.name] = state
            self._changed.notify_all()
