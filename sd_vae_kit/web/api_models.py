"""What the HTTP API takes and gives.  FastAPI shows these texts to users under /docs, so they are written for them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from sd_vae_kit.units import MIB
from sd_vae_kit.version import __version__

MAX_BASE64 = 256 * MIB  # characters of one picture or latent
Dtype = Literal["auto", "fp16", "bf16", "fp32"]

VAE_NAME = "The name of the VAE file, as /list gives it; the ending may be left out."
WARNINGS = "What you should know about the file, one sentence each."
SHA256 = "The SHA-256 of the VAE file, 64 hexadecimal digits."
DTYPE = (
    'The type of the weights and of the computation: "fp16", "bf16" or "fp32". With "auto" it is the type that the '
    "file has, and fp32 on a CPU."
)
FAMILY = (
    'The model family: "sd1", "sdxl", "sd3", "flux", "flux2" or "sana". It is "sd1|sdxl" if the file does not say '
    "which of the two."
)
LAST_RUN = "How the last picture was {}: plan, bands, memory in MiB, time in seconds. Null before the first one."


class VaeItem(BaseModel):
    """One VAE file."""

    name: str = Field(..., description="The name by which the other routes know the file.")
    family: str = Field("", description=FAMILY)
    size: int = Field(0, description="The size of the file in bytes.")
    problem: str = Field("", description="Why the file cannot be used. Empty if it can.")


class VaeList(BaseModel):
    """The files in the model folders."""

    vaes: list[VaeItem] = Field(..., description="All files, in the order in which the user interface lists them.")


class InspectedVae(BaseModel):
    """What one VAE file contains."""

    name: str = Field(..., description="The name by which the other routes know the file.")
    layout: str = Field(..., description='How the weights are named: "ldm", "diffusers", "taesd" or "taesd-diffusers".')
    kind: str = Field(..., description='"kl" for an ordinary autoencoder, "tiny" for one of the TAESD family.')
    part: str = Field(..., description='What the file has: "encoder", "decoder" or "both".')
    family: str = Field(..., description=f"{FAMILY} It is empty if no family fits.")
    family_known_by: str = Field(
        ...,
        description='What told the family: "hash", "weights", "metadata", "checkpoint", "behaviour" (the VAE was tried '
        'on a small picture) or "channels". It is "undecided" if nothing did.',
    )
    known_as: str = Field(
        ..., description="The name of the known VAE that has the same hash or the same weights. Empty if there is none."
    )
    z_channels: int = Field(..., description="The number of latent channels.")
    scale_factor: float = Field(
        ..., description="The factor of the latent space: latent = (z - shift_factor) * scale_factor."
    )
    shift_factor: float = Field(..., description="What is subtracted from z before it is scaled.")
    parameters: dict[str, int] = Field(
        ..., description="The number of weights in the encoder, in the decoder and in total."
    )
    dtype: str = Field(..., description='The type in which the weights are stored, such as "fp16".')
    sha256: str = Field(..., description=SHA256)
    fingerprint: str = Field(
        ..., description="A hash of the weights. It is the same in every layout, in half and in full precision."
    )
    warnings: list[str] = Field(..., description=WARNINGS)


class ActiveVae(BaseModel):
    """Which VAE is active, and why."""

    version: str = Field(__version__, description="The version of VAE Kit.")
    host: str = Field("", description="The web UI that VAE Kit runs in, with its version.")
    checkpoint: str = Field("", description="The name of the loaded checkpoint. Empty if none is loaded.")
    vae: str = Field("None", description='The name of the active VAE file; "None" is the checkpoint\'s own VAE.')
    family: str = Field("", description="The model family that the VAE is used for, as the user interface shows it.")
    reason: str = Field("", description="One sentence that says why this VAE was chosen.")
    sha256: str = Field(
        "",
        description="The SHA-256 of the VAE file. Empty for the checkpoint's own VAE and if hashing is switched off.",
    )
    precision: str = Field("", description='The type of the VAE\'s weights: "fp32", "fp16" or "bf16".')
    warnings: list[str] = Field([], description="What you should know about the choice, one sentence each.")
    last_encode: dict[str, Any] | None = Field(None, description=LAST_RUN.format("encoded"))
    last_decode: dict[str, Any] | None = Field(None, description=LAST_RUN.format("decoded"))


class EncodeRequest(BaseModel):
    """A picture to encode."""

    image: str = Field(
        ..., description="The picture file (PNG, JPEG, WebP or another common format) in base64.", max_length=MAX_BASE64
    )
    vae: str = Field(..., description=VAE_NAME)
    family: str | None = Field(
        None, description='The model family whose latent space you want, such as "sdxl", if the file does not say it.'
    )
    dtype: Dtype = Field("auto", description=DTYPE)
    sample: bool = Field(
        False, description="Whether to draw a sample from the encoder's distribution. Otherwise the result is its mean."
    )
    seed: int = Field(0, description="The seed of the sample. It is not used without `sample`.")


class NetworkRun(BaseModel):
    """How the encoder or decoder was run."""

    plan: str = Field(
        "whole",
        description='"whole" if the picture was processed at once; "stream", "stream-lean" or "stream-host" if it was '
        "processed in bands to save memory. The result is the same.",
    )
    bands: int = Field(1, description="The number of bands in the layer that was cut into most of them.")


class Encoded(NetworkRun):
    """The latent of a picture."""

    latent: str = Field(
        ...,
        description="A safetensors file in base64, with one tensor named `latent` and the metadata that /decode uses.",
    )
    shape: list[int] = Field(
        ..., description="The shape of the tensor: pictures, channels, height and width in latent cells."
    )
    vae_sha256: str = Field(..., description=SHA256)
    warnings: list[str] = Field(..., description=WARNINGS)


class DecodeRequest(BaseModel):
    """A latent to decode."""

    latent: str = Field(
        ..., description="A safetensors file in base64, such as /encode returns.", max_length=MAX_BASE64
    )
    vae: str = Field(..., description=VAE_NAME)
    dtype: Dtype = Field("auto", description=DTYPE)


class Decoded(NetworkRun):
    """The picture of a latent."""

    image: str = Field(..., description="A PNG file in base64.")
    height: int = Field(..., description="The height of the picture in pixels.")
    width: int = Field(..., description="The width of the picture in pixels.")
    vae_sha256: str = Field(..., description=SHA256)
    warnings: list[str] = Field(..., description=WARNINGS)


class Forgotten(BaseModel):
    """What was forgotten."""

    forgotten: int = Field(..., description="The number of encoders and decoders about which something was known.")


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(..., description="One sentence that says what is wrong and what to do.")
