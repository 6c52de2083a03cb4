"""From what was typed after --vae to a VAE that is ready to run."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import torch

from sd_vae_kit.core.dtypes import wanted_dtype
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.precision_policy import FILE_NAME
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.core.vae import Vae, VaeWeights, make_vae
from sd_vae_kit.errors import OptionError, VaeNotFoundError
from sd_vae_kit.standalone import demo
from sd_vae_kit.units import MIB
from sd_vae_kit.vaes.catalogue import catalogue
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.finding import Finding
from sd_vae_kit.vaes.inspection import Inspector
from sd_vae_kit.vaes.library import Library, Progress
from sd_vae_kit.vaes.model_folders import Folder

LARGE = 1024 * MIB  # bytes from which a hash takes long enough to show progress


@dataclass(frozen=True)
class Chosen:
    """A VAE file that was read.

    Attributes:
        entry: Where it lies and what its header says.
        weights: Its tensors.
        sha256: Of the file.
        finding: Whose VAE it is, and how that is known.
    """

    entry: Entry
    weights: VaeWeights
    sha256: str
    finding: Finding


def open_library(options: argparse.Namespace) -> Library:
    """The folders of --vae-dir, then the app's; hashes are kept in the app's cache.

    Raises:
        OptionError: A named folder does not exist.
    """
    for name in options.vae_dir:
        if not Path(name).is_dir():
            raise OptionError(f"--vae-dir {name} is not a folder.")
    data = _data_folder(options)
    folders = (*map(Path, options.vae_dir), data / "models" / "VAE", data / "models" / "VAE-taesd", demo.FOLDER)
    return Library([Folder(folder) for folder in folders], data / "cache" / "library.json")


def open_fixes(options: argparse.Namespace) -> PrecisionFixesFile:
    """What VAEs needed to stay finite in half precision, kept beside the hashes."""
    return PrecisionFixesFile(_data_folder(options) / "cache" / FILE_NAME)


def _data_folder(options: argparse.Namespace) -> Path:
    return Path(options.data_dir or platformdirs.user_data_dir("vae-kit", appauthor=False)).expanduser()


def open_inspector(options: argparse.Namespace) -> Inspector:
    """What files are; families that were found out are kept beside the hashes.

    Raises:
        OptionError: A folder named with --vae-dir does not exist.
    """
    cache = _data_folder(options) / "cache" / "families.json"
    return Inspector(FamilyFinder(open_library(options), cache, catalogue()))


def choose(inspector: Inspector, name: str, *, quiet: bool) -> Chosen:
    """Read the VAE that `name` means: a path if there is such a file, else a name in the library.

    Raises:
        VaeNotFoundError: Neither; the message says what is near.
        VaeKitError: The file cannot be used, and why.
    """
    entry, weights = read(inspector.library, name)
    sha256 = inspector.library.sha256(entry, hashing_bar(entry.path, quiet=quiet))
    return Chosen(entry, weights, sha256, inspector.family(entry, weights))


def ready(chosen: Chosen, *, family: str | None, dtype: str, device: torch.device, runner: Runner) -> Vae:
    """Build the module on its device.

    Args:
        chosen: From `choose`.
        family: The user's or the latent file's word; `None` takes what is known about the file.
        dtype: "auto" is fp32 on a CPU, where half precision is slow and in older torch missing, else the file's own.
        device: Where it runs.
        runner: What runs it.

    Raises:
        OptionError: The family is unknown or does not fit.
    """
    vae = make_vae(
        chosen.weights,
        family=family or chosen.finding.to_run_as,
        dtype=wanted_dtype(dtype, device),
        label=chosen.entry.name,
        runner=runner,
    )
    vae.module.to(device)
    return vae


def read(library: Library, name: str) -> tuple[Entry, VaeWeights]:
    """As `choose`, without working out the file's hash and family."""
    if Path(name).exists():
        return library.read(name)
    entry = listed_entry(library, name)
    return entry, library.load(entry)


def listed_entry(library: Library, name: str) -> Entry:
    """The entry that a name means which is no path.

    Raises:
        VaeNotFoundError: There is none; the message says what is near.
    """
    library.refresh()
    try:
        return library.get(name)
    except VaeNotFoundError as error:
        raise VaeNotFoundError(f"There is no file {name}, and as a name in the library: {error}.") from error


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def hashing_bar(path: Path, *, quiet: bool) -> Progress | None:
    """Shows how far a large file is hashed, where there is a terminal to show it on."""
    size = path.stat().st_size
    if quiet or size < LARGE or not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"hashing {path.name}", leave=False)

    def advance(done: int, total: int) -> None:
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return advance
