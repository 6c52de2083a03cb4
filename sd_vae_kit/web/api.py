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
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from sd_vae_kit.core.dtypes import wanted_dtype
from sd_vae_kit.core.files.latent_file import NAME, LatentFile, check_latent
from sd_vae_kit.core.run.precision_fixes_file import PrecisionFixesFile
from sd_vae_kit.core.run.report import RunReport
from sd_vae_kit.core.run.request import RunRequest
from sd_vae_kit.core.run.runner import Runner
from sd_vae_kit.core.vae import Vae, make_vae
from sd_vae_kit.errors import LatentFileError, PictureError, VaeKitError, VaeNotFoundError
from sd_vae_kit.pictures.picture_file import crop, open_picture, png_bytes, reflect_pad, to_image, to_pixels
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.inspection import Inspector
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.web.api_models import (
    VAE_NAME,
    ActiveVae,
    Decoded,
    DecodeRequest,
    Dtype,
    Encoded,
    EncodeRequest,
    Forgotten,
    InspectedVae,
    Problem,
    VaeItem,
    VaeList,
)

PREFIX = "/vae-kit/v1"
REFUSALS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is no VAE file of that name."},
    422: {"model": Problem, "description": "The file or the request cannot be used. The answer says why."},
}


class ApiBackend(Protocol):
    """What the API asks of the app or web UI that serves it."""

    @property
    def library(self) -> Library:
        """The files that can be named."""

    @property
    def inspector(self) -> Inspector:
        """Says what they are."""

    @property
    def precision_fixes(self) -> PrecisionFixesFile:
        """What VAEs needed to stay finite in half precision."""

    def run_request(self) -> RunRequest:
        """How VAEs are run, as the settings are now."""

    def api_status(self) -> dict[str, object]:
        """Fields of `ActiveVae`."""

    def forget_precision(self) -> int:
        """Forget what VAEs needed in half precision; how many halves that were."""

    def computing(self) -> AbstractContextManager[torch.device]:
        """Hold while the API computes; gives the device."""


def make_router(backend: ApiBackend, dependencies: Sequence[Any] = ()) -> APIRouter:
    """All routes.

    Args:
        backend: What the routes ask.
        dependencies: FastAPI dependencies of every route, such as a check of user and password.
    """
    api = Api(backend)
    router = APIRouter(prefix=PREFIX, dependencies=list(dependencies), tags=["VAE Kit"])
    for route in _routes(api):
        router.add_api_route(
            route.path,
            route.endpoint,
            methods=[route.method],
            response_model=route.answer,
            summary=route.summary,
            responses=REFUSALS if route.can_fail else None,
        )
    return router


@dataclass(frozen=True)
class Route:
    """One route.

    Attributes:
        method, path: "GET" or "POST", and the path below `PREFIX`.
        endpoint: Answers a request; users read its docstring.
        answer: What it gives.
        summary: The route's title in the list that users see.
        can_fail: Whether a request may name a file that is not there or ask for something that cannot be done.
    """

    method: str
    path: str
    endpoint: Callable[..., BaseModel]
    answer: type[BaseModel]
    summary: str
    can_fail: bool = True


def _routes(api: Api) -> tuple[Route, ...]:
    return (
        Route("GET", "/list", api.list, VaeList, "List VAE files", can_fail=False),
        Route("GET", "/inspect", api.inspect, InspectedVae, "Inspect a VAE file"),
        Route("GET", "/status", api.status, ActiveVae, "Say which VAE is active", can_fail=False),
        Route("POST", "/encode", api.encode, Encoded, "Encode a picture"),
        Route("POST", "/decode", api.decode, Decoded, "Decode a latent"),
        Route("POST", "/forget-precision", api.forget_precision, Forgotten, "Forget fixes for half precision", False),
    )


class Api:
    """The endpoints; every deliberate error becomes one line with a fitting status."""

    def __init__(self, backend: ApiBackend) -> None:
        self._backend = backend
        self._runner = Runner(backend.precision_fixes)

    def forget_precision(self) -> Forgotten:
        """Forget what VAEs needed to stay finite in half precision.

        The next encode and decode of each VAE finds it out again.
        """
        return Forgotten(forgotten=self._backend.forget_precision())

    def list(self) -> VaeList:
        """List all VAE files in the model folders. A file that cannot be used is listed with the reason."""
        return VaeList(vaes=[self._item(entry) for entry in self._backend.library.entries])

    def _item(self, entry: Entry) -> VaeItem:
        family = self._backend.inspector.finder.remembered(entry).family
        return VaeItem(name=entry.name, family=family, size=entry.size, problem=entry.reason)

    def inspect(self, name: str = Query(..., description=VAE_NAME)) -> InspectedVae:
        """Read one VAE file and say what it contains. Nothing in the file is executed."""
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
        """Say which VAE is active, why it was chosen, and how the last picture was encoded and decoded."""
        return ActiveVae(**self._backend.api_status())  # type: ignore[arg-type]

    def encode(self, request: EncodeRequest) -> Encoded:
        """Encode a picture to a latent, scaled as a sampler expects it.

        Sides that are no multiple of the VAE's latent cell (8 pixels for most models) are extended by reflection. The
        latent remembers the true size, and /decode crops to it.
        """
        with answered():
            image = to_image(
                open_picture(io.BytesIO(_bytes(request.image, PictureError("the picture is not base64."))))
            )
            entry = self._backend.library.get(request.vae)
            with self._backend.computing() as device:
                vae = self._vae(entry, request.family, request.dtype, device)
                padded, size = reflect_pad(image, vae.latent_format.downscale)
                generator = torch.Generator().manual_seed(request.seed) if request.sample else None
                latent = vae.encode(padded.to(device), generator=generator, request=self._backend.run_request()).cpu()
            sha256 = self._backend.library.sha256(entry)
            file = LatentFile.of(latent, vae.latent_format, size, sha256)
            return Encoded(
                latent=base64.b64encode(_latent_bytes(file)).decode("ascii"),
                shape=[*latent.shape],
                vae_sha256=sha256,
                **_done(vae, vae.reports["encoder"]),
            )

    def decode(self, request: DecodeRequest) -> Decoded:
        """Decode a latent to a picture, cropped to the size that the latent remembers."""
        with answered():
            file = _latent_from(_bytes(request.latent, LatentFileError("the latent is not base64.")))
            entry = self._backend.library.get(request.vae)
            with self._backend.computing() as device:
                vae = self._vae(entry, file.family or None, request.dtype, device)
                image = vae.decode(file.latent.to(device), request=self._backend.run_request()).float().cpu()
            pixels = to_pixels(crop(image, file.size) if file.size else image)[0]
            return Decoded(
                image=base64.b64encode(png_bytes(pixels)).decode("ascii"),
                height=pixels.shape[0],
                width=pixels.shape[1],
                vae_sha256=self._backend.library.sha256(entry),
                **_done(vae, vae.reports["decoder"]),
            )

    def _vae(self, entry: Entry, family: str | None, dtype: Dtype, device: torch.device) -> Vae:
        weights = self._backend.library.load(entry)
        known = family or self._backend.inspector.family(entry, weights).to_run_as
        vae = make_vae(weights, family=known, dtype=wanted_dtype(dtype, device), label=entry.name, runner=self._runner)
        vae.module.to(device)
        return vae


def _done(vae: Vae, report: RunReport) -> dict[str, Any]:
    """The fields of `Run`, and the warnings."""
    return {"plan": report.plan, "bands": report.bands, "warnings": [*vae.warnings, *report.warnings]}


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
