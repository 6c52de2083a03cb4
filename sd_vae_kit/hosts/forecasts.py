"""What would happen to a picture of some size now, for the page."""

from __future__ import annotations

from torch import nn

from sd_vae_kit.core.run.forecast import forecast
from sd_vae_kit.core.run.planning import graph_of
from sd_vae_kit.core.run.sentence import stepped_aside
from sd_vae_kit.errors import StepAsideError
from sd_vae_kit.hosts.interceptor import other_forward
from sd_vae_kit.hosts.options import HostOptions
from sd_vae_kit.hosts.parts import CallEnvironment, LoadedModels, live_vae
from sd_vae_kit.settings.job import JobTiling
from sd_vae_kit.wording import Sentence


class Forecasts:
    """Says before a job how its decode will be run.

    Args:
        loaded: The models.
        environment: Where calls run.
        options: The values now.
    """

    def __init__(self, loaded: LoadedModels, environment: CallEnvironment, options: HostOptions) -> None:
        self._loaded = loaded
        self._environment = environment
        self._options = options

    @property
    def knows_network(self) -> bool:
        """Whether the VAE in use is run by us at all, so that a job's tiling applies; True while there is no model."""
        vae = live_vae(self._loaded)
        if vae is None:
            return True
        try:
            graph_of(vae, "decoder")
        except StepAsideError:
            return False
        return True

    def forecast(self, size: tuple[int, int], job: JobTiling) -> Sentence:
        """What would happen to a picture of (height, width) pixels now."""
        network = getattr(live_vae(self._loaded), "decoder", None)
        if not isinstance(network, nn.Module):
            return Sentence.of("No checkpoint is loaded yet.")
        if other_forward(network) is not None:
            return stepped_aside("another extension has taken it over.")
        device, dtype = self._environment.place(network)
        return forecast(network, size, dtype, device, job.over(self._options.settings.tiling))
