"""Where the stand-alone app's files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sd_vae_kit.errors import OptionError
from sd_vae_kit.standalone import demo as demo_files

OWN_VAE, TINY_DECODER = "demo_natural.safetensors", "demo_tiny_decoder.safetensors"


@dataclass(frozen=True)
class Folders:
    """Where the app's files are.

    Attributes:
        data: Settings, caches, models and pictures.
        vaes: Folders searched for VAEs besides models/VAE.
        checkpoints: Folders searched for VAEs beside checkpoints, besides models/Stable-diffusion.
        demo: The demo model's VAEs and photographs.
    """

    data: Path
    vaes: tuple[Path, ...] = ()
    checkpoints: tuple[Path, ...] = ()
    demo: Path = demo_files.FOLDER

    @property
    def own_vae_file(self) -> Path:
        """The VAE that the demo checkpoint came with."""
        return self.demo / OWN_VAE

    @property
    def own_vaes(self) -> Path:
        return self.data / "models" / "VAE"

    @property
    def own_tiny_vaes(self) -> Path:
        return self.data / "models" / "VAE-taesd"

    @property
    def own_checkpoints(self) -> Path:
        return self.data / "models" / "Stable-diffusion"

    def make(self) -> None:
        """Create the data folder; one that was named on the command line must exist already.

        Raises:
            OptionError: A folder is missing or cannot be made.
        """
        for named in (*self.vaes, *self.checkpoints):
            if not named.is_dir():
                raise OptionError(f"The folder {named} does not exist; correct --vae-dir or --ckpt-dir.")
        try:
            for folder in (self.own_vaes, self.own_tiny_vaes, self.own_checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(
                f"The data folder {self.data} cannot be used: {error.strerror or error}. Choose another --data-dir."
            ) from error
