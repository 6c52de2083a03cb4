"""The backend of the stand-alone pages: host, library and swapper, spoken to in plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_vae_kit.core.vae import Vae
from sd_vae_kit.errors import OptionError, PictureError, VaeKitError, VaeMismatchError
from sd_vae_kit.pictures import infotext
from sd_vae_kit.pictures import picture_file as pictures
from sd_vae_kit.settings.job import JobTiling
from sd_vae_kit.settings.sections import AUTOMATIC, NONE, Settings, spec_of, to_values
from sd_vae_kit.settings.spec import Value
from sd_vae_kit.settings.store import SettingsStore
from sd_vae_kit.standalone import paste, vae_facts
from sd_vae_kit.standalone.api_backend import StandaloneApi
from sd_vae_kit.standalone.demo_model import NAME
from sd_vae_kit.standalone.host import OWN_VAE, Folders, StandaloneHost, load_half
from sd_vae_kit.standalone.job import Snapshot, Txt2Img, fit_size
from sd_vae_kit.standalone.job_runner import JobRunner
from sd_vae_kit.standalone.pages.backend_protocol import Pasted, TopBar, VaeFacts, VaeRow
from sd_vae_kit.vaes import history
from sd_vae_kit.vaes.catalogue import Catalogue, KnownVae, catalogue, with_own_entries
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.guard import FamilyGuard
from sd_vae_kit.vaes.history import History
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.inspection import Inspector
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.rules import FILE_NAME, RulesFile, Run
from sd_vae_kit.vaes.swap import Swapper, refuse_other_channels
from sd_vae_kit.vaes.tiny import TinyVaes, other_half
from sd_vae_kit.web.catalogue_host import KnownFiles
from sd_vae_kit.web.catalogue_service import CatalogueService
from sd_vae_kit.web.message import Message
from sd_vae_kit.wording import Sentence

HASHED_AT_ONCE = 400_000_000  # bytes; reading that much takes well under a second


class StandaloneBackend:
    """Implements `PageBackend`.

    Args:
        host: Makes pictures.
        library: Its files.
        store: The settings; `host` reads the same.
        shown: Folder from which pages may show pictures.
    """

    def __init__(self, host: StandaloneHost, library: Library, store: SettingsStore, shown: Path) -> None:
        self._host = host
        self._library = library
        self._store = store
        known = self._known_vaes()
        finder = FamilyFinder(library, host.folders.data / "cache" / "families.json", known)
        guard = FamilyGuard(finder)
        self._inspector = Inspector(finder, lambda: store.settings.guard)
        rules = RulesFile(host.folders.data / FILE_NAME)
        used = History(host.folders.data / history.FILE_NAME)
        self._swapper = Swapper(host, library, guard=guard, rules=rules, history=used)
        files = KnownFiles(self._inspector, used)
        self.catalogue = CatalogueService(CataloguePageHost(self), files, rules)
        self._jobs = JobRunner(host, shown, host.folders.data)
        host.describe_live = self._describe_live
        host.tiny = TinyVaes([library], finder, lambda: store.settings.guard, runner=host.runner)
        host.other_half = self._other_half
        host.choose_for = self._choose_for
        host.preview_vae = self._preview_vae
        self._preview: tuple[Entry, Vae] | None = None
        for warning in store.warnings:
            host.notify(warning, "warning")

    @property
    def api(self) -> StandaloneApi:
        """What the HTTP API asks."""
        return StandaloneApi(self._host, self._library, self._swapper, self._inspector)

    @property
    def folders(self) -> Folders:
        """Where the app's files are."""
        return self._host.folders

    def close(self) -> None:
        """End background work."""
        self.catalogue.close()
        self._swapper.close()

    def begin(self) -> None:
        """List the files and make the chosen VAE live; a choice that cannot be honoured is said, the app starts."""
        self._library.refresh()
        try:
            self._choose()
        except VaeKitError as error:
            self._host.notify(f"{error} The checkpoint's own VAE is used.", "warning")

    # --- top bar ---

    def top_bar(self) -> TopBar:
        chosen = self._store.settings.vae.sd_vae
        usable = [entry.name for entry in self._library.entries if entry.state == "ok"]
        vaes = [AUTOMATIC, NONE, *usable]
        if chosen not in vaes:
            vaes.append(chosen)
        live = self._live_entry()
        reason = self._swapper.active.decision.reason
        tiny = [entry for entry in self._library.entries if entry.state == "ok" and entry.kind == "tiny"]
        notes = {entry.name: vae_facts.tiny_note(entry, self._inspector.finder.remembered(entry)) for entry in tiny}
        return TopBar((NAME,), NAME, tuple(vaes), chosen, live.name, self._short_hash(live), reason, notes)

    def refresh(self) -> None:
        entries = self._library.refresh()
        broken = sum(entry.state != "ok" for entry in entries)
        unusable = f", {broken} cannot be used (see the VAE tab)" if broken else ""
        self._host.notify(f"{len(entries)} VAE files{unusable}.")
        self._choose()

    def choose_checkpoint(self, name: str) -> None:
        if name != NAME:
            raise OptionError(f"There is no checkpoint {name!r}; this version runs the demo model only.")

    def choose_vae(self, name: str) -> None:
        self.change({spec_of("sd_vae").key: name})

    # --- jobs ---

    def start(self, tab: str, job: Txt2Img) -> None:
        self._jobs.start(tab, job)

    def snapshot(self, tab: str) -> Snapshot:
        return self._jobs.snapshot(tab)

    def watch(self, tab: str) -> Iterator[Snapshot]:
        return self._jobs.watch(tab)

    def last_job(self, tab: str) -> Txt2Img | None:
        return self._jobs.last_job(tab)

    def interrupt(self) -> None:
        self._host.interrupt()

    def forecast(self, size: tuple[int, int], tiling: JobTiling) -> Sentence:
        return self._host.forecast(size, tiling)

    def picture_size(self, path: Path) -> tuple[int, int]:
        height, width = pictures.open_picture(path).size
        return fit_size(height, width)

    # --- VAE tab ---

    def vae_rows(self) -> list[VaeRow]:
        live = self._live_entry().path
        remembered = self._inspector.finder.remembered
        return [vae_facts.row_of(entry, remembered(entry), entry.path == live) for entry in self._library.entries]

    def vae_facts(self, name: str) -> Iterator[VaeFacts]:
        return vae_facts.facts_of(self._inspector, self._library.get(name))

    # --- settings ---

    def values(self) -> dict[str, Value]:
        return to_values(self._store.settings)

    def change(self, values: Mapping[str, object]) -> None:
        with self._host.choosing():
            before = {key: value for key, value in self.values().items() if key in values}
            self._store.update(values)
            if any(spec_of(key).section == "vae" for key in values):
                try:
                    self._choose()
                except BaseException:
                    self._store.update(before)
                    raise

    # --- paste ---

    def infotext_of(self, path: Path) -> str:
        text = pictures.read_infotext(path)
        if not text:
            raise PictureError(f"{path.name} carries no parameters; only pictures that were saved with them do.")
        return text

    def paste(self, text: str) -> Pasted:
        if not text.strip():
            raise OptionError("There is nothing to paste; drop a picture or enter the text of its parameters.")
        info = infotext.parse(text)
        values, notes = paste.values_of(info)
        wanted, missing = paste.find_vae(info, self._library), ""
        if wanted is not None:
            notes += [wanted.note] if wanted.note else []
            if wanted.name is None:
                missing, hint = self.catalogue.gallery.missing(info.fields.get("VAE hash", ""))
                notes += [hint] if hint else []
            if wanted.name and not (wanted.entry and wanted.entry.path == self._live_entry().path):
                self.choose_vae(wanted.name)
                notes.append(f"The SD VAE is now {wanted.name}.")
        if info.fields.get("Model", NAME) != NAME:
            notes.append(f"That picture was made with the model {info.fields['Model']}, not with the loaded one.")
        if not info.fields:
            notes.append("There is no line of parameters in that text; all of it was taken as the prompt.")
        return Pasted(values, tuple(notes) or ("Restored.",), missing)

    # --- what came up ---

    def take_messages(self) -> list[Message]:
        return [Message(notice.text, notice.level) for notice in self._host.take_notices()]

    def _known_vaes(self) -> Catalogue:
        """The catalogue with the user's own entries; without them, and a line about it, if their file is not right."""
        try:
            return with_own_entries(self._host.folders.data / "catalogue.json")
        except OptionError as error:
            self._host.notify(str(error), "warning")
            return catalogue()

    def _choose(self) -> None:
        with self._host.choosing():
            for warning in self._swapper.choose().warnings:
                self._host.notify(warning, "warning")

    def _choose_for(self, run: Run) -> None:
        """The rules' choice for a pass; what is said of it is said when it is chosen, not once a job."""
        before = self._swapper.active.decision.entry
        active = self._swapper.choose(run=run)
        if active.decision.entry != before:
            for warning in active.warnings:
                self._host.notify(warning, "warning")

    def _preview_vae(self) -> Vae | None:
        """What decodes previews where a rule says so.

        Raises:
            VaeKitError: It is not there, cannot be read, or does not fit the loaded model.
        """
        decision = self._swapper.resolve(run="preview")
        if decision.rule != "rule":
            return None
        entry = decision.entry or self._library.entry_at(self._host.folders.demo / OWN_VAE)
        if self._preview is None or self._preview[0] != entry:
            refuse_other_channels(entry.name, entry.z_channels, self._host.checkpoint)
            if entry.part == "encoder":
                raise VaeMismatchError(f"{decision.reason} It has no decoder; name a VAE that has one for previews.")
            self._preview = entry, load_half(self._library, entry, self._host.runner)
        return self._preview[1]

    def _live_entry(self) -> Entry:
        """The file whose weights are live: the chosen one, or the demo checkpoint's own."""
        entry = self._swapper.active.decision.entry
        return entry or self._library.entry_at(self._host.folders.demo / OWN_VAE)

    def _describe_live(self) -> tuple[str, Callable[[], str]]:
        entry = self._live_entry()
        return entry.name, lambda: self._library.sha256(entry)

    def _other_half(self) -> Vae | None:
        """The file beside a live TAESD decoder or encoder that holds the other half."""
        entry = other_half(self._library.entries, self._live_entry())
        return load_half(self._library, entry, self._host.runner) if entry else None

    def _short_hash(self, entry: Entry) -> str:
        """The VAE hash, if it is known or quickly worked out."""
        digits = entry.sha256
        if digits is None and entry.size <= HASHED_AT_ONCE:
            try:
                digits = self._library.sha256(entry)
            except VaeKitError:
                digits = None
        return (digits or "")[:10]


@dataclass(frozen=True)
class CataloguePageHost:
    """The app as the catalogue's services see it; implements `CatalogueHost`."""

    backend: StandaloneBackend

    @property
    def settings(self) -> Settings:
        return self.backend._host.settings

    @property
    def checkpoint(self) -> Checkpoint:
        return self.backend._host.checkpoint

    @property
    def active_vae(self) -> str:
        return self.backend._live_entry().name

    @property
    def card_folders(self) -> Sequence[Path]:
        folders = self.backend.folders
        return (folders.own_checkpoints, *folders.checkpoints)

    def folder_for(self, known: KnownVae) -> Path:
        folders = self.backend.folders
        return folders.own_tiny_vaes if known.kind == "tiny" else folders.own_vaes

    def refresh(self) -> None:
        self.backend._library.refresh()

    def apply_rules(self) -> None:
        self.backend._choose()

    def forget_precision(self) -> int:
        return self.backend._host.runner.fixes.forget()

    def forbidden(self) -> str:
        return ""
