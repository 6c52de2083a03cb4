"""What the VAE tab says about files, from the library's entries."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.standalone.pages.backend_protocol import VaeFacts, VaeRow
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.finding import Finding
from sd_vae_kit.vaes.inspection import Inspection, Inspector

POLL_SECONDS = 0.15
KINDS = {"kl": "KL autoencoder", "tiny": "tiny autoencoder (TAESD)", None: ""}
PARTS = {"both": "encoder and decoder", "encoder": "encoder only", "decoder": "decoder only", None: ""}
SHORT_KINDS = {"kl": "KL", "tiny": "tiny", None: ""}


def row_of(entry: Entry, finding: Finding, is_active: bool) -> VaeRow:
    """One line of the table of all files; `finding` is what is known of its family."""
    kind = SHORT_KINDS[entry.kind]
    if entry.part in ("encoder", "decoder"):
        kind = f"{kind}, {entry.part}"
    family = finding.label if entry.state == "ok" else ""
    return VaeRow(entry.name, family, kind, readable_size(entry.size), is_active, entry.reason)


def tiny_note(entry: Entry, finding: Finding) -> str:
    """What a TAESD is, for lists: "TAESD decoder, SDXL"."""
    part = "" if entry.part == "both" else f" {entry.part}"
    return f"TAESD{part}, {finding.label}"


def facts_of(inspector: Inspector, entry: Entry) -> Iterator[VaeFacts]:
    """All that is known, again and again until hash, fingerprint and family are found out."""
    work = _Work(inspector, entry)
    try:
        for found, identity_rows in work.progress():
            rows = [("Name", entry.name), ("Path", str(entry.path)), *(_rows_of(found) if found else [])]
            rows += [("Size", readable_size(entry.size)), ("Changed", _date(entry.mtime_ns)), *identity_rows]
            yield VaeFacts(entry.name, tuple(rows), found.warnings if found else (), entry.reason)
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


def _rows_of(found: Inspection) -> list[tuple[str, str]]:
    counts = ", ".join(f"{half} {count:,}" for half, count in found.parameters.items() if count)
    known_by = [("Known by", found.finding.sentence)] if found.finding.is_certain else []
    return [
        ("Family", found.finding.label),
        *known_by,
        ("Kind", KINDS[found.kind]),
        ("Part", PARTS[found.part]),
        ("Layout", found.layout),
        ("Latent channels", str(found.z_channels)),
        ("Weights", found.dtype),
        ("Parameters", counts),
    ]


def _date(mtime_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(mtime_ns / 1e9))


class _Work:
    """The inspection of one file in a thread, so that the page can show how far it is."""

    def __init__(self, inspector: Inspector, entry: Entry) -> None:
        self._inspector = inspector
        self._entry = entry
        self._stopped = threading.Event()
        self._found = inspector.glance(entry) if entry.state == "ok" else None
        self._hash = entry.sha256 or "0 %"
        self._fingerprint = entry.fingerprint or ("..." if entry.state == "ok" else "")

    def progress(self) -> Iterator[tuple[Inspection | None, list[tuple[str, str]]]]:
        """What is known, and the rows of hash and fingerprint: first as they were found before, last as they are."""
        thread = threading.Thread(target=self._work, name="vae-kit-hash", daemon=True)
        thread.start()
        shown: tuple[Inspection | None, list[tuple[str, str]]] | None = None
        while True:
            thread.join(POLL_SECONDS)
            done = not thread.is_alive()
            now = self._found, self._rows()
            if now != shown:
                yield now
                shown = now
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
            self._hash = self._inspector.library.sha256(self._entry, self._on_progress)
            if self._entry.state == "ok":
                self._found = self._inspector.inspect(self._entry)
                self._fingerprint = self._found.fingerprint or ""
        except VaeKitError as error:
            self._fingerprint = ""
            if len(self._hash) != 64:
                self._hash = f"not known: {error}"

    def _on_progress(self, done: int, total: int) -> bool:
        self._hash = f"{100 * done // max(1, total)} %"
        return not self._stopped.is_set()
