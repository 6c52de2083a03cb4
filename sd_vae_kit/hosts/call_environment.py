"""Where encodes and decodes run in a web UI that shows and stops nothing; others add to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sd_vae_kit.core.run.precision_policy import PrecisionPolicy, policy_of
from sd_vae_kit.errors import NoMemoryError
from sd_vae_kit.hosts.options import HostOptions

COMPUTED_IN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def weights_dtype(network: nn.Module, x: Tensor) -> torch.dtype:
    """The type of a network's weights, whatever autocast would make of the input; the input's where they are packed."""
    kept = next((parameter.dtype for parameter in network.parameters()), x.dtype)
    return kept if kept in COMPUTED_IN else x.dtype


class PlainEnvironment:
    """A `CallEnvironment` without progress bar, Interrupt and models to move away.

    Args:
        options: The values now.
    """

    def __init__(self, options: HostOptions) -> None:
        self._options = options

    def compute_dtype(self, network: nn.Module, x: Tensor) -> torch.dtype:
        return weights_dtype(network, x)

    def place(self, network: nn.Module) -> tuple[torch.device, torch.dtype]:
        first = next(network.parameters())
        return first.device, weights_dtype(network, first)

    def policy(self) -> PrecisionPolicy:
        return policy_of(self._options.settings.precision)

    def make_room(self, needed: int) -> bool:
        return False

    def is_stopped(self) -> bool:
        return False

    def show_progress(self, text: str | None) -> None:
        """There is no place for it."""

    def out_of_memory(self, error: NoMemoryError) -> Exception:
        return error
