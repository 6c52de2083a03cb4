"""Reads which names a web UI's sources define, by ast: nothing of the web UI is imported, started or copied.

A name is described by an entry:

    "(model, vae_file=, *args)"      a function, its parameters in order, those with a default marked "="
    "value"                          anything else of which only the name is known
    "a modules.options.Options"      an object of that class
    "= modules.options.OptionInfo"   a class that another module defines
    {"bases": [...], "members": {}}  a class: its methods and attributes with those of its bases; `bases` are foreign
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

Entry = Any  # a string or a class' dictionary, as in the JSON
VALUE, INSTANCE, SAME_AS = "value", "a ", "= "
# shared.sd_model is a property of a class that the module is given: sys.modules["modules.shared"].__class__ = Shared
CLASS_OF_MODULE = ".__class__ = "
ASSIGNS_TO_MODULE = re.compile(r"^ +\w+\.\w+ = ", re.MULTILINE)
OPTION_FOLDERS = ("modules", "modules_forge", "backend")
FLAG_FILES = (
    "modules/cmd_args.py",
    "modules/paths_internal.py",
    "backend/args.py",
    "ldm_patched/modules/args_parser.py",
)
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
PROPERTIES = {"property", "cached_property", "setter", "classproperty"}


@dataclass
class Names:
    """What the top level of a module binds.

    Attributes:
        bound: At run time: every statement that binds the name.
        typing: For type checkers only: the import.
    """

    bound: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    typing: dict[str, ast.stmt] = field(default_factory=dict)


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
                for name in self.members(extra):  # whatever the module declares of that name for type checkers
                    self._names[module].bound[name] = [extra.statements[-1]]
            for name, places in self._assigned_elsewhere.get(module, {}).items():
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
    def _assigned_elsewhere(self) -> dict[str, dict[str, list[tuple[str, ast.stmt]]]]:
        """By module and name: where other modules assign to it, as in `shared.opts = options.Options(...)`."""
        found: dict[str, dict[str, list[tuple[str, ast.stmt]]]] = defaultdict(lambda: defaultdict(list))
        for path in sorted((self.root / "modules").glob("*.py")):
            text, module = path.read_text("utf-8", errors="replace"), f"modules.{path.stem}"
            if ASSIGNS_TO_MODULE.search(text) is None:
                continue
            tree = parsed(path)
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
            for node in ast.walk(tree):
                for place in stored(node) if isinstance(node, ast.Assign) else ():
                    if not isinstance(place, ast.Attribute) or not isinstance(place.value, ast.Name):
                        continue
                    owner = self._module_among(imports, place.value.id)
                    if owner is not None and owner != module:
                        found[owner][place.attr].append((module, node))
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

    # -- entries ---------------------------------------------------------------------------------------------------

    def all_names(self, module: str) -> list[str]:
        """Names of a module that this program defines somewhere; what it imports from others is left out."""
        names = self.names(module).bound
        starred = (self.all_names(node.module or "") for node in names.get("*", ()) if isinstance(node, ast.ImportFrom))
        public = {name for found in starred for name in found if not name.startswith("_")}
        return sorted(name for name in {*names, *public} if name != "*" and self.follow(module, name) is not None)

    def entry(self, module: str, name: str) -> Entry | None:
        """How a name of a module is described; None where the program has no such name."""
        place = self.follow(module, name)
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
                kind = self._class_at(self.follow_expression(place.module, statement.value.func))  # type: ignore[attr-defined]
            if kind is not None:
                return INSTANCE + kind
        for module, statement in self._assigned_elsewhere.get(place.module, {}).get(place.name, ()):
            value = getattr(statement, "value", None)
            kind = self._made_by(module, value) if isinstance(value, ast.Call) else None
            if kind is not None:
                return INSTANCE + kind
        return VALUE

    def _made_by(self, module: str, call: ast.Call) -> str | None:
        """The class whose object a call makes; modules that a function imports are known by their last name."""
        found = self.follow_expression(module, call.func)
        if found is None and isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            found = self.follow(f"modules.{call.func.value.id}", call.func.attr)
        return self._class_at(found)

    def _annotated(self, module: str, node: ast.expr) -> str | None:
        """The first class of this program in an annotation."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self._annotated(module, ast.parse(node.value, mode="eval").body)
        if isinstance(node, ast.BinOp):
            return self._annotated(module, node.left) or self._annotated(module, node.right)
        return self._class_at(self.follow_expression(module, node, typing=True))

    def _class_at(self, place: Place | None) -> str | None:
        return place.dotted if place is not None and place.defined(ast.ClassDef) is not None else None

    # -- classes ---------------------------------------------------------------------------------------------------

    def _bases(self, place: Place) -> Iterator[tuple[str, Place | None]]:
        for node in place.defined(ast.ClassDef).bases:
            base = self.follow_expression(place.module, node)
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
        node = place.defined(ast.ClassDef)
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
            for path in sorted((self.root / folder).rglob("*.py")):
                text = path.read_text("utf-8", errors="replace")
                if "OptionInfo(" in text or "add_option(" in text:
                    found |= set(option_keys(parsed(path)))
        return sorted(found)

    def flags(self) -> list[str]:
        """Names in `shared.cmd_opts`: arguments, and what the program assigns to it later."""
        found: set[str] = set()
        for name in FLAG_FILES:
            if (self.root / name).is_file():
                found |= set(argument_names(parsed(self.root / name)))
        for path in sorted((self.root / "modules").glob("*.py")):
            text = path.read_text("utf-8", errors="replace")
            if "cmd_opts." in text:
                found |= set(assigned_flags(ast.parse(text)))
        return sorted(found)


def parsed(path: Path) -> ast.Module:
    """A file's syntax tree.

    Raises:
        SyntaxError: It is written for a newer Python than this one.
    """
    return ast.parse(path.read_text("utf-8", errors="replace"), str(path))


# --- statements -----------------------------------------------------------------------------------------------------


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def statements_in(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a block and of the blocks in it, not of functions and classes, nor what type checkers see only."""
    for statement in body:
        if for_type_checkers(statement):
            yield from statements_in(statement.orelse)  # type: ignore[attr-defined]
            continue
        yield statement
        if isinstance(statement, (*FUNCTION, ast.ClassDef)):
            continue
        for block in ("body", "orelse", "finalbody"):
            yield from statements_in(getattr(statement, block, ()))
        for handler in getattr(statement, "handlers", ()):
            yield from statements_in(handler.body)


def names_in(tree: ast.Module) -> Names:
    """What a module binds."""
    names = Names()
    for statement in statements_in(tree.body):
        for name in bound_by(statement):
            names.bound[name].append(statement)
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            for name in node.names:
                names.bound[name].append(node)
        if for_type_checkers(node):
            for statement in node.body:  # type: ignore[attr-defined]
                names.typing.update(dict.fromkeys(bound_by(statement), statement))
    names.bound = dict(names.bound)
    return names


def bound_by(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement binds; "*" for a star import."""
    if isinstance(statement, ast.Import):
        yield from (alias.asname or alias.name.split(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in statement.names)
    elif isinstance(statement, (*FUNCTION, ast.ClassDef)):
        yield statement.name
    else:
        yield from assigned(statement)


def assigned(statement: ast.stmt) -> Iterator[str]:
    """Plain names that a statement assigns to."""
    for node in stored(statement):
        if isinstance(node, ast.Name):
            yield node.id


def stored(statement: ast.stmt) -> Iterator[ast.expr]:
    """Names and attributes that a statement itself assigns to."""
    places: list[ast.expr | None] = []
    if isinstance(statement, ast.Assign):
        places = [*statement.targets]
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign | ast.For):
        places = [statement.target]
    elif isinstance(statement, ast.With):
        places = [item.optional_vars for item in statement.items]
    for place in places:
        for node in ast.walk(place) if place is not None else ():
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node


def assigned_to_self(method: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Attributes that a method gives its object."""
    first = method.args.args[0].arg if method.args.args else ""
    for statement in statements_in(method.body):
        for node in stored(statement):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == first:
                yield node.attr


def is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = (ast.unparse(node).split("(")[0].split(".")[-1] for node in function.decorator_list)
    return any(name in PROPERTIES for name in decorators)


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Parameters as an entry lists them: "(self, key, value, is_api=, *args, only=, **kwargs)"."""
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    first_default = len(positional) - len(given.defaults)
    parts = [item.arg + ("=" if index >= first_default else "") for index, item in enumerate(positional)]
    if given.posonlyargs:
        parts.insert(len(given.posonlyargs), "/")
    if given.vararg is not None:
        parts.append(f"*{given.vararg.arg}")
    elif given.kwonlyargs:
        parts.append("*")
    defaults = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    parts += [item.arg + ("=" if default is not None else "") for item, default in defaults]
    if given.kwarg is not None:
        parts.append(f"**{given.kwarg.arg}")
    return f"({', '.join(parts)})"


# --- what is no plain name ------------------------------------------------------------------------------------------


def given_class(node: ast.AST) -> tuple[str, str]:
    """Module ("" for the file's own) and class of `sys.modules[...].__class__ = Name`; "" for anything else."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Name):
        return "", ""
    target = node.targets[0]
    if not isinstance(target, ast.Attribute) or target.attr != "__class__":
        return "", ""
    if not isinstance(target.value, ast.Subscript) or ast.unparse(target.value.value) != "sys.modules":
        return "", ""
    key = target.value.slice
    return str(key.value) if isinstance(key, ast.Constant) else "", node.value.id


def option_keys(tree: ast.Module) -> Iterator[str]:
    """Keys of options that a file declares."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            yield from (
                text_of(key) for key, value in pairs if key is not None and makes_option(value) and text_of(key)
            )
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_option") and node.args:
            yield from filter(None, [text_of(node.args[0])])


def makes_option(node: ast.expr) -> bool:
    """Whether an expression is `OptionInfo(...)`, also with `.info(...)` and the like after it."""
    while isinstance(node, ast.Call):
        if ast.unparse(node.func).split(".")[-1] in ("OptionInfo", "LegacyOption", "OptionHTML", "OptionDiv"):
            return True
        node = node.func.value if isinstance(node.func, ast.Attribute) else ast.Constant(None)
    return False


def text_of(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def argument_names(tree: ast.Module) -> Iterator[str]:
    """Names under which a file's command-line arguments are found."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument"):
            named = [text_of(item.value) for item in node.keywords if item.arg == "dest"]
            long = [text_of(item) for item in node.args if text_of(item).startswith("--")]
            yield from named or [name.removeprefix("--").replace("-", "_") for name in long[:1]]


def assigned_flags(tree: ast.Module) -> Iterator[str]:
    """Names that a file adds to the command line's."""
    for node in ast.walk(tree):
        for place in stored(node) if isinstance(node, ast.stmt) else ():
            if isinstance(place, ast.Attribute) and ast.unparse(place.value).split(".")[-1] == "cmd_opts":
                yield place.attr
