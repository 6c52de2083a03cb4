"""A wheel of the package holds every file the package opens, and pins nothing that a web UI has already."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.pyi")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left beside the sources; nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "sd_vae_kit", source / "sd_vae_kit", ignore=IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=source, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.Path(path)


def names(wheel):
    return set(wheel.root.namelist())


def text(wheel, suffix):
    (name,) = (name for name in names(wheel) if name.endswith(suffix))
    return wheel.root.read(name).decode()


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    files = (path for path in (ROOT / "sd_vae_kit").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    missing = [path.relative_to(ROOT).as_posix() for path in files if path.suffix not in (".pyc", ".pyi")]
    assert [name for name in missing if name not in names(wheel)] == []


def test_nothing_else_is_in_it(wheel):
    own = {name.split("/")[0] for name in names(wheel)}
    assert {name for name in own if not name.endswith(".dist-info")} == {"sd_vae_kit"}


def test_its_metadata_pin_no_requirement_and_show_the_readme(wheel):
    metadata = text(wheel, ".dist-info/METADATA")
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert any(line.startswith("Requires-Dist: torch") for line in required)
    assert [line for line in required if "==" in line.split(";")[0]] == []
    assert "# VAE Kit" in metadata.split("\n\n", 1)[1]


def test_it_brings_the_command_line(wheel):
    assert "vae-kit = sd_vae_kit.__main__:console" in text(wheel, ".dist-info/entry_points.txt").splitlines()
