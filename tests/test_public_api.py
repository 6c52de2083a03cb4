"""What scripts import from `sd_vae_kit`: lazy, typed, and every example of its page runs."""

import ast
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

import sd_vae_kit
from sd_vae_kit import errors

PAGE = ROOT / "docs" / "python-api.md"
DEMO = ROOT / "sd_vae_kit" / "standalone" / "demo"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)

LAZY = """
import sys
import sd_vae_kit
from sd_vae_kit import __version__, errors
assert errors.VaeKitError and __version__
assert {"load_vae", "inspect", "Vae"} <= set(dir(sd_vae_kit))
heavy = {"torch", "numpy", "safetensors", "PIL", "gradio"} & sys.modules.keys()
assert not heavy, heavy
from sd_vae_kit import inspect
assert "torch" in sys.modules
assert inspect is sd_vae_kit.inspect
"""


def test_the_package_imports_no_torch_before_a_name_is_used():
    subprocess.run([sys.executable, "-c", LAZY], cwd=ROOT, check=True)


def test_every_public_name_is_there_and_no_other():
    for name in sd_vae_kit.__all__:
        assert getattr(sd_vae_kit, name) is not None
    with pytest.raises(AttributeError, match="module 'sd_vae_kit' has no attribute 'nonsense'"):
        sd_vae_kit.nonsense  # noqa: B018


def test_type_checkers_see_every_public_name():
    tree = ast.parse((ROOT / "sd_vae_kit" / "__init__.py").read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(sd_vae_kit.__all__) <= imported
    assert (ROOT / "sd_vae_kit" / "py.typed").is_file()


@pytest.fixture
def script_folder(tmp_path, monkeypatch):
    """What the examples find beside them."""
    shutil.copy(DEMO / "demo_natural.safetensors", tmp_path / "vae.safetensors")
    shutil.copy(next((DEMO / "photographs").glob("*.jpg")), tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_has_examples():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("source", EXAMPLES, ids=lambda source: source.strip().splitlines()[-1][:40])
def test_every_example_runs(script_folder, source, capsys):
    exec(compile(source, PAGE.name, "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"^ *print\(.*\)  # (.*)$", source, re.MULTILINE)
    for line in promised:
        start = line.split("...")[0]
        if re.match(r"[a-z0-9.,_ ]+$", start) and not start.startswith(("what ", "of ")):
            assert any(start.strip() in found for found in printed), (start, printed)
    if "again.png" in source:
        assert (script_folder / "again.png").stat().st_size > 10_000


def test_a_vae_of_undecided_shape_is_loaded_as_what_it_was_found_to_be(script_folder):
    """Stripped of its metadata, the demo VAE is told by its behaviour; random weights stay undecided."""
    state = load_file("vae.safetensors")
    save_file(state, "nameless.safetensors")
    assert sd_vae_kit.inspect("nameless.safetensors").family_known_by == "behaviour"
    vae = sd_vae_kit.load_vae("nameless.safetensors")
    assert (vae.latent_format.name, vae.warnings) == ("sd1", ())
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(tensor.shape, generator=generator) * 0.05 for name, tensor in state.items()}
    save_file(noise, "noise.safetensors")
    assert sd_vae_kit.inspect("noise.safetensors").family == "sd1|sdxl"
    (warning,) = sd_vae_kit.load_vae("noise.safetensors", device="cpu").warnings
    assert warning.startswith("noise.safetensors may be of SD 1.x / 2.x or SDXL")


def test_what_is_asked_for_is_kept_or_refused(script_folder):
    vae = sd_vae_kit.load_vae("vae.safetensors", family="sdxl", dtype="bf16", device="cpu")
    assert vae.latent_format.name == "sdxl"
    assert {p.dtype for p in vae.module.parameters()} == {torch.bfloat16}
    with pytest.raises(errors.OptionError, match="no precision 'fp12'"):
        sd_vae_kit.load_vae("vae.safetensors", dtype="fp12")
    with pytest.raises(errors.OptionError, match="16 and cells"):
        sd_vae_kit.load_vae("vae.safetensors", family="flux")
    with pytest.raises(errors.VaeNotFoundError):
        sd_vae_kit.inspect("gone.safetensors")
