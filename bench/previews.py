"""What live previews cost: `python -m bench.previews --a1111 DIR`; without --a1111 only the stand-alone app's part.

In A1111 (started here, on a CPU): wall time of one job while the page's poll comes as often as it can, in turns with
previews at every step by this package, by A1111 itself (TAESD both times) and with previews off.  Ours once without a
time limit and once with the default of 20 %.  Alone: the part of a job's wall time that previews take under the default
limit.  Needs DIR/models/VAE-taesd/taesd_decoder.pth, which A1111's own preview loads.  Takes two to three minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
JOB = {"prompt": "a cat", "steps": 40, "width": 256, "height": 256, "seed": 1, "sampler_name": "Euler", "cfg_scale": 2}
OURS = {"vae_kit_repair_previews": True, "vae_kit_repair_taesd": True}
WAYS: dict[str, dict[str, object]] = {
    "off": {"live_previews_enable": False},
    "ours, 20 % of the time": {**OURS, "live_previews_enable": True, "vae_kit_preview_share": 20},
    "ours, no limit": {**OURS, "live_previews_enable": True, "vae_kit_preview_share": 100},
    "A1111's own": {"live_previews_enable": True, "vae_kit_repair_previews": False, "vae_kit_repair_taesd": False},
}


def call(url: str, path: str, data: object = None) -> dict[str, object]:
    """GET, or POST where there is something to send."""
    body = json.dumps(data).encode() if data is not None else None
    request = urllib.request.Request(url + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:  # the program started here, or an address the user gave
        found: dict[str, object] = json.loads(answer.read() or b"null")
    return found


def job_with_polls(url: str) -> tuple[float, int]:
    """Seconds a job took, and how many different previews polls brought meanwhile."""
    seconds: list[float] = []

    def run() -> None:
        before = time.perf_counter()
        call(url, "/sdapi/v1/txt2img", JOB)
        seconds.append(time.perf_counter() - before)

    job = threading.Thread(target=run)
    job.start()
    shown: set[object] = set()
    while job.is_alive():
        shown.add(call(url, "/sdapi/v1/progress").get("current_image"))
        time.sleep(0.02)
    return seconds[0], len(shown - {None, ""})


def in_a1111(url: str, rounds: int) -> None:
    """All ways in turns, the first round thrown away."""
    call(url, "/sdapi/v1/options", {"show_progress_type": "TAESD", "show_progress_every_n_steps": 1})
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        for name, options in WAYS.items():
            call(url, "/sdapi/v1/options", options)
            taken = job_with_polls(url)
            if number:
                found[name].append(taken)
    call(url, "/sdapi/v1/options", OURS)
    size = f"{JOB['width']} x {JOB['height']}, {JOB['steps']} steps"
    print(f"A1111, {size}, median of {rounds} (all)\n\n| previews | wall time | previews shown |\n|---|---:|---:|")
    for name, taken in found.items():
        seconds, shown = [one for one, _ in taken], statistics.median(count for _, count in taken)
        every = ", ".join(f"{one:.2f}" for one in seconds)
        print(f"| {name} | {statistics.median(seconds):.2f} s ({every}) | {shown:.0f} |")


def alone(rounds: int) -> None:
    """The stand-alone app's jobs, with previews under the default limit and without, in turns."""
    from sd_vae_kit.core.preview_worker import Previews
    from sd_vae_kit.standalone.backend import build_backend
    from sd_vae_kit.standalone.folders import Folders
    from sd_vae_kit.standalone.job import Txt2Img

    with tempfile.TemporaryDirectory() as data:
        folders = Folders(Path(data))
        folders.make()
        backend = build_backend(folders, Path(data) / "shown")
        offers = backend.maker.engine.previews
        kept: list[Previews[object]] = []
        original = offers.offered

        @contextmanager
        def previews(*args: object) -> Iterator[Previews[object]]:
            with original(*args) as made:  # type: ignore[arg-type]
                kept.append(made)
                yield made

        offers.offered = previews  # type: ignore[method-assign,assignment]
        print("\nAlone, 512 x 512, 60 steps\n\n| previews | wall time | rendering | of the sampling's time | shown |")
        print("|---|---:|---:|---:|---:|")
        for _ in range(rounds + 1):
            for preview in ("off", "TAESD"):
                job = Txt2Img("cat", steps=60, seed=1, preview=preview)
                before = time.perf_counter()
                backend.maker.txt2img(job)
                wall = time.perf_counter() - before
                sampled = kept[-1].lasted
                part = kept[-1].budget.spent / max(sampled, 1e-9)
                spent = kept[-1].budget.spent
                print(f"| {preview} | {wall:.2f} s | {spent:.2f} s | {100 * part:.0f} % | {kept[-1].rendered} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--a1111", type=Path, help="folder of an installation, started for this")
    parser.add_argument("--url", help="of an A1111 that runs already with --api")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.url:
        in_a1111(given.url, given.rounds)
    elif given.a1111:
        sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "webui")]
        os.environ["VAE_KIT_A1111_DIR"] = str(given.a1111)
        os.environ.setdefault("VAE_KIT_A1111_ARGS", "--skip-install")
        from installation import A1111, start

        with tempfile.TemporaryDirectory() as data:
            webui = start(A1111, Path(data))
            try:
                in_a1111(webui.url, given.rounds)
            finally:
                webui.stop()
    alone(given.rounds)


if __name__ == "__main__":
    main()
