"""What encodes and decodes in each pass of a job: the live VAE, or a TAESD in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.vae import Vae
from sd_vae_kit.settings.sections import FULL, TAESD
from sd_vae_kit.standalone.demo_model import FAMILY
from sd_vae_kit.standalone.demo_vaes import device
from sd_vae_kit.standalone.host import StandaloneHost
from sd_vae_kit.standalone.job import AS_SET
from sd_vae_kit.standalone.vae_selection import VaeSelection
from sd_vae_kit.vaes.rules import Run
from sd_vae_kit.vaes.tiny import TinyVaes


@dataclass(frozen=True)
class VaeInUse:
    """What serves a half of the live VAE, and what to call the live VAE.

    Attributes:
        vae: Encodes or decodes: the live one, or a TAESD in its place.
        name: The live VAE's.
        sha256: The live VAE's; may have to read the whole file.
        method: "Full" or "TAESD".
    """

    vae: Vae
    name: str
    sha256: Callable[[], str]
    method: str = FULL


class PassVaes:
    """Gives each pass of a job its VAE.

    Args:
        host: Its settings say whether TAESD is wanted; its gate keeps the live VAE.
        selection: Says which file is live.
        tiny: Installed TAESDs.
        demo_decoder: Decodes where no TAESD is installed.
    """

    def __init__(self, host: StandaloneHost, selection: VaeSelection, tiny: TinyVaes, demo_decoder: Vae) -> None:
        self._host = host
        self._selection = selection
        self._tiny = tiny
        self._demo_decoder = demo_decoder

    @contextmanager
    def live(self, half: Half, wanted: str = AS_SET, run: Run | None = None) -> Iterator[VaeInUse]:
        """What serves `half` of the live VAE, kept from being exchanged.

        Args:
            half: What it is needed for.
            wanted: The job's choice among `VAE_TYPES`; TAESD takes the installed one of the family.
            run: The pass that begins, for which the rules may choose another VAE; None leaves the live one.

        Raises:
            VaeNotFoundError: No TAESD is installed that could, or a rule names a file that is not there.
            VaeKitError: The VAE that a rule names cannot be used.
        """
        settings = self._host.settings.vae
        chosen = {"encoder": settings.encode_method, "decoder": settings.decode_method}[half]
        method = chosen if wanted == AS_SET else wanted
        with ExitStack() as kept:
            with self._selection.held():
                if run is not None:
                    self._selection.choose_for(run)
                kept.enter_context(self._host.gate.calling())
                live, sha256 = self._selection.live_vae(), self._selection.live_hash()
                vae = live
                if method == TAESD:
                    vae = self.tiny(half)
                elif live.part not in ("both", half):
                    vae = self._selection.other_half() or live
            yield VaeInUse(vae, live.label, sha256, method)

    def tiny(self, half: Half) -> Vae:
        """The TAESD of the loaded model's family: an installed one, for decoding else the demo's.

        Raises:
            VaeNotFoundError: There is none.
        """
        if half == "encoder" or self._tiny.find(FAMILY.name, half):
            return self._tiny.load(FAMILY.name, half, device(), torch.float32)
        return self._demo_decoder

    def for_previews(self) -> Vae:
        """What decodes previews: the VAE that a rule names, else a TAESD.

        Raises:
            VaeKitError: The VAE that a rule names cannot be used.
        """
        return self._selection.preview_vae() or self.tiny("decoder")

    def live_network(self) -> nn.Module:
        """The network that would decode now."""
        module = self._host.first_stage
        if hasattr(module, "decoder"):
            return module
        other = self._selection.other_half()
        return other.module if other is not None else module

    def end_job(self) -> None:
        """Let go of TAESDs, and make the picture's VAE live again."""
        self._selection.end_passes()
        self._tiny.release()
