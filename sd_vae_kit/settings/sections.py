"""Everything a user can set, as data: one frozen dataclass per feature, a sentence per setting.

User interface, command line, hosts' option pages, API arguments and infotext are made from these fields; nothing
about a setting is written down twice.  `settings_store` keeps the stand-alone app's values on disk; a host its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, TypeVar

from sd_vae_kit.errors import SettingError

Value = bool | int | float | str
Control = Literal["checkbox", "slider", "number", "choice", "text", "vae"]

AUTOMATIC = "Automatic"
AS_SET = "As in Settings"  # of a job: the choice is left to the settings
NONE = "None"
FULL, TAESD = "Full", "TAESD"


@dataclass(frozen=True)
class Spec:
    """What is known about one setting.

    Attributes:
        label: Short name shown beside the control.
        help: One sentence: what it does and when to change it.
        control: How it is shown; "vae" is a dropdown over the library's names, Automatic and None.
        choices: Allowed values of a "choice".
        minimum, maximum, step: Limits of a number, inclusive.
        unit: Unit of a number, such as "px".
        infotext: Key written into a picture's parameters when the value matters for the picture.
        key: Name in hosts' option files and in the settings file; default `vae_kit_<section>_<field>`.
        section, name, default: Filled in from the dataclass.
    """

    label: str
    help: str
    control: Control
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    unit: str = ""
    infotext: str = ""
    key: str = ""
    section: str = ""
    name: str = ""
    default: Value = ""

    def check(self, value: object) -> Value:
        """The value in this setting's own type.

        Raises:
            SettingError: Wrong type, outside the limits or not among the choices.
        """
        if self.control == "checkbox":
            return self._checked_bool(value)
        if isinstance(self.default, int | float):
            return self._checked_number(value)
        if not isinstance(value, str):
            raise SettingError(f'"{self.label}" needs text, not {value!r}.')
        if self.choices and value not in self.choices:
            raise SettingError(f'"{self.label}" cannot be {value!r}; choose one of {", ".join(self.choices)}.')
        return value

    def _checked_bool(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise SettingError(f'"{self.label}" is on or off, not {value!r}.')
        return value

    def _checked_number(self, value: object) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise SettingError(f'"{self.label}" needs a number, not {value!r}.')
        low, high = self.minimum, self.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            raise SettingError(f'"{self.label}" is {value:g}; it must lie between {low:g} and {high:g}.')
        if isinstance(self.default, int):
            if value != int(value):
                raise SettingError(f'"{self.label}" needs a whole number, not {value:g}.')
            return int(value)
        return float(value)


T = TypeVar("T")


def setting(default: T, spec: Spec) -> T:
    """A dataclass field with its `Spec` attached."""
    return field(default=default, metadata={"spec": spec})


@dataclass(frozen=True)
class VaeSettings:
    """Which VAE is used and how many are kept ready."""

    sd_vae: str = setting(
        AUTOMATIC,
        Spec(
            "SD VAE",
            "Turns latents into pictures and back. Automatic follows the rules, None is the checkpoint's own.",
            "vae",
            infotext="VAE",
            key="sd_vae",
        ),
    )
    overrides_per_model: bool = setting(
        True,
        Spec(
            "A chosen VAE beats per-checkpoint preferences",
            "On: the dropdown wins unless it says Automatic. Off: a checkpoint's preferred VAE or one beside it wins.",
            "checkbox",
            key="sd_vae_overrides_per_model_preferences",
        ),
    )
    cache: int = setting(
        2,
        Spec(
            "VAEs kept in RAM",
            "How many recently used VAEs stay in memory; choosing one again then takes milliseconds. 0 reads the file.",
            "slider",
            minimum=0,
            maximum=10,
            step=1,
            key="sd_vae_checkpoint_cache",
        ),
    )
    encode_method: str = setting(
        FULL,
        Spec(
            "VAE type for encode",
            "TAESD turns a picture into a latent with the small network of the model's family: fast, a little coarser.",
            "choice",
            choices=(FULL, TAESD),
            infotext="VAE Encoder",
            key="sd_vae_encode_method",
        ),
    )
    decode_method: str = setting(
        FULL,
        Spec(
            "VAE type for decode",
            "TAESD makes the picture with the small network of the model's family: fast, with simpler details.",
            "choice",
            choices=(FULL, TAESD),
            infotext="VAE Decoder",
            key="sd_vae_decode_method",
        ),
    )


@dataclass(frozen=True)
class PreviewSettings:
    """Pictures shown while sampling."""

    method: str = setting(
        "TAESD",
        Spec(
            "Live preview",
            "TAESD decodes with the small network of the model's family, linear mixes latent channels into colours, "
            "off shows none.",
            "choice",
            choices=("TAESD", "linear", "off"),
        ),
    )
    every_steps: int = setting(
        1,
        Spec(
            "Preview every N steps",
            "A picture every so many sampling steps; raise it if previews slow the job down.",
            "slider",
            minimum=1,
            maximum=20,
            step=1,
        ),
    )
    max_side: int = setting(
        512,
        Spec(
            "Largest preview side",
            "Bigger pictures are shrunk for the preview only; the result is not touched.",
            "slider",
            minimum=128,
            maximum=2048,
            step=64,
            unit="px",
        ),
    )
    share: int = setting(
        20,
        Spec(
            "Most time for previews",
            "Previews take at most this part of a job's time; steps that come too soon after the last one show none.",
            "slider",
            minimum=1,
            maximum=100,
            step=1,
            unit="%",
        ),
    )


@dataclass(frozen=True)
class SavingSettings:
    """What is written to disk after a job."""

    save_images: bool = setting(
        True,
        Spec("Save every picture", "Write each finished picture into the output folder.", "checkbox"),
    )
    write_infotext: bool = setting(
        True,
        Spec(
            "Write generation parameters into pictures",
            "Prompt, seed, VAE name and VAE hash go into the PNG, so that the picture can be made again by pasting it.",
            "checkbox",
        ),
    )
    folder: str = setting(
        "outputs",
        Spec("Output folder", "Where pictures are saved; a relative path starts at the data folder.", "text"),
    )


@dataclass(frozen=True)
class DownloadSettings:
    """Fetching VAEs that the catalogue knows; nothing is ever fetched without being asked for."""

    offline: bool = setting(
        False,
        Spec("Never download", "Nothing is contacted; asking for a download is answered with an error.", "checkbox"),
    )
    proxy: str = setting(
        "",
        Spec(
            "Proxy",
            "Address such as http://proxy:3128; empty takes the system's proxy, the word direct uses none.",
            "text",
        ),
    )
    http: str = setting(
        "never",
        Spec(
            "Unencrypted http",
            "never contacts https addresses only, loopback also http on this computer, always any http address.",
            "choice",
            choices=("never", "loopback", "always"),
        ),
    )
    connect_seconds: float = setting(
        10.0,
        Spec(
            "Connection timeout",
            "How long a server may take to accept a connection.",
            "slider",
            minimum=1,
            maximum=120,
            step=1,
            unit="s",
        ),
    )
    stall_seconds: float = setting(
        30.0,
        Spec(
            "Stall timeout",
            "A connection that stays below the lowest speed for so long is given up and tried again.",
            "slider",
            minimum=1,
            maximum=600,
            step=1,
            unit="s",
        ),
    )
    min_kb_per_second: float = setting(
        1.0,
        Spec(
            "Lowest speed",
            "Slower connections count as stalled; 0 accepts any that is not silent.",
            "slider",
            minimum=0,
            maximum=1000,
            step=1,
            unit="KiB/s",
        ),
    )
    attempts: int = setting(
        3,
        Spec(
            "Tries per address",
            "How often a cut connection is opened again before the next mirror is tried.",
            "slider",
            minimum=1,
            maximum=20,
            step=1,
        ),
    )
    max_redirects: int = setting(
        5,
        Spec(
            "Redirections followed",
            "An address that redirects more often than this is given up.",
            "slider",
            minimum=0,
            maximum=20,
            step=1,
        ),
    )


@dataclass(frozen=True)
class GuardSettings:
    """Recognising a VAE made for another model family before it spoils a picture."""

    wrong_family: str = setting(
        "warn",
        Spec(
            "A VAE of another family",
            "warn uses it and says so, refuse keeps the VAE that was active, off does not look at families at all.",
            "choice",
            choices=("warn", "refuse", "off"),
        ),
    )
    by_hash: bool = setting(
        True,
        Spec("Look the file's hash up", "Recognise files of the catalogue by their SHA-256.", "checkbox"),
    )
    by_fingerprint: bool = setting(
        True,
        Spec(
            "Compare weights with known ones",
            "Recognise re-saved, converted and shrunk copies of VAEs that are known.",
            "checkbox",
        ),
    )
    by_behaviour: bool = setting(
        True,
        Spec(
            "Try it on a small picture",
            "Tell SD 1 from SDXL and SD 3 from FLUX by a test that takes a second, once per file.",
            "checkbox",
        ),
    )


TILING_MODES = ("Auto", "Always stream")
BUDGET_MAX_MB = 1_048_576


@dataclass(frozen=True)
class TilingSettings:
    """Large pictures in little memory: the VAE works through them in bands, and the picture stays the same."""

    enabled: bool = setting(
        True,
        Spec(
            "Tiled VAE",
            "Encodes and decodes in bands where a picture would not fit into memory whole; the picture is the same. "
            "Off: always whole, as large pictures may run out of memory.",
            "checkbox",
        ),
    )
    mode: str = setting(
        TILING_MODES[0],
        Spec(
            "When to stream",
            "Auto runs a picture whole while it fits and in bands when it does not; Always stream takes the least "
            "memory that costs no time.",
            "choice",
            choices=TILING_MODES,
        ),
    )
    memory_mb: int = setting(
        0,
        Spec(
            "Memory budget",
            "How much the VAE's work may take besides its weights; 0 takes what is free when the work begins.",
            "number",
            minimum=0,
            maximum=BUDGET_MAX_MB,
            unit="MB",
        ),
    )
    encoder: bool = setting(
        True, Spec("Advanced: stream encoding", "Also where a picture is turned into a latent (img2img).", "checkbox")
    )
    decoder: bool = setting(
        True, Spec("Advanced: stream decoding", "Also where a latent is turned into a picture.", "checkbox")
    )

    @property
    def budget_bytes(self) -> int | None:
        """None: what is free."""
        return self.memory_mb * 2**20 or None


PRECISION_MODES = ("Automatic", "Always fp32", "Never")


@dataclass(frozen=True)
class PrecisionSettings:
    """No black pictures: values beyond half precision are caught in the VAE and only what is needed is done again."""

    mode: str = setting(
        PRECISION_MODES[0],
        Spec(
            "Where half precision overflows",
            "Automatic computes only what overflowed again, shifted or in fp32; Always fp32 takes twice the memory; "
            "Never leaves the picture as it comes, which may be black.",
            "choice",
            choices=PRECISION_MODES,
        ),
    )
    prefer_bf16: bool = setting(
        False,
        Spec(
            "Prefer bf16 to repairing",
            "Where half precision overflows, the whole encode or decode is run in bf16 instead, which is less exact.",
            "checkbox",
        ),
    )


@dataclass(frozen=True)
class Settings:
    """All sections; the field's name is the section's name, the class's docstring its explanation."""

    vae: VaeSettings = VaeSettings()
    preview: PreviewSettings = PreviewSettings()
    saving: SavingSettings = SavingSettings()
    download: DownloadSettings = DownloadSettings()
    guard: GuardSettings = GuardSettings()
    tiling: TilingSettings = TilingSettings()
    precision: PrecisionSettings = PrecisionSettings()


SECTION_TITLES = {
    "vae": "VAE",
    "preview": "Live preview",
    "saving": "Saving pictures",
    "download": "Downloads",
    "guard": "Wrong-family guard",
    "tiling": "Tiled VAE",
    "precision": "Precision of the VAE",
}


def specs() -> Iterator[Spec]:
    """Every setting in the order shown to users."""
    defaults = Settings()
    for section in fields(defaults):
        group = getattr(defaults, section.name)
        for item in fields(group):
            spec: Spec = item.metadata["spec"]
            key = spec.key or f"vae_kit_{section.name}_{item.name}"
            default: Value = getattr(group, item.name)
            yield dataclasses.replace(spec, key=key, section=section.name, name=item.name, default=default)


def spec_of(key: str) -> Spec:
    """The setting with that key.

    Raises:
        SettingError: No such setting.
    """
    for spec in specs():
        if spec.key == key:
            return spec
    raise SettingError(f"There is no setting {key!r}; the keys are {', '.join(s.key for s in specs())}.")


def to_values(settings: Settings) -> dict[str, Value]:
    """Settings as key -> value."""
    return {s.key: getattr(getattr(settings, s.section), s.name) for s in specs()}


def with_values(settings: Settings, values: Mapping[str, object]) -> Settings:
    """A copy with some values changed; nothing is changed if one of them is wrong.

    Raises:
        SettingError: An unknown key or a value that does not fit.
    """
    for key, value in values.items():
        spec = spec_of(key)
        section = dataclasses.replace(getattr(settings, spec.section), **{spec.name: spec.check(value)})
        settings = dataclasses.replace(settings, **{spec.section: section})
    return settings
