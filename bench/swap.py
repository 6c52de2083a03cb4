"""How long it takes to choose another VAE: `python -m bench.swap`.

Full-size VAEs (83.7 M parameters, random weights, fp32) in one process, in turns: this package, cold from the file and
warm, against what A1111 does with a VAE in its cache: `load_state_dict` into the live module and `.to(dtype)`.  Moving
the whole model to the CPU and back and re-applying its optimisations come on top there and are not counted here.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig
from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.settings.sections import Settings, with_values
from sd_vae_kit.vaes.host_protocol import Checkpoint, Level
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder
from sd_vae_kit.vaes.swap import Swapper


class BenchHost:
    """The smallest host: one live module, settings in memory."""

    name = "bench"
    forced_vae = None
    can_replace_first_stage = False

    def __init__(self, module: nn.Module) -> None:
        self.first_stage = module
        self.checkpoint = Checkpoint("model", None, FORMATS["sd1"])
        self.settings = Settings()

    def replace_first_stage(self, module: nn.Module) -> None:
        raise AssertionError("not offered")

    def vae_writing(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def on_vae_changed(self) -> None:
        pass

    def notify(self, message: str, level: Level = "info") -> None:
        print(f"{level}: {message}")


def full_vae(seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(KlConfig()).eval().requires_grad_(False)


def milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def measure(folder: Path, repeats: int, pause: float) -> Iterator[tuple[str, list[float]]]:
    """(what, milliseconds per repeat) for each way, the ways taking turns."""
    for name, seed in (("a", 1), ("b", 2)):
        save_file(full_vae(seed).state_dict(), folder / f"{name}.safetensors")
    library = Library([Folder(folder, "vae")], folder / "cache.json")
    library.refresh()
    host, peer = BenchHost(full_vae(0)), full_vae(0)
    cached = {name: load_file(folder / f"{name}.safetensors") for name in ("a", "b")}
    rows: dict[str, list[float]] = {}

    def choose(swapper: Swapper, name: str) -> None:
        host.settings = with_values(host.settings, {"sd_vae": f"{name}.safetensors"})
        swapper.choose()

    def way_of_the_peer(name: str) -> None:
        peer.load_state_dict(cached[name])
        peer.to(torch.float32)

    warm = Swapper(host, library)
    for name in ("a", "b"):
        choose(warm, name)
    for _ in range(repeats):
        for name in ("a", "b"):
            time.sleep(pause)
            rows.setdefault("warm", []).append(milliseconds(lambda name=name: choose(warm, name)))
            rows.setdefault("load_state_dict of a cached VAE", []).append(
                milliseconds(lambda name=name: way_of_the_peer(name))
            )
        for name in ("a", "b"):  # no time for the background to make a set ready
            rows.setdefault("warm, at once again", []).append(milliseconds(lambda name=name: choose(warm, name)))
        cold_host = BenchHost(full_vae(0))
        cold_host.settings = with_values(cold_host.settings, {"sd_vae": "a.safetensors"})
        cold = Swapper(cold_host, library)
        rows.setdefault("cold, from the file", []).append(milliseconds(cold.choose))
        cold.close()
    warm.close()
    yield from rows.items()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between warm swaps, as a user would leave")
    options = parser.parse_args()
    print("| swap of an 83.7 M-parameter VAE | median ms | min | max |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for what, times in measure(Path(folder), options.repeats, options.pause):
            print(f"| {what} | {statistics.median(times):.1f} | {min(times):.1f} | {max(times):.1f} |")


if __name__ == "__main__":
    main()
