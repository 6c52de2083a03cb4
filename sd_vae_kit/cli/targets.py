"""Where results may be written; asked before any work is done."""

from __future__ import annotations

from pathlib import Path

from sd_vae_kit.errors import OptionError


def check_target(output: str, *inputs: str) -> Path:
    """The output as a path.

    Raises:
        OptionError: It is a folder, lies in a folder that does not exist, or is one of the inputs.
    """
    target = Path(output)
    if target.is_dir():
        raise OptionError(f"{output} is a folder; name the file to write.")
    if not target.parent.is_dir():
        raise OptionError(f"The folder {target.parent} does not exist; make it or choose another.")
    if any(target.exists() and Path(name).exists() and target.samefile(name) for name in inputs):
        raise OptionError(f"{output} is the input itself; inputs are never overwritten, choose another name.")
    return target


def check_safetensors_target(output: str, *inputs: str) -> Path:
    """As `check_target`, for a file whose name must end in .safetensors.

    Raises:
        OptionError: As there, or another ending.
    """
    if not output.lower().endswith(".safetensors"):
        raise OptionError(f"{output}: the file is written as safetensors; let its name end in .safetensors.")
    return check_target(output, *inputs)
