"""Conversion: the same pictures from another file; the old file is never half overwritten."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from vae_files import kl_config, kl_state, picture, tiny_state, write

from sd_vae_kit.core.convert import convert
from sd_vae_kit.core.dtypes import DTYPES
from sd_vae_kit.core.files import safetensors_file
from sd_vae_kit.core.files.checkpoint import read_header
from sd_vae_kit.core.files.safetensors_file import save
from sd_vae_kit.core.networks.taesd import TinyConfig
from sd_vae_kit.core.vae import load_vae, read_vae
from sd_vae_kit.errors import OptionError, VaeKitError

STATES = {
    "kl": kl_state(kl_config(ch_mult=(1, 2, 2))),
    "kl decoder": kl_state(kl_config(encoder=False)),
    "kl encoder": kl_state(kl_config(decoder=False)),
    "tiny": tiny_state(),
    "tiny decoder": tiny_state(TinyConfig(16, 8, encoder=False)),
}


@pytest.mark.parametrize("name", STATES)
def test_there_and_back_gives_the_same_tensors(tmp_path, name):
    first = read_vae(write(tmp_path / "a.safetensors", STATES[name]))
    save(tmp_path / "b.safetensors", *convert(first, "diffusers"))
    second = read_vae(tmp_path / "b.safetensors")
    assert second.detection.layout in ("diffusers", "taesd-diffusers")
    save(tmp_path / "c.safetensors", *convert(second, "ldm"))
    third = read_vae(tmp_path / "c.safetensors")
    assert third.detection.layout in ("ldm", "taesd")
    for state in (second.state, third.state):
        assert state.keys() == first.state.keys()
        assert all(torch.equal(state[n], t) for n, t in first.state.items())


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("source", ["fp16", "bf16", "fp32", "fp8_e4m3fn", "fp8_e5m2"])
def test_every_precision_is_reached_from_every_other(tmp_path, source, dtype):
    state = {n: t.to(DTYPES[source]) for n, t in STATES["tiny"].items()}
    weights = read_vae(write(tmp_path / "a.safetensors", state))
    converted, _ = convert(weights, "ldm", dtype)
    assert {t.dtype for t in converted.values()} == {DTYPES[dtype]}
    assert all(torch.equal(converted[n], t.to(DTYPES[dtype])) for n, t in state.items())
    assert all(t.dtype == DTYPES[source] for t in weights.state.values()), "the originals are only read"


def test_a_converted_file_makes_the_same_picture(tmp_path):
    path = write(tmp_path / "a.safetensors", STATES["kl"], {"family": "sdxl"})
    save(tmp_path / "b.safetensors", *convert(read_vae(path), "diffusers", "fp32"))
    one, two = load_vae(path), load_vae(tmp_path / "b.safetensors")
    assert torch.equal(one.encode(picture()), two.encode(picture()))
    assert two.latent_format.name == "sdxl"


def test_nothing_asked_for_keeps_layout_and_precision(tmp_path):
    weights = read_vae(write(tmp_path / "a.safetensors", {n: t.half() for n, t in STATES["kl"].items()}))
    state, _ = convert(weights)
    assert state.keys() == STATES["kl"].keys()
    assert {t.dtype for t in state.values()} == {torch.float16}
    save(tmp_path / "b.safetensors", *convert(weights, "diffusers"))
    again, _ = convert(read_vae(tmp_path / "b.safetensors"))
    assert "encoder.down_blocks.0.resnets.0.conv1.weight" in again


def test_a_tiny_half_is_published_without_prefix_and_for_diffusers_with_it(tmp_path):
    weights = read_vae(write(tmp_path / "a.safetensors", STATES["tiny decoder"]))
    assert "1.weight" in convert(weights, "ldm")[0]
    assert "decoder.layers.0.weight" in convert(weights, "diffusers")[0]


def test_the_metadata_keep_what_was_there_and_say_the_family_if_it_is_certain(tmp_path):
    known = read_vae(write(tmp_path / "a.safetensors", STATES["tiny"], {"family": "sdxl", "note": "mine"}))
    assert convert(known)[1] == {"family": "sdxl", "note": "mine", "format": "pt"}
    undecided = read_vae(write(tmp_path / "b.safetensors", STATES["tiny"]))
    assert convert(undecided)[1] == {"format": "pt"}


def test_flux2_statistics_are_kept(tmp_path):
    state = {**kl_state(kl_config(32)), "bn.running_mean": torch.ones(128), "bn.running_var": torch.ones(128)}
    converted, _ = convert(read_vae(write(tmp_path / "a.safetensors", state)), "diffusers", "fp16")
    assert converted["bn.running_mean"].shape == (128,)


@pytest.mark.parametrize(
    ("layout", "dtype", "words"),
    [
        ("comfy", None, "no layout 'comfy'; use ldm or diffusers"),
        ("ldm", "fp8", "no precision 'fp8' .* use fp16, bf16, fp32"),
    ],
)
def test_unknown_targets_are_refused(tmp_path, layout, dtype, words):
    weights = read_vae(write(tmp_path / "a.safetensors", STATES["tiny"]))
    with pytest.raises(OptionError, match=words):
        convert(weights, layout, dtype)


def test_weights_beyond_half_precision_are_refused_and_not_made_infinite(tmp_path):
    state = {**STATES["tiny"], "decoder.19.bias": torch.tensor([7e4, 0.0, 0.0])}
    weights = read_vae(write(tmp_path / "a.safetensors", state))
    with pytest.raises(OptionError, match=r"decoder\.19\.bias holds numbers beyond fp16's range .*use bf16 or fp32"):
        convert(weights, "ldm", "fp16")
    convert(weights, "ldm", "bf16")


# --- saving ----------------------------------------------------------------------------------------------------------


def test_a_file_can_be_converted_onto_itself(tmp_path):
    path = write(tmp_path / "a.safetensors", STATES["kl"])
    save(path, *convert(read_vae(path), "diffusers", "fp16"))
    weights = read_vae(path)
    assert (weights.detection.layout, weights.dtype) == ("diffusers", "fp16")
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write(tmp_path / "a.safetensors", STATES["tiny"])
    before = path.read_bytes()

    def run_out_of_space(_state, target, **_options):
        target.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file, "save_file", run_out_of_space)
    with pytest.raises(VaeKitError, match=r"cannot write a\.safetensors in .*No space left"):
        save(path, *convert(read_vae(path), "diffusers"))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_folder_that_does_not_exist_is_one_line(tmp_path):
    with pytest.raises(VaeKitError, match=r"cannot write x\.safetensors in ") as raised:
        save(tmp_path / "no" / "x.safetensors", {"w": torch.ones(2)}, {})
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = write(tmp_path / "a.safetensors", STATES["tiny"])
    path.chmod(0o640)
    save(path, *convert(read_vae(path)))
    assert path.stat().st_mode & 0o777 == 0o640


def test_other_programs_can_read_the_result(tmp_path):
    weights = read_vae(write(tmp_path / "a.safetensors", STATES["kl"], {"family": "sd1"}))
    save(tmp_path / "b.safetensors", *convert(weights, "diffusers", "bf16"))
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert json.loads(json.dumps(file.metadata())) == {"family": "sd1", "format": "pt"}
        assert set(file.keys()) == read_header(tmp_path / "b.safetensors").tensors.keys()
