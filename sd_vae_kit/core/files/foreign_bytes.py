"""Files that are no model at all, or of a format that is not read: told by their first bytes."""

from __future__ import annotations

from sd_vae_kit.core.files.model_bytes import ModelBytes
from sd_vae_kit.errors import BrokenVaeError, UnsupportedVaeError

FOREIGN_BYTES = (
    (b"GGUF", "is a GGUF file, which this program does not read; get the VAE as .safetensors"),
    (b"\x89HDF", "is an HDF5 (Keras) file; get the VAE as .safetensors"),
    (b"\x89PNG", "is a PNG picture, not a model; download the model file"),
    (b"\xff\xd8\xff", "is a JPEG picture, not a model; download the model file"),
    (b"\x1f\x8b", "is a gzip archive; unpack it"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it"),
    (b"Rar!", "is a RAR archive; unpack it"),
)


def refuse_foreign(file: ModelBytes, start: bytes) -> None:
    """Raise for what is certainly something else.

    Raises:
        UnsupportedVaeError: A format that this program does not read.
        BrokenVaeError: A text that was saved in the model's place, or a file of which nothing was copied.
    """
    for magic, what in FOREIGN_BYTES:
        if start.startswith(magic):
            raise UnsupportedVaeError(f"{file.name} {what}")
    _refuse_text(file, start)
    if start[257:262] == b"ustar":
        raise UnsupportedVaeError(
            f"{file.name} is a tar archive (a checkpoint of torch 0.1?); load it there and save it as .safetensors"
        )


def _refuse_text(file: ModelBytes, start: bytes) -> None:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        raise BrokenVaeError(
            f"{file.name} is a git-lfs pointer, not the weights; run `git lfs pull` or download the file itself"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        raise BrokenVaeError(f"{file.name} is a web page, not a model (an error page was saved); download it again")
    if text.startswith(b"{") and b"\0" not in start[:8]:  # a safetensors length may begin like text: 0x7b20
        raise BrokenVaeError(f"{file.name} is a JSON text, not a model (perhaps an error message); download it again")
    if not start.strip(b"\0"):
        file.broken(f"begins with zeros: its {file.size:,} bytes were reserved but not copied")
