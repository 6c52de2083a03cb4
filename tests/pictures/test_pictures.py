"""Picture files of every kind a user may drop in; tensors and back; writing with infotext."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from sd_vae_kit.errors import NanError, PictureError
from sd_vae_kit.pictures.picture_file import (
    MAX_SIDE,
    crop,
    decode_user_comment,
    open_picture,
    png_bytes,
    read_infotext,
    reflect_pad,
    save_picture,
    to_image,
    to_pixels,
    user_comment_exif,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_png_16(path, values, colour_type):
    """A PNG with 16 bits per channel; Pillow cannot write 16-bit colour.  `values`: uint16 (H, W) or (H, W, C)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


# --- modes ----------------------------------------------------------------------------------------------------------


def test_rgb_pixels_come_back_exactly(tmp_path):
    pixels = noise(13, 17)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = open_picture(tmp_path / "a.png")
    assert picture.size == (13, 17)
    assert picture.pixels.dtype == np.uint8
    np.testing.assert_array_equal(picture.pixels, pixels)


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("L", 100, "png", (100, 100, 100)),
        ("1", 1, "png", WHITE),
        ("LA", (100, 255), "png", (100, 100, 100)),
        ("LA", (0, 0), "png", WHITE),
        ("RGBA", (255, 0, 0, 255), "png", RED),
        ("RGBA", (0, 0, 0, 0), "png", WHITE),
        ("RGBA", (255, 0, 0, 51), "png", (255, 204, 204)),
        ("RGBA", (0, 0, 255, 0), "webp", WHITE),
        ("CMYK", (0, 255, 255, 0), "tiff", RED),
        ("CMYK", (255, 0, 255, 0), "jpg", GREEN),
        ("CMYK", (0, 0, 0, 0), "jpg", WHITE),
        ("YCbCr", (255, 128, 128), "jpg", WHITE),
        ("LAB", (255, 128, 128), "tiff", WHITE),
    ],
)
def test_each_mode_becomes_the_right_colour(tmp_path, mode, colour, suffix, expected):
    path = tmp_path / f"a.{suffix}"
    Image.new(mode, (16, 16), colour).save(path, **({"lossless": True} if suffix == "webp" else {}))
    pixels = open_picture(path).pixels.astype(int)
    tolerance = 2 if suffix == "jpg" or mode == "LAB" else 0
    assert np.abs(pixels - expected).max() <= tolerance


def test_a_palette_with_a_transparent_colour_lies_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=1)
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png").pixels, [[RED, WHITE]])


def test_a_transparent_colour_of_an_rgb_picture_lies_on_white(tmp_path):
    image = Image.fromarray(np.array([[RED, BLUE]], np.uint8))
    image.save(tmp_path / "a.png", transparency=BLUE)
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png").pixels, [[RED, WHITE]])


def test_a_palette_picture_keeps_its_colours(tmp_path):
    pixels = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)
    Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.gif")
    np.testing.assert_array_equal(open_picture(tmp_path / "a.gif").pixels, pixels)


def test_16_bit_grey_is_scaled_not_cut(tmp_path):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    write_png_16(tmp_path / "a.png", values, colour_type=0)
    assert open_picture(tmp_path / "a.png").pixels[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_16_bit_grey_tiff_and_pgm_are_scaled_too(tmp_path):
    values = np.array([[0, 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + values.astype(">u2").tobytes())
    for name in ("a.tiff", "a.pgm"):
        assert open_picture(tmp_path / name).pixels[0, :, 0].tolist() == [0, 1, 255]


def test_16_bit_colour_keeps_its_high_bytes(tmp_path):
    values = np.array([[[0, 65535, 32768], [257, 0x1234, 0xFFFF]]], np.uint16)
    write_png_16(tmp_path / "a.png", values, colour_type=2)
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png").pixels, values >> 8)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_of_unknown_range_are_refused(tmp_path, dtype):
    Image.fromarray(np.array([[0, 1_000_000]], dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(PictureError, match=r"a\.tiff: .*unknown range; save it with 8 or 16 bits"):
        open_picture(tmp_path / "a.tiff")


def test_a_broken_colour_profile_does_not_stop_a_cmyk_picture(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tiff", icc_profile=b"no profile")
    np.testing.assert_array_equal(open_picture(tmp_path / "a.tiff").pixels[0, 0], RED)


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("a.gif", "a.webp", "a.png"):
        lossless = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **lossless)
        np.testing.assert_array_equal(open_picture(tmp_path / name).pixels[0, 0], RED)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """The picture as it should look, turned the wrong way as a camera stores it, comes back as it should look."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # white corner, top left
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png").pixels, upright)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_data_does_not_stop_a_picture(tmp_path, exif):
    Image.new("RGB", (8, 8), WHITE).save(tmp_path / "a.jpg", exif=exif)
    picture = open_picture(tmp_path / "a.jpg")
    np.testing.assert_array_equal(picture.pixels[0, 0], WHITE)
    assert picture.infotext is None


def test_a_file_object_is_read_and_left_open(tmp_path):
    save_picture(tmp_path / "a.png", noise(4, 4), "one")
    with io.BytesIO((tmp_path / "a.png").read_bytes()) as file:
        assert open_picture(file).infotext == "one"
        assert read_infotext(file) == "one"
        assert not file.closed


# --- sizes and damage -----------------------------------------------------------------------------------------------


def test_a_strip_8192_wide_and_one_pixel_work(tmp_path):
    for size in ((8192, 5), (5, 8192), (1, 1), (MAX_SIDE, 1)):
        Image.new("RGB", size, GREEN).save(tmp_path / "a.png")
        assert open_picture(tmp_path / "a.png").size == size[::-1]


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (12000, 12000), (50000, 50000)])
def test_a_picture_over_the_limit_is_refused_before_it_is_unpacked(tmp_path, size):
    """The header alone claims the size: a decompression bomb."""
    Image.new("1", (1, 1)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = struct.pack(">II", *size)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PictureError, match="too large") as caught:
        open_picture(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def damaged_files():
    png, jpg = io.BytesIO(), io.BytesIO()
    Image.fromarray(noise(64, 64)).save(png, "PNG")
    Image.fromarray(noise(64, 64)).save(jpg, "JPEG")
    png, jpg = png.getvalue(), jpg.getvalue()
    yield "empty.png", b"", "empty"
    yield "text.png", b"hello, I am not a picture", "not a picture"
    yield "random.jpg", random.Random(1).randbytes(3000), "not a picture"
    yield "cut.png", png[:5000], "damaged or cut short"
    yield "cut.jpg", jpg[:2000], "damaged or cut short"
    yield "header.png", png[:30], "damaged|not a picture"
    yield "flipped.png", png[:60] + bytes(200) + png[260:], "damaged or cut short"
    yield "page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"


@pytest.mark.parametrize(
    ("name", "data", "reason"), list(damaged_files()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_damaged_file_gives_one_line_with_its_name(tmp_path, name, data, reason):
    path = tmp_path / name
    path.write_bytes(data)
    for read in (open_picture, read_infotext) if reason != "damaged or cut short" else (open_picture,):
        with pytest.raises(PictureError, match=reason) as caught:
            read(path)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == data


def test_folders_and_missing_files_are_named(tmp_path):
    with pytest.raises(PictureError, match="this is a folder"):
        open_picture(tmp_path)
    with pytest.raises(PictureError, match=r"gone\.png: the file cannot be opened \(No such file or directory\)"):
        open_picture(tmp_path / "gone.png")


# --- tensors --------------------------------------------------------------------------------------------------------


def test_all_256_levels_survive_the_way_to_a_tensor_and_back():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    image = to_image(pixels)
    assert image.shape == (1, 3, 16, 16)
    assert image.dtype == torch.float32
    assert (image.min().item(), image.max().item()) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_pixels(image)[0], pixels)


def test_pixels_are_rounded_to_nearest_and_clamped():
    levels = torch.tensor([-300.0, -0.4, 0.4, 0.6, 100.49, 100.51, 254.6, 255.4, 300.0])
    image = (levels / 127.5 - 1).expand(1, 3, 1, -1)
    assert to_pixels(image)[0, 0, :, 0].tolist() == [0, 0, 0, 1, 100, 101, 255, 255, 255]
    infinite = torch.tensor([float("inf"), float("-inf")]).expand(1, 3, 1, 2)
    assert to_pixels(infinite)[0, 0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pixels_of_other_dtypes_are_computed_in_fp32(dtype):
    assert to_pixels(torch.ones(2, 3, 2, 2, dtype=dtype)).shape == (2, 2, 2, 3)
    with torch.inference_mode():
        image = torch.zeros(1, 3, 1, 1, dtype=dtype)
    assert to_pixels(image)[0, 0, 0, 0] == 128


def test_nan_is_an_error_not_black():
    image = torch.zeros(1, 3, 4, 4)
    image[0, 1, 2, 3] = float("nan")
    with pytest.raises(NanError, match="1 values that are not numbers"):
        to_pixels(image)


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2, 8, 32]))
def test_padding_mirrors_any_size_and_cropping_undoes_it(height, width, multiple):
    image = torch.arange(float(height * width)).reshape(1, 1, height, width)
    padded, size = reflect_pad(image, multiple)
    assert size == (height, width)
    assert padded.shape[-2] % multiple == padded.shape[-1] % multiple == 0
    assert padded.shape[-2] - height < multiple
    assert padded.shape[-1] - width < multiple
    torch.testing.assert_close(crop(padded, size), image, rtol=0, atol=0)
    below = [(0, m) for m in (padded.shape[-1] - width, padded.shape[-2] - height)]
    expected = np.pad(image[0, 0].numpy(), below[::-1], mode="reflect")  # numpy mirrors repeatedly, torch's does not
    np.testing.assert_array_equal(padded[0, 0].numpy(), expected)


def test_a_picture_that_fits_is_not_copied():
    image = torch.zeros(1, 3, 16, 8)
    assert reflect_pad(image, 8)[0] is image


# --- writing --------------------------------------------------------------------------------------------------------

TEXTS = ["Steps: 1, Seed: 2, VAE: x", "two\nlines", "Größe 図 🎨", "x"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_saved_picture_carries_its_infotext(tmp_path, suffix, text):
    pixels = np.full((9, 7, 3), 77, np.uint8)
    path = tmp_path / f"a{suffix}"
    save_picture(path, pixels, text)
    picture = open_picture(path)
    assert picture.infotext == read_infotext(path) == text
    assert np.abs(picture.pixels.astype(int) - 77).max() <= 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_png_pixels_are_exact_and_there_need_be_no_infotext(tmp_path):
    pixels = noise(5, 6)
    save_picture(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png").pixels, pixels)
    assert read_infotext(tmp_path / "a.png") is None


def test_png_bytes_are_those_of_the_saved_file(tmp_path):
    save_picture(tmp_path / "a.png", noise(5, 6), "text")
    assert png_bytes(noise(5, 6), "text") == (tmp_path / "a.png").read_bytes()


def test_infotext_behind_the_pixels_is_found(tmp_path):
    save_picture(tmp_path / "a.png", noise(4, 4))
    data = b"parameters\0late"
    chunk = struct.pack(">I", len(data)) + b"tEXt" + data + struct.pack(">I", zlib.crc32(b"tEXt" + data))
    png = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(png[:-12] + chunk + png[-12:])
    assert read_infotext(tmp_path / "a.png") == open_picture(tmp_path / "a.png").infotext == "late"


def test_other_text_in_a_png_is_not_taken_for_infotext(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "something")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    assert read_infotext(tmp_path / "a.png") is None


def test_the_exif_block_is_what_readers_expect():
    """Entry by entry, after TIFF 6.0 and EXIF 2.32: UserComment has type 7 (undefined), as piexif requires."""
    block = user_comment_exif("Aß")
    assert struct.unpack(">2sHI", block[:8]) == (b"MM", 42, 8)
    assert struct.unpack(">HHHIII", block[8:26]) == (1, 0x8769, 4, 1, 26, 0)
    assert struct.unpack(">HHHIII", block[26:44]) == (1, 0x9286, 7, 12, 44, 0)
    assert block[44:] == b"UNICODE\0\x00A\x00\xdf"


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"UNICODE\0" + "Steps: 1".encode("utf-16-be"), "Steps: 1"),
        (b"UNICODE\0" + "Steps: 1".encode("utf-16-le"), "Steps: 1"),
        (b"ASCII\0\0\0Steps: 1", "Steps: 1"),
        (b"\0" * 8 + b"Steps: 1", "Steps: 1"),
        ("Größe: 1".encode(), "Größe: 1"),
        (b"UNICODE\0", None),
        (b"", None),
        (b"UNICODE\0\xd8", "\ufffd"),
    ],
)
def test_user_comments_of_other_programs_are_understood(comment, text):
    assert decode_user_comment(comment) == text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    save_picture(tmp_path / "a.jpg", noise(4, 4), "old")
    before = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(PictureError, match=r"a\.jpg could not be written"):
        save_picture(tmp_path / "a.jpg", noise(4, 4), "x" * 40_000)
    with pytest.raises(PictureError, match=r"a\.webp could not be written"):
        save_picture(tmp_path / "a.webp", np.zeros((1, 16384, 3), np.uint8))
    assert (tmp_path / "a.jpg").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.jpg"]


def test_endings_and_folders_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(PictureError, match=r"pictures are written as \.png, \.jpg or \.webp"):
        save_picture(tmp_path / "a.bmp", noise(4, 4))
    with pytest.raises(PictureError, match="No such file or directory"):
        save_picture(tmp_path / "gone" / "a.png", noise(4, 4))


def test_a_lone_surrogate_in_the_infotext_does_not_lose_the_picture(tmp_path):
    save_picture(tmp_path / "a.png", noise(4, 4), "a\ud800b")
    assert read_infotext(tmp_path / "a.png") == "a?b"
