"""How large the package's classes, signatures and functions may grow; a class name stands for one thing.

The limits are aims of the design: what is longer is usually two things.  Exceptions are listed by name, with a reason,
and only as long as they are needed.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "sd_vae_kit"
LIMITS = {"methods": 20, "parameters": 6, "complexity": 12}
# (what, file: name): why it is longer, and how long.
EXCEPTIONS: dict[tuple[str, str], tuple[int, str]] = {}

BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Size:
    """One number of a class or function."""

    what: str
    name: str
    value: int


def sizes(source: str, file: str) -> Iterator[Size]:
    """What is limited, of every class and function of a file."""
    for node, name in named(ast.parse(source), ""):
        place = f"{file}: {name}"
        if isinstance(node, ast.ClassDef):
            yield Size("methods", place, sum(isinstance(item, FUNCTIONS) for item in node.body))
        else:
            yield Size("parameters", place, len(parameters(node)))
            yield Size("complexity", place, complexity(node))


def named(tree: ast.AST, prefix: str) -> Iterator[tuple[ast.ClassDef | Function, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
            yield node, prefix + node.name
            yield from named(node, f"{prefix}{node.name}.")
        else:
            yield from named(node, prefix)


def parameters(function: Function) -> list[str]:
    """Those a caller gives."""
    arguments = function.args
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def complexity(function: Function) -> int:
    """McCabe's number: ways through a function, without those of the functions inside it."""
    return 1 + sum(decisions(node) for node in own_nodes(function))


def decisions(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return int(isinstance(node, BRANCHES))


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, (ast.ClassDef, *FUNCTIONS)):
            yield node
            yield from own_nodes(node)


def class_names(files: dict[str, str]) -> dict[str, list[str]]:
    """The files of each class name."""
    found: dict[str, list[str]] = defaultdict(list)
    for file, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(file)
    return found


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in paths()}


def paths() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("what", LIMITS)
def test_nothing_is_longer_than_the_aims(sources, what):
    found = [size for file, source in sources.items() for size in sizes(source, file) if size.what == what]
    assert len(found) > 100
    allowed = {name: length for (kind, name), (length, _) in EXCEPTIONS.items() if kind == what}
    too_long = [f"{s.name} has {s.value} {what}" for s in found if s.value > allowed.get(s.name, LIMITS[what])]
    assert too_long == [], f"the aim is {LIMITS[what]}: values that belong together are one object, two jobs are two"


def test_an_exception_goes_when_it_is_not_needed_any_more(sources):
    found = {(size.what, size.name): size.value for file, source in sources.items() for size in sizes(source, file)}
    assert [key for key, (length, _) in EXCEPTIONS.items() if found.get(key, 0) < length] == []
    assert all(length > LIMITS[what] and reason for (what, _), (length, reason) in EXCEPTIONS.items())


def test_a_class_name_stands_for_one_thing(sources):
    assert {name: files for name, files in class_names(sources).items() if len(files) > 1} == {}


@pytest.mark.parametrize(
    ("source", "what", "value"),
    [
        ("class A:\n" + "".join(f"    def m{i}(self): pass\n" for i in range(21)), "methods", 21),
        ("class A:\n    x = 1\n    @property\n    def y(self): return 1", "methods", 1),
        ("def f(a, b, /, c, *d, e, f, g, h, **i): pass", "parameters", 7),
        ("class A:\n    def m(self, a): pass", "parameters", 1),
        ("def f(a):\n" + "".join(f"    if a == {i}: return {i}\n" for i in range(12)), "complexity", 13),
        ("def f(a, b):\n    return a and b or (1 if a else 2)", "complexity", 4),
        ("def f(a):\n    return [b for b in a if b if b > 1]", "complexity", 4),
        ("def f(a):\n    try: return a\n    except ValueError: return 0", "complexity", 2),
        ("def f(a):\n    while a:\n        a -= 1\n    for b in a: pass", "complexity", 3),
        ("def f(a):\n    def g(b):\n        if b: return 1\n    return g", "complexity", 1),
    ],
)
def test_what_is_counted(source, what, value):
    counted = [size.value for size in sizes(source, "a.py") if size.what == what]
    assert counted[0] == value


def test_a_class_name_used_twice_is_found():
    files = {"a.py": "class Run: pass", "b.py": "def f():\n    class Run: pass", "c.py": "class Walk: pass"}
    assert {name: found for name, found in class_names(files).items() if len(found) > 1} == {"Run": ["a.py", "b.py"]}
