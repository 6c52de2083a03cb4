"""What each web UI must say about itself, as protocols, and the files that belong to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sd_vae_kit.core.run.precision_policy import PrecisionPolicy
from sd_vae_kit.errors import NoMemoryError
from sd_vae_kit.vaes.catalogue import KnownVae
from sd_vae_kit.vaes.choice import Decision
from sd_vae_kit.vaes.guard import FamilyGuard
from sd_vae_kit.vaes.history import History
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.rules import RulesFile


class OptionSource(Protocol):
    """A web UI's options and the flags it was started with."""

    def value(self, key: str, default: object = None) -> object:
        """An option's value now."""

    @property
    def saved(self) -> dict[str, object]:
        """The saved options by key, to be changed in place."""

    @property
    def declared(self) -> Mapping[str, Any]:
        """What the web UI knows of each option."""

    @property
    def forced_vae(self) -> Path | None:
        """`--vae-path`."""

    @property
    def may_hash(self) -> bool:
        """Whether files may be read to hash them (`--no-hashing`)."""


class LoadedModels(Protocol):
    """The models that a web UI has in memory; nothing is loaded by asking."""

    @property
    def current(self) -> Any:
        """The model in use; None while there is none."""

    def all(self) -> list[Any]:
        """Every model in memory."""

    def first_stage_of(self, model: Any) -> nn.Module | None:
        """A model's live VAE module."""

    def checkpoint_of(self, model: Any, file: str | None = None) -> Checkpoint | None:
        """What is loaded into `model`; `file` where the web UI only names the file."""


class CallEnvironment(Protocol):
    """Where encodes and decodes run in a web UI, and how it shows and stops them."""

    def compute_dtype(self, network: nn.Module, x: Tensor) -> torch.dtype:
        """What a network computes in when it is given `x`."""

    def place(self, network: nn.Module) -> tuple[torch.device, torch.dtype]:
        """Where a network of the model in use will compute, and in what."""

    def policy(self) -> PrecisionPolicy:
        """What is allowed where half precision overflows."""

    def make_room(self, needed: int) -> bool:
        """Free so many bytes on the VAE's device by moving other models away; whether anything was moved."""

    def is_stopped(self) -> bool:
        """Whether the user wants the running job to end."""

    def show_progress(self, text: str | None) -> None:
        """Show a few words beside the progress bar; None takes them away."""

    def out_of_memory(self, error: NoMemoryError) -> Exception:
        """The error in a form that the web UI knows what to do with."""


class Decider(Protocol):
    """Chooses a VAE by rules."""

    def decide(self, checkpoint_file: str) -> Decision:
        """Which VAE is chosen for a checkpoint now.

        Raises:
            VaeKitError: The rule that applies names a VAE that is not there.
        """


class VaeSwitch(Protocol):
    """Makes the chosen VAE live in the model in use."""

    def apply(self) -> None:
        """Make the VAE live that the rules choose now.

        Raises:
            VaeKitError: It cannot be used; nothing has changed.
        """


class InfotextNames(Protocol):
    """Names the live VAE in a picture's parameters."""

    def write(self, p: Any) -> None:
        """Let a job's infotext name the live VAE; the web UI looked before the job's own was made live."""


class InstalledPart(Protocol):
    """A part with patches of its own."""

    def install(self) -> None:
        """Put the patches in place; what is in place stays."""


class PatchInstaller(Protocol):
    """Puts a web UI's patches in place."""

    def install(self) -> None:
        """Put every patch in place; called again after Reload UI and whenever a model was loaded."""

    def model_loaded(self, model: object) -> None:
        """The web UI has loaded a checkpoint or changed a model: new objects need the patches, too."""


@dataclass(frozen=True)
class HostFolders:
    """Where files go in this web UI.

    Attributes:
        data: What the extension remembers, the user's rules and own catalogue.
        checkpoints: Folders of checkpoints and their cards.
        folder_for: Where a file of the catalogue belongs.
    """

    data: Path
    checkpoints: tuple[Path, ...]
    folder_for: Callable[[KnownVae], Path]


@dataclass(frozen=True)
class HostFiles:
    """What the extension knows of VAEs and keeps between starts; for web UIs that do not look after that themselves.

    Attributes:
        folders: Where files go.
        catalogue_problem: Why the user's own entries are not in the catalogue; empty if they are.
        guard: Recognises VAEs of other families.
        rules: The user's rules.
        history: Which VAE was used with which checkpoint.
    """

    folders: HostFolders
    catalogue_problem: str
    guard: FamilyGuard
    rules: RulesFile
    history: History


def live_vae(loaded: LoadedModels) -> nn.Module | None:
    """The VAE of the model in use; None while there is none."""
    model = loaded.current
    return loaded.first_stage_of(model) if model is not None else None
