"""Describes a web UI's names: functions by their parameters, classes by members, options and flags by name alone.

A name is described by an entry:

    "(model, vae_file=, *args)"      a function, its parameters in order, those with a default marked "="
    "value"                          anything else of which only the name is known
    "a modules.options.Options"      an object of that class
    "= modules.options.OptionInfo"   a class that another module defines
    {"bases": [...], "members": {}}  a class: its methods and attributes with those of its bases; `bases` are foreign
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from tools.host_sources import HostSources, Place
from tools.host_syntax import (
    FUNCTION,
    argument_names,
    assigned,
    assigned_flags,
    assigned_to_self,
    is_property,
    option_keys,
    parsed,
    signature,
    statements_in,
)

Entry = Any  # a string or a class' dictionary, as in the JSON
VALUE, INSTANCE, SAME_AS = "value", "a ", "= "
OPTION_FOLDERS = ("modules", "modules_forge", "backend")
FLAG_FILES = (
    "modules/cmd_args.py",
    "modules/paths_internal.py",
    "backend/args.py",
    "ldm_patched/modules/args_parser.py",
)


class HostEntries:
    """The entries of one installation's names."""

    def __init__(self, sources: HostSources) -> None:
        self._sources = sources

    def all_names(self, module: str) -> list[str]:
        """Names of a module that this program defines somewhere; what it imports from others is left out."""
        names = self._sources.names(module).bound
        starred = (self.all_names(node.module or "") for node in names.get("*", ()) if isinstance(node, ast.ImportFrom))
        public = {name for found in starred for name in found if not name.startswith("_")}
        own = {*names, *public} - {"*"}
        return sorted(name for name in own if self._sources.follow(module, name) is not None)

    def entry(self, module: str, name: str) -> Entry | None:
        """How a name of a module is described; None where the program has no such name."""
        place = self._sources.follow(module, name)
        if place is None:
            return None
        defined = place.defined(*FUNCTION, ast.ClassDef)
        if isinstance(defined, ast.ClassDef) and defined.name == place.name:
            if (place.module, place.name) != (module, name):
                return SAME_AS + place.dotted
            return {"bases": self.foreign_bases(place), "members": self.members(place)}
        if isinstance(defined, FUNCTION):
            return signature(defined)
        return self._value(place)

    def _value(self, place: Place) -> str:
        """An object of a class of this program where it is declared or made as one."""
        for statement in place.statements:
            kind = None
            if isinstance(statement, ast.AnnAssign):
                kind = self._annotated(place.module, statement.annotation)
            if kind is None and isinstance(getattr(statement, "value", None), ast.Call):
                kind = self._class_at(self._sources.follow_expression(place.module, statement.value.func))  # type: ignore[attr-defined]
            if kind is not None:
                return INSTANCE + kind
        for module, statement in self._sources.assigned_elsewhere.get(place.module, {}).get(place.name, ()):
            value = getattr(statement, "value", None)
            kind = self._made_by(module, value) if isinstance(value, ast.Call) else None
            if kind is not None:
                return INSTANCE + kind
        return VALUE

    def _made_by(self, module: str, call: ast.Call) -> str | None:
        """The class whose object a call makes; modules that a function imports are known by their last name."""
        found = self._sources.follow_expression(module, call.func)
        if found is None and isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            found = self._sources.follow(f"modules.{call.func.value.id}", call.func.attr)
        return self._class_at(found)

    def _annotated(self, module: str, node: ast.expr) -> str | None:
        """The first class of this program in an annotation."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self._annotated(module, ast.parse(node.value, mode="eval").body)
        if isinstance(node, ast.BinOp):
            return self._annotated(module, node.left) or self._annotated(module, node.right)
        return self._class_at(self._sources.follow_expression(module, node, typing=True))

    def _class_at(self, place: Place | None) -> str | None:
        return place.dotted if place is not None and place.defined(ast.ClassDef) is not None else None

    # -- classes ---------------------------------------------------------------------------------------------------

    def _bases(self, place: Place) -> Iterator[tuple[str, Place | None]]:
        for node in place.class_node.bases:
            base = self._sources.follow_expression(place.module, node)
            yield ast.unparse(node), base if base is not None and base.defined(ast.ClassDef) else None

    def foreign_bases(self, place: Place) -> list[str]:
        """Bases that are not of this program, whose names are not known here."""
        found: list[str] = []
        for name, base in self._bases(place):
            found += [name] if base is None else self.foreign_bases(base)
        return [name for name in found if name != "object"]

    def members(self, place: Place) -> dict[str, str]:
        """Methods and attributes of a class and of its bases in this program."""
        members: dict[str, str] = {}
        for _, base in self._bases(place):
            members |= {} if base is None or base == place else self.members(base)
        node = place.class_node
        for method in (item for item in statements_in(node.body) if isinstance(item, FUNCTION)):
            for name in assigned_to_self(method):
                members.setdefault(name, VALUE)
        for item in statements_in(node.body):
            if isinstance(item, FUNCTION):
                members[item.name] = VALUE if is_property(item) else signature(item)
            elif isinstance(item, ast.ClassDef):
                members[item.name] = VALUE
            else:
                members |= dict.fromkeys(assigned(item), VALUE)
        return dict(sorted(members.items()))

    # -- options and flags -----------------------------------------------------------------------------------------

    def options(self) -> list[str]:
        """Keys of the program's options: dictionaries of OptionInfo, and calls of `add_option`."""
        found: set[str] = set()
        for folder in OPTION_FOLDERS:
            for path in sorted((self._sources.root / folder).rglob("*.py")):
                text = path.read_text("utf-8", errors="replace")
                if "OptionInfo(" in text or "add_option(" in text:
                    found |= set(option_keys(parsed(path)))
        return sorted(found)

    def flags(self) -> list[str]:
        """Names in `shared.cmd_opts`: arguments, and what the program assigns to it later."""
        found: set[str] = set()
        for name in FLAG_FILES:
            if (self._sources.root / name).is_file():
                found |= set(argument_names(parsed(self._sources.root / name)))
        for path in sorted((self._sources.root / "modules").glob("*.py")):
            text = path.read_text("utf-8", errors="replace")
            if "cmd_opts." in text:
                found |= set(assigned_flags(ast.parse(text)))
        return sorted(found)
