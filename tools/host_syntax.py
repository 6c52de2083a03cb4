"""What Python's syntax says of names: those that a module binds, parameters, attributes, keys of options, flags."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
PROPERTIES = {"property", "cached_property", "setter", "classproperty"}
OPTION_CLASSES = ("OptionInfo", "LegacyOption", "OptionHTML", "OptionDiv")


@dataclass
class Names:
    """What the top level of a module binds.

    Attributes:
        bound: At run time: every statement that binds the name.
        typing: For type checkers only: the import.
    """

    bound: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    typing: dict[str, ast.stmt] = field(default_factory=dict)


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


def names_in_class(node: ast.ClassDef) -> set[str]:
    """What the body of a class binds."""
    return {name for statement in statements_in(node.body) for name in bound_by(statement)}


def attributes_assigned(tree: ast.Module) -> Iterator[tuple[str, str, ast.Assign]]:
    """Every `name.attribute = ...` of a file: name, attribute, statement."""
    for node in ast.walk(tree):
        for place in stored(node) if isinstance(node, ast.Assign) else ():
            if isinstance(place, ast.Attribute) and isinstance(place.value, ast.Name):
                yield place.value.id, place.attr, node  # type: ignore[misc]


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
        if ast.unparse(node.func).split(".")[-1] in OPTION_CLASSES:
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
