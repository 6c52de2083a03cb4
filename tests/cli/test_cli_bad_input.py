"""Everything a user may hand in by mistake: one line, exit code 2, nothing written, the input as it was."""

import re

import numpy as np
import pytest
import torch
from cli_files import BAD_VAES, CommandLine, bad_vae, kl_module, write_kl, write_picture, write_tiny
from PIL import Image
from safetensors.torch import save_file

from sd_vae_kit.pictures.picture_file import open_picture


@pytest.fixture
def cli(tmp_path, capsys):
    return CommandLine(tmp_path, capsys)


@pytest.fixture
def files(tmp_path):
    """A picture, a VAE and a latent that are sound."""
    write_picture(tmp_path / "a.png", 16, 16)
    write_kl(tmp_path / "vae.safetensors", family="sd1")
    save_file({"latent": torch.zeros(1, 4, 2, 2)}, tmp_path / "latent.safetensors")
    return tmp_path


def content(folder):
    """Every file's bytes, but for the app's cache."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "data" not in path.relative_to(folder).parts]
    return {path: path.read_bytes() for path in paths}


def words_with(command, vae, folder):
    """The command on sound files, with `vae` in the VAE's place and the result in out.*."""
    return {
        "inspect": ("inspect", vae),
        "encode": ("encode", folder / "a.png", "-o", folder / "out.safetensors", "--vae", vae),
        "decode": ("decode", folder / "latent.safetensors", "-o", folder / "out.png", "--vae", vae),
        "convert": ("convert", vae, folder / "out.safetensors"),
        "compare": (
            "compare",
            folder / "a.png",
            "--vae",
            folder / "vae.safetensors",
            "--vae",
            vae,
            "-o",
            folder / "out.png",
        ),
    }[command]


# --- VAE files ------------------------------------------------------------------------------------------------------

REASONS = {
    "0 bytes": "empty",
    "random bytes": "not a safetensors file",
    "random bytes that begin like a pickle": "neither a safetensors file nor a readable torch checkpoint",
    "no tensors": "no tensors|not a VAE|nothing|holds",
    "lora": "LoRA",
    "text encoder": "text encoder",
    "a web page": "web page",
    "truncated": "header promises",
    "nan": "NaN or infinity in decoder.conv_in.weight",
    "incomplete": "missing",
    "folder": "is a folder",
}


@pytest.mark.parametrize("command", ["inspect", "encode", "decode", "convert", "compare"])
@pytest.mark.parametrize("kind", BAD_VAES)
def test_a_file_that_is_no_vae_is_refused_with_the_reason(cli, files, command, kind):
    path = files / "bad.safetensors"
    bad_vae(kind, path)
    before = content(files)
    for as_json in ((), ("--json",)):
        error = cli(*words_with(command, path, files), *as_json).error
        assert "bad.safetensors" in error
        assert re.search(REASONS[kind], error), error
    assert content(files) == before


@pytest.mark.parametrize("command", ["inspect", "encode", "decode", "convert", "compare"])
def test_a_missing_vae_is_named(cli, files, command):
    assert "There is no file gone.safetensors" in cli(*words_with(command, "gone.safetensors", files)).error


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(cli, files):
    class Evil:
        def __reduce__(self):
            return (open, (str(files / "was_run"), "w"))

    torch.save({"state_dict": {"x": Evil()}}, files / "evil.ckpt")
    assert "nothing was executed" in cli("inspect", files / "evil.ckpt").error
    assert not (files / "was_run").exists()


def test_a_locked_file_is_said_to_be_locked(cli, files, monkeypatch):
    """The super-user may read everything, so the refusal is simulated where the file is opened."""
    real = type(files).open

    def refuse(self, *args, **kwargs):
        if self.name == "vae.safetensors":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(files), "open", refuse)
    assert "locked by another program" in cli("inspect", files / "vae.safetensors").error


# --- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["encode", "compare"])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no picture", "not a picture"),
        (None, "folder"),
        ("cut", "damaged or cut short"),
        ("gone", "cannot be opened"),
    ],
)
def test_a_broken_picture_is_refused_with_the_reason(cli, files, command, data, reason):
    path = files / "bad.png"
    if data is None:
        path.mkdir()
    elif data == "cut":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:4000])
    elif data != "gone":
        path.write_bytes(data)
    before = content(files)
    output = "out.safetensors" if command == "encode" else "out.png"
    error = cli(command, path, "--vae", files / "vae.safetensors", "-o", files / output).error
    assert "bad.png" in error
    assert reason in error
    assert content(files) == before


def modes():
    rgb = Image.fromarray(np.random.default_rng(1).integers(0, 256, (13, 17, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    half = rgb.copy()
    half.putalpha(128)
    return {
        "rgb.png": (rgb, {}),
        "rgba.png": (half, {}),
        "grey.png": (rgb.convert("L"), {}),
        "16-bit.png": (Image.fromarray(np.arange(13 * 17, dtype=np.uint16).reshape(13, 17) * 290), {}),
        "palette.gif": (rgb.convert("P"), {}),
        "cmyk.tiff": (rgb.convert("CMYK"), {}),
        "turned.png": (rgb, {"exif": exif}),
        "one.png": (rgb.resize((1, 1)), {}),
        "strip.png": (rgb.resize((8192, 9)), {}),
        "column.png": (rgb.resize((9, 2000)), {}),
    }


@pytest.mark.parametrize("name", modes())
def test_every_kind_of_picture_goes_there_and_back_in_its_own_size(cli, files, name):
    image, options = modes()[name]
    image.save(files / name, **options)
    before = content(files)
    vae = files / "vae.safetensors"
    cli("encode", files / name, "-o", files / "out.safetensors", "--vae", vae, "--json").data  # noqa: B018
    cli("decode", files / "out.safetensors", "-o", files / "out.png", "--vae", vae, "--json").data  # noqa: B018
    assert open_picture(files / "out.png").size == open_picture(files / name).size
    after = content(files)
    assert {path: after[path] for path in before} == before


# --- latent files ---------------------------------------------------------------------------------------------------


def latent_file(path, tensor, **metadata):
    save_file({"latent": tensor}, path, metadata={name: str(value) for name, value in metadata.items()} or None)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda p: None, "There is no file"),
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.mkdir(), "folder"),
        (lambda p: save_file({"z": torch.zeros(1, 4, 2, 2)}, p), "holds z, but no tensor named latent"),
        (lambda p: save_file(kl_module().state_dict(), p), "no tensor named latent"),
        (lambda p: latent_file(p, torch.zeros(4, 2, 2)), r"float32 (4, 2, 2); floating-point (B, channels, h, w)"),
        (lambda p: latent_file(p, torch.zeros(1, 4, 2, 2, dtype=torch.int64)), "int64"),
        (lambda p: latent_file(p, torch.zeros(1, 4, 0, 2)), "(1, 4, 0, 2)"),
        (lambda p: latent_file(p, torch.zeros(1, 1, 1, 5000)), "(1, 1, 1, 5000)"),
        (lambda p: latent_file(p, torch.full((1, 4, 2, 2), float("nan"))), "16 of the latent's 16 values are NaN"),
        (lambda p: latent_file(p, torch.zeros(2, 4, 2, 2)), "holds 2 latents"),
        (lambda p: latent_file(p, torch.zeros(1, 4, 2, 2), scale_factor="much"), "scale_factor 'much'"),
        (lambda p: latent_file(p, torch.zeros(1, 4, 2, 2), scale_factor="nan"), "scale_factor 'nan'"),
        (lambda p: latent_file(p, torch.zeros(1, 4, 2, 2), scale_factor=0), "scale_factor 0"),
        (lambda p: latent_file(p, torch.zeros(1, 4, 2, 2), height=40, width=16), "say 40 x 16"),
        (lambda p: latent_file(p, torch.zeros(1, 4, 2, 2), height=-1, width=16), "height '-1'"),
        (lambda p: latent_file(p, torch.zeros(1, 16, 2, 2)), "has 16 channels, vae.safetensors"),
    ],
)
def test_a_latent_that_cannot_be_decoded_is_refused_with_the_reason(cli, files, write, reason):
    path = files / "bad.safetensors"
    write(path)
    before = content(files)
    error = cli("decode", path, "-o", files / "out.png", "--vae", files / "vae.safetensors").error
    assert reason in error
    assert content(files) == before


def test_a_vae_with_other_channels_than_the_latent_names_families_that_fit(cli, files):
    write_kl(files / "sd3.safetensors", 16, quant=False, family="sd3")
    error = cli(
        "decode", files / "latent.safetensors", "-o", files / "out.png", "--vae", files / "sd3.safetensors"
    ).error
    assert error == (
        "the latent has 4 channels, sd3.safetensors (SD 3 / 3.5) has 16; choose a VAE of SD 1.x / 2.x or SDXL"
    )


def test_half_a_vae_is_told_what_it_cannot_do(cli, files):
    write_tiny(files / "half.safetensors", "encoder", family="sd1")
    latent, output = files / "latent.safetensors", files / "out.png"
    error = cli("decode", latent, "-o", output, "--vae", files / "half.safetensors").error
    assert "half.safetensors holds only a encoder and cannot decode" in error or "only an encoder" in error
    error = cli("compare", files / "a.png", "-o", output, "--vae", files / "half.safetensors").error
    assert "holds only a encoder; put the decoder beside it" in error or "only an encoder; put the decoder" in error


def test_weights_that_overflow_half_precision_give_the_picture_they_give_in_fp32(cli, files):
    state = kl_module().state_dict()
    state["decoder.conv_in.weight"] *= 1e4
    state["decoder.conv_in.bias"] += 6e4
    save_file(state, files / "loud.safetensors", metadata={"family": "sd1"})
    words = ("decode", files / "latent.safetensors", "-o", files / "out.png", "--vae", files / "loud.safetensors")
    data = cli(*words, "--dtype", "fp16", "--json").data
    assert data["steps_shifted"] > 0
    half = open_picture(files / "out.png").pixels.astype(int)
    assert cli(*words, "--dtype", "fp32", "--json").data["steps_shifted"] == 0
    assert abs(open_picture(files / "out.png").pixels - half).mean() < 2


# --- what was typed -------------------------------------------------------------------------------------------------

ENCODE = ("encode", "a.png", "-o", "out.safetensors", "--vae", "vae.safetensors")
DECODE = ("decode", "latent.safetensors", "-o", "out.png", "--vae", "vae.safetensors")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "required: COMMAND"),
        (("bogus",), "invalid choice: 'bogus'"),
        (("inspect",), "required: FILE"),
        (("plan",), "required: --height, --width, --vae"),
        (("plan", "--height", "0", "--width", "8", "--vae", "vae.safetensors"), "--height is 0"),
        (("plan", "--height", "8", "--width", "9e9", "--vae", "vae.safetensors"), "invalid int value"),
        (("plan", "--height", "8", "--width", "8", "--vae", "gone.safetensors"), "There is no file"),
        (("download", "x"), "The catalogue has no 'x'"),
        ((*ENCODE, "--bogus"), "unrecognized arguments: --bogus"),
        ((*ENCODE, "--jso"), "unrecognized arguments: --jso"),
        ((*ENCODE, "--tiling", "some"), "invalid choice: 'some'"),
        ((*ENCODE, "--memory-mb", "0"), "--memory-mb is 0; it is a number of MiB from 1"),
        ((*ENCODE, "--memory-mb", "nan"), "--memory-mb is nan"),
        ((*ENCODE, "--memory-mb", "100", "--tiling", "off"), "means nothing with --tiling off"),
        ((*ENCODE, "--dtype", "fp8"), "invalid choice: 'fp8'"),
        ((*ENCODE, "--sample"), "--sample and --seed N belong together"),
        ((*ENCODE, "--seed", "1"), "--sample and --seed N belong together"),
        ((*ENCODE, "--sample", "--seed", "x"), "invalid _seed value"),
        ((*ENCODE, "--sample", "--seed", "-1"), "is not between 0 and 2^63 - 1"),
        ((*ENCODE, "--family", "sd9"), "there is no family 'sd9'"),
        ((*ENCODE, "--family", "sd3"), "has 4 latent channels"),
        ((*DECODE, "--memory-mb", "-5"), "--memory-mb is -5"),
        ((*DECODE, "--sample"), "unrecognized arguments: --sample"),
        (("encode", "a.png", "--vae", "vae.safetensors"), "required: -o/--output"),
        (("encode", "a.png", "-o", "out.png", "--vae", "vae.safetensors"), "let its name end in .safetensors"),
        (
            ("encode", "a.png", "-o", "gone/out.safetensors", "--vae", "vae.safetensors"),
            "The folder gone does not exist",
        ),
        (("encode", "a.png", "-o", "vae.safetensors", "--vae", "vae.safetensors"), "is the input itself"),
        (
            ("decode", "latent.safetensors", "-o", "out.bmp", "--vae", "vae.safetensors"),
            "written as .png, .jpg or .webp",
        ),
        (("decode", "latent.safetensors", "-o", ".", "--vae", "vae.safetensors"), "is a folder"),
        (("convert", "vae.safetensors", "out.ckpt"), "let its name end in .safetensors"),
        (("convert", "vae.safetensors", "./vae.safetensors"), "is the input itself"),
        (("convert", "vae.safetensors", "out.safetensors", "--layout", "comfy"), "invalid choice: 'comfy'"),
        (("compare", "a.png", "-o", "out.jpg", "--vae", "vae.safetensors"), "the sheet is a .png"),
        (("compare", "a.png", "-o", "out.png"), "required: --vae"),
        (("compare", "a.png", "-o", "a.png", "--vae", "vae.safetensors"), "is the input itself"),
        (("inspect", "x" * 5000), "File name too long"),
    ],
)
def test_a_command_that_cannot_be_honoured_is_refused(cli, files, monkeypatch, words, reason):
    monkeypatch.chdir(files)
    before = content(files)
    error = cli(*words).error
    assert any(part in error for part in reason.split("|")), error
    assert content(files) == before
