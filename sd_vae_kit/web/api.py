"""HTTP API under /vae-kit/v1/, the same on a web UI's app and on the stand-alone one.

Files are named as the library names them; a path is no name, so nothing outside the model folders can be read, and
nothing is written at all.  Pictures and latents travel as base64.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol

import torch
from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sd_vae_kit import __version__
from sd_vae_kit.core.dtypes import wanted_dtype
from sd_vae_kit.core.files.latent_file import NAME, LatentFile, check_latent
from sd_vae_kit.core.halves import Half
from sd_vae_kit.core.run.precision_policy import Precision
from sd_vae_kit.core.run.runner import VaeRunner
from sd_vae_kit.core.vae import Vae, build, choose_format
from sd_vae_kit.errors import LatentFileError, PictureError, StepAsideError, VaeKitError, VaeNotFoundError
from sd_vae_kit.pictures.picture_file import crop, open_picture, png_bytes, reflect_pad, to_image, to_pixels
from sd_vae_kit.settings.sections import TilingSettings
from sd_vae_kit.units import MIB
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.inspection import Inspector
from sd_vae_kit.vaes.library import Library

PREFIX = "/vae-kit/v1"
MAX_BASE64 = 256 * MIB  # characters of one picture or latent
Dtype = Literal["auto", "fp16", "bf16", "fp32"]


class ApiBackend(Protocol):
    """What the API asks of the app or web UI that serves it."""

    @property
    def library(self) -> Library:
        """The files that can be named."""

    @property
    def inspector(self) -> Inspector:
        """What says what they are."""

    @property
    def tiling(self) -> TilingSettings:
        """How VAEs are run."""

    def api_status(self) -> dict[str, object]:
        """Fields of `ActiveVae`."""

    def forget_precision(self) -> int:
        """Forget what VAEs needed in half precision; how many halves that were."""

    def computing(self) -> AbstractContextManager[torch.device]:
        """Hold while the API computes; gives the device."""


class VaeItem(BaseModel):
    """One file."""

    name: str
    family: str = Field("", description='"sd1", "sdxl", "sd3", "flux" ...; "sd1|sdxl" where undecided')
    size: int = Field(0, description="bytes")
    problem: str = Field("", description="why the file cannot be used; empty if it can")


class VaeList(BaseModel):
    """All files of the model folders."""

    vaes: list[VaeItem]


class InspectedVae(BaseModel):
    """What one file is."""

    name: str
    layout: str = Field(description='names of the tensors: "ldm", "diffusers", "taesd" or "taesd-diffusers"')
    kind: str = Field(description='"kl" for a KL autoencoder, "tiny" for a TAESD')
    part: str = Field(description='halves it holds: "both", "encoder" or "decoder"')
    family: str = Field(description='"sd1", "sdxl", "sd3", "flux" ...; "sd1|sdxl" where undecided, "" where none fits')
    family_known_by: str = Field(
        description='what told: "hash", "weights", "metadata", "checkpoint", "behaviour", "channels" or "undecided"'
    )
    known_as: str = Field(description='the known VAE whose hash or weights it has; "" if none')
    z_channels: int
    scale_factor: float
    shift_factor: float
    parameters: dict[str, int] = Field(description='how many weights: "encoder", "decoder", "total"')
    dtype: str = Field(description='type of most weights, such as "fp16"')
    sha256: str
    fingerprint: str = Field(description="of the weights: the same in every layout, in half and in full precision")
    warnings: list[str]


class ActiveVae(BaseModel):
    """Which VAE is active and why."""

    version: str = __version__
    host: str = ""
    checkpoint: str = ""
    vae: str = "None"
    family: str = ""
    reason: str = ""
    sha256: str = ""
    precision: str = ""
    warnings: list[str] = []
    last_encode: dict[str, Any] | None = Field(None, description="how the last picture was encoded")
    last_decode: dict[str, Any] | None = Field(None, description="how the last picture was decoded")


class EncodeRequest(BaseModel):
    """A picture to encode."""

    image: str = Field(..., description="base64 of a PNG, JPEG, WebP ... file", max_length=MAX_BASE64)
    vae: str = Field(..., description="name in the list")
    family: str | None = Field(None, description="latent space, where the file does not tell")
    dtype: Dtype = "auto"
    sample: bool = Field(False, description="draw from the posterior instead of taking its mean")
    seed: int = 0


class Run(BaseModel):
    """How a network was run."""

    plan: str = Field("whole", description='"whole", or in bands: "stream", "stream-lean", "stream-host"')
    bands: int = Field(1, description="bands of the layer that was cut into most of them")


class Encoded(Run):
    """A latent."""

    latent: str = Field(description="base64 of a safetensors file with the tensor `latent` and its metadata")
    shape: list[int]
    vae_sha256: str
    warnings: list[str]


class DecodeRequest(BaseModel):
    """A latent to decode."""

    latent: str = Field(..., description="base64 of a safetensors file as `encode` gives it", max_length=MAX_BASE64)
    vae: str = Field(..., description="name in the list")
    dtype: Dtype = "auto"


class Forgotten(BaseModel):
    """What was forgotten of what VAEs needed to stay finite in half precision."""

    forgotten: int = Field(description="encoders and decoders about which something was known")


class Decoded(Run):
    """A picture."""

    image: str = Field(description="base64 of a PNG")
    height: int
    width: int
    vae_sha256: str
    warnings: list[str]


def make_router(backend: ApiBackend, dependencies: Sequence[Any] = ()) -> APIRouter:
    """All routes.

    Args:
        backend: What the routes ask.
        dependencies: FastAPI dependencies of every route, such as a check of user and password.
    """
    api = Api(backend)
    router = APIRouter(prefix=PREFIX, dependencies=list(dependencies), tags=["VAE Kit"])
    routes: list[tuple[str, str, Callable[..., BaseModel], type[BaseModel]]] = [
        ("GET", "/list", api.list, VaeList),
        ("GET", "/inspect", api.inspect, InspectedVae),
        ("GET", "/status", api.status, ActiveVae),
        ("POST", "/encode", api.encode, Encoded),
        ("POST", "/decode", api.decode, Decoded),
        ("POST", "/forget-precision", api.forget_precision, Forgotten),
    ]
    for method, path, endpoint, model in routes:
        router.add_api_route(path, endpoint, methods=[method], response_model=model)
    return router


class Api:
    """The endpoints; every deliberate error becomes one line with a fitting status."""

    def __init__(self, backend: ApiBackend) -> None:
        self._backend = backend

    def forget_precision(self) -> Forgotten:
        """What VAEs needed to stay finite in half precision is found out anew."""
        return Forgotten(forgotten=self._backend.forget_precision())

    def list(self) -> VaeList:
        """All VAE files, those that cannot be used with the reason."""
        return VaeList(vaes=[self._item(entry) for entry in self._backend.library.entries])

    def _item(self, entry: Entry) -> VaeItem:
        family = self._backend.inspector.finder.remembered(entry).family
        return VaeItem(name=entry.name, family=family, size=entry.size, problem=entry.reason)

    def inspect(self, name: str) -> InspectedVae:
        """What one file is."""
        with answered():
            found = self._backend.inspector.inspect(self._backend.library.get(name))
            assert found.sha256 is not None
            assert found.fingerprint is not None
            return InspectedVae(
                name=found.name,
                layout=found.layout,
                kind=found.kind,
                part=found.part,
                family=found.family,
                family_known_by=found.family_known_by,
                known_as=found.known_as,
                z_channels=found.z_channels,
                scale_factor=found.scale_factor,
                shift_factor=found.shift_factor,
                parameters=dict(found.parameters),
                dtype=found.dtype,
                sha256=found.sha256,
                fingerprint=found.fingerprint,
                warnings=list(found.warnings),
            )

    def status(self) -> ActiveVae:
        """Which VAE is active and why."""
        return ActiveVae(**self._backend.api_status())  # type: ignore[arg-type]

    def encode(self, request: EncodeRequest) -> Encoded:
        """A picture to a latent as the sampler sees it; sides are extended to multiples of the VAE's cell."""
        with answered():
            image = to_image(
                open_picture(io.BytesIO(_bytes(request.image, PictureError("the picture is not base64."))))
            )
            entry = self._backend.library.get(request.vae)
            with self._backend.computing() as device:
                vae = self._vae(entry, request.family, request.dtype, device)
                padded, size = reflect_pad(image, vae.latent_format.downscale)
                generator = torch.Generator().manual_seed(request.seed) if request.sample else None
                done = self._run_by_plan(vae)
                latent = vae.encode(padded.to(device), generator=generator).cpu()
            sha256 = self._backend.library.sha256(entry)
            file = LatentFile.of(latent, vae.latent_format, size, sha256)
            return Encoded(
                latent=base64.b64encode(_latent_bytes(file)).decode("ascii"),
                shape=[*latent.shape],
                **done,
                vae_sha256=sha256,
                warnings=[*vae.warnings],
            )

    def decode(self, request: DecodeRequest) -> Decoded:
        """A latent to a picture, cropped to the true size the latent remembers."""
        with answered():
            file = _latent_from(_bytes(request.latent, LatentFileError("the latent is not base64.")))
            entry = self._backend.library.get(request.vae)
            with self._backend.computing() as device:
                vae = self._vae(entry, file.family or None, request.dtype, device)
                done = self._run_by_plan(vae)
                image = vae.decode(file.latent.to(device)).float().cpu()
            pixels = to_pixels(crop(image, file.size) if file.size else image)[0]
            return Decoded(
                image=base64.b64encode(png_bytes(pixels)).decode("ascii"),
                **done,
                height=pixels.shape[0],
                width=pixels.shape[1],
                vae_sha256=self._backend.library.sha256(entry),
                warnings=[*vae.warnings],
            )

    def _run_by_plan(self, vae: Vae) -> dict[str, Any]:
        """Let the VAE run by a plan that fits into memory; the fields of `Run`, filled once it has run."""
        done: dict[str, Any] = {}
        tiling, runner = self._backend.tiling, VaeRunner()

        def network(half: Half, x: Tensor) -> Tensor:
            try:
                result = runner.run(
                    vae.module,
                    half,
                    x,
                    dtype=x.dtype,
                    device=x.device,
                    tiling=tiling,
                    precision=Precision(label=vae.label),
                )
            except StepAsideError:  # its own forward does what it can
                return vae.module.encode(x) if half == "encoder" else vae.module.decode(x)
            if runner.mine is not None:
                done.update(plan=runner.mine.plan, bands=runner.mine.bands)
            return result

        vae.network = network
        return done

    def _vae(self, entry: Entry, family: str | None, dtype: Dtype, device: torch.device) -> Vae:
        weights = self._backend.library.load(entry)
        latent_format, warning = choose_format(weights.detection, family, label=entry.name)
        module = build(weights, dtype=wanted_dtype(dtype, device)).to(device)
        return Vae(
            module,
            latent_format,
            part=weights.detection.part,
            label=entry.name,
            warnings=(*weights.detection.warnings, *([warning] if warning else [])),
        )


@contextmanager
def answered() -> Iterator[None]:
    """Deliberate errors as HTTP answers of one line: 404 for a name that is not there, else 422."""
    try:
        yield
    except VaeKitError as error:
        status = 404 if isinstance(error, VaeNotFoundError) else 422
        raise HTTPException(status_code=status, detail=str(error)) from error


def _bytes(text: str, error: VaeKitError) -> bytes:
    """base64, with or without the `data:image/png;base64,` that browsers put in front."""
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except (binascii.Error, ValueError):
        raise error from None


def _latent_bytes(file: LatentFile) -> bytes:
    return save_tensors({NAME: file.latent.contiguous()}, file.metadata)


def _latent_from(data: bytes) -> LatentFile:
    try:
        latent = load_tensors(data)[NAME]
        header_size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + header_size]).get("__metadata__", {})
    except (SafetensorError, KeyError, ValueError) as error:
        raise LatentFileError(f"This is no safetensors file with a tensor {NAME}; make one with encode.") from error
    return check_latent(latent, metadata, "the request")
