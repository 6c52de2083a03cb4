"""What it costs to say what a file is: `python -m bench.inspection [FILE ...]`.

Each file is inspected on the command line's way, first with nothing known about it, then once more.  Without files: the
demo VAE, and two full-size ones (83.7 M parameters, random weights, fp32) that are made for the purpose: one says its
family, the other has to be tried on the built-in picture.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sd_vae_kit.cli import main

REPEATS = 5


@dataclass(frozen=True)
class InspectionCost:
    """What one call took: processor seconds, how often the file was opened, and how much of it was read."""

    seconds: float
    opened: int
    read: float


class OpenCounter:
    """Counts how often one file is opened; Python's audit hooks cannot be taken off, so there is one."""

    def __init__(self) -> None:
        self.path = ""
        self.count = 0
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]) == self.path:
            self.count += 1

    @contextlib.contextmanager
    def watching(self, path: Path) -> Iterator[None]:
        self.path, self.count = str(path), 0
        yield
        self.path = ""


def characters_read() -> int:
    """Bytes that this process has asked the system for (Linux)."""
    return int(Path("/proc/self/io").read_text("utf-8").split()[1])


def inspect_once(path: Path, data: Path, counter: OpenCounter) -> InspectionCost:
    before, began = characters_read(), time.process_time()
    with counter.watching(path), contextlib.redirect_stdout(io.StringIO()):
        assert main(["inspect", str(path), "--json", "--data-dir", str(data)]) == 0
        opened = counter.count
    seconds = time.process_time() - began
    return InspectionCost(seconds, opened, (characters_read() - before) / path.stat().st_size)


def measure(path: Path, counter: OpenCounter) -> tuple[InspectionCost, InspectionCost]:
    """The medians of first and second looks."""
    looks: tuple[list[InspectionCost], list[InspectionCost]] = ([], [])
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as data:
            for costs in looks:
                costs.append(inspect_once(path, Path(data), counter))
    first, again = (statistics.median_low([cost.seconds for cost in costs]) for costs in looks)
    return tuple(  # type: ignore[return-value]
        next(cost for cost in costs if cost.seconds == seconds)
        for costs, seconds in zip(looks, (first, again), strict=True)
    )


def made_files(folder: Path) -> list[Path]:
    from safetensors.torch import save_file

    from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig
    from sd_vae_kit.standalone import demo

    state = AutoencoderKL(KlConfig()).state_dict()
    files = [folder / "says_its_family.safetensors", folder / "does_not_say.safetensors"]
    save_file(state, files[0], metadata={"family": "sd1"})
    save_file(state, files[1])
    return [demo.FOLDER / "demo_natural.safetensors", *files]


def run() -> None:
    torch.set_num_threads(2)
    counter = OpenCounter()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(name).absolute() for name in sys.argv[1:]] or made_files(Path(folder))
        print("| file | MB | look | processor seconds | times opened | read, of the file |\n|---|---|---|---|---|---|")
        for path in files:
            for look, cost in zip(("first", "second"), measure(path, counter), strict=True):
                size = path.stat().st_size / 1e6
                numbers = f"{size:.1f} | {look} | {cost.seconds:.2f} | {cost.opened} | {cost.read:.1f}"
                print(f"| {path.name} | {numbers} |")


if __name__ == "__main__":
    run()
