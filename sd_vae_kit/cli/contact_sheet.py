"""The picture that `compare` makes: the original and every round trip, each above its amplified difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sd_vae_kit.pictures.picture_file import Pixels

GAIN = 8  # one level of difference becomes eight: just visible
MAX_SHEET = 2**26  # pixels; a larger sheet is shrunk, which viewers and browsers would do anyway
MAX_SIDE = 16384
MIN_CELL = 260  # px, so that a caption fits over a tiny picture
GAP = 12
LINE = 20
CAPTION = 2 * LINE + 4
BACKGROUND, INK, FAINT = (24, 24, 27), (244, 244, 245), (161, 161, 170)


@dataclass(frozen=True)
class RoundTrip:
    """One VAE's result.

    Attributes:
        title: First line of the caption, the VAE's name.
        note: Second line, its numbers.
        pixels: uint8 (H, W, 3), of the original's size.
    """

    title: str
    note: str
    pixels: Pixels


def draw_sheet(original: Pixels, results: Sequence[RoundTrip]) -> Pixels:
    """Columns side by side, or rows one below the other for a wide picture; shrunk if it would be over `MAX_SHEET`.

    Args:
        original: uint8 (H, W, 3).
        results: In the order in which they are shown.

    Returns:
        uint8 (H', W', 3).
    """
    height, width = original.shape[:2]
    is_wide = width > 2 * height
    grid = (len(results) + 1, 2) if is_wide else (2, len(results) + 1)  # rows, columns
    scale = _scale(height, width, grid)
    cell = (max(1, round(height * scale)), max(1, round(width * scale)))
    size = f"{width}x{height}" + (f", shown at {scale:.0%}" if scale < 1 else "")
    legend = RoundTrip(f"difference x {GAIN}", "black: equal; per channel", np.zeros_like(original))
    pairs = [(RoundTrip("original", size, original), legend)]
    pairs += [(result, RoundTrip("", "", difference(original, result.pixels))) for result in results]

    sheet = Image.new("RGB", _sheet_size(cell, grid), BACKGROUND)
    for i, pair in enumerate(pairs):
        for j, item in enumerate(pair):
            row, column = (i, j) if is_wide else (j, i)
            _draw_cell(sheet, item, cell, row, column)
    return np.array(sheet)


def difference(original: Pixels, other: Pixels) -> Pixels:
    """|original - other| of uint8 (H, W, 3), `GAIN` times as strong, clipped at 255."""
    distance = np.abs(original.astype(np.int16) - other.astype(np.int16)) * GAIN
    return distance.clip(0, 255).astype(np.uint8)


def _scale(height: int, width: int, grid: tuple[int, int]) -> float:
    rows, columns = grid
    by_area = math.sqrt(MAX_SHEET / (rows * height * columns * width))
    return min(1.0, by_area, MAX_SIDE / (rows * (height + CAPTION + GAP)), MAX_SIDE / (columns * (width + GAP)))


def _sheet_size(cell: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    rows, columns = grid
    return GAP + columns * (max(cell[1], MIN_CELL) + GAP), GAP + rows * (cell[0] + CAPTION + GAP)


def _draw_cell(sheet: Image.Image, item: RoundTrip, cell: tuple[int, int], row: int, column: int) -> None:
    left = GAP + column * (max(cell[1], MIN_CELL) + GAP)
    top = GAP + row * (cell[0] + CAPTION + GAP)
    font, draw = _font(), ImageDraw.Draw(sheet)
    for line, (text, colour) in enumerate(((item.title, INK), (item.note, FAINT))):
        draw.text((left, top + line * LINE), _fitted(text, max(cell[1], MIN_CELL), font), fill=colour, font=font)
    picture = Image.fromarray(item.pixels)
    if picture.size != cell[::-1]:
        picture = picture.resize(cell[::-1], Image.Resampling.BOX)
    sheet.paste(picture, (left, top + CAPTION))


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _font() -> Font:
    try:
        return ImageFont.load_default(14)
    except TypeError:  # Pillow before 10.1 has one small bitmap font
        return ImageFont.load_default()


def _fitted(text: str, width: int, font: Font) -> str:
    """The text cut to `width` px; letters outside Latin-1 become "?", because the built-in fonts lack them."""
    text = text.encode("latin-1", "replace").decode("latin-1")
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
