"""The panel under txt2img and img2img, and what happens to a job on its way through the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modules import scripts

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.protocol import WebuiHost
from sd_vae_kit.settings.job import JobChoices, JobTiling, job_from
from sd_vae_kit.vaes.rules import Run
from sd_vae_kit.webui import panel
from sd_vae_kit.webui.running import running
from sd_vae_kit.webui.tiling_panel import TilingPanel

XYZ_VALUES = "_vae_kit_xyz"  # attribute of the job that XYZ axes write into


class VaeKitScript(scripts.Script):
    """Reads the panel's values and hands them to the host; holds no state between a job's hooks.

    A VAE that was chosen for the job and cannot be used stops the job: a picture by another VAE than the one asked for
    would look like success.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {}  # the tab's widgets by DOM id
        self.tiling_panel: TilingPanel | None = None

    def title(self) -> str:
        return "VAE Kit"

    def show(self, is_img2img: bool) -> object:
        return scripts.AlwaysVisible if running() else False

    def ui(self, is_img2img: bool) -> list[Any]:
        host = running()
        if host is None:
            return []
        built = panel.build("img2img" if is_img2img else "txt2img", host)
        self.infotext_fields = built.infotext_fields
        self.paste_field_names = built.paste_field_names
        self.tiling_panel = built.tiling
        return built.controls

    def after_component(self, component: Any, **kwargs: Any) -> None:
        """The host has begun another widget of the tab: those before it are complete."""
        if self.tiling_panel is not None:
            self.tiling_panel.connect(self.seen)
        elem_id = kwargs.get("elem_id")
        if elem_id:
            self.seen.setdefault(str(elem_id), component)

    def before_process(self, p: Any, *values: object) -> None:
        """Before the host stores the options it will restore: make it store all of them."""
        host = running()
        if host is not None:
            host.base.options.save_defaults_of(p.override_settings or {})

    def process(self, p: Any, *values: object) -> None:
        """The host encodes an img2img picture after this hook."""
        choice = self._begin(p, values, "img2img encode" if getattr(self, "is_img2img", False) else "picture")
        if choice is not None:
            p.extra_generation_params.update(self._applying(choice).infotext())
            self._check_methods(p)

    def postprocess_batch(self, p: Any, *values: object, **_: object) -> None:
        """After decoding, before the infotext is written."""
        host = running()
        if host is not None and host.taesd is not None:
            host.taesd.correct_infotext(p)

    def before_process_batch(self, p: Any, *values: object, **_: object) -> None:
        self._begin(p, values, "picture")

    def process_before_every_sampling(self, p: Any, *values: object, **_: object) -> None:
        self._begin(p, values, "hires" if getattr(p, "is_hr_pass", False) else "picture")

    def postprocess(self, p: Any, processed: object, *values: object) -> None:
        host = running()
        if host is not None:
            host.jobs.end()

    def _check_methods(self, p: Any) -> None:
        """Refuse a job whose options name ways of encoding and decoding that do not exist."""
        host = running()
        if host is None or host.taesd is None:
            return
        try:
            host.taesd.begin_job(p)
        except VaeKitError as error:
            refuse(p, host, error)

    def _applying(self, choice: JobChoices) -> JobChoices:
        """What of a job's choice is done: a picture must not say that a VAE was tiled which the host runs itself."""
        host = running()
        if host is None or host.forecasts.knows_network or choice.tiling == JobTiling():
            return choice
        line = f"Tiling does not apply: the VAE of this model is of a kind that {host.name} runs itself."
        host.base.messages.notify_once(line, "warning")
        return replace(choice, tiling=JobTiling())

    def _begin(self, p: Any, values: tuple[object, ...], run: Run) -> JobChoices | None:
        """Make the pass's VAE live; None where nothing was done, because it cannot be or the extension is off."""
        host = running()
        if host is None:
            return None
        try:
            choice = job_from(values, getattr(p, XYZ_VALUES, None)).with_names(host.names.full_name)
            host.interceptor.settings.choose(choice.tiling)
            host.jobs.begin_pass(choice.vaes.for_hires if run == "hires" else choice.vaes.vae, run)
        except VaeKitError as error:
            refuse(p, host, error)
            return None
        if run != "hires":  # a picture's parameters name the VAE of its first pass; the host took it before any hook
            host.infotext.write(p)
        return choice


def refuse(p: Any, host: WebuiHost, error: VaeKitError) -> None:
    """Say why a job cannot be done, and let it fail."""
    host.base.messages.notify(str(error), "error")
    stop(p, host.base.messages.refused(error))


def stop(p: Any, error: Exception) -> None:
    """Let the job fail with `error`.

    A hook's own exception is only printed and the job goes on (scripts.py:820), so the host's next step raises it:
    `init` before the first batch, `sample` after that.
    """

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    p.init = p.sample = fail
    if getattr(p, "sampler", None) is not None:
        p.sampler.sample = p.sampler.sample_img2img = fail
