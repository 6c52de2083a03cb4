"""Who may import whom.  The table is the architecture; a new import that breaks it fails here, not in review."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = "sd_vae_kit"
TORCH = {"torch", "safetensors"}
HOST = {"modules", "modules_forge", "backend", "ldm_patched", "launch"}
NEVER = {"ldm", "sgm"}  # the host's own copies differ from host to host; its modules are reached through sd_model

BASE = {"errors", "version", "units", "wording", "settings", "state"}
NUMBERS = {"core.networks", "core.graph", "core.plan"}  # of a network, of a run: no activations
WORDS = {"errors", "units", "core.halves", "core.dtypes"}  # what every room of core may name
CORE = WORDS | {"core.networks", "core.files", "core.graph", "core.plan", "core.engine", "core.run", "core"}
VAES = BASE | CORE | {"vaes", "download", "pictures"}

# room: (own rooms below it, third-party packages); "core" is the files of core/ that lie in none of its rooms
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "version": (set(), set()),
    "units": (set(), set()),
    "wording": (set(), set()),
    "state": ({"errors", "units"}, set()),
    "settings": ({"errors", "units", "state"}, set()),
    "core.halves": (set(), set()),
    "core.dtypes": (set(), {"torch"}),
    "core.networks": (WORDS, TORCH),
    "core.files": (BASE | WORDS | {"core.networks"}, TORCH),
    "core.graph": (WORDS, {"torch"}),
    "core.plan": (WORDS | {"core.graph"}, {"torch", "psutil"}),  # psutil: the last resort for the size of free memory
    "core.engine": (WORDS | {"core.graph", "core.plan"}, {"torch"}),
    "core.run": (BASE | WORDS | {"core.graph", "core.plan", "core.engine"}, {"torch"}),
    "core": (BASE | CORE - {"core"}, TORCH),
    "pictures": ({"errors", "state"}, {"PIL", "numpy", "torch"}),
    "download": (BASE, {"requests"}),
    "vaes": (BASE | CORE | {"download", "pictures"}, TORCH | {"numpy", "PIL"}),
    "hosts": (VAES, TORCH | {"numpy", "PIL", "diffusers"} | HOST),
    "web": (VAES, TORCH | {"fastapi", "pydantic"}),
    "ui": (BASE | {"vaes", "pictures", "web"}, {"gradio", "PIL", "numpy"}),
    "webui": (VAES | {"hosts", "web", "ui"}, HOST | {"gradio", "torch", "fastapi", "pydantic", "PIL"}),
    "standalone.demo": (set(), set()),
    "standalone.job": (BASE | {"vaes"}, set()),
    "standalone.pages": (BASE | {"vaes", "pictures", "web", "ui", "standalone.job"}, {"gradio", "PIL", "numpy"}),
    "standalone": (
        VAES | {"web", "ui", "standalone.demo", "standalone.job", "standalone.pages"},
        TORCH | {"gradio", "platformdirs", "PIL", "numpy"},
    ),
    "cli": (VAES | {"standalone.demo"}, TORCH | {"PIL", "numpy", "tqdm", "platformdirs"}),
    "public": ({"core", "core.run", "vaes"}, set()),
    "__init__": ({"errors", "version", "public"}, set()),
    "__main__": ({"errors", "cli", "standalone"}, set()),
}
IMPORTERS = {"import_module", "__import__", "find_spec"}
COMPUTED = "<a name computed at run time>"


def layer_of(path: Path) -> str:
    """The room of a file: "core.engine" for core/engine/stream.py, "core" for core/vae.py."""
    return room_of(".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts))


def room_of(module: str) -> str:
    """The innermost room that a dotted name lies in."""
    parts = module.removesuffix(".__init__").split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in MAY_IMPORT), parts[0])


def called_name(node: ast.Call) -> str:
    """Last word of what is called: `import_module` for `importlib.import_module(...)`."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def literal(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else COMPUTED


def aliases_of_importers(tree: ast.AST) -> set[str]:
    """Local names of importlib's functions: {"load"} after `from importlib import import_module as load`."""
    found = (alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names)
    return {alias.asname or alias.name for alias in found if alias.name in IMPORTERS}


def is_sys_modules(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "modules" and getattr(node.value, "id", "") == "sys"


def imported_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every (module name, line) a file imports, at its top or inside a function, by statement or by a call."""
    importers = IMPORTERS | aliases_of_importers(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: write imports in full"
            if (node.module or "").split(".")[0] == PACKAGE:  # what is imported may be a room of its own
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module or "", node.lineno
        elif isinstance(node, ast.Call) and called_name(node) in importers:
            yield literal(node.args[0] if node.args else None), node.lineno
        elif isinstance(node, ast.Subscript) and is_sys_modules(node.value):
            yield literal(node.slice), node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_sys_modules(node.func.value):
            yield literal(node.args[0] if node.args else None), node.lineno


def is_allowed(name: str, layer: str) -> bool:
    own, third_party = MAY_IMPORT[layer]
    top, _, rest = name.partition(".")
    if name == COMPUTED:
        return bool(third_party & HOST)
    if top == PACKAGE:
        return (room_of(rest) if rest else layer) in own | {layer}
    return top in third_party or (top in sys.stdlib_module_names and top not in NEVER)


def violations(source: str, layer: str) -> list[str]:
    """One line for each import that `layer` must not have, and for each host module that it names in a string."""
    tree = ast.parse(source)
    found = [
        f"line {line}: {layer} must not import {name}"
        for name, line in imported_names(tree)
        if not is_allowed(name, layer)
    ]
    if not MAY_IMPORT[layer][1] & HOST:
        # "modules.shared" as a whole string can only be meant for some way of importing not recognised above
        hidden = re.compile(rf"({'|'.join(sorted(HOST | NEVER))})(\.\w+)+")
        constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
        found += [f"line {n.lineno}: {layer} names {n.value!r}" for n in constants if hidden.fullmatch(n.value)]
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name))
    found += [f"line {n.lineno}: no {n.func.id}()" for n in calls if n.func.id in {"exec", "eval"}]
    return found


MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT / PACKAGE).as_posix())
def test_imports_point_downwards(path):
    layer = layer_of(path)
    assert layer in MAY_IMPORT, f"{layer} is a new layer: give it a row in the table, and in the design"
    assert violations(path.read_text("utf-8"), layer) == []


def test_the_table_has_no_cycle():
    """`a` may import `b` only if `b` may not import `a`, over any number of steps."""
    reach = {layer: set(own) for layer, (own, _) in MAY_IMPORT.items()}
    for _ in reach:
        for layer, below in reach.items():
            below.update(*(reach[name] for name in set(below)))
            assert layer not in below, f"{layer} reaches itself"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_modules_import_each_other_in_a_circle():
    files = {module_name(path): path for path in MODULES}
    assert len(files) > 100
    waiting = {}
    for name, path in files.items():
        targets = {target for target, _ in imported_names(ast.parse(path.read_text("utf-8")))}
        targets |= {target.rpartition(".")[0] for target in targets}  # what is imported may be a name of the module
        waiting[name] = targets & files.keys() - {name}
    while waiting:
        ready = {name for name, below in waiting.items() if not below & waiting.keys()}
        assert ready, f"a cycle among {sorted(waiting)}"
        waiting = {name: below for name, below in waiting.items() if name not in ready}


def test_only_host_layers_may_import_a_host_and_only_ui_layers_gradio():
    third_party = {layer: packages for layer, (_, packages) in MAY_IMPORT.items()}
    assert {layer for layer, packages in third_party.items() if packages & HOST} == {"hosts", "webui"}
    assert {layer for layer, packages in third_party.items() if "gradio" in packages} == {
        "ui",
        "webui",
        "standalone.pages",
        "standalone",
    }
    assert not any(packages & NEVER for packages in third_party.values())
    assert "torch" not in third_party["ui"]


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("core", "from modules import shared"),
        ("core", "def f():\n    import modules.shared"),
        ("core", "import gradio"),
        ("core", "from sd_vae_kit.vaes import library"),
        ("core.files", "from sd_vae_kit.core.graph import nodes"),
        ("core.plan", "from sd_vae_kit.core.engine.stream import run_streamed"),
        ("core.graph", "from sd_vae_kit.core import vae"),
        ("cli", "from sd_vae_kit.standalone import host"),
        ("core", "from sd_vae_kit.hosts.patch import patch"),
        ("core", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy"),
        ("vaes", "import importlib\nimportlib.import_module('modules.shared')"),
        ("vaes", "from importlib import import_module as load\nload('modules_forge')"),
        ("vaes", "import importlib\nname = 'modules'\nimportlib.import_module(name + '.shared')"),
        ("vaes", "__import__('backend')"),
        ("vaes", "import sys\nsys.modules['modules']"),
        ("vaes", "import sys\nsys.modules.get('modules.shared')"),
        ("vaes", "NAME = 'modules.shared'"),
        ("vaes", "exec('import ' + 'modules')"),
        ("hosts", "import sgm"),
        ("webui", "from ldm.models import autoencoder"),
        ("ui", "import torch"),
        ("cli", "def start():\n    import gradio"),
        ("errors", "import torch"),
        ("web", "import numpy"),
        ("__init__", "import torch"),
    ],
)
def test_a_forbidden_import_is_found(layer, source):
    assert violations(source, layer)


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        (
            "core",
            "import torch\nfrom sd_vae_kit.core.networks import taesd\nfrom sd_vae_kit.errors import NanError",
        ),
        ("core", "import sd_vae_kit.errors\nfrom sd_vae_kit.version import __version__"),
        ("hosts", "from importlib.util import find_spec\nfind_spec('modules_forge')\nfrom modules import shared"),
        ("vaes", "import importlib.resources\nimportlib.resources.files('sd_vae_kit.standalone.demo')"),
        ("vaes", "'''The host keeps it in modules.shared.'''"),
    ],
)
def test_an_allowed_import_is_not_complained_about(layer, source):
    assert violations(source, layer) == []
