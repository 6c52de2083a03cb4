"""Programs beside the package: each can be imported, and the files of the repository that it names are there."""

import importlib
from pathlib import Path

import pytest
from conftest import ROOT

from bench import records

MODULES = sorted(
    f"{path.parent.name}.{path.stem}"
    for folder in ("bench", "tools")
    for path in (ROOT / folder).glob("*.py")
    if path.stem not in ("__init__", "__main__")
)


def test_the_programs_are_found():
    assert {"bench.measure", "tools.rooms", "tools.train_demo"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_program_can_be_imported_and_its_files_are_there(name):
    module = importlib.import_module(name)
    named = {key: value for key, value in vars(module).items() if isinstance(value, Path)}
    assert [f"{key} = {path}" for key, path in named.items() if path.is_relative_to(ROOT) and not path.exists()] == []


def test_measurements_are_made_anew_when_any_file_of_core_changes(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "ROOT", tmp_path)
    engine = tmp_path / "sd_vae_kit" / "core" / "engine"
    engine.mkdir(parents=True)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "variants.py").touch()
    (engine / "stream.py").write_text("a")
    before = records.engine_hash()
    (engine / "stream.py").write_text("b")
    assert records.engine_hash() != before
