"""VAEs the world knows: names, hashes, licences, addresses, what each is good for.

The data are in catalogue.json beside this file; docs/catalogue.md says where they come from.  Nothing here opens a VAE
or a connection; `download` fetches an entry.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from sd_vae_kit.core.halves import Part
from sd_vae_kit.core.networks.latent_format import FORMATS, family_label
from sd_vae_kit.errors import OptionError, VaeNotFoundError
from sd_vae_kit.state.json_store import DAMAGE
from sd_vae_kit.units import MIB

DATA = Path(__file__).with_name("catalogue.json")
SCHEMA = 1
HASH_PREFIX = 8  # hex digits; A1111 writes ten into pictures
# Where the exact size is not known: no published file of the kind comes near this.
SIZE_LIMITS = {"tiny": 64 * MIB, "kl": 1024 * MIB, "other": 3072 * MIB}

Kind = Literal["kl", "tiny", "other"]


@dataclass(frozen=True)
class KnownVae:
    """One file that circulates.

    Attributes:
        name: What users call it; unique.
        file: Name it is saved under, unique in the catalogue; None where no download is known.
        family: A name in `FORMATS`, or one this program does not run ("wan2.1", "eq-sdxl").
        kind: "kl" and "tiny" can be run; "other" is only recognised.
        part: Which halves the file has.
        url, mirrors: Addresses, best first; the same bytes are expected from each.
        sha256, git_blob_sha1: Of the whole file, lower-case hex; None where not known.
        size: Exact bytes, None where not known.
        licence: As published: an SPDX-like name, "unclear" or "unknown".
        aliases: Other names of the same bytes.
        note: One line: what it is good for.
        fp16_safe: Whether it runs in half precision without overflow; None where not known.
        verified: How well the hash is known: 0 not at all, 1 one source, 2 several, 3 computed from the file.
    """

    name: str
    file: str | None
    family: str
    kind: Kind
    part: Part
    url: str | None
    mirrors: tuple[str, ...]
    sha256: str | None
    git_blob_sha1: str | None
    size: int | None
    licence: str
    aliases: tuple[str, ...]
    note: str
    fp16_safe: bool | None
    verified: int

    @property
    def urls(self) -> tuple[str, ...]:
        """Every address, best first."""
        return (self.url, *self.mirrors) if self.url else ()

    @property
    def can_run(self) -> bool:
        """Whether this program can encode or decode with it."""
        return self.family in FORMATS and self.kind != "other"

    @property
    def can_install(self) -> bool:
        """Whether it can be fetched from here at all."""
        return self.can_run and bool(self.url) and self.file is not None

    @property
    def cautions(self) -> tuple[str, ...]:
        """Sentences a user must have agreed to before it is fetched; empty for an ordinary entry."""
        found = []
        if self.sha256 is None:
            found.append("No hash is known, so nobody can tell whether the right file arrives.")
        if self.licence == "unclear":
            found.append("Its licence is unclear: the weights were not published by their makers.")
        return tuple(found)

    @property
    def max_bytes(self) -> int:
        """No download of it may be longer."""
        return self.size if self.size is not None else SIZE_LIMITS[self.kind]

    @property
    def family_label(self) -> str:
        """What to show a user: "SDXL", or the bare name of a family this program does not run."""
        return family_label(self.family) if self.family in FORMATS else self.family

    @property
    def names(self) -> Iterator[str]:
        """Everything it is called."""
        yield self.name
        if self.file:
            yield self.file
        yield from self.aliases


class Catalogue:
    """Entries and the ways to find one.

    Attributes:
        entries: In the order they are shown.
        standards: Family -> name of the VAE to use where nothing else is known.
    """

    def __init__(self, entries: Iterable[KnownVae], standard: Mapping[str, str] | None = None) -> None:
        self.entries = tuple(entries)
        self.standards = dict(standard or {})
        self._by_name: dict[str, list[KnownVae]] = {}
        for entry in self.entries:
            for key in dict.fromkeys(map(_folded, entry.names)):
                self._by_name.setdefault(key, []).append(entry)
        self._by_hash = {entry.sha256: entry for entry in self.entries if entry.sha256}

    def find(self, name: str) -> KnownVae:
        """The entry of that name, file name, alias, hash, or beginning of a hash (at least 8 digits).

        Raises:
            VaeNotFoundError: None, or more than one, is called that.
        """
        by_hash = self.by_hash(name)
        found = [by_hash] if by_hash else self._by_name.get(_folded(name), [])
        exact = [entry for entry in found if name in (entry.name, entry.file)]
        found = exact or found
        if len(found) == 1:
            return found[0]
        if found:
            names = "; ".join(f'"{entry.name}"' for entry in found)
            raise VaeNotFoundError(f"{name} is the name of {len(found)} different files; choose one of {names}.")
        raise VaeNotFoundError(f"The catalogue has no {name!r}{self._hint(name)}; `download --list` shows what it has.")

    def by_hash(self, digits: str | None) -> KnownVae | None:
        """The entry whose sha256 is, or begins with, `digits`; None where it is unknown, too short or not unique."""
        wanted = (digits or "").strip().lower()
        if wanted in self._by_hash:
            return self._by_hash[wanted]
        if len(wanted) < HASH_PREFIX or not re.fullmatch("[0-9a-f]+", wanted):
            return None
        found = [entry for known, entry in self._by_hash.items() if known.startswith(wanted)]
        return found[0] if len(found) == 1 else None

    def of_family(self, family: str) -> tuple[KnownVae, ...]:
        """All entries of one family, in the catalogue's order."""
        return tuple(entry for entry in self.entries if entry.family == family)

    def standard(self, family: str) -> KnownVae | None:
        """The VAE to use where nothing else is known; None for a family without one."""
        name = self.standards.get(family)
        return self.find(name) if name else None

    def tiny_pair(self, family: str) -> tuple[KnownVae, KnownVae] | None:
        """TAESD encoder and decoder of a family, those that can be fetched with a check; None where there are none."""
        halves = {e.part: e for e in reversed(self.of_family(family)) if e.kind == "tiny" and e.url and e.sha256}
        return (halves["encoder"], halves["decoder"]) if {"encoder", "decoder"} <= halves.keys() else None

    def _hint(self, name: str) -> str:
        words = re.findall("[a-z0-9]+", name.lower()) if len(name) > 2 else []
        near = [e.name for e in self.entries if words and all(w in " ".join(e.names).lower() for w in words)]
        return f" (did you mean {near[0]!r}?)" if near else ""


@functools.cache
def catalogue() -> Catalogue:
    """The catalogue that comes with the program."""
    return read_catalogue(DATA.read_text("utf-8"))


def with_own_entries(path: Path) -> Catalogue:
    """The catalogue with the user's own entries in front, from a file of the same form; without one, as it comes.

    Raises:
        OptionError: The file is there and not right.
    """
    try:
        own = read_catalogue(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return catalogue()
    except DAMAGE as error:
        raise OptionError(f"{path} is not a catalogue ({error}); docs/catalogue.md shows the form.") from error
    names = {entry.name for entry in own.entries}
    rest = [entry for entry in catalogue().entries if entry.name not in names]
    return Catalogue([*own.entries, *rest], {**catalogue().standards, **own.standards})


def read_catalogue(text: str) -> Catalogue:
    """A catalogue from the text of its JSON file.

    Raises:
        ValueError: Another schema, or an entry with a field missing or too many.
    """
    data = json.loads(text)
    if data["schema"] != SCHEMA:
        raise ValueError(f"catalogue schema {data['schema']}, this program reads {SCHEMA}")
    return Catalogue([_entry(values) for values in data["entries"]], data["standard"])


def _entry(values: dict[str, object]) -> KnownVae:
    expected = {item.name for item in fields(KnownVae)}
    if values.keys() != expected:
        raise ValueError(f"{values.get('name')}: fields {sorted(values.keys() ^ expected)} are missing or unknown")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return KnownVae(**given)  # type: ignore[arg-type]


def _folded(name: str) -> str:
    return " ".join(name.lower().split())
