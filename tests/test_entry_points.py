"""scripts/*.py, loaded the way the host loads them (script_loading.py:10, scripts.py:497-522 in A1111 1.10)."""

import argparse
import importlib.util
import inspect
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def load_as_host(path, monkeypatch):
    """Run a script file unregistered, with the extension on sys.path only meanwhile."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT), *(p for p in sys.path if p != str(ROOT))])
        spec = importlib.util.spec_from_file_location(path.name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def script_classes(module):
    base = sys.modules["modules.scripts"].Script
    return [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, base)]


def names(registered):
    return {event: [callback.__name__ for callback in callbacks] for event, callbacks in registered.items()}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_script_exposes_exactly_its_own_classes(path, fake, monkeypatch):
    classes = script_classes(load_as_host(path, monkeypatch))
    assert [c.__name__ for c in classes] == ["VaeKitScript", "TiledVaeScript"]
    assert all(c.__module__.startswith("sd_vae_kit.") for c in classes), "the host's own Script base must not leak"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_reload_ui_registers_again_and_the_patches_come_back(path, fake, monkeypatch):
    original = fake.sd_vae.reload_vae_weights
    load_as_host(path, monkeypatch)
    first, patched = names(fake.registered), fake.sd_vae.reload_vae_weights
    assert first["script_unloaded"]
    assert patched is not original
    between = []
    for _ in range(2):
        fake.reload_ui(lambda: (between.append(fake.sd_vae.reload_vae_weights), load_as_host(path, monkeypatch)))
        assert names(fake.registered) == first
        assert fake.sd_vae.reload_vae_weights is not original
    assert between == [original, original]


def test_late_imports_work_without_sys_path(fake, monkeypatch):
    script, _ = script_classes(load_as_host(SCRIPTS[0], monkeypatch))
    fake.start()
    fake.load_model()
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(ROOT))])
    p = fake.generate(script(), "other.safetensors")
    assert p.sd_vae_name == "other.safetensors"
    assert not fake.errors


def test_switched_off_by_its_flag_it_does_nothing(fake, monkeypatch):
    fake.shared.cmd_opts.vae_kit_disable = True
    original = fake.sd_vae.reload_vae_weights
    classes = script_classes(load_as_host(SCRIPTS[0], monkeypatch))
    assert not any(fake.registered.values())
    assert [script().show(False) for script in classes] == [False, False]
    assert fake.sd_vae.reload_vae_weights is original


def test_an_unknown_web_ui_is_left_alone(fake, monkeypatch):
    monkeypatch.delitem(sys.modules, "modules.sd_vae")
    script, _ = script_classes(load_as_host(SCRIPTS[0], monkeypatch))
    assert not any(fake.registered.values())
    fake.generate(script(), "other.safetensors", n_iter=0)
    assert not fake.errors


def test_no_scripts_package():
    """One such file hides every other extension's scripts.* modules."""
    assert not (ROOT / "scripts" / "__init__.py").exists()


def test_preload_adds_the_flags():
    spec = importlib.util.spec_from_file_location("preload", ROOT / "preload.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parser = argparse.ArgumentParser()
    module.preload(parser)
    flags = parser.parse_args(["--vae-kit-offline", "--vae-kit-dir", "folder"])
    assert (flags.vae_kit_disable, flags.vae_kit_offline, flags.vae_kit_dir) == (False, True, "folder")


def test_install_is_silent_and_installs_nothing(tmp_path):
    run = subprocess.run(
        [sys.executable, "-I", str(ROOT / "install.py")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
