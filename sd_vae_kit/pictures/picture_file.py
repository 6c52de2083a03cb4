"""Picture files <-> pixels <-> tensors.  Everything that enters or leaves as a picture goes through here.

What may be in a file and what becomes of it:

- EXIF orientation is applied; of an animation the first frame is taken.
- Transparent pixels are laid on white, as the hosts do.
- 16-bit grey is scaled to 8 bits, rounded (Pillow alone would cut everything above 255 to white); of 16-bit colour
  Pillow keeps the high byte, at most one level lower than rounding.
- CMYK goes through its embedded profile if there is one, else by the plain formula; RGB is taken as stored, because the
  hosts ignore profiles too and a round trip must give back the same numbers.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from sd_vae_kit.errors import NanError, PictureError
from sd_vae_kit.state.atomic_write import atomic_write

Pixels: TypeAlias = npt.NDArray[np.uint8]
Source: TypeAlias = "str | os.PathLike[str] | IO[bytes]"

MAX_SIDE = 16384
MAX_PIXELS = 2**27  # 16384 x 8192: 1.6 GB as an fp32 image, before the first layer
# No EPS, PDF or WMF: Pillow hands those to other programs.  Names a Pillow does not have are left out.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")

EXIF_ORIENTATION = 0x0112
EXIF_IFD = 0x8769
EXIF_USER_COMMENT = 0x9286
TURNS = {  # EXIF orientation: what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE = (255, 255, 255, 255)


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright, opaque picture.

    Attributes:
        pixels: uint8 (H, W, 3), sRGB as stored.
        infotext: The generation parameters kept in the file, if any.
    """

    pixels: Pixels
    infotext: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


# --- reading --------------------------------------------------------------------------------------------------------


def open_picture(source: Source) -> Picture:
    """Read a picture file.

    Args:
        source: A path, or a seekable binary file, which is left open.

    Raises:
        PictureError: Not there, not a picture, damaged, cut short, or larger than `MAX_SIDE` or `MAX_PIXELS`.
    """
    with _opened(source) as image:
        image.load()
        return Picture(np.array(to_rgb(image)), _infotext_of(image))


def read_infotext(source: Source) -> str | None:
    """Generation parameters of a picture file; None if it has none.

    Raises:
        PictureError: As `open_picture`.
    """
    with _opened(source) as image:
        if image.format == "PNG" and "parameters" not in image.info:
            image.load()  # a text chunk may stand after the pixels
        return _infotext_of(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image -> mode "RGB", upright, on white; see the module's docstring for each mode.

    Raises:
        PictureError: 32-bit numbers of unknown range, or a mode Pillow cannot convert.
    """
    turn = TURNS.get(_orientation(image))
    if image.mode in ("CMYK", "LAB"):
        image = _from_profile(image)
    elif image.mode.startswith("I"):
        image = _from_16_bit(image)
    elif image.mode == "F":
        raise PictureError("This picture holds floating-point numbers of unknown range; save it with 8 or 16 bits.")
    if _has_transparency(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    image = image.convert("RGB")
    return image.transpose(turn) if turn is not None else image


@contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """The file as a Pillow image within the limits; whatever goes wrong here or in the block is a PictureError."""
    name = _name_of(source)
    try:
        _refuse_what_is_no_file(source, name)
        Image.init()
        # Pillow warns of sizes below our limit and of damaged EXIF data, which we do without.  In two threads at once
        # the filter may stay, which does no harm.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)
            with Image.open(source, formats=[kind for kind in FORMATS if kind in Image.OPEN]) as image:
                _refuse_size(image.size)
                yield image
    except PictureError as error:
        raise PictureError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name}: {_too_large('more pixels than Pillow opens')}") from error
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{name} is not a picture, or of a kind that cannot be read here; use PNG or JPEG."
        ) from error
    except MemoryError as error:
        raise PictureError(f"{name} does not fit into memory; make it smaller.") from error
    except (
        Exception
    ) as error:  # Pillow's readers raise whatever their parser stumbled over: SyntaxError, struct.error...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"{name} cannot be read as a picture, it may be damaged or cut short: {reason}.") from error


def _name_of(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "the picture"


def _refuse_what_is_no_file(source: Source, name: str) -> None:
    if not isinstance(source, (str, os.PathLike)):
        return
    path = Path(source)
    if path.is_dir():
        raise PictureError("this is a folder; name a picture file.")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise PictureError("the file is empty.")
    except OSError as error:
        raise PictureError(f"the file cannot be opened ({error.strerror or error}).") from error


def _refuse_size(size: tuple[int, int]) -> None:
    width, height = size
    if min(size) < 1:
        raise PictureError(f"the picture has no pixels ({height} x {width}).")
    if max(size) > MAX_SIDE or width * height > MAX_PIXELS:
        raise PictureError(_too_large(f"{height} x {width} (height x width)"))


def _too_large(size: str) -> str:
    return f"the picture is too large: {size}; the limit is {MAX_SIDE} a side and {MAX_PIXELS // 10**6} megapixels."


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF data beside sound pixels: the picture is taken as it lies
        return 1


def _has_transparency(image: Image.Image) -> bool:
    palette = getattr(image.palette, "mode", "") if image.mode == "P" else ""
    return image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info or palette == "RGBA"


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey with 16 bits ("I;16...", or "I" from Pillow before 10.3 and from PGM) -> "L", rounded to nearest."""
    values = np.array(image)
    if values.min() < 0 or values.max() > 65535:
        raise PictureError("This picture holds 32-bit numbers of unknown range; save it with 8 or 16 bits.")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _from_profile(image: Image.Image) -> Image.Image:
    """CMYK or LAB -> "RGB" through the embedded profile, or by the plain formula where there is no usable one."""
    embedded: bytes = image.info.get("icc_profile") or b""
    if not embedded and image.mode == "CMYK":
        return image.convert("RGB")
    try:
        source = io.BytesIO(embedded) if image.mode == "CMYK" else ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")
    return converted or image.convert("RGB")


def _infotext_of(image: Image.Image) -> str | None:
    text = image.info.get("parameters")
    if isinstance(text, str):
        return text
    try:
        comment: object = image.getexif().get_ifd(EXIF_IFD).get(EXIF_USER_COMMENT)
    except Exception:  # damaged EXIF data: there is nothing to read
        comment = None
    if comment is None and image.format == "GIF":
        comment = image.info.get("comment")
    return decode_user_comment(comment) if isinstance(comment, bytes) else None


# --- tensors --------------------------------------------------------------------------------------------------------


def to_image(picture: Picture | Pixels) -> Tensor:
    """Pixels -> image (1, 3, H, W), fp32 in [-1, 1]."""
    pixels = picture.pixels if isinstance(picture, Picture) else picture
    image = torch.tensor(pixels).permute(2, 0, 1).unsqueeze(0)  # (H, W, 3) -> (1, 3, H, W)
    return image.to(torch.float32).div_(127.5).sub_(1.0)


def to_pixels(image: Tensor) -> Pixels:
    """Image (B, 3, H, W) in about [-1, 1] -> uint8 (B, H, W, 3); rounded to nearest, values outside are clamped.

    Raises:
        NanError: A value is NaN; there is no right colour for it.
    """
    levels = (image.detach().to("cpu", torch.float32) + 1.0) * 127.5
    if levels.isnan().any():
        raise NanError(f"The picture holds {int(levels.isnan().sum())} values that are not numbers (NaN).")
    pixels: Pixels = levels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def reflect_pad(image: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Extend below and to the right until both sides are multiples of `multiple`.

    The picture is mirrored about its last row and column, again and again where it is smaller than what is missing; a
    side of one pixel has nothing to mirror and is repeated.

    Args:
        image: (B, C, H, W).
        multiple: Pixels per latent cell.

    Returns:
        (B, C, H', W') and the true (H, W), for `crop`.  The same tensor if nothing is missing.
    """
    H, W = image.shape[-2:]
    if H % multiple == 0 and W % multiple == 0:
        return image, (H, W)
    rows, columns = (_mirrored(n, -(-n // multiple) * multiple) for n in (H, W))
    return image[..., rows.to(image.device), :][..., columns.to(image.device)], (H, W)


def _mirrored(n: int, length: int) -> Tensor:
    """Indices 0..n-1, then back and forth: n = 3, length = 8 -> 0 1 2 1 0 1 2 1."""
    period = max(1, 2 * (n - 1))
    step = torch.arange(length) % period
    return torch.minimum(step, period - step)


def crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `reflect_pad`: the first `size` = (H, W) rows and columns of (B, C, H', W')."""
    return image[..., : size[0], : size[1]]


# --- writing --------------------------------------------------------------------------------------------------------


def save_picture(path: str | os.PathLike[str], pixels: Pixels, infotext: str | None = None) -> None:
    """Write a picture, with its infotext where A1111 looks for it; the kind follows from the name.

    PNG keeps it in the text chunk "parameters", JPEG and WebP (quality 95) in EXIF's UserComment.  The file appears
    complete or not at all; an existing one is replaced.

    Args:
        path: Ends in .png, .jpg, .jpeg or .webp.
        pixels: uint8 (H, W, 3).
        infotext: Generation parameters; a JPEG holds about 32,000 characters.

    Raises:
        PictureError: Another ending, a folder that does not exist or cannot be written to, or a size or text that the
            kind of file cannot hold.
    """
    target = Path(path)
    kind = kind_by_name(target)
    try:
        with atomic_write(target) as part:
            Image.fromarray(pixels).save(part, kind, **_options(kind, infotext))
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
        raise PictureError(f"{target} could not be written: {reason}.") from error


def png_bytes(pixels: Pixels, infotext: str | None = None) -> bytes:
    """The PNG file of pixels (H, W, 3), as `save_picture` writes it."""
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG", **_options("PNG", infotext))
        return file.getvalue()


def kind_by_name(path: str | os.PathLike[str]) -> str:
    """The kind of picture `save_picture` writes under this name: "PNG", "JPEG" or "WEBP".

    Raises:
        PictureError: Another ending.
    """
    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(Path(path).suffix.lower())
    if kind is None:
        raise PictureError(f"{os.fspath(path)}: pictures are written as .png, .jpg or .webp.")
    return kind


def _options(kind: str, infotext: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {} if kind == "PNG" else {"quality": 95}
    if not infotext:
        return options
    infotext = infotext.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate fits no encoding
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("parameters", infotext)
        return {"pnginfo": text}
    exif = user_comment_exif(infotext)
    return {**options, "exif": b"Exif\0\0" + exif if kind == "JPEG" else exif}


def user_comment_exif(text: str) -> bytes:
    """An EXIF block (from its TIFF header on) with nothing but UserComment.

    Written by hand, because Pillow gives the entry a type that piexif, which A1111 reads with, does not understand.
    """
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    header = struct.pack(">2sHI", b"MM", 42, 8)
    first = struct.pack(">HHHIII", 1, EXIF_IFD, 4, 1, 26, 0)  # one entry: a 4-byte number, where the next list starts
    second = struct.pack(">HHHIII", 1, EXIF_USER_COMMENT, 7, len(comment), 44, 0)  # one entry of undefined type
    return header + first + second + comment


def decode_user_comment(comment: bytes) -> str | None:
    """Text of EXIF's UserComment in whichever encoding it says or shows; None if it is empty.

    "UNICODE" is UTF-16 of either byte order: piexif and A1111 write big-endian always, others the file's own order.
    """
    code, text = comment[:8], comment[8:]
    if code == b"UNICODE\0":
        # in the usual order the zero bytes of Latin letters come first
        order = "utf-16-le" if text[1::2].count(0) > text[0::2].count(0) else "utf-16-be"
        decoded = text.decode(order, "replace")
    else:
        has_code = code in (b"ASCII\0\0\0", b"JIS\0\0\0\0\0", b"\0" * 8)
        decoded = (text if has_code else comment).decode("utf-8", "replace")
    return decoded.strip("\0") or None
