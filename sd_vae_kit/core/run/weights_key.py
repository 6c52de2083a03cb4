"""A fingerprint of live weights that costs a millisecond: a few numbers of every tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from sd_vae_kit.core.engine.device_tensors import without_autocast
from sd_vae_kit.core.engine.overflow import step_modules
from sd_vae_kit.core.graph.nodes import LayerGraph

SAMPLES = 6  # of each tensor, evenly spread; a VAE has over a hundred tensors


def weights_key(graph: LayerGraph) -> str:
    """32 hex digits: equal for equal weights in fp32 and fp16, whatever device they are on; another after any change.

    A LoRA or merge that changes weights changes it, too: what the changed VAE needs is another thing.
    """
    digest = hashlib.blake2b(graph.name.encode(), digest_size=16)
    picked: dict[torch.device, list[Tensor]] = {}
    for name, tensor in _tensors(graph):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        picked.setdefault(tensor.device, []).append(_few(tensor))
    for device, parts in picked.items():
        with torch.no_grad(), without_autocast(device):
            numbers = torch.cat(parts).cpu()
        # beyond fp16's range a cast gives infinity, so fp16 copies hold it
        digest.update(torch.nan_to_num(numbers, nan=0.0, posinf=65504.0, neginf=-65504.0).numpy().tobytes())
    return digest.hexdigest()


def _tensors(graph: LayerGraph) -> Iterator[tuple[str, Tensor]]:
    for step in graph.steps:
        for i, module in enumerate(step_modules(step)):
            for name, parameter in module.named_parameters():
                if not parameter.is_meta:
                    yield f"{step.name}/{i}/{name}", parameter.detach()


def _few(tensor: Tensor) -> Tensor:
    """Some of a tensor's numbers as fp16, on its device, without copying the rest."""
    count = min(SAMPLES, tensor.numel())
    places = torch.linspace(0, tensor.numel() - 1, count, dtype=torch.float64).long()
    indexes = []
    for size in reversed(tensor.shape):
        indexes.append(places % size)
        places = places // size
    few = tensor[tuple(index.to(tensor.device) for index in reversed(indexes))] if tensor.dim() else tensor.reshape(1)
    return few.to(torch.float32).to(torch.float16)
