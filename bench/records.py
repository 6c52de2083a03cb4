"""Measurements on disk: a run that was stopped, or had no more time, goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from bench.pictures import PictureError

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Case:
    """What is measured: one direction at one size in one type."""

    dtype: str
    part: str
    pixels: int

    def __str__(self) -> str:
        return f"{self.part} {self.pixels} px {self.dtype}"


@dataclass
class Row:
    """One variant of a case.

    Attributes:
        times, cpu: Wall and processor seconds of each repeat.
        difference, mean_difference: Largest and mean |difference| to the ordinary forward, relative to its range.
        peak_mb: Activations above the weights, in a process of its own.
        predicted_mb: What the cost model says, for plans.
    """

    part: str
    pixels: int
    dtype: str
    name: str
    times: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    difference: float | None = None
    mean_difference: float | None = None
    peak_mb: float | None = None
    predicted_mb: float | None = None

    @property
    def case(self) -> Case:
        return Case(self.dtype, self.part, self.pixels)

    def ratios(self, base: Row | None, clock: str = "times") -> list[float]:
        """Each repeat beside the same repeat of `base`; a run that was stopped has unequal numbers of them."""
        others: list[float] = [] if base is None else getattr(base, clock)
        return [mine / other for mine, other in zip(getattr(self, clock), others, strict=False)]

    def peak_ratio(self, base: Row | None) -> float | None:
        """Its peak beside that of `base`; None where one was not measured."""
        return self.peak_mb / base.peak_mb if base and base.peak_mb and self.peak_mb else None


@dataclass
class Records:
    """Everything measured so far.

    Attributes:
        conditions: Machine, torch, threads and the engine's own text: measurements of others are not mixed in.
        rows: By case and variant.
        pictures: Errors on photographs.
    """

    conditions: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    pictures: list[PictureError] = field(default_factory=list)

    def row(self, case: Case, name: str) -> Row:
        """The variant's row, made if it is not there yet."""
        found = find(self.rows, case, name)
        if found is None:
            found = Row(case.part, case.pixels, case.dtype, name)
            self.rows.append(found)
        return found

    def save(self, path: Path) -> None:
        text = {"conditions": self.conditions, "rows": [asdict(row) for row in self.rows]}
        path.write_text(json.dumps({**text, "pictures": [asdict(p) for p in self.pictures]}, indent=1), "utf-8")


def find(rows: Iterable[Row], case: Case, name: str) -> Row | None:
    """A variant of a case, if it is there."""
    return next((row for row in rows if row.case == case and row.name == name), None)


def measured(rows: Iterable[Row]) -> list[Row]:
    """Rows with numbers: decoding first, fp32 first, small pictures first; variants stay in their order."""
    found = [row for row in rows if row.times or row.peak_mb]
    return sorted(found, key=lambda row: (row.part != "decode", row.dtype != "fp32", row.pixels))


def load(path: Path, threads: int, is_fresh: bool) -> Records:
    """What was measured before under the same conditions, else nothing."""
    conditions = {
        "machine": machine(), "torch": torch.__version__, "threads": str(threads), "engine": engine_hash(),
        "oneDNN": os.environ.get("ONEDNN_MAX_CPU_ISA", ""), "waiting": os.environ.get("OMP_WAIT_POLICY", "default"),
    }  # fmt: skip
    if not path.is_file() or is_fresh:
        return Records(conditions)
    found = json.loads(path.read_text("utf-8"))
    changed = [key for key, value in conditions.items() if found["conditions"].get(key) != value]
    if changed:
        print(f"Measured anew: {', '.join(changed)} changed since {path.name}.")
        return Records(conditions)
    rows, pictures = [Row(**row) for row in found["rows"]], [PictureError(**p) for p in found["pictures"]]
    return Records(conditions, rows, pictures)


def engine_hash() -> str:
    """Of what is measured: the package's core and the variants."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "sd_vae_kit" / "core").rglob("*.py"), ROOT / "bench" / "variants.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
