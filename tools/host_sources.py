"""A web UI's Python files: where a name of a module is defined, over imports, read by ast and never imported."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tools.host_syntax import FUNCTION, Names, attributes_assigned, given_class, names_in, names_in_class, parsed

# shared.sd_model is a property of a class that the module is given: sys.modules["modules.shared"].__class__ = Shared
CLASS_OF_MODULE = ".__class__ = "
ASSIGNS_TO_MODULE = re.compile(r"^ +\w+\.\w+ = ", re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """A name where it is defined: its module and the statements that bind it."""

    module: str
    name: str
    statements: tuple[ast.stmt, ...]

    def defined(self, *kinds: type[ast.stmt]) -> Any:
        """The last statement of these kinds, None where there is none."""
        return next((node for node in reversed(self.statements) if isinstance(node, kinds)), None)

    @property
    def class_node(self) -> ast.ClassDef:
        """The class that the name is."""
        found: ast.ClassDef = self.defined(ast.ClassDef)
        return found

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}"


class HostSources:
    """The Python files of one installation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[str, Names] = {}

    # -- files -----------------------------------------------------------------------------------------------------

    def file_of(self, module: str) -> Path | None:
        """The file of a module or package; None where the program has none."""
        base = self.root.joinpath(*module.split("."))
        found = (path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file())
        return next(found, None)

    def has_module(self, module: str) -> bool:
        """Whether it can be imported; a folder without `__init__.py` can be, too."""
        return self.file_of(module) is not None or self.root.joinpath(*module.split(".")).is_dir()

    def names(self, module: str) -> Names:
        """What a module binds; nothing for one that the program does not have."""
        if module not in self._names:
            path = self.file_of(module)
            self._names[module] = names_in(parsed(path)) if path is not None else Names()
            for extra in self._classes_of_modules.get(module, ()):
                for name in names_in_class(extra.class_node):  # whatever the module declares for type checkers
                    self._names[module].bound[name] = [extra.class_node]
            for name, places in self.assigned_elsewhere.get(module, {}).items():
                self._names[module].bound.setdefault(name, [statement for _, statement in places])
        return self._names[module]

    @cached_property
    def _classes_of_modules(self) -> dict[str, list[Place]]:
        """Classes that modules are made objects of, so that the module has their properties."""
        found: dict[str, list[Place]] = defaultdict(list)
        for path in sorted((self.root / "modules").glob("*.py")):
            text = path.read_text("utf-8", errors="replace")
            if "sys.modules[" not in text or CLASS_OF_MODULE not in text:
                continue
            module = f"modules.{path.stem}"
            for node in ast.walk(ast.parse(text)):
                owner, name = given_class(node)
                place = self.follow(module, name) if name else None
                if place is not None:
                    found[owner or module].append(place)
        return found

    @cached_property
    def assigned_elsewhere(self) -> dict[str, dict[str, list[tuple[str, ast.Assign]]]]:
        """By module and name: where other modules assign to it, as in `shared.opts = options.Options(...)`."""
        found: dict[str, dict[str, list[tuple[str, ast.Assign]]]] = defaultdict(lambda: defaultdict(list))
        for path in sorted((self.root / "modules").glob("*.py")):
            module = f"modules.{path.stem}"
            if ASSIGNS_TO_MODULE.search(path.read_text("utf-8", errors="replace")) is None:
                continue
            tree = parsed(path)
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
            for name, attribute, node in attributes_assigned(tree):
                owner = self._module_among(imports, name)
                if owner is not None and owner != module:
                    found[owner][attribute].append((module, node))
        return {owner: dict(names) for owner, names in found.items()}

    # -- names -----------------------------------------------------------------------------------------------------

    def follow(self, module: str, name: str, seen: tuple[tuple[str, str], ...] = ()) -> Place | None:
        """Where a name of a module is defined in this program, over imports and `x = other.x`."""
        if (module, name) in seen:
            return None
        names, seen = self._bound_in(module), (*seen, (module, name))
        statements = tuple(names.get(name, ()))
        place = Place(module, name, statements)
        if not statements:
            return self._from_star_imports(module, name, seen)
        if place.defined(*FUNCTION, ast.ClassDef):
            return place
        imported = place.defined(ast.ImportFrom)
        if imported is not None:
            return self._imported(imported, name, seen)
        assigned = place.defined(ast.Assign)
        other = assigned.value if assigned is not None and len(statements) == 1 else None
        if isinstance(other, ast.Name | ast.Attribute):
            return self.follow_expression(module, other, seen) or place
        return None if place.defined(ast.Import) else place

    def _bound_in(self, module: str) -> dict[str, list[ast.stmt]]:
        return self._names[module].bound if module in self._names else self.names(module).bound

    def _imported(self, node: ast.ImportFrom, name: str, seen: tuple[tuple[str, str], ...]) -> Place | None:
        original = next((alias.name for alias in node.names if (alias.asname or alias.name) == name), name)
        return self.follow(node.module or "", original, seen)

    def _from_star_imports(self, module: str, name: str, seen: tuple[tuple[str, str], ...]) -> Place | None:
        for node in self._bound_in(module).get("*", ()):
            if isinstance(node, ast.ImportFrom) and not name.startswith("_"):
                found = self.follow(node.module or "", name, seen)
                if found is not None:
                    return found
        return None

    def follow_expression(
        self, module: str, node: ast.expr, seen: tuple[tuple[str, str], ...] = (), *, typing: bool = False
    ) -> Place | None:
        """What `x` or `module.x` means in a module."""
        if isinstance(node, ast.Name):
            only_typed = self.names(module).typing.get(node.id) if typing else None
            if isinstance(only_typed, ast.ImportFrom):
                return self._imported(only_typed, node.id, seen)
            return self.follow(module, node.id, seen)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = self.module_named(module, node.value.id)
            return self.follow(owner, node.attr, seen) if owner else None
        return None

    def module_named(self, module: str, name: str) -> str | None:
        """The module that a name stands for in another module."""
        names = self.names(module)
        return self._module_among((*names.bound.get(name, ()), *filter(None, [names.typing.get(name)])), name)

    def _module_among(self, statements: Iterable[ast.stmt], name: str) -> str | None:
        for node in statements:
            for alias in getattr(node, "names", ()):
                if not isinstance(alias, ast.alias) or (alias.asname or alias.name) != name:
                    continue
                dotted = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
                if self.file_of(dotted) is not None:
                    return dotted
        return None
