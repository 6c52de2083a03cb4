"""Recording an installation's names from its sources, and telling what has changed in it."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from tools import host_names, host_uses
from tools.host_entries import HostEntries
from tools.host_names import PROGRAMS, Change, Recording, changes, main, missing, record
from tools.host_sources import HostSources
from tools.host_uses import Use, uses_in

A1111 = PROGRAMS[0]
SD_VAE = """
import os
from typing import TYPE_CHECKING
from modules import hashes, paths
from modules.hashes import sha256 as digest

if TYPE_CHECKING:
    from modules.sd_models import Model

vae_dict = {}
base_vae = loaded_vae_file = None
raise_on_import = 1 / 0


def load_vae(model, vae_file=None, *more, source, quiet=False, **kwargs):
    global checkpoint_info
    local = 1


try:
    from torch import compile
except ImportError:
    def compile_nothing(): ...
"""
SHARED = """
import sys
from modules import options, shared_state
from modules.paths_internal import *

opts: options.Options = None
state: "shared_state.State" = None
cmd_opts = None
OptionInfo = options.OptionInfo
"""
FILES = {
    "modules/sd_vae.py": SD_VAE,
    "modules/hashes.py": "def sha256(path, title=''): ...\n",
    "modules/paths.py": "from modules.paths_internal import data_path as data\n",
    "modules/paths_internal.py": "data_path, _hidden = 'd', 1\nparser.add_argument('--vae-dir')\n",
    "modules/shared.py": SHARED,
    "modules/shared_state.py": "class State:\n    job = ''\n    def begin(self, job='x'):\n        self.step = 0\n",
    "modules/options.py": """
class OptionInfo(dict):
    def info(self, text): ...
class Base:
    def load(self): ...
    @property
    def saved(self): ...
class Options(Base):
    def __init__(self, labels):
        self.data_labels: dict = labels
        self.data, self.other = {}, 1
    def set(self, key, value, is_api=False): ...
""",
    "modules/shared_options.py": """
templates = {'sd_vae': OptionInfo('Automatic').info('x'), 'no_option': 1}
opts.add_option('late', x)
""",
    "modules/shared_items.py": """
import sys
class Shared(sys.modules[__name__].__class__):
    @property
    def sd_model(self): ...
sys.modules['modules.shared'].__class__ = Shared
""",
    "modules/shared_init.py": """
def initialize():
    from modules import shared, shared_state
    shared.monitor = shared_state.State()
    shared.cmd_opts.share = False
""",
    "modules_forge/forge_version.py": "version = '1.0'\n",
}


@pytest.fixture
def installation(tmp_path):
    """A web UI that cannot be imported."""
    root = tmp_path / "webui"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


def rewrite(root, name, old, new):
    text = (root / name).read_text("utf-8")
    assert old in text
    (root / name).write_text(text.replace(old, new), "utf-8")


MODULES = ("modules.sd_vae", "modules.shared", "modules.paths", "modules.lowvram")


# --- recording ------------------------------------------------------------------------------------------------------


def test_a_module_is_described_by_names_and_signatures_alone(installation):
    recorded = record(installation, "Made up", "abc", MODULES)
    assert recorded.modules["modules.sd_vae"] == {
        "base_vae": "value",
        "checkpoint_info": "value",
        "compile_nothing": "()",
        "digest": "(path, title=)",
        "load_vae": "(model, vae_file=, *more, source, quiet=, **kwargs)",
        "loaded_vae_file": "value",
        "raise_on_import": "value",
        "vae_dict": "value",
    }
    assert recorded.absent == ["modules.lowvram"]
    assert (recorded.version, recorded.commit) == ("1.0", "abc")


def test_objects_and_other_modules_names_are_followed(installation):
    recorded = record(installation, "Made up", "abc", MODULES)
    assert recorded.modules["modules.shared"] == {
        "OptionInfo": "= modules.options.OptionInfo",
        "cmd_opts": "value",
        "data_path": "value",
        "monitor": "a modules.shared_state.State",
        "opts": "a modules.options.Options",
        "sd_model": "value",
        "state": "a modules.shared_state.State",
    }
    assert recorded.modules["modules.options"]["Options"] == {
        "bases": [],
        "members": {
            "__init__": "(self, labels)",
            "data": "value",
            "data_labels": "value",
            "load": "(self)",
            "other": "value",
            "saved": "value",
            "set": "(self, key, value, is_api=)",
        },
    }
    assert recorded.modules["modules.options"]["OptionInfo"]["bases"] == ["dict"]
    assert recorded.modules["modules.paths"] == {"data": "value"}


@pytest.mark.parametrize(
    ("module", "name", "is_there"),
    [
        ("modules.sd_vae", "load_vae", True),
        ("modules.sd_vae", "unspecified", False),
        ("modules.sd_vae", "Model", False),  # for type checkers only
        ("modules.sd_vae", "vae_dict.anything", True),  # nothing is known of it
        ("modules.shared", "sd_model", True),
        ("modules.shared", "opts.set", True),
        ("modules.shared", "opts.unset", False),
        ("modules.shared", "opts.sd_vae", True),
        ("modules.shared", "opts.late", True),
        ("modules.shared", "opts.no_option", False),
        ("modules.shared", "state.step", True),
        ("modules.shared", "state.steps", False),
        ("modules.shared", "monitor.begin", True),
        ("modules.shared", "OptionInfo.info", True),
        ("modules.shared", "OptionInfo.items", True),  # of a foreign base
        ("modules.shared", "cmd_opts.vae_dir", True),
        ("modules.shared", "cmd_opts.share", True),
        ("modules.shared", "cmd_opts.vae_path", False),
        ("modules.shared", "_hidden", False),
        ("modules.lowvram", "", False),
    ],
)
def test_a_recording_says_whether_a_name_is_there(installation, module, name, is_there):
    assert record(installation, "Made up", "abc", MODULES).has(module, name) is is_there


def test_a_recording_is_read_as_it_was_written(installation, tmp_path):
    recorded = record(installation, "Made up", "abc", MODULES)
    recorded.save(tmp_path / "it.json")
    assert Recording.load(tmp_path / "it.json") == recorded
    assert str(tmp_path) not in (tmp_path / "it.json").read_text("utf-8")


def test_sources_for_a_newer_python_are_named(installation):
    (installation / "modules" / "sd_vae.py").write_text("def f(:\n", "utf-8")
    with pytest.raises(SyntaxError) as error:
        HostEntries(HostSources(installation)).entry("modules.sd_vae", "f")
    assert str(error.value.filename).endswith("sd_vae.py")


# --- what the package uses ------------------------------------------------------------------------------------------

OURS = """
from importlib.util import find_spec
from typing import Any
from modules import sd_vae, scripts, shared
from modules.options import Options as Kept
from backend.patcher.vae import VAE

NAMES = ("decode", "encode")
for name, method in {"load_vae": 1, "resolve_vae": 2}.items():
    replace(sd_vae, name, method)
for name in NAMES:
    self._patches.wrap(VAE, name, 1)
for owner, name in ((sd_vae, "first"), (type(shared.state), "second")):
    pass


class Ours(scripts.Script):
    def title(self): ...
    def _own(self): ...


def hook(p: Any, opts: Any, other: Any) -> None:
    state, settings = shared.state, shared.opts
    state.job = settings.sd_vae + p.width + opts.data + other.nothing
    getattr(shared.cmd_opts, "vae_path", None)
    find_spec("modules.lowvram") and hasattr(Kept, "restrict")
    sd_vae.loaded_vae_file = None
"""


def test_every_way_to_use_a_name_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(host_uses, "ROOT", tmp_path)
    (tmp_path / "ours.py").write_text(OURS, "utf-8")
    found = uses_in(tmp_path / "ours.py")
    assert {use.name for use in found if not use.is_question} == {
        "modules.sd_vae",
        "modules.scripts",
        "modules.shared",
        "modules.options.Options",
        "backend.patcher.vae.VAE",
        "modules.sd_vae.load_vae",
        "modules.sd_vae.resolve_vae",
        "backend.patcher.vae.VAE.decode",
        "backend.patcher.vae.VAE.encode",
        "modules.sd_vae.first",
        "modules.shared.state.second",
        "modules.scripts.Script",
        "modules.scripts.Script.title",
        "modules.shared.state",
        "modules.shared.opts",
        "modules.shared.state.job",
        "modules.shared.opts.sd_vae",
        "modules.processing.StableDiffusionProcessing.width",
        "modules.shared.opts.data",
        "modules.shared.cmd_opts",
        "modules.shared.cmd_opts.vae_path",
        "modules.sd_vae.loaded_vae_file",
    }
    questions = {use.name for use in found if use.is_question}
    assert questions == {"modules.lowvram", "modules.options.Options.restrict"}


def test_the_packages_own_uses_are_many_and_lie_in_the_rooms_that_may_name_a_host():
    used = A1111.uses()
    assert len(used) > 150
    assert {use.file.split("/")[1] for use in used if use.file != "scripts/vae_kit.py"} == {"hosts", "webui"}
    assert ("modules.sd_vae", "load_vae") in {(use.module, use.attribute) for use in used}


# --- what has changed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        (
            "modules/sd_vae.py",
            "vae_file=None,",
            "vae_file=None, vae_source=None,",
            [Change("modules.sd_vae.load_vae", "has the new parameter vae_source=")],
        ),
        (
            "modules/sd_vae.py",
            "def load_vae(model, vae_file=None, *more, source, quiet=False, **kwargs)",
            "def load_vae(vae)",
            [
                Change(
                    "modules.sd_vae.load_vae",
                    "takes (vae), took (model, vae_file=, *more, source, quiet=, **kwargs)",
                )
            ],
        ),
        ("modules/sd_vae.py", "vae_dict = {}", "", [Change("modules.sd_vae.vae_dict", "is gone")]),
        ("modules/sd_vae.py", "vae_dict = {}", "def vae_dict(): ...",
         [Change("modules.sd_vae.vae_dict", "is a function (), was a value")]),
        ("modules/sd_vae.py", "vae_dict = {}", "vae_dict = {}\nnew = 1", []),
        ("modules/options.py", "def set(", "def put(", [Change("modules.options.Options.set", "is gone")]),
        ("modules/shared_options.py", "'sd_vae'", "'vae'", [Change("option sd_vae", "is gone")]),
        ("modules/paths_internal.py", "--vae-dir", "--vae-dirs", [Change("flag vae_dir", "is gone")]),
    ],
)  # fmt: skip
def test_each_change_of_a_recorded_name_is_one_line(installation, file, old, new, expected):
    before = record(installation, "Made up", "abc", MODULES)
    rewrite(installation, file, old, new)
    assert changes(before, record(installation, "Made up", "abc", MODULES)) == expected


def test_a_module_that_goes_or_comes_is_one_line(installation):
    before = record(installation, "Made up", "abc", MODULES)
    (installation / "modules" / "sd_vae.py").unlink()
    (installation / "modules" / "lowvram.py").write_text("", "utf-8")
    now = record(installation, "Made up", "abc", MODULES)
    assert changes(before, now) == [Change("modules.lowvram", "is there now"), Change("modules.sd_vae", "is gone")]
    use = Use("modules.sd_vae", "load_vae", "ours.py", 1)
    assert missing(before, [use]) == []
    assert missing(now, [use]) == [use]


@pytest.fixture
def named(installation, tmp_path, monkeypatch):
    """The made-up web UI as the A1111 that is installed, and recordings in a folder of their own."""
    for program in PROGRAMS:
        monkeypatch.delenv(program.variable, raising=False)
    monkeypatch.setenv(A1111.variable, str(installation))
    monkeypatch.setattr(host_names, "DATA", tmp_path / "recorded")
    return installation


def test_the_canary_says_what_changed_and_rewrites_nothing(named, capsys):
    assert main(["--record", "a1111=abcdef0123456789"]) == 0
    written = A1111.file.read_bytes()
    capsys.readouterr()
    assert main([]) == 0
    assert "A1111 1.0 (): 0 changes since 1.0 (abcdef01)" in capsys.readouterr().out
    rewrite(named, "modules/sd_vae.py", "vae_file=None,", "vae_file=None, vae_source=None,")
    assert main([]) == 0
    said = capsys.readouterr().out
    assert "A1111: modules.sd_vae.load_vae has the new parameter vae_source=" in said
    assert "Forge Neo: not named by VAE_KIT_NEO_DIR, skipped" in said
    assert A1111.file.read_bytes() == written
    assert main(["--record"]) == 0
    assert A1111.file.read_bytes() != written


def test_the_canary_fails_where_a_used_name_is_gone(named, capsys):
    main(["--record"])
    capsys.readouterr()
    rewrite(named, "modules/sd_vae.py", "def load_vae(", "def load_a_vae(")
    assert main([]) == 1
    assert "A1111: VAE Kit uses modules.sd_vae.load_vae, which is gone" in capsys.readouterr().out


def test_the_canary_fails_not_where_an_unused_name_is_gone(named, capsys):
    main(["--record"])
    rewrite(named, "modules/sd_vae.py", "raise_on_import = 1 / 0", "")
    assert main([]) == 0
    assert "A1111: modules.sd_vae.raise_on_import is gone" in capsys.readouterr().out


def test_the_launcher_hands_over_without_an_environment_of_its_own(installation):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VAE_KIT_")}
    environ[A1111.variable] = str(installation)
    command = [sys.executable, str(ROOT / "launch.py"), "test", "--hosts"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "A1111: modules.sd_vae.unspecified is gone" in done.stdout
    assert "SD.Next: not named by VAE_KIT_SDNEXT_DIR, skipped" in done.stdout
