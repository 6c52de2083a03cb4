"""What the settings and the running job say of one encode or decode, and which networks that can be of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sd_vae_kit.core.halves import HALVES, Half
from sd_vae_kit.core.run.precision_policy import PrecisionPolicy
from sd_vae_kit.core.run.request import MakeRoom, RunRequest
from sd_vae_kit.hosts.multidiffusion_compat import TileSizes
from sd_vae_kit.hosts.options import HostOptions
from sd_vae_kit.hosts.parts import LoadedModels
from sd_vae_kit.settings.job import JobTiling
from sd_vae_kit.settings.sections import TilingSettings


class LoadedNetworks:
    """The encoders and decoders of models in memory.

    Args:
        loaded: The models.
    """

    def __init__(self, loaded: LoadedModels) -> None:
        self._loaded = loaded

    def __iter__(self) -> Iterator[tuple[Half, nn.Module]]:
        for vae in self._vaes():
            for half in HALVES:
                network = getattr(vae, half, None)
                if isinstance(network, nn.Module):
                    yield half, network

    def half_of(self, network: object) -> Half | None:
        """Which half a network is; None if it is of no model in memory."""
        return next((half for half, known in self if known is network), None)

    def vae_of(self, network: nn.Module, half: Half) -> nn.Module | None:
        """The VAE that a half belongs to."""
        return next((vae for vae in self._vaes() if getattr(vae, half, None) is network), None)

    def _vaes(self) -> Iterator[nn.Module]:
        found = (self._loaded.first_stage_of(model) for model in self._loaded.all())
        return (vae for vae in found if vae is not None)


class RunSettings:
    """The settings of one run, with what the running job chose in their place.

    Args:
        options: The values now.
        networks: The networks there are.
        policy: What is allowed where half precision overflows.
        label_of: What messages call a VAE.
    """

    def __init__(
        self,
        options: HostOptions,
        networks: LoadedNetworks,
        policy: Callable[[], PrecisionPolicy],
        label_of: Callable[[nn.Module], str],
    ) -> None:
        self.policy = policy
        self.label_of = label_of
        self._options = options
        self._networks = networks
        self._job_tiling = JobTiling()
        self._tile_sizes: TileSizes | None = None

    # -- the running job's choice ------------------------------------------------------------------------------------

    @property
    def job_tiling(self) -> JobTiling:
        """What the running job chose for itself."""
        return self._job_tiling

    @property
    def tile_sizes(self) -> TileSizes | None:
        """What the running job's request to the old Tiled VAE extension asked for."""
        return self._tile_sizes

    def choose(self, tiling: JobTiling) -> None:
        """Run the VAE of the running job as it chose."""
        self._job_tiling = tiling

    def choose_tile_sizes(self, sizes: TileSizes | None) -> None:
        """Take the memory for the running job that a tile of those sizes took in the old extension."""
        self._tile_sizes = sizes

    @contextmanager
    def kept(self) -> Iterator[None]:
        """End what a job chooses for itself with the block; an outer job's choice holds again."""
        outer = self._job_tiling, self._tile_sizes
        try:
            yield
        finally:
            self._job_tiling, self._tile_sizes = outer

    def end_job(self) -> None:
        """Forget a choice that a job left behind."""
        self._job_tiling, self._tile_sizes = JobTiling(), None

    # -- one run -----------------------------------------------------------------------------------------------------

    def tiling(self) -> TilingSettings:
        """The settings with the job's choices in their place."""
        return self._job_tiling.over(self._options.settings.tiling)

    def tiling_for(
        self, network: nn.Module, half: Half, dtype: torch.dtype, device: torch.device
    ) -> TilingSettings | None:
        """The settings for one call; None where tiling is off for it.

        Raises:
            StepAsideError: The network is not understood.
        """
        tiling = self.tiling()
        if self._tile_sizes is not None:
            return self._tile_sizes.budget(tiling, network, half, dtype, device)
        return tiling if tiling.enabled and getattr(tiling, half) else None

    def request(
        self, network: nn.Module, half: Half, dtype: torch.dtype, tiling: TilingSettings, make_room: MakeRoom | None
    ) -> RunRequest:
        """How one call is run: what it may do, and what messages call the VAE of this half."""
        vae = self._networks.vae_of(network, half) or network
        before = getattr(vae, "post_quant_conv", None) if half == "decoder" else None
        layers = (before,) if isinstance(before, nn.Module) else ()
        return RunRequest(tiling, self.policy(), self.label_of(vae), layers, dtype=dtype, make_room=make_room)

    def request_now(self) -> RunRequest:
        """How a VAE is run that no job of the web UI asks for, as the settings and its own options are now."""
        return RunRequest(self._options.settings.tiling, self.policy())
