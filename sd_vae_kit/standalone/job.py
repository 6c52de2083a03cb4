"""A picture to be made and what came of it, as plain data: what the pages, the command line and a host exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from sd_vae_kit.errors import OptionError, SettingError
from sd_vae_kit.settings.job import AS_IN_SETTINGS, TILING_SPECS, JobTiling, job_from
from sd_vae_kit.settings.job import AS_SET as AS_SET
from sd_vae_kit.settings.sections import VAE_TYPES as SETTING_VAE_TYPES
from sd_vae_kit.settings.sections import spec_of
from sd_vae_kit.settings.spec import Choice

SIDE_MIN, SIDE_MAX, SIDE_STEP = 64, 2048, 8
STEPS_MAX, BATCH_MAX, CFG_MAX = 150, 8, 30.0
SEED_LIMIT = 2**32
RESIZE_MODES = ("Crop and resize", "Just resize")
RANDOM_SEED = -1
VAE_TYPES = (AS_IN_SETTINGS, *SETTING_VAE_TYPES)
PREVIEWS = (AS_IN_SETTINGS, *spec_of("vae_kit_preview_method").choices)

State = Literal["idle", "running", "done", "interrupted", "failed"]


@dataclass(frozen=True)
class Txt2Img:
    """A picture from a prompt.

    Attributes:
        prompt, negative_prompt: What to show and what not.
        steps: Sampling steps.
        cfg_scale: How strongly the prompt counts; 1 is the model as it is, without guidance.
        seed: -1 for any; pictures of one batch count up from it.
        width, height: Pixels, multiples of 8.
        batch_size: Pictures made at once.
        vae_decoder: What makes the picture, one of `VAE_TYPES`.
        preview: What is shown while sampling, one of `PREVIEWS`.
        tiling, tiling_memory_mb, tiling_parts: As in `JobTiling`.
    """

    prompt: str = ""
    negative_prompt: str = ""
    steps: int = 20
    cfg_scale: float = 1.0
    seed: int = RANDOM_SEED
    width: int = 512
    height: int = 512
    batch_size: int = 1
    vae_decoder: str = AS_SET
    preview: str = AS_SET
    tiling: str = AS_SET
    tiling_memory_mb: int = 0
    tiling_parts: str = AS_SET

    @property
    def job_tiling(self) -> JobTiling:
        """How the VAE is to be run."""
        return job_from([{spec.name: getattr(self, spec.name) for spec in TILING_SPECS}]).tiling

    def check(self) -> None:
        """Raise `OptionError` unless every number can be honoured."""
        for name in ("width", "height"):
            side = getattr(self, name)
            _within(name, side, SIDE_MIN, SIDE_MAX)
            if side % SIDE_STEP:
                raise OptionError(f"The {name} is {side}; it must be a multiple of {SIDE_STEP}.")
        _within("steps", self.steps, 1, STEPS_MAX)
        _within("batch size", self.batch_size, 1, BATCH_MAX)
        _within("CFG scale", self.cfg_scale, 0.0, CFG_MAX)
        _within("seed", self.seed, RANDOM_SEED, SEED_LIMIT - 1)
        _among("VAE type for decode", self.vae_decoder, identifiers(VAE_TYPES))
        _among("live preview", self.preview, identifiers(PREVIEWS))
        try:
            for spec in TILING_SPECS:
                spec.check(getattr(self, spec.name))
        except SettingError as error:
            raise OptionError(str(error)) from error


@dataclass(frozen=True)
class Img2Img(Txt2Img):
    """A picture from a picture.

    Attributes:
        picture: The file to start from; any size.
        denoising_strength: 0 only sends it through the VAE and back, 1 keeps nothing of it.
        resize_mode: How a picture of another shape is made to fit.
        vae_encoder: What turns the picture into a latent, one of `VAE_TYPES`.
    """

    picture: Path | None = None
    denoising_strength: float = 0.5
    resize_mode: str = RESIZE_MODES[0]
    vae_encoder: str = AS_SET

    def check(self) -> None:
        """Raise `OptionError` unless there is a picture and every number can be honoured."""
        super().check()
        if self.picture is None:
            raise OptionError("There is no picture to start from; drop one into the field above.")
        _within("denoising strength", self.denoising_strength, 0.0, 1.0)
        _among("resize mode", self.resize_mode, RESIZE_MODES)
        _among("VAE type for encode", self.vae_encoder, identifiers(VAE_TYPES))


def fit_side(side: float) -> int:
    """The allowed side next to `side`."""
    return min(SIDE_MAX, max(SIDE_MIN, round(side / SIDE_STEP) * SIDE_STEP))


def fit_size(height: int, width: int) -> tuple[int, int]:
    """An allowed (height, width) of nearly the same shape; huge pictures are shrunk, tiny ones enlarged.

    Examples:
        >>> fit_size(1000, 8192)
        (248, 2048)
    """
    scale = min(1.0, SIDE_MAX / max(height, width))
    return fit_side(height * scale), fit_side(width * scale)


@dataclass(frozen=True)
class Finished:
    """One picture, saved.

    Attributes:
        path: PNG to show and download.
        infotext: Its parameters in A1111's format.
        seed: What its noise was drawn from.
    """

    path: Path
    infotext: str
    seed: int


@dataclass(frozen=True)
class Snapshot:
    """How far a job is.

    Attributes:
        state: "idle" before the first job.
        step, steps: Sampling steps done and planned.
        phase: What is going on: "encoding", "sampling", "decoding".
        preview: JPEG of what the picture looks like so far, empty if there is none.
        pictures: The result once it is there; an interrupted job has what it got to.
        message: One line for the user: how long it took, or what went wrong.
    """

    state: State = "idle"
    step: int = 0
    steps: int = 0
    phase: str = ""
    preview: bytes = b""
    pictures: tuple[Finished, ...] = ()
    message: str = ""

    @property
    def is_running(self) -> bool:
        return self.state == "running"


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise OptionError(f"The {name} is {value:g}; it must lie between {low:g} and {high:g}.")


def identifiers(choices: Sequence[Choice]) -> tuple[str, ...]:
    """The values of a field that offers these choices."""
    return tuple(choice.identifier for choice in choices)


def _among(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"The {name} is {value!r}; choose one of {', '.join(choices)}.")


def make_job(kind: type[Txt2Img], values: Mapping[str, object]) -> Txt2Img:
    """A checked job from what a form holds: numbers may come as floats, empty fields as None, the rest by default.

    Raises:
        OptionError: A field is empty, is not a number where one is needed, or is outside its limits.
    """
    defaults = {item.name: item.default for item in fields(kind)}
    given = {name: _converted(name, defaults[name], value) for name, value in values.items()}
    job = kind(**{**given, **_tiling_of(given)})  # type: ignore[arg-type]
    job.check()
    return job


def _tiling_of(given: Mapping[str, object]) -> dict[str, object]:
    """The fields of `JobTiling` that are given; a choice may come as text that stood for it in older pictures."""
    try:
        return {spec.name: spec.check(given[spec.name]) for spec in TILING_SPECS if spec.name in given}
    except SettingError as error:
        raise OptionError(str(error)) from error


def _converted(name: str, default: object, value: object) -> object:
    """`value` in the type of the field's default."""
    label = name.replace("_", " ")
    if isinstance(default, str):
        return str(value or "")
    if default is None:
        return Path(str(value)) if value else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionError(f"The {label} is empty; enter a number.")
    if isinstance(default, int):
        if value != value or value != int(value):
            raise OptionError(f"The {label} is {value:g}; it must be a whole number.")
        return int(value)
    return float(value)
