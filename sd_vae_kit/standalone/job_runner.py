"""Jobs of the pages: run in a thread of their own, watched by any number of pages, results saved."""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from sd_vae_kit.errors import OptionError, PictureError, VaeKitError
from sd_vae_kit.pictures import picture_file as pictures
from sd_vae_kit.pictures.picture_file import Pixels
from sd_vae_kit.settings.job import JobTiling
from sd_vae_kit.settings.sections import SavingSettings
from sd_vae_kit.standalone.generation import JobProgress, JobResult, Made
from sd_vae_kit.standalone.host import StandaloneHost
from sd_vae_kit.standalone.job import Finished, Snapshot, State, Txt2Img, fit_size
from sd_vae_kit.standalone.picture_maker import PictureMaker
from sd_vae_kit.wording import Sentence

log = logging.getLogger(__name__)

PREVIEW_QUALITY = 80
NUMBER = re.compile(r"(\d{5,})-")


class JobRunner:
    """Implements `JobsBackend`: one job at a time; the latest snapshot and the latest job of every tab are kept.

    Args:
        host: Its settings say what is saved.
        maker: Makes the pictures.
        shown: Folder from which the page may show files; every result is written there.
        data: Folder that a relative output folder starts from.
    """

    def __init__(self, host: StandaloneHost, maker: PictureMaker, shown: Path, data: Path) -> None:
        self._host = host
        self._maker = maker
        self._shown = shown
        self._data = data
        self._changed = threading.Condition()
        self._snapshots: dict[str, Snapshot] = {}
        self._jobs: dict[str, Txt2Img] = {}
        self._count = 0

    def start(self, tab: str, job: Txt2Img) -> None:
        """Begin a job.

        Raises:
            OptionError: Another one is running.
        """
        with self._changed:
            running = next((name for name, snapshot in self._snapshots.items() if snapshot.is_running), None)
            if running:
                raise OptionError(f"A job is running in {running}; wait until it has finished or press Interrupt.")
            self._jobs[tab] = job
            previous = self._snapshots.get(tab, Snapshot()).pictures
            self._snapshots[tab] = Snapshot("running", pictures=previous)
            self._changed.notify_all()
        threading.Thread(target=self._run, args=(tab, job, previous), name=f"vae-kit-{tab}", daemon=True).start()

    def snapshot(self, tab: str) -> Snapshot:
        return self._snapshots.get(tab, Snapshot())

    def watch(self, tab: str) -> Iterator[Snapshot]:
        """The tab's job as it is, then again whenever something changed, until it has ended."""
        seen = self.snapshot(tab)
        yield seen
        while seen.is_running:
            with self._changed:
                last = seen
                self._changed.wait_for(lambda last=last: self.snapshot(tab) is not last)  # type: ignore[misc]
            seen = self.snapshot(tab)
            yield seen

    def last_job(self, tab: str) -> Txt2Img | None:
        return self._jobs.get(tab)

    def interrupt(self) -> None:
        """End the running job after its current step."""
        self._maker.interrupt()

    def forecast(self, size: tuple[int, int], tiling: JobTiling) -> Sentence:
        """What will happen when a picture of (height, width) is decoded."""
        return self._maker.forecast(size, tiling)

    def picture_size(self, path: Path) -> tuple[int, int]:
        """(height, width) of a picture file as it will be read."""
        height, width = pictures.open_picture(path).size
        return fit_size(height, width)

    def _publish(self, tab: str, snapshot: Snapshot) -> None:
        with self._changed:
            self._snapshots[tab] = snapshot
            self._changed.notify_all()

    def _run(self, tab: str, job: Txt2Img, previous: tuple[Finished, ...]) -> None:
        def on_progress(progress: JobProgress) -> None:
            preview = None if progress.preview is None else jpeg(progress.preview)
            with self._changed:  # previews come from another thread than the steps
                now = self.snapshot(tab)
                shown = replace(now, step=progress.step, steps=progress.steps, phase=progress.phase)
                self._publish(tab, shown if preview is None else replace(shown, preview=preview))

        try:
            outcome = self._maker.txt2img(job, on_progress)
            finished = tuple(self._save(made) for made in outcome.pictures)
            state: State = "interrupted" if outcome.is_interrupted else "done"
            self._publish(tab, Snapshot(state, pictures=finished or previous, message=summary(job, outcome)))
        except VaeKitError as error:
            self._publish(tab, Snapshot("failed", pictures=previous, message=str(error)))
        except Exception as error:  # the page must hear of it, whatever it is
            log.exception("a job in %s failed", tab)
            message = f"The job failed unexpectedly ({type(error).__name__}: {error}); the log has the details."
            self._publish(tab, Snapshot("failed", pictures=previous, message=" ".join(message.split())))

    def _save(self, made: Made) -> Finished:
        """Write the picture where the page can show it and, if wanted, into the output folder."""
        saving = self._host.settings.saving
        text = made.infotext if saving.write_infotext else None
        self._count += 1
        folder = self._shown / f"{self._count:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self._count:05d}-{made.seed}.png"
        if saving.save_images:
            try:
                name = self._save_for_good(saving, made, text)
            except (OSError, PictureError) as error:
                self._host.notify(f"The picture was not saved: {error}", "warning")
        pictures.save_picture(folder / name, made.pixels, text)
        return Finished(folder / name, made.infotext, made.seed)

    def _save_for_good(self, saving: SavingSettings, made: Made, text: str | None) -> str:
        """Write into the output folder, a folder per day, numbered; returns the file's name."""
        folder = self._data / saving.folder / time.strftime("%Y-%m-%d")
        folder.mkdir(parents=True, exist_ok=True)
        numbers = (NUMBER.match(path.name) for path in folder.iterdir())
        number = max((int(match[1]) for match in numbers if match), default=0) + 1
        name = f"{number:05d}-{made.seed}.png"
        pictures.save_picture(folder / name, made.pixels, text)
        return name


def jpeg(pixels: Pixels) -> bytes:
    """Pixels (H, W, 3) as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=PREVIEW_QUALITY)
    return file.getvalue()


def summary(job: Txt2Img, outcome: JobResult) -> str:
    """One line on how a job went."""
    count = len(outcome.pictures)
    many = "1 picture" if count == 1 else f"{count} pictures"
    if outcome.is_interrupted and not count:
        return "Interrupted before there was a picture."
    ending = "; interrupted, so this is what there was" if outcome.is_interrupted else ""
    return f"{many} of {job.width} x {job.height} in {outcome.seconds:.1f} s{ending}."
