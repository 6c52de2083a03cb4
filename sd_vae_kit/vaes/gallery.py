"""Installed and known VAEs in one list: what each is, what it needs, where it is from, which checkpoints use it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from sd_vae_kit.core.networks.latent_format import FORMATS, split_family
from sd_vae_kit.errors import BrokenVaeError
from sd_vae_kit.state.file_hash import hash_in_steps
from sd_vae_kit.vaes.catalogue import Catalogue, KnownVae
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.finding import Finding
from sd_vae_kit.vaes.gallery_row import GalleryRow
from sd_vae_kit.vaes.model_folders import CHECKPOINT_SUFFIXES
from sd_vae_kit.vaes.rules import Rule
from sd_vae_kit.wording import NOTHING, Sentence

PRECISION = {
    True: Sentence.of("runs in fp16"),
    False: Sentence.of("needs fp32 or bf16 (or range shift)"),
    None: NOTHING,
}
PARTS = {"both": "", "encoder": "encoder only", "decoder": "decoder only"}


def rows(
    entries: Sequence[Entry],
    known: Catalogue,
    *,
    found: Callable[[Entry], Finding],
    rules: Sequence[Rule] = (),
    active: str = "",
    used: Callable[[Entry], Sequence[str]] = lambda entry: (),
) -> list[GalleryRow]:
    """Files first, then what the catalogue knows and is not installed, those that can be installed first.

    Args:
        entries: The library's.
        known: The catalogue; a file is recognised by its hash where that was worked out.
        found: What is known of a file's family.
        rules: The user's.
        active: Name of the live file.
        used: Checkpoints that a file was used with.
    """
    here = {entry.sha256 for entry in entries if entry.sha256}
    installed = [_file_row(e, known.by_hash(e.sha256), found(e), used_by(e, rules, used(e)), active) for e in entries]
    others = [_known_row(vae) for vae in known.entries if vae.sha256 is None or vae.sha256 not in here]
    return [*installed, *sorted(others, key=lambda row: not row.can_install)]


def _file_row(entry: Entry, known: KnownVae | None, finding: Finding, used: tuple[str, ...], active: str) -> GalleryRow:
    stored = Sentence.of("stored in {}", entry.dtype) if entry.dtype else NOTHING
    return GalleryRow(
        entry.name,
        entry.name,
        True,
        finding.label,
        split_family(finding.family),
        entry.size,
        (entry.sha256 or "")[:10],
        Sentence.joined(", ", filter(None, (PRECISION[known.fp16_safe] if known else NOTHING, stored))),
        Sentence.of("{} ({})", known.name, _origin(known)) if known else NOTHING,
        known.licence if known else "",
        used,
        " ".join(filter(None, (known.note if known else "", PARTS[entry.part or "both"]))),
        known_by=finding.sentence if finding.is_certain else "",
        is_active=entry.name == active,
        problem=entry.reason,
    )


def _known_row(known: KnownVae) -> GalleryRow:
    return GalleryRow(
        known.name,
        known.name,
        False,
        known.family_label,
        (known.family,),
        known.size,
        (known.sha256 or "")[:10],
        PRECISION[known.fp16_safe],
        _origin(known),
        known.licence,
        (),
        known.note,
        known.can_install,
        known.cautions,
    )


def _origin(known: KnownVae) -> Sentence:
    """Host and owner: "huggingface.co/stabilityai"."""
    if not known.url:
        return Sentence.of("no address known")
    parts = urlsplit(known.url)
    owner = parts.path.split("/")[1] if parts.path.count("/") > 2 else ""
    return Sentence.of("{}", f"{parts.hostname}/{owner}" if owner and owner != "api" else parts.hostname)


def used_by(entry: Entry, rules: Sequence[Rule], used: Sequence[str] = ()) -> tuple[str, ...]:
    """Checkpoints it was used with, those whose name it shares and lies beside, and the rules that name it."""
    stem = entry.path.stem
    beside = []
    if stem.endswith(".vae"):
        own = stem.removesuffix(".vae")
        beside = [own + end for end in CHECKPOINT_SUFFIXES if entry.path.with_name(own + end).is_file()]
    wanted = {entry.name.casefold(), entry.path.name.casefold(), entry.path.stem.casefold()}
    named = [
        Sentence.of("rule {}", f"{n}: {rule.conditions}")
        for n, rule in enumerate(rules, 1)
        if rule.vae.casefold() in wanted
    ]
    return (*used, *(name for name in beside if Path(name).stem not in used), *named)


def family_choices() -> list[tuple[str, str]]:
    """(label, name) for a filter; "" means any."""
    return [("any family", ""), *((item.label, name) for name, item in FORMATS.items())]


def read_again(entry: Entry) -> Iterator[tuple[int, str]]:
    """(bytes read, "") again and again while the whole file is hashed, then (size, sha256).

    Raises:
        BrokenVaeError: It cannot be read.
    """
    try:
        yield from hash_in_steps(entry.path)
    except OSError as error:
        raise BrokenVaeError(f"{entry.name} cannot be read: {error.strerror or error}; check the disk.") from error


def compare(entry: Entry, digits: str, known: Catalogue) -> tuple[bool, Sentence]:
    """What a file's hash says about it: (whether it is right, one line)."""
    found, short = known.by_hash(digits), f"{digits[:10]}..."
    if found is not None:
        return True, Sentence.of("{} is {}, byte for byte (sha256 {}).", entry.name, found.name, short)
    namesake = [vae for vae in known.entries if entry.path.name in vae.names and vae.sha256]
    if namesake:
        expected = Sentence.joined(" or ", [f"{vae.sha256[:10]}..." for vae in namesake if vae.sha256])
        words = "{} is called like {} but is another file: sha256 {} instead of {}."
        return False, Sentence.of(words, entry.name, namesake[0].name, short, expected)
    if entry.sha256 and entry.sha256 != digits:
        words = "{} changed on the disk without its date: sha256 was {}"
        return False, Sentence.of(words, entry.name, f"{entry.sha256[:10]}...")
    return True, Sentence.of("{} is not in the catalogue; all of it could be read (sha256 {}).", entry.name, short)


def reveal_command(path: Path, platform: str = sys.platform) -> list[str]:
    """The command that shows a file in the system's file manager."""
    if platform == "win32":
        return ["explorer", f"/select,{path}"]
    return ["open", "-R", str(path)] if platform == "darwin" else ["xdg-open", str(path.parent)]
