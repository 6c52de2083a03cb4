"""The user's rules: which VAE goes with which checkpoint and which pass.  docs/rules.md documents the file.

A rule is a set of conditions and a VAE; the first rule whose conditions all hold decides.  The file is read again when
it changed, checked as a whole, and only ever replaced by one that passed the check.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

from sd_vae_kit.core.networks.latent_format import FORMATS, family_label
from sd_vae_kit.errors import RulesError
from sd_vae_kit.settings.sections import AUTOMATIC
from sd_vae_kit.state.atomic_write import atomic_write
from sd_vae_kit.state.json_store import FileStamp
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.model_folders import CHECKPOINT_SUFFIXES
from sd_vae_kit.wording import Sentence

FILE_NAME = "vae_rules.json"
VERSION = 1
Run = Literal["picture", "hires", "img2img encode", "preview"]
RUNS: tuple[Run, ...] = get_args(Run)
# A preview wants a tiny decoder; a rule that means it has to say so.
RUNS_WITHOUT_SAYING: tuple[Run, ...] = ("picture", "hires", "img2img encode")


@dataclass(frozen=True)
class Rule:
    """One line of the file; conditions that are empty always hold.

    Attributes:
        vae: Name in the library, "None" for the checkpoint's own, "Automatic" to end the rules without an answer.
        checkpoint: Its name, file name or stem, exactly (letter case aside).
        glob: Pattern with * and ? over the same names and the path below the checkpoint folder.
        family: A family's name, such as "sdxl".
        folder: A folder the checkpoint lies in or below: the end of its path, such as "anime" or "sdxl/anime".
        runs: Passes it is for; in the file "pass", one word or a list.
        note: For the reader.
    """

    vae: str
    checkpoint: str = ""
    glob: str = ""
    family: str = ""
    folder: str = ""
    runs: tuple[Run, ...] = RUNS_WITHOUT_SAYING
    note: str = ""

    @property
    def conditions(self) -> str:
        """What it asks for, in words."""
        parts = [f"{name} {getattr(self, name)}" for name in CONDITIONS if getattr(self, name)]
        if self.runs != RUNS_WITHOUT_SAYING:
            parts.append(f"pass {' or '.join(self.runs)}")
        return ", ".join(parts) or "always"

    def failures(self, checkpoint: Checkpoint, run: Run) -> list[Sentence]:
        """Why it does not match, one sentence for each condition that fails; empty if it matches."""
        found = [] if run in self.runs else [Sentence.of("The pass is {}, not {}.", run, " or ".join(self.runs))]
        names = _names(checkpoint)
        if self.checkpoint and self.checkpoint.casefold() not in names:
            found.append(Sentence.of("The checkpoint is {}, not {}.", checkpoint.name, self.checkpoint))
        if self.glob and not any(fnmatchcase(name, self.glob.casefold()) for name in names):
            found.append(Sentence.of("The pattern {} does not fit {}.", self.glob, checkpoint.name))
        if self.family and self.family != checkpoint.latent_format.name:
            label = checkpoint.latent_format.label
            found.append(Sentence.of("The family is {}, not {}.", label, family_label(self.family)))
        if self.folder and not _lies_in(checkpoint.path, self.folder):
            where = checkpoint.path.parent if checkpoint.path else Sentence.of("nowhere on disk")
            found.append(Sentence.of("The checkpoint lies in {}, not below {}.", where, self.folder))
        return found


CONDITIONS = ("checkpoint", "glob", "family", "folder")


def _names(checkpoint: Checkpoint) -> set[str]:
    """What a checkpoint may be called: A1111 adds its hash in brackets, dropdowns show a path below the folder."""
    shown = checkpoint.name.rsplit(" [", 1)[0].replace("\\", "/")
    names = {checkpoint.name, shown, shown.rsplit("/", 1)[-1], _stem(shown.rsplit("/", 1)[-1])}
    if checkpoint.path:
        names |= {checkpoint.path.name, checkpoint.path.stem}
    return {name.casefold() for name in names}


def _stem(name: str) -> str:
    return next((name[: -len(end)] for end in CHECKPOINT_SUFFIXES if name.lower().endswith(end)), name)


def _lies_in(path: Path | None, folder: str) -> bool:
    if path is None:
        return False
    wanted = [part.casefold() for part in folder.replace("\\", "/").split("/") if part]
    parts = [part.casefold() for part in path.parent.as_posix().split("/") if part]
    return any(parts[i : i + len(wanted)] == wanted for i in range(len(parts) - len(wanted) + 1))


@dataclass(frozen=True)
class Explanation:
    """One rule and why it did or did not decide; several may match, only the first of them decides."""

    number: int
    rule: Rule
    matches: bool
    decides: bool
    why: Sentence


def first_match(rules: Sequence[Rule], checkpoint: Checkpoint, run: Run) -> tuple[int, Rule] | None:
    """Number, counted from 1, and rule; None if none matches."""
    return next(((n, rule) for n, rule in enumerate(rules, 1) if not rule.failures(checkpoint, run)), None)


def explain(rules: Sequence[Rule], checkpoint: Checkpoint, run: Run) -> list[Explanation]:
    """Every rule, in order, with its reasons."""
    hit = first_match(rules, checkpoint, run)
    lines = []
    for number, rule in enumerate(rules, 1):
        failures = rule.failures(checkpoint, run)
        decides = hit is not None and hit[0] == number
        if failures:
            why = Sentence.joined(" ", failures)
        elif decides:
            why = Sentence.of("All of it holds, so the VAE is {}.", rule.vae)
        else:
            why = Sentence.of("All of it holds, but rule {} came first.", hit[0] if hit else 0)
        lines.append(Explanation(number, rule, not failures, decides, why))
    return lines


# --- the file --------------------------------------------------------------------------------------------------------

KEYS = {item.name for item in fields(Rule)} - {"runs"} | {"pass"}


def parse(text: str) -> tuple[Rule, ...]:
    """Rules from the file's text.

    Raises:
        RulesError: It is not JSON or does not follow the schema.
    """
    if not text.strip():
        return ()
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise RulesError(f"{FILE_NAME} is not valid JSON ({where}).") from error
    if not isinstance(data, dict) or not isinstance(data.get("rules"), list) or data.keys() - {"version", "rules"}:
        raise RulesError(f'{FILE_NAME} must be {{"version": {VERSION}, "rules": [...]}} and nothing else.')
    if data.get("version") != VERSION:
        raise RulesError(f"{FILE_NAME} has version {data.get('version')!r}, this program reads {VERSION}.")
    return tuple(_rule(number, values) for number, values in enumerate(data["rules"], 1))


def _rule(number: int, values: object) -> Rule:
    where = f"{FILE_NAME}, rule {number}"
    if not isinstance(values, dict):
        raise RulesError(f"{where} is {values!r:.40}; a rule is an object such as {{...}}.")
    if unknown := values.keys() - KEYS:
        raise RulesError(f'{where} has the unknown key "{min(unknown)}"; the keys are {", ".join(sorted(KEYS))}.')
    for key in KEYS - {"pass"} & values.keys():
        if not isinstance(values[key], str):
            raise RulesError(f'{where}: "{key}" is {values[key]!r:.40}; it must be text.')
    if not values.get("vae", "").strip():
        raise RulesError(f'{where} names no "vae"; give a file name, "None" or "{AUTOMATIC}".')
    family = values.get("family", "")
    if family and family not in FORMATS:
        raise RulesError(f'{where} has the family "{family}"; families are {", ".join(FORMATS)}.')
    given = {key: value.strip() for key, value in values.items() if key != "pass"}
    return Rule(**given, runs=_runs(where, values["pass"]) if "pass" in values else RUNS_WITHOUT_SAYING)


def _runs(where: str, value: object) -> tuple[Run, ...]:
    wanted = [value] if isinstance(value, str) else value
    if not isinstance(wanted, list) or not wanted or any(word not in RUNS for word in wanted):
        raise RulesError(f'{where}: "pass" is {value!r:.60}; it is one or a list of {", ".join(RUNS)}.')
    return tuple(run for run in RUNS if run in wanted)


def dump(rules: Sequence[Rule]) -> str:
    """The file's text, one rule to a line."""
    lines = ",\n".join(f"  {json.dumps(_plain(rule), ensure_ascii=False)}" for rule in rules)
    body = f"[\n{lines}\n ]" if lines else "[]"
    return f'{{\n "version": {VERSION},\n "rules": {body}\n}}\n'


def _plain(rule: Rule) -> dict[str, object]:
    """A rule as it stands in the file."""
    values: dict[str, object] = {name: getattr(rule, name) for name in CONDITIONS if getattr(rule, name)}
    if rule.runs != RUNS_WITHOUT_SAYING:
        values["pass"] = rule.runs[0] if len(rule.runs) == 1 else list(rule.runs)
    values["vae"] = rule.vae
    return {**values, "note": rule.note} if rule.note else values


@dataclass
class RulesFile:
    """The rules on disk; read again when the file changed.  Safe to use from several threads."""

    path: Path
    _seen: FileStamp | None = None
    _rules: tuple[Rule, ...] = ()
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def text(self) -> str:
        """What the file says now, for an editor; the empty set of rules if there is none.

        Raises:
            RulesError: It cannot be read.
        """
        try:
            return self.path.read_text("utf-8-sig")  # Windows editors like to begin with a mark
        except FileNotFoundError:
            return dump(())
        except (OSError, ValueError) as error:
            raise RulesError(f"{self.path} cannot be read ({error}).") from error

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in force.

        Raises:
            RulesError: The file is there and not right; no rule is left out silently.
        """
        with self._lock:
            try:
                seen = FileStamp.of(self.path)
            except OSError:  # its folder cannot be reached: no rules, as without a file
                seen = None
            if seen != self._seen:
                self._rules = parse(self.text) if seen is not None else ()
                self._seen = seen
            return self._rules

    def save(self, text: str) -> tuple[Rule, ...]:
        """Check and replace the file; on any error it stays as it was.

        Raises:
            RulesError: The text does not follow the schema, or the file cannot be written.
        """
        rules = parse(text)
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(self.path) as temporary:
                    temporary.write_text(text if text.strip() else dump(()), "utf-8")
            except OSError as error:
                raise RulesError(f"{self.path} was not saved: {error.strerror or error}.") from error
            self._seen = None
        return rules


# --- A1111's cards ---------------------------------------------------------------------------------------------------


def rules_from_cards(folder: Path) -> tuple[Rule, ...]:
    """A rule for each checkpoint whose card (`NAME.json` beside it, A1111's user metadata) names a preferred VAE.

    Cards that cannot be read, or that say "Automatic", give none.
    """
    rules = []
    for card in sorted(folder.rglob("*.json")):
        checkpoint = next(
            (card.with_suffix(end) for end in CHECKPOINT_SUFFIXES if card.with_suffix(end).is_file()), None
        )
        vae = _card_vae(card) if checkpoint else ""
        if checkpoint and vae and vae != AUTOMATIC:
            rules.append(Rule(vae, checkpoint=checkpoint.name, note=f"from {os.path.relpath(card, folder)}"))
    return tuple(rules)


def _card_vae(card: Path) -> str:
    try:
        data = json.loads(card.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return ""
    value = data.get("vae") if isinstance(data, Mapping) else None
    return value.strip() if isinstance(value, str) else ""


def merged(rules: Sequence[Rule], added: Sequence[Rule]) -> tuple[Rule, ...]:
    """`rules`, then those of `added` whose checkpoint no rule names yet."""
    named = {rule.checkpoint.casefold() for rule in rules if rule.checkpoint}
    return (*rules, *(rule for rule in added if rule.checkpoint.casefold() not in named))
