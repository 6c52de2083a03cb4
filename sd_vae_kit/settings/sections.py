"""Everything a user can set, as data: one frozen dataclass per feature, a sentence per setting.

User interface, command line, hosts' option pages, API arguments and infotext are made from these fields; nothing
about a setting is written down twice.  `settings.store` keeps the stand-alone app's values on disk; a host its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Final, Literal

from sd_vae_kit.errors import SettingError
from sd_vae_kit.settings.spec import Choice, Spec, Value, setting, specs_of
from sd_vae_kit.units import MIB

# Hosts own the options sd_vae, sd_vae_encode_method and sd_vae_decode_method and write their values into pictures
# ("VAE", "VAE Encoder", "VAE Decoder"): these words are theirs, so the identifier is the host's own text.
AUTOMATIC, NONE = "Automatic", "None"
FULL, TAESD = "Full", "TAESD"
VAE_TYPES = (Choice(FULL, "Full"), Choice(TAESD, "TAESD"))

# Identifiers of our own settings' values.
AUTO: Final = "auto"
STREAM: Final = "stream"
OFF: Final = "off"
TilingMode = Literal["auto", "stream"]
PrecisionMode = Literal["auto", "fp32", "never"]
PreviewMethod = Literal["taesd", "linear", "off"]


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
            choices=VAE_TYPES,
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
            choices=VAE_TYPES,
            infotext="VAE Decoder",
            key="sd_vae_decode_method",
        ),
    )


@dataclass(frozen=True)
class PreviewSettings:
    """Pictures shown while sampling."""

    method: PreviewMethod = setting(
        "taesd",
        Spec(
            "Live preview",
            "TAESD decodes with the small network of the model's family, linear mixes latent channels into colours, "
            "off shows none.",
            "choice",
            choices=(Choice("taesd", "TAESD"), Choice("linear", "linear"), Choice("off", "off")),
            formerly={"TAESD": "taesd"},
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
            choices=(Choice("never", "never"), Choice("loopback", "loopback"), Choice("always", "always")),
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
            choices=(Choice("warn", "warn"), Choice("refuse", "refuse"), Choice("off", "off")),
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


TILING_MODES = (Choice(AUTO, "Auto"), Choice(STREAM, "Always stream"))
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
    mode: TilingMode = setting(
        "auto",
        Spec(
            "When to stream",
            "Auto runs a picture whole while it fits and in bands when it does not; Always stream takes the least "
            "memory that costs no time.",
            "choice",
            choices=TILING_MODES,
            formerly={"Auto": "auto", "Always stream": "stream"},
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
        return self.memory_mb * MIB or None


@dataclass(frozen=True)
class PrecisionSettings:
    """No black pictures: values beyond half precision are caught in the VAE and only what is needed is done again."""

    mode: PrecisionMode = setting(
        "auto",
        Spec(
            "Where half precision overflows",
            "Automatic computes only what overflowed again, shifted or in fp32; Always fp32 takes twice the memory; "
            "Never leaves the picture as it comes, which may be black.",
            "choice",
            choices=(Choice("auto", "Automatic"), Choice("fp32", "Always fp32"), Choice("never", "Never")),
            formerly={"Automatic": "auto", "Always fp32": "fp32", "Never": "never"},
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


SPECS: tuple[Spec, ...] = tuple(  # every setting in the order shown to users
    spec
    for section in fields(Settings)
    for spec in specs_of(type(getattr(Settings(), section.name)), section.name, f"vae_kit_{section.name}_")
)
SPEC_BY_KEY = {spec.key: spec for spec in SPECS}


def spec_of(key: str) -> Spec:
    """The setting with that key.

    Raises:
        SettingError: No such setting.
    """
    if key not in SPEC_BY_KEY:
        raise SettingError(f"There is no setting {key!r}; the keys are {', '.join(SPEC_BY_KEY)}.")
    return SPEC_BY_KEY[key]


def to_values(settings: Settings) -> dict[str, Value]:
    """Settings as key -> value."""
    return {spec.key: getattr(getattr(settings, spec.section), spec.name) for spec in SPECS}


def with_values(settings: Settings, values: Mapping[str, object]) -> Settings:
    """A copy with some values changed; nothing is changed if one of them is wrong.

    Raises:
        SettingError: An unknown key or a value that does not fit.
    """
    return _with_checked(settings, {key: spec_of(key).check(value) for key, value in values.items()})


def settings_from(values: Mapping[str, object], complain: Callable[[Spec, SettingError], object]) -> Settings:
    """Settings from saved values; what is missing, unknown or does not fit leaves the default.

    Args:
        values: By key.
        complain: Called with each setting whose value does not fit, and why.
    """
    checked: dict[str, Value] = {}
    for spec in SPECS:
        if spec.key in values:
            try:
                checked[spec.key] = spec.check(values[spec.key])
            except SettingError as error:
                complain(spec, error)
    return _with_checked(Settings(), checked)


def _with_checked(settings: Settings, values: Mapping[str, Value]) -> Settings:
    """Each section is made once, however many of its values change."""
    changes: dict[str, dict[str, Value]] = {}
    for key, value in values.items():
        spec = SPEC_BY_KEY[key]
        changes.setdefault(spec.section, {})[spec.name] = value
    sections = {name: dataclasses.replace(getattr(settings, name), **new) for name, new in changes.items()}
    return dataclasses.replace(settings, **sections)
