"""Which TAESD file serves which model."""

import shutil

import pytest
import torch
from vae_files import kl_state, tiny_state, write

from sd_vae_kit.core.networks.taesd import TinyConfig
from sd_vae_kit.errors import VaeNotFoundError
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder
from sd_vae_kit.vaes.tiny import TinyVaes, other_half

CPU = torch.device("cpu")
DECODER, ENCODER = {"encoder": False}, {"decoder": False}


@pytest.fixture
def made(tmp_path):
    """A library over two folders, and the TAESDs in it."""

    def make():
        folders = [Folder(tmp_path / name) for name in ("VAE-taesd", "VAE")]
        library = Library(folders, tmp_path / "library.json")
        library.refresh()
        return library, TinyVaes([library], FamilyFinder(library, tmp_path / "families.json"))

    (tmp_path / "VAE-taesd").mkdir()
    (tmp_path / "VAE").mkdir()
    return tmp_path, make


def tiny(path, z_channels=4, family="", seed=0, **halves):
    config = TinyConfig(z_channels, 8, **halves)
    return write(path, tiny_state(config, seed), {"family": family} if family else None)


def test_a_family_gets_its_own_file_and_the_half_it_needs(made):
    folder, make = made
    for family in ("sd1", "sdxl"):
        tiny(folder / "VAE-taesd" / f"{family}_decoder.safetensors", family=family, **DECODER)
    tiny(folder / "VAE-taesd" / "sdxl_encoder.safetensors", family="sdxl", **ENCODER)
    write(folder / "VAE" / "full.safetensors", kl_state(), {"family": "sdxl"})
    _, found = make()
    assert found.find("sdxl", "decoder").name == "sdxl_decoder.safetensors"
    assert found.find("sd1", "decoder").name == "sd1_decoder.safetensors"
    assert found.find("sdxl", "encoder").name == "sdxl_encoder.safetensors"
    assert found.find("sd1", "encoder") is None
    assert found.find("sd3", "decoder") is None


def test_one_file_with_both_halves_serves_both(made):
    folder, make = made
    tiny(folder / "VAE" / "both.safetensors", 32, variant="f32")
    _, found = make()
    assert found.find("sana", "decoder") == found.find("sana", "encoder")
    assert found.find("flux2", "decoder") is None, "it has 32 channels, too, but other cells"


def test_an_undecided_file_is_used_only_if_its_name_says_what_it_is(made):
    """Random weights behave like no family's."""
    folder, make = made
    tiny(folder / "VAE" / "mine.safetensors", **DECODER)
    assert make()[1].find("sd1", "decoder") is None
    tiny(folder / "VAE" / "taesd_decoder.safetensors", **DECODER)
    _, found = make()
    assert found.find("sd1", "decoder").name == "taesd_decoder.safetensors"
    assert found.find("sdxl", "decoder") is None


def test_a_broken_file_is_passed_over(made):
    folder, make = made
    (folder / "VAE" / "taesd_decoder.pth").write_bytes(b"<html>404</html>")
    assert make()[1].find("sd1", "decoder") is None


def test_real_files_are_told_apart_whatever_they_are_called(made, weights_dir):
    folder, make = made
    names = {"sd1": "taesd", "sdxl": "taesdxl", "sd3": "taesd3", "flux": "taef1"}
    for i, name in enumerate(names.values()):
        for half in ("encoder", "decoder"):
            shutil.copy(weights_dir / f"{name}_{half}.safetensors", folder / "VAE" / f"{half}{9 - i}.safetensors")
    _, found = make()
    for i, family in enumerate(names):
        for half in ("encoder", "decoder"):
            assert found.find(family, half).name == f"{half}{9 - i}.safetensors"


def test_loading_gives_the_network_once_and_in_the_type_asked_for(made):
    folder, make = made
    tiny(folder / "VAE" / "a.safetensors", family="sdxl", **DECODER)
    _, found = make()
    with torch.inference_mode():
        vae = found.load("sdxl", "decoder", CPU, torch.bfloat16)
    assert (vae.latent_format.name, vae.part) == ("sdxl", "decoder")
    parameter = next(vae.module.parameters())
    assert parameter.dtype == torch.bfloat16
    assert not parameter.is_inference()
    assert found.load("sdxl", "decoder", CPU, torch.bfloat16) is vae
    assert found.load("sdxl", "decoder", CPU, torch.float32) is not vae
    found.release()
    assert found.load("sdxl", "decoder", CPU, torch.bfloat16) is not vae


@pytest.mark.parametrize(
    ("family", "half", "words"),
    [
        ("sd1", "decoder", 'There is no TAESD decoder for SD 1.x / 2.x here; .* download "TAESD decoder"'),
        ("flux", "encoder", 'for FLUX.1 here; install .* download "TAEF1 encoder"'),
        ("unknown", "decoder", "for this model here; none is known"),
    ],
)
def test_what_is_missing_is_one_line_with_a_way_out(made, family, half, words):
    _, found = made[1]()
    with pytest.raises(VaeNotFoundError, match=words) as caught:
        found.load(family, half, CPU)
    assert "\n" not in str(caught.value)


def test_two_files_are_a_pair_if_their_names_say_so(made):
    folder, make = made
    for suffix in ("safetensors", "pth"):
        for half, rest in (("encoder", ENCODER), ("decoder", DECODER)):
            config = TinyConfig(4, 8, **rest)
            path = folder / "VAE" / f"taesd_{half}.{suffix}"
            write(path, tiny_state(config)) if suffix == "safetensors" else torch.save(tiny_state(config), path)
    tiny(folder / "VAE-taesd" / "taesd_encoder.safetensors", 16, **ENCODER)
    tiny(folder / "VAE" / "both.safetensors")
    library, _ = make()
    for name in ("taesd_decoder.safetensors", "taesd_decoder.pth"):
        entry = next(e for e in library.entries if e.path.name == name)
        other = other_half(library.entries, entry)
        assert other.path == entry.path.with_name(name.replace("decoder", "encoder"))
        assert other_half(library.entries, other) == entry
    lonely = next(e for e in library.entries if e.z_channels == 16)
    assert other_half(library.entries, lonely) is None
    assert other_half(library.entries, next(e for e in library.entries if e.part == "both")) is None
