"""Requirements: ranges that every web UI's own versions lie in, and a lock that lies in the ranges.

A wheel that pins torch or gradio would take a web UI's own away; a lock outside the ranges tries what is not promised.
"""

import ast
import itertools
import re
import sys

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from test_layers import HOST, MAY_IMPORT, MODULES, imported_names

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
DISTRIBUTIONS = {"PIL": "pillow"}  # by the name that is imported, where the two differ
OPTIONAL = {"psutil", "diffusers"}  # psutil: only where nothing else knows what is free; diffusers: SD.Next's own
# What web UIs ship and install: from requirements_versions.txt of A1111 v1.10.1 (82a973c0), Forge f2.0.1 (dfdcbab6) and
# reForge (3b56b268), requirements.txt of Neo 2.26 (5692d2d1) and SD.Next (058a7f0c), installer.py and launch_utils.py
# there for torch and gradio; what none of these name is what pip put beside it.
SHIPPED = {
    "A1111": (
        "torch==2.1.2 gradio==3.41.2 numpy==1.26.2 pillow==9.5.0 safetensors==0.4.2 fastapi==0.94.0 pydantic==1.10.17 "
        "requests==2.32.3 tqdm==4.66.5"
    ),
    "Forge": (
        "torch==2.3.1 gradio==4.40.0 numpy==1.26.2 pillow==9.5.0 safetensors==0.4.2 fastapi==0.104.1 pydantic==2.8.2 "
        "requests==2.32.3 tqdm==4.66.1"
    ),
    "reForge": (
        "torch==2.9.0 gradio==3.41.2 numpy==1.26.4 pillow==10.4.0 safetensors==0.5.2 fastapi==0.94.0 pydantic==1.10.26 "
        "requests==2.32.5 tqdm==4.67.3"
    ),
    "Neo": (
        "torch==2.11.0 gradio==4.40.0 numpy==2.3.5 pillow==12.2.0 safetensors==0.7.0 fastapi==0.127.1 pydantic==2.10.6 "
        "requests==2.34.2 tqdm==4.67.3"
    ),
    "SD.Next": (
        "torch==2.12.1 gradio==3.43.2 numpy==2.1.2 pillow==12.2.0 safetensors==0.8.0 fastapi==0.124.4 pydantic==2.13.4 "
        "requests==2.34.2 tqdm==4.68.3 platformdirs==4.14.8"
    ),
}
NOT_NEEDED_IN_A_HOST = {"platformdirs"}  # the stand-alone app's and the command line's


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def ranges() -> dict[str, Requirement]:
    return {requirement.name: requirement for requirement in map(Requirement, project()["dependencies"])}


def locked(name: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text("ascii").splitlines())
    return [Requirement(line) for line in lines if line]


def pin(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not one exact version"
    return specifier.version


def test_no_requirement_of_the_package_is_one_exact_version():
    assert len(ranges()) > 5
    operators = {specifier.operator for requirement in ranges().values() for specifier in requirement.specifier}
    assert operators == {">="}


@pytest.mark.parametrize(("host", "name"), [*itertools.product(SHIPPED, ranges())])
def test_what_a_web_ui_ships_lies_in_the_range(host, name):
    shipped = {requirement.name: pin(requirement) for requirement in map(Requirement, SHIPPED[host].split())}
    if name in NOT_NEEDED_IN_A_HOST and name not in shipped:
        return
    assert ranges()[name].specifier.contains(shipped[name])


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_one_version_within_each_range(python):
    here = [r for r in locked("requirements.lock") if r.marker is None or r.marker.evaluate({"python_version": python})]
    assert sorted(r.name for r in here) == sorted(ranges())
    assert [str(r) for r in here if not ranges()[r.name].specifier.contains(pin(r))] == []


@pytest.mark.parametrize("name", ["requirements-test.lock", "requirements-train.lock"])
@pytest.mark.parametrize("python", PYTHONS)
def test_each_tool_has_one_version_on_every_python(name, python):
    everywhere = locked(name)
    here = [r for r in everywhere if r.marker is None or r.marker.evaluate({"python_version": python})]
    assert sorted(r.name for r in here) == sorted({r.name for r in everywhere})
    assert all(map(pin, here))


def test_what_the_package_imports_is_what_it_asks_for():
    """Read from the imports: a package used without being asked for works by luck, one no longer used is a burden."""
    trees = (ast.parse(path.read_text("utf-8")) for path in MODULES)
    names = {name.split(".")[0] for tree in trees for name, _ in imported_names(tree)}
    allowed = set().union(*(third_party for _, third_party in MAY_IMPORT.values())) - HOST
    used = {DISTRIBUTIONS.get(name, name) for name in names & allowed}
    assert "torch" in used
    assert used - OPTIONAL == set(ranges())


def test_only_the_launcher_reads_the_lock():
    readers = [
        path.relative_to(ROOT).as_posix()
        for path in (*ROOT.glob("*.py"), *(ROOT / "sd_vae_kit").rglob("*.py"), *(ROOT / "scripts").glob("*.py"))
        if re.search(r"requirements[\w-]*\.lock", path.read_text("utf-8"))
    ]
    assert readers == ["launch.py"]
