"""Forge's options, with SD VAE as it is in force while a job runs."""

from __future__ import annotations

from dataclasses import dataclass

from sd_vae_kit.hosts.a1111.options import A1111Options


@dataclass
class VaeInForce:
    """What SD VAE is taken for while a job runs; a change of the option waits for the job's end.

    Attributes:
        job: SD VAE when the running job began.
        request: What the running request's override_settings.sd_vae names, where the web UI hands that over.
    """

    job: str | None = None
    request: str | None = None


class ForgeOptions(A1111Options):
    """As A1111's.

    Args:
        in_force: What SD VAE is taken for.
    """

    def __init__(self, in_force: VaeInForce) -> None:
        self._in_force = in_force

    def value(self, key: str, default: object = None) -> object:
        if key == "sd_vae":
            for choice in (self._in_force.request, self._in_force.job):
                if choice is not None:
                    return choice
        return super().value(key, default)
