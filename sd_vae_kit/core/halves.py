"""The two halves of a VAE, and which of them a file holds."""

from typing import Literal

Half = Literal["encoder", "decoder"]
Part = Literal["both", Half]  # a file's

HALVES: tuple[Half, ...] = ("encoder", "decoder")
