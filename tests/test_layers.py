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

BASE = {"errors", "settings"}
NO_HOST = {"settings_store", "core", "library_cache", "library", "catalogue", "download", "pictures", "infotext"}
FILES = BASE | NO_HOST | {"latent_file"}
BELOW_UI = FILES | {"host", "features", "demo"}
PAGES = BELOW_UI | {"api", "adapters", "ui", "catalogue_service"}

MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {  # layer: (own layers below it, third-party packages)
    "errors": (set(), set()),
    "settings": ({"errors"}, set()),
    "settings_store": (BASE, set()),
    "infotext": ({"errors"}, set()),
    "core": (BASE, TORCH | {"psutil"}),  # psutil where a host ships it: the last resort for the size of free memory
    "pictures": ({"errors", "infotext"}, {"PIL", "numpy", "torch"}),
    "library_cache": ({"errors", "core"}, set()),
    "library": (BASE | {"core", "library_cache"}, TORCH),
    "latent_file": (BASE | {"core"}, TORCH),
    "catalogue": (BASE | {"core"}, set()),
    "download": (BASE, {"requests"}),
    "host": (BASE | {"core"}, {"torch"}),
    "demo": (BASE | {"core", "pictures"}, TORCH | {"PIL", "numpy"}),
    "features": (FILES | {"host"}, {"torch", "numpy", "PIL"}),
    "adapters": (BELOW_UI, TORCH | {"numpy", "PIL", "diffusers"} | HOST),
    "ui": (BASE | {"library", "catalogue", "host", "features", "pictures", "infotext"}, {"gradio", "PIL", "numpy"}),
    "catalogue_service": (BASE | {"core", "library", "catalogue", "host", "features", "ui"}, set()),
    "api": (FILES | {"host", "features"}, TORCH | {"fastapi", "pydantic"}),
    "webui": (
        BELOW_UI | {"api", "adapters", "ui", "catalogue_service"},
        HOST | {"gradio", "torch", "fastapi", "pydantic", "PIL"},
    ),
    "app": (BELOW_UI | {"api", "adapters", "ui", "catalogue_service"}, {"gradio", "platformdirs", "PIL"}),
    "cli": (FILES | {"host", "features"}, TORCH | {"PIL", "numpy", "tqdm", "platformdirs"}),
    "__init__": (set(), set()),
    "__main__": ({"errors", "cli", "app"}, set()),
}

IMPORTERS = {"import_module", "__import__", "find_spec"}
COMPUTED = "<a name computed at run time>"


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


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
            if node.module == PACKAGE:
                yield from ((f"{PACKAGE}.{alias.name}", node.lineno) for alias in node.names)
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
        return (rest.split(".")[0] or layer) in own | {layer, "__version__"}
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


def test_the_modules_of_core_have_no_cycle_among_them():
    files = {f"{PACKAGE}.core.{path.stem}": path for path in MODULES if layer_of(path) == "core"}
    assert len(files) > 20
    waiting = {}
    for name, path in files.items():
        imported = {target for target, _ in imported_names(ast.parse(path.read_text("utf-8")))}
        waiting[name] = imported & files.keys()
    while waiting:
        ready = {name for name, below in waiting.items() if not below & waiting.keys()}
        assert ready, f"a cycle among {sorted(waiting)}"
        waiting = {name: below for name, below in waiting.items() if name not in ready}


def test_only_host_layers_may_import_a_host_and_only_ui_layers_gradio():
    third_party = {layer: packages for layer, (_, packages) in MAY_IMPORT.items()}
    assert {layer for layer, packages in third_party.items() if packages & HOST} == {"adapters", "webui"}
    assert {layer for layer, packages in third_party.items() if "gradio" in packages} == {"ui", "webui", "app"}
    assert not any(packages & NEVER for packages in third_party.values())
    assert "torch" not in third_party["ui"]


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("core", "from modules import shared"),
        ("core", "def f():\n    import modules.shared"),
        ("core", "import gradio"),
        ("core", "from sd_vae_kit import library"),
        ("core", "from sd_vae_kit.adapters.patch import patch"),
        ("core", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy"),
        ("features", "import importlib\nimportlib.import_module('modules.shared')"),
        ("features", "from importlib import import_module as load\nload('modules_forge')"),
        ("features", "import importlib\nname = 'modules'\nimportlib.import_module(name + '.shared')"),
        ("features", "__import__('backend')"),
        ("features", "import sys\nsys.modules['modules']"),
        ("features", "import sys\nsys.modules.get('modules.shared')"),
        ("features", "NAME = 'modules.shared'"),
        ("features", "exec('import ' + 'modules')"),
        ("adapters", "import sgm"),
        ("webui", "from ldm.models import autoencoder"),
        ("ui", "import torch"),
        ("cli", "def start():\n    import gradio"),
        ("errors", "import torch"),
        ("infotext", "import numpy"),
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
            "import math\nimport torch\nfrom sd_vae_kit.core import taesd\nfrom sd_vae_kit.errors import VaeKitError",
        ),
        ("core", "import sd_vae_kit.errors\nfrom sd_vae_kit import __version__"),
        ("adapters", "from importlib.util import find_spec\nfind_spec('modules_forge')\nfrom modules import shared"),
        ("features", "import importlib.resources\nimportlib.resources.files('sd_vae_kit.demo')"),
        ("features", "'''The host keeps it in modules.shared.'''"),
    ],
)
def test_an_allowed_import_is_not_complained_about(layer, source):
    assert violations(source, layer) == []
