"""The six web UIs: how each is started on a CPU, where its files lie, and what it lacks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pytest


@dataclass(frozen=True)
class Program:
    """How one kind of web UI is started and asked.

    Attributes:
        name: As the extension's status names it.
        variable: Names the installation's folder; with `_ARGS` in place of `_DIR` further flags, with `_MODELS` the
            folder of its models where that is not `models` in the installation.
        flags: Of the plain start.
        models_flag: Names the folder of models.
        vaes_flag: Names a further folder of VAE files; empty where an option does it.
        vaes_option: That option.
        environment: Variables of the plain start.
        checkpoints: Pattern of its checkpoints below the folder of models.
        weights: Pattern, below a checkpoint that is a folder, of the file that holds its VAE.
        takes_ckpt: Whether `--ckpt` names the checkpoint that is loaded; else the only one there is loaded.
        is_asked_to_load: Whether it loads nothing before a checkpoint is chosen over the API.
        own_choice: The options by which one request chooses a VAE file without the extension.
        none: Its word for the checkpoint's own VAE.
        vae_key: Names the VAE in an infotext.
        hires: What it wants of a request with hires fix, beside A1111's.
        preview_methods: What its option for the preview method offers; the last one is its linear map.
        lacks: What it has not, by the name a row asks for -> why, which the row says when it is skipped.
    """

    name: str
    variable: str
    flags: tuple[str, ...]
    models_flag: str = "--models-dir"
    vaes_flag: str = "--vae-dir"
    vaes_option: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    checkpoints: str = "Stable-diffusion/*.safetensors"
    weights: str = ""
    takes_ckpt: bool = True
    is_asked_to_load: bool = False
    own_choice: Callable[[Path], dict[str, object]] = lambda file: {"sd_vae": file.name}
    none: str = "None"
    vae_key: str = "VAE"
    hires: Mapping[str, object] = field(default_factory=dict)
    preview_methods: tuple[str, ...] = ("TAESD", "Approx NN", "Approx cheap")
    lacks: Mapping[str, str] = field(default_factory=dict)

    def folder(self) -> Path:
        """The installation; skips the test where none is named."""
        named = os.environ.get(self.variable, "")
        if not named:
            pytest.skip(f"a web UI is wanted: set {self.variable} to the folder of an installation")
        if not (Path(named) / "launch.py").is_file():
            pytest.fail(f"{self.variable} is {named!r}, which has no launch.py; unset it or correct it")
        return Path(named)

    def further(self, what: str) -> str:
        """A variable beside the one that names the installation: "ARGS" or "MODELS"; empty where it is not set."""
        return os.environ.get(self.variable.replace("_DIR", f"_{what}"), "")

    def models(self) -> Path:
        """The folder of its models."""
        return Path(self.further("MODELS") or self.folder() / "models")

    def checkpoint(self) -> Path:
        """The checkpoint that loads fastest: a file, or a folder of diffusers."""
        found = sorted(self.models().glob(self.checkpoints), key=size_of)
        assert found, f"the installation has no checkpoint in {self.models() / self.checkpoints}"
        return found[0]

    def vae_weights(self) -> Path:
        """The file that holds the VAE of that checkpoint."""
        checkpoint = self.checkpoint()
        return next(checkpoint.glob(self.weights)) if self.weights else checkpoint

    def skip_where_lacking(self, what: str) -> None:
        """Skip a row about what this program has not, and say why."""
        if what in self.lacks:
            pytest.skip(f"{self.name}: {self.lacks[what]}")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(part.stat().st_size for part in [path, *path.rglob("*")] if part.is_file())


FORGE_LIKE = ("--skip-prepare-environment", "--skip-install", "--skip-python-version-check", "--skip-torch-cuda-test")
HIRES_MODULES = MappingProxyType({"hr_additional_modules": ["Use same choices"]})

A1111 = Program(
    "A1111",
    "VAE_KIT_A1111_DIR",
    (
        "--use-cpu=all",
        "--no-half",
        "--precision=full",
        "--skip-torch-cuda-test",
        "--skip-prepare-environment",
        "--no-download-sd-model",
        "--do-not-download-clip",
    ),
    preview_methods=("Full", "TAESD", "Approx NN", "Approx cheap"),
)
FORGE = Program(
    "Forge",
    "VAE_KIT_FORGE_DIR",
    (*FORGE_LIKE, "--skip-google-blockly", "--always-cpu", "--no-download-sd-model", "--no-hashing"),
    own_choice=lambda file: {"forge_additional_modules": [file.name]},
    hires=HIRES_MODULES,
)
NEO = Program(
    "Forge Neo",
    "VAE_KIT_NEO_DIR",
    # it has no --ckpt: that would abbreviate --ckpt-dirs
    ("--cpu", "--skip-torch-cuda-test", "--skip-python-version-check", "--skip-install", "--no-hashing"),
    models_flag="--model-ref",
    vaes_flag="--vae-dirs",
    takes_ckpt=False,
    own_choice=lambda file: {"sd_vae": str(file)},
    hires=HIRES_MODULES,
    vae_key="SD VAE",  # "VAE" is a module there
    preview_methods=("TAESD", "Approx NN", "RGB"),
)
REFORGE = Program(
    "reForge",
    "VAE_KIT_REFORGE_DIR",
    (*FORGE_LIKE, "--always-cpu", "--no-download-sd-model", "--no-hashing"),
)
CLASSIC = Program(
    "reForge",  # told apart from it by nothing that matters here
    "VAE_KIT_CLASSIC_DIR",
    (*FORGE_LIKE, "--always-cpu", "--no-download-sd-model", "--no-hashing"),
)
SDNEXT = Program(
    "SD.Next",
    "VAE_KIT_SDNEXT_DIR",
    ("--skip-all", "--use-cpu=all"),
    vaes_flag="",  # its --vae-dir has no effect
    vaes_option="vae_dir",
    environment=MappingProxyType({"TORCHDYNAMO_DISABLE": "1"}),  # on a CPU it compiles, which takes minutes
    checkpoints="Diffusers/*",
    weights="vae/*.safetensors",
    takes_ckpt=False,
    is_asked_to_load=True,
    own_choice=lambda file: {"sd_vae": f"{file.stem}_folder"},  # of single files it takes only the published sizes
    none="Default",
    lacks=MappingProxyType(
        {
            "hires pass": "its scripts have no hook before the second pass",
            "x/y/z": "its plot is a script with other arguments",
            "reload": "its button restarts the program",
            "infotext": "its API takes no infotext",
            "previews": "it makes none for jobs that came over the API",
            "methods": "it has vae_type in the request in place of the options",
            "interrupted decode": "it asks nobody while it decodes",
        }
    ),
)
EVERY_PROGRAM = (A1111, FORGE, NEO, REFORGE, CLASSIC, SDNEXT)
