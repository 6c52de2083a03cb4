"""The names and signatures that web UIs have for this extension, recorded from their sources, and what has changed.

    python launch.py test --hosts                           what changed in each installation since it was recorded
    python launch.py test --hosts --record [NAME=COMMIT]    write tests/data/host_names/*.json anew

An installation is named by its variable: VAE_KIT_A1111_DIR, VAE_KIT_FORGE_DIR, VAE_KIT_NEO_DIR, VAE_KIT_SDNEXT_DIR,
VAE_KIT_REFORGE_DIR, VAE_KIT_CLASSIC_DIR.  Only the modules that the package uses are recorded, names and signatures
and nothing else; the fakes in tests are held to them.  NAME=COMMIT (neo=5692d2d1) says which commit an installation was
made from, where its folder does not.  The exit code is 1 if a name is gone that the package uses.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.host_entries import INSTANCE, SAME_AS, VALUE, Entry, HostEntries
from tools.host_sources import HostSources
from tools.host_uses import ROOT, Use, files_behind, own_files, used_modules, uses_in

DATA = ROOT / "tests" / "data" / "host_names"
OWN = "vae_kit"  # names with it are ours: flags of preload.py, what we leave on the web UI's objects
EVERYWHERE = ("sd_vae_kit.hosts", "sd_vae_kit.webui.callbacks")


@dataclass(frozen=True)
class Program:
    """A web UI.

    Attributes:
        name: As users know it.
        key: In the file's name and in the variable's.
        entry: Our module that makes its host.
    """

    name: str
    key: str
    entry: str

    @property
    def variable(self) -> str:
        """Names its installation."""
        return f"VAE_KIT_{self.key.upper()}_DIR"

    @property
    def file(self) -> Path:
        return DATA / f"{self.key}.json"

    def uses(self) -> list[Use]:
        """What of it the package may use: in the files behind its host, and in the page's."""
        files = files_behind(self.entry, *EVERYWHERE) | {path for path in own_files() if path.parent.name == "scripts"}
        return sorted({use for path in files for use in uses_in(path)})


PROGRAMS = (
    Program("A1111", "a1111", "sd_vae_kit.hosts.a1111.host"),
    Program("Forge", "forge", "sd_vae_kit.hosts.forge.host"),
    Program("Forge Neo", "neo", "sd_vae_kit.hosts.forge.neo"),
    Program("SD.Next", "sdnext", "sd_vae_kit.hosts.sdnext.host"),
    Program("reForge", "reforge", "sd_vae_kit.hosts.a1111.reforge"),
    Program("Forge Classic", "classic", "sd_vae_kit.hosts.a1111.reforge"),
)


def program(key: str) -> Program:
    """The web UI of a key."""
    return next(item for item in PROGRAMS if item.key == key)


@dataclass(frozen=True)
class Recording:
    """What a program has of the modules that the package uses.

    Attributes:
        program: Its name.
        version: As it calls itself.
        commit: Of its repository.
        modules: By module and name the entry (`host_sources`); all names of a module that is used, only classes that
            these lead to of others.
        absent: Modules that are used elsewhere and that it does not have.
        options: Keys of its options.
        flags: Names in `shared.cmd_opts`.
    """

    program: str
    version: str
    commit: str
    modules: dict[str, dict[str, Entry]]
    absent: list[str]
    options: list[str]
    flags: list[str]

    @classmethod
    def load(cls, path: Path) -> Recording:
        """A recording that was written by `save`."""
        return cls(**json.loads(path.read_text("utf-8")))

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(written(asdict(self)) + "\n", "utf-8")

    # -- look-up ---------------------------------------------------------------------------------------------------

    def has(self, module: str, dotted: str) -> bool:
        """Whether the program has a name; what lies in an object of unknown kind counts as there."""
        return self.find(module, dotted) is not None

    def find(self, module: str, dotted: str) -> Entry | None:
        """The entry of a name, with dots for attributes of attributes; `VALUE` where nothing more is known."""
        if module in self.absent or module not in self.modules:
            return None
        first, _, rest = dotted.partition(".")
        if not first:
            return VALUE
        if module == "modules.shared" and first in ("opts", "cmd_opts") and rest:
            return self._setting(first, rest)
        return self._inside(self.modules[module].get(first), rest)

    def _setting(self, owner: str, rest: str) -> Entry | None:
        key = rest.partition(".")[0]
        if key in (self.options if owner == "opts" else self.flags):
            return VALUE
        return self._inside(self.modules["modules.shared"].get(owner), rest) if owner == "opts" else None

    def _inside(self, entry: Entry | None, rest: str) -> Entry | None:
        """An attribute of what an entry describes."""
        if not rest or entry is None:
            return entry
        found = self.class_of(entry)
        if found is None:
            return VALUE if entry == VALUE else None
        first, _, further = rest.partition(".")
        if first not in found["members"]:
            return VALUE if found["bases"] else None
        return self._inside(found["members"][first], further)

    def class_of(self, entry: Entry) -> dict[str, Any] | None:
        """The class that an entry is, is another name of or is an object of."""
        while isinstance(entry, str) and entry.startswith((INSTANCE, SAME_AS)):
            module, _, name = entry[2:].rpartition(".")
            entry = self.modules.get(module, {}).get(name)
        return entry if isinstance(entry, dict) else None


def written(value: dict[str, Any], depth: int = 0) -> str:
    """JSON with a line for each name, so that a new recording is read as a list of differences."""
    pad, parts = " " * (depth + 1), []
    for key, item in value.items():
        is_open = isinstance(item, dict) and item and depth < 2
        parts.append(f"{pad}{json.dumps(key)}: {written(item, depth + 1) if is_open else json.dumps(item)}")
    lines = ",\n".join(parts)
    return f"{{\n{lines}\n{pad[1:]}}}"


# --- recording ------------------------------------------------------------------------------------------------------


def record(root: Path, program: str, commit: str | None = None, modules: Iterable[str] | None = None) -> Recording:
    """Read an installation.

    Args:
        root: Its folder.
        program: Its name.
        commit: Where the folder does not say it itself.
        modules: What to read; as a rule all that the package uses.

    Raises:
        SyntaxError: A file is written for a newer Python than this one.
    """
    sources, wanted = HostSources(root), list(used_modules() if modules is None else modules)
    entries, here = HostEntries(sources), [module for module in wanted if sources.has_module(module)]
    found: dict[str, dict[str, Entry]] = {}
    for module in here:
        found[module] = {name: entries.entry(module, name) for name in entries.all_names(module)}
    _add_classes(entries, found)
    return Recording(
        program=program,
        version=version_of(root),
        commit=commit or git(root, "rev-parse", "HEAD"),
        modules=dict(sorted(found.items())),
        absent=[module for module in wanted if module not in here],
        options=entries.options(),
        flags=entries.flags(),
    )


def _add_classes(entries: HostEntries, found: dict[str, dict[str, Entry]]) -> None:
    """Classes in other modules that entries name."""
    waiting = [entry for names in found.values() for entry in names.values()]
    while waiting:
        entry = waiting.pop()
        if not isinstance(entry, str) or not entry.startswith((INSTANCE, SAME_AS)):
            continue
        module, _, name = entry[2:].rpartition(".")
        if name not in found.setdefault(module, {}):
            found[module][name] = entries.entry(module, name)
            waiting.append(found[module][name])


def version_of(root: Path) -> str:
    """As the program calls itself, in its file of the version or by its tag; else the day of its commit."""
    path = root / "modules_forge" / "forge_version.py"
    if path.is_file():
        values = [node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Assign)]
        return " ".join(str(value.value) for value in values if isinstance(value, ast.Constant))
    return git(root, "describe", "--tags", "--exact-match") or git(root, "log", "-1", "--format=%cs")


def git(root: Path, *command: str) -> str:
    """One line of git's, "" where the folder is no repository."""
    asked = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else ""


# --- comparing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One name that is not what it was.

    Attributes:
        name: "modules.sd_vae.load_vae", "modules.options.Options.set", "option sd_vae", "--vae-dir".
        what: "is gone", "has the new parameter x", ...
    """

    name: str
    what: str

    @property
    def is_gone(self) -> bool:
        return self.what == GONE


GONE, RETURNED = "is gone", "is there now"


def changes(before: Recording, after: Recording) -> list[Change]:
    """What became of the recorded names; new names are none of it."""
    found = [Change(module, RETURNED) for module in before.absent if module in after.modules]
    for module, names in before.modules.items():
        if module not in after.modules:
            found.append(Change(module, GONE))
        else:
            found += _changed_names(module, names, after.modules[module])
    found += [Change(f"option {key}", GONE) for key in before.options if key not in after.options]
    found += [Change(f"flag {name}", GONE) for name in before.flags if name not in after.flags]
    return found


def _changed_names(owner: str, before: Mapping[str, Entry], after: Mapping[str, Entry]) -> Iterator[Change]:
    for name, entry in before.items():
        dotted, now = f"{owner}.{name}", after.get(name)
        if now is None:
            yield Change(dotted, GONE)
        elif isinstance(entry, dict) and isinstance(now, dict):
            yield from _changed_names(dotted, entry["members"], now["members"])
        elif entry != now:
            yield Change(dotted, _difference(entry, now))


def _difference(before: Entry, after: Entry) -> str:
    """In words."""
    if isinstance(before, str) and isinstance(after, str) and before[0] == after[0] == "(":
        old, new = parameters(before), parameters(after)
        added = [name for name in new if name not in old]
        if [name for name in new if name not in added] == old:
            return f"has the new parameter{'s' if len(added) > 1 else ''} {', '.join(added)}"
        return f"takes {after}, took {before}"
    return f"is {in_words(after)}, was {in_words(before)}"


def in_words(entry: Entry) -> str:
    if isinstance(entry, dict):
        return "a class"
    if entry.startswith("("):
        return f"a function {entry}"
    if entry == VALUE:
        return "a value"
    return f"the class {entry[2:]}" if entry.startswith(SAME_AS) else f"an object of {entry[2:]}"


def parameters(signature: str) -> list[str]:
    """Parameters of a function's entry, each as it is written there."""
    return [part for part in signature[1:-1].split(", ") if part]


def missing(recording: Recording, uses: Iterable[Use]) -> list[Use]:
    """Uses of names that a program does not have."""
    return [use for use in uses if OWN not in use.attribute and not recording.has(use.module, use.attribute)]


# --- the command ----------------------------------------------------------------------------------------------------


def compare(program: Program, now: Recording) -> bool:
    """Print one line for each change; whether every used name that was there still is."""
    if not program.file.is_file():
        print(f"{program.name}: never recorded; --record does it.")
        return True
    before, uses = Recording.load(program.file), program.uses()
    found = changes(before, now)
    count = f"{len(found)} change{'' if len(found) == 1 else 's'}"
    print(f"{program.name} {now.version} ({now.commit[:8]}): {count} since {before.version} ({before.commit[:8]})")
    for change in found:
        print(f"{program.name}: {change.name} {change.what}")
    lost = {use.name for use in missing(now, uses)} - {use.name for use in missing(before, uses)}
    for name in sorted(lost):
        print(f"{program.name}: VAE Kit uses {name}, which is gone")
    return not lost


def main(arguments: list[str]) -> int:
    """Compare every installation that a variable names with its recording, or record it."""
    recording = "--record" in arguments
    commits = dict(part.split("=", 1) for part in arguments if "=" in part)
    sound = True
    for program in PROGRAMS:
        folder = os.environ.get(program.variable)
        if not folder:
            print(f"{program.name}: not named by {program.variable}, skipped")
            continue
        now = record(Path(folder), program.name, commits.get(program.key))
        if recording:
            now.save(program.file)
            print(f"{program.name}: {sum(map(len, now.modules.values()))} names written")
        else:
            sound &= compare(program, now)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
