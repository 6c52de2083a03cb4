"""Which names of a web UI the package uses: attributes of imported host modules, read from its own sources by ast.

Found are `module.name.attribute`, `from module import name`, `getattr` and `hasattr` with a constant, a replacement of
`(owner, "name")`, and attributes of what a hook is handed, where the argument's usual name says what it is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.host_syntax import for_type_checkers

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "sd_vae_kit"
FOLDERS = ("sd_vae_kit/hosts", "sd_vae_kit/webui", "scripts")
HOST = ("modules", "modules_forge", "backend", "ldm_patched", "launch")
PACKAGES = ("modules.api",)  # below those in HOST: packages that hold nothing but modules, as those do
BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
ASKING, REPLACING = ("getattr", "hasattr", "setattr"), ("replace", "wrap", "is_applied")
Place = tuple[str, str]  # a module of the host and a dotted name in it, "" for the module itself
# what an argument without a type is, by the name that it always has here
ARGUMENTS = {
    "p": ("modules.processing", "StableDiffusionProcessing"),
    "opts": ("modules.shared", "opts"),
    "state": ("modules.shared", "state"),
    "task": ("modules_forge.main_thread", "Task"),
}


@dataclass(frozen=True, order=True)
class Use:
    """A name of the web UI, where it is used.

    Attributes:
        module: "modules.sd_vae".
        attribute: "load_vae", or with dots; "" for the module itself.
        file: Of ours, relative to the repository.
        line: In it.
        is_question: Whether the use only asks if the name is there (`find_spec`, `hasattr`).
    """

    module: str
    attribute: str
    file: str
    line: int
    is_question: bool = False

    @property
    def name(self) -> str:
        return f"{self.module}.{self.attribute}".rstrip(".")


class Uses:
    """The uses in one file."""

    def __init__(self, path: Path) -> None:
        self.file = path.relative_to(ROOT).as_posix()
        self.tree = ast.parse(path.read_text("utf-8"), str(path))
        self.found: set[Use] = set()
        self.constants = self._constants()
        self._loops = self._texts_in_loops()
        self._aliases: dict[str, Place] = {}
        self._read_imports()

    def read(self) -> set[Use]:
        """Every use in the file."""
        self._read_block(self.tree, {})
        return self.found

    def _add(self, place: Place, node: ast.AST, *more: str, is_question: bool = False) -> None:
        attribute = ".".join(part for part in (place[1], *more) if part)
        self.found.add(Use(place[0], attribute, self.file, getattr(node, "lineno", 0), is_question))

    # -- names in the file -----------------------------------------------------------------------------------------

    def _read_imports(self) -> None:
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in HOST:
                continue
            for alias in node.names:
                is_module = node.module in PACKAGES or "." not in str(node.module)
                place = (f"{node.module}.{alias.name}", "") if is_module else (str(node.module), alias.name)
                self._aliases[alias.asname or alias.name] = place
                self._add(place, node)

    def _constants(self) -> dict[str, ast.expr]:
        """Values of the file's own names."""
        found: dict[str, ast.expr] = {}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                found[node.target.id] = node.value
        return found

    def _texts_in_loops(self) -> dict[int, dict[str, list[str]]]:
        """For each node in a loop over constants: the texts that a name of the loop can be, the inner loop's first."""
        found: dict[int, dict[str, list[str]]] = {}
        for loop in ast.walk(self.tree):
            headers = [loop] if isinstance(loop, ast.For) else getattr(loop, "generators", [])
            texts = {name: values for header in headers for name, values in self._texts_of_loop(header)}
            for node in ast.walk(loop) if texts else ():
                found[id(node)] = {**found.get(id(node), {}), **texts}
        return found

    def _texts_of_loop(self, node: ast.For | ast.comprehension) -> Iterator[tuple[str, list[str]]]:
        """Each name that a loop over constants binds, and the texts it can be."""
        values = self.constants.get(node.iter.id) if isinstance(node.iter, ast.Name) else node.iter
        rows = rows_of(values) if values is not None else []
        names = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
        for index, name in enumerate(names):
            if isinstance(name, ast.Name):
                column = [row[index] for row in rows if index < len(row)]
                yield name.id, [text for item in column for text in texts_in(item)]

    # -- blocks ----------------------------------------------------------------------------------------------------

    def _read_block(self, block: ast.AST, known: dict[str, Place]) -> None:
        """A module, class or function; what a function calls a name of the host is known in it only."""
        known = {**known, **arguments_of(block)}
        nodes = list(own_nodes(block))
        for node in nodes:
            if isinstance(node, ast.Assign):
                known |= dict(self._assigned(node, known))
        inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
        for node in nodes:
            if isinstance(node, ast.Attribute) and id(node) not in inner:
                self._chain(node, known)
            elif isinstance(node, ast.Call):
                self._call(node, known)
            elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
                self._named(node.elts[0], node.elts[1], known)
            elif isinstance(node, BLOCKS):
                self._overridden(node, known)
                self._read_block(node, known)

    def _overridden(self, node: ast.AST, known: dict[str, Place]) -> None:
        """Public methods of a class of ours that derives from one of the host: hooks, which the host must know."""
        bases = [self._place(base, known) for base in node.bases] if isinstance(node, ast.ClassDef) else []
        for place in filter(None, bases):
            for method in node.body:  # type: ignore[attr-defined]
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    self._add(place, method, method.name)

    def _assigned(self, node: ast.Assign, known: dict[str, Place]) -> Iterator[tuple[str, Place]]:
        """`state, opts = shared.state, shared.opts`."""
        target, value = node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=True))
        for name, given in pairs:
            place = self._place(given, known)
            if isinstance(name, ast.Name) and place is not None and not isinstance(given, ast.Name):
                yield name.id, place

    def _place(self, node: ast.expr, known: dict[str, Place]) -> Place | None:
        """What an expression names of the host."""
        if isinstance(node, ast.Name):
            return known.get(node.id) or self._aliases.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._place(node.value, known)
            return (owner[0], f"{owner[1]}.{node.attr}".lstrip(".")) if owner else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type" and node.args:
            return self._place(node.args[0], known)
        return None

    def _chain(self, node: ast.Attribute, known: dict[str, Place]) -> None:
        place = self._place(node, known)
        if place is not None:
            self._add(place, node)

    def _call(self, node: ast.Call, known: dict[str, Place]) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in (*ASKING, *REPLACING) and len(node.args) >= 2:
            self._named(node.args[0], node.args[1], known, is_question=name == "hasattr")
        elif name in ("find_spec", "import_module") and node.args and texts_in(node.args[0]):
            module = texts_in(node.args[0])[0]
            if module.split(".")[0] in HOST:
                self._add((module, ""), node, is_question=name == "find_spec")

    def _named(self, owner: ast.expr, name: ast.expr, known: dict[str, Place], *, is_question: bool = False) -> None:
        """An owner and an attribute's name as text, or as a name that stands for texts."""
        place, found = self._place(owner, known), texts_in(name)
        if isinstance(name, ast.Name):
            found = self._loops.get(id(name), {}).get(name.id) or texts_in(self.constants.get(name.id, name))
        if place is None:
            return
        for text in filter(str.isidentifier, found):
            self._add(place, name, text, is_question=is_question)


def own_nodes(block: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a block, down to the functions and classes in it but not into them."""
    waiting = list(ast.iter_child_nodes(block))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, BLOCKS):
            waiting.extend(ast.iter_child_nodes(node))


def arguments_of(block: ast.AST) -> dict[str, Place]:
    """Arguments of a function that are objects of the host, by their names."""
    given = getattr(block, "args", None)
    if not isinstance(given, ast.arguments):
        return {}
    untyped = [item.arg for item in given.args if item.annotation is not None and ast.unparse(item.annotation) == "Any"]
    return {name: ARGUMENTS[name] for name in untyped if name in ARGUMENTS}


def texts_in(node: ast.expr) -> list[str]:
    """Texts of a literal: a string, or strings in a tuple or list."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    return [text for item in node.elts for text in texts_in(item)] if isinstance(node, ast.Tuple | ast.List) else []


def rows_of(node: ast.expr) -> list[list[ast.expr]]:
    """What a loop over a literal binds, turn by turn: a tuple or list, of tuples or not, or `{...}.items()`."""
    if isinstance(node, ast.Tuple | ast.List):
        return [list(item.elts) if isinstance(item, ast.Tuple) else [item] for item in node.elts]
    if isinstance(node, ast.Dict):
        return [[key] for key in node.keys if key is not None]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "items":
        return rows_of(node.func.value)
    return []


def own_files() -> list[Path]:
    """Files that may name the host."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def uses_in(path: Path) -> set[Use]:
    """What one file of ours uses of the host."""
    return Uses(path).read()


def used_modules() -> list[str]:
    """Every module of a web UI that the package names."""
    return sorted({use.module for path in own_files() for use in uses_in(path)})


# --- which of our files run in which web UI -------------------------------------------------------------------------


def files_behind(*modules: str) -> set[Path]:
    """The files of these modules of ours and of those in `hosts` and `webui` that they import."""
    found: set[Path] = set()
    waiting = [file_of(module) for module in modules]
    while waiting:
        path = waiting.pop()
        if path is None or path in found:
            continue
        found.add(path)
        waiting += [file_of(name) for name in own_imports(path)]
    return {path for path in found if path in own_files()}


def file_of(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def own_imports(path: Path) -> Iterator[str]:
    """Our own modules that a file imports when it runs; not those that only type checkers see."""
    if path == ROOT / PACKAGE / "hosts" / "__init__.py":  # the door: it takes one of the hosts, as the caller names
        return
    waiting: list[ast.AST] = [ast.parse(path.read_text("utf-8"), str(path))]
    while waiting:
        node = waiting.pop()
        if for_type_checkers(node):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
