"""Counting what torch allocates, exactly and also without computing anything."""

import contextlib

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from sd_vae_kit.core.engine import band_computer, repair
from sd_vae_kit.core.engine.group_norm import BandMoments
from sd_vae_kit.core.plan.devices import TRAITS

META = torch.device("meta")


class Peak(TorchDispatchMode):
    """Counts the bytes of tensors made inside of it that are alive, by their storages.

    Whether a storage is alive is asked of torch itself: the Python object of a storage dies at other times than the
    memory does, and in torch 2.1 a finalizer on it is called never or crashes the interpreter's exit.
    """

    def __init__(self, module):
        super().__init__()
        self.alive, self.peak = {}, 0
        self.weights = {p.untyped_storage()._cdata for p in module.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage):
        if storage._cdata in self.alive or storage.nbytes() == 0 or storage._cdata in self.weights:
            return
        self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))


@contextlib.contextmanager
def without_computing(monkeypatch):
    """The engine runs on the meta device as on the CPU, with shapes instead of numbers: any size takes a moment.

    What would look at numbers, the statistics, gets made up ones; attention takes what the CPU's kernel takes, its
    answer.  The heap's slack, which no tensor shows, is not predicted either.
    """
    cpu = TRAITS["cpu"]
    monkeypatch.setitem(TRAITS, "meta", type(cpu)(**{**vars(cpu), "name": "meta", "keeps_heap": False}))

    def moments(band):
        numbers = torch.zeros(band.shape[1])
        return BandMoments(band.shape[2] * band.shape[3], numbers, numbers)

    def scale_and_shift(norm, gathered, device, dtype, exponent=0):
        return torch.empty_like  # torch's kernel without numbers would answer in another layout

    monkeypatch.setattr(repair, "band_moments", moments)
    monkeypatch.setattr(band_computer, "scale_and_shift", scale_and_shift)
    functional = torch.nn.functional

    def conv2d(x, weight, bias=None, stride=1, padding=0, *args):
        strides, pads = ((n, n) if isinstance(n, int) else n for n in (stride, padding))
        sides = zip(x.shape[2:], weight.shape[2:], strides, pads, strict=True)
        size = [(side + 2 * pad - kernel) // step + 1 for side, kernel, step, pad in sides]
        # as on the CPU; without numbers torch sometimes answers in another layout
        shape = (len(x), len(weight), *size)
        return torch.empty(shape, dtype=x.dtype, device=META, memory_format=torch.channels_last)

    monkeypatch.setattr(functional, "conv2d", conv2d)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda q, k, v: torch.empty_like(q))
    yield
