"""The weights inside a running VAE module: read by canonical name, exchanged without touching the module itself.

On the CPU an exchange assigns storage (`param.data = tensor`), which takes milliseconds where copying 335 MB takes a
hundred; on an accelerator it copies into place, so that no second copy occupies its memory.  The module object, its
parameters' identity, their dtype and device stay what they were, so whatever the host keeps about them stays valid.
A model loaded in inference mode (Forge) takes storage made in inference mode only: a parameter that got other storage
would be neither kind of tensor and fail in its next convolution.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sd_vae_kit.core.files.detect import detect
from sd_vae_kit.core.files.detection import Detection
from sd_vae_kit.core.files.header import TensorInfo
from sd_vae_kit.errors import VaeMismatchError


class LiveWeights:
    """Parameters and buffers of one live module, by the canonical names of `core.detect`.

    Raises:
        UnsupportedVaeError, BrokenVaeError: The module is no VAE this package knows.
    """

    def __init__(self, module: nn.Module) -> None:
        tensors = _tensors_of(module)
        self.module = module
        self.detection: Detection = detect({k: TensorInfo(t.dtype, tuple(t.shape)) for k, t in tensors.items()})
        self.tensors = {name: tensors[live_name] for name, live_name in self.detection.names.items()}

    def is_current(self) -> bool:
        """Whether the module still has the very tensors found here; a host may have put others in their place."""
        tensors = _tensors_of(self.module)
        return all(tensors.get(live) is self.tensors[name] for name, live in self.detection.names.items())

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of the weights on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.tensors.items()}

    def fits(self, prepared: Mapping[str, Tensor]) -> bool:
        """Whether `prepared` can be installed as it is: same names, shapes, dtypes, mode; storage on the CPU."""
        return prepared.keys() == self.tensors.keys() and all(
            _is_like(prepared[name], live) for name, live in self.tensors.items()
        )

    def check(self, state: Mapping[str, Tensor], label: str) -> None:
        """Refuse weights that cannot be installed.

        Raises:
            VaeMismatchError: Names or shapes differ; the message names the first of them and how many more.
        """
        missing = [name for name in self.tensors if name not in state]
        extra = [name for name in state if name not in self.tensors]
        wrong = [n for n, t in self.tensors.items() if n in state and state[n].numel() != t.numel()]
        for names, what in (
            (missing, "lacks"),
            (extra, "has, unlike the loaded model,"),
            (wrong, "differs in shape at"),
        ):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise VaeMismatchError(
                    f"{label} {what} {names[0]}{more}; it does not fit the loaded model's VAE. Choose another VAE."
                )

    def prepare(self, state: Mapping[str, Tensor], out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Fresh CPU tensors with `state`'s values in the live dtypes and shapes; `state` is only read.

        Args:
            state: Canonical name -> weights, checked before.
            out: Storage to write into, from an earlier `install`; used where it fits.
        """
        prepared = {}
        for name, live in self.tensors.items():
            old = out.get(name) if out else None
            with torch.inference_mode(live.is_inference()), torch.no_grad():
                if old is None or not _is_like(old, live) or old.device.type != "cpu":
                    old = torch.empty(live.shape, dtype=live.dtype)
                # diffusers keeps attention projections as (C, C) where ldm has (C, C, 1, 1): the same numbers
                prepared[name] = old.copy_(state[name].reshape(live.shape))
        return prepared

    @property
    def on_cpu(self) -> bool:
        """Whether storage is exchanged, not copied."""
        return all(map(_takes_storage, self.tensors.values()))

    def install(self, prepared: Mapping[str, Tensor], *, keep: bool = False) -> dict[str, Tensor]:
        """Put `prepared` (from `prepare`) into the module; on an error the old weights are put back.

        Returns:
            What was live before: the storage itself where it was exchanged; where values are copied, copies of the old
            ones if `keep`, else nothing.
        """
        previous: dict[str, Tensor] = {}
        try:
            for name, live in self.tensors.items():
                if _takes_storage(live):
                    previous[name] = live.data
                    live.data = prepared[name]
                else:
                    if keep:
                        previous[name] = live.detach().to("cpu", copy=True)
                    _copy_into(live, prepared[name])
        except BaseException:
            for name, old in previous.items():
                if _takes_storage(self.tensors[name]):
                    self.tensors[name].data = old
                else:
                    _copy_into(self.tensors[name], old)
            raise
        return previous


def _is_like(tensor: Tensor, live: Tensor) -> bool:
    is_same_kind = tensor.dtype == live.dtype and tensor.is_inference() == live.is_inference()
    return is_same_kind and tensor.shape == live.shape


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _takes_storage(live: Tensor) -> bool:
    return live.device.type == "cpu"


def _copy_into(live: Tensor, values: Tensor) -> None:
    """Copy into a tensor that may have been made in inference mode."""
    with torch.inference_mode(live.is_inference()), torch.no_grad():
        live.detach().copy_(values)
