"""What the VAE tab says about files, from the library's entries."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from sd_vae_kit.core.files.checkpoint import read_header
from sd_vae_kit.core.files.completeness import parameter_counts
from sd_vae_kit.core.files.detect import detect
from sd_vae_kit.core.files.detection import Detection
from sd_vae_kit.core.networks.latent_format import family_label
from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.standalone.pages.backend_protocol import VaeFacts, VaeRow
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.library import Library

POLL_SECONDS = 0.15
KINDS = {"kl": "KL autoencoder", "tiny": "tiny autoencoder (TAESD)", None: ""}
PARTS = {"both": "encoder and decoder", "encoder": "encoder only", "decoder": "decoder only", None: ""}
SHORT_KINDS = {"kl": "KL", "tiny": "tiny", None: ""}


def row_of(entry: Entry, is_active: bool) -> VaeRow:
    """One line of the table of all files."""
    kind = SHORT_KINDS[entry.kind]
    if entry.part in ("encoder", "decoder"):
        kind = f"{kind}, {entry.part}"
    family = family_label(entry.family) if entry.state == "ok" else ""
    return VaeRow(entry.name, family, kind, readable_size(entry.size), is_active, entry.reason)


def tiny_note(entry: Entry) -> str:
    """What a TAESD is, for lists: "TAESD decoder, SDXL"."""
    part = "" if entry.part == "both" else f" {entry.part}"
    return f"TAESD{part}, {family_label(entry.family)}"


def facts_of(library: Library, entry: Entry) -> Iterator[VaeFacts]:
    """All that is known, again and again until hash and fingerprint are worked out."""
    rows = [("Name", entry.name), ("Path", str(entry.path)), *_header_rows(entry)]
    rows += [("Size", readable_size(entry.size)), ("Changed", _date(entry.mtime_ns))]
    warnings = _detection(entry).warnings if entry.state == "ok" else ()
    work = _IdentityWork(library, entry)
    try:
        for identity_rows in work.progress():
            yield VaeFacts(entry.name, (*rows, *identity_rows), tuple(warnings), entry.reason)
    finally:
        work.stop()  # the page has gone on to another file


def readable_size(size: int) -> str:
    """1536 -> "1.5 KB"."""
    if size < 1000:
        return f"{size} B"
    value, unit = float(size), "B"
    for unit in ("KB", "MB", "GB"):  # noqa: B007 - the last one is used
        value /= 1000
        if value < 1000:
            break
    return f"{value:.1f} {unit}"


def _header_rows(entry: Entry) -> list[tuple[str, str]]:
    if entry.state != "ok":
        return []
    detection = _detection(entry)
    counts = ", ".join(f"{half} {count:,}" for half, count in parameter_counts(detection).items() if count)
    return [
        ("Family", family_label(entry.family)),
        ("Kind", KINDS[entry.kind]),
        ("Part", PARTS[entry.part]),
        ("Layout", entry.layout or ""),
        ("Latent channels", str(entry.z_channels)),
        ("Weights", entry.dtype),
        ("Parameters", counts),
    ]


def _detection(entry: Entry) -> Detection:
    header = read_header(entry.path)
    return detect(header.tensors, header.metadata, label=entry.path.name)


def _date(mtime_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(mtime_ns / 1e9))


class _IdentityWork:
    """Hash and fingerprint of one file, worked out in a thread so that the page can show how far it is."""

    def __init__(self, library: Library, entry: Entry) -> None:
        self._library = library
        self._entry = entry
        self._stopped = threading.Event()
        self._hash = entry.sha256 or "0 %"
        self._fingerprint = entry.fingerprint or ("..." if entry.state == "ok" else "")

    def progress(self) -> Iterator[list[tuple[str, str]]]:
        """The two rows, first as they are known, last as they are."""
        thread = threading.Thread(target=self._work, name="vae-kit-hash", daemon=True)
        thread.start()
        shown: list[tuple[str, str]] = []
        while True:
            thread.join(POLL_SECONDS)
            done = not thread.is_alive()
            rows = self._rows()
            if rows != shown:
                yield rows
                shown = rows
            if done:
                return

    def stop(self) -> None:
        self._stopped.set()

    def _rows(self) -> list[tuple[str, str]]:
        digits = [("VAE hash", self._hash[:10])] if len(self._hash) == 64 else []
        rows = [("sha256", self._hash), *digits]
        return rows + [("Fingerprint", self._fingerprint)] * bool(self._fingerprint)

    def _work(self) -> None:
        try:
            self._hash = self._library.sha256(self._entry, self._on_progress)
            if self._entry.state == "ok":
                self._fingerprint = self._library.identify(self._entry).fingerprint
        except VaeKitError as error:
            self._fingerprint = ""
            if len(self._hash) != 64:
                self._hash = f"not known: {error}"

    def _on_progress(self, done: int, total: int) -> bool:
        self._hash = f"{100 * done // max(1, total)} %"
        return not self._stopped.is_set()
