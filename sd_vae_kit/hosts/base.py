"""What the parts of one host share."""

from __future__ import annotations

from dataclasses import dataclass

from sd_vae_kit.hosts.messages import HostMessages
from sd_vae_kit.hosts.options import HostOptions
from sd_vae_kit.hosts.patch import Patches
from sd_vae_kit.vaes.call_gate import CallGate
from sd_vae_kit.vaes.library import Library


@dataclass(frozen=True)
class HostBase:
    """What the parts of one host share.

    Attributes:
        name: Shown to users: "Forge".
        library: The VAE files.
        patches: What is replaced in the web UI.
        gate: Keeps exchanges of weights and running calls apart.
        messages: What the user is told.
        options: The values now.
    """

    name: str
    library: Library
    patches: Patches
    gate: CallGate
    messages: HostMessages
    options: HostOptions
