"""How long a running Forge takes to change its VAE: `python -m bench.forge_swap URL VAE VAE`.

Both ways in turns on the same server: the option `sd_vae`, which this package brings back, and Forge's own "VAE / Text
Encoder" (`forge_additional_modules`), which loads the checkpoint again when the next picture is made.  So what counts
is the time from the choice to the end of a small picture, which both ways make.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import urllib.request

PICTURE = {"prompt": "a cat", "steps": 1, "width": 64, "height": 64, "seed": 1, "sampler_name": "Euler", "cfg_scale": 1}


def post(url: str, path: str, data: object) -> float:
    """Seconds a request took."""
    request = urllib.request.Request(url + path, json.dumps(data).encode(), {"Content-Type": "application/json"})
    before = time.perf_counter()
    with urllib.request.urlopen(request) as answer:  # an address the user gave
        answer.read()
    return time.perf_counter() - before


def measure(url: str, names: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds: the choice alone by sd_vae, and choice and picture by either way."""
    found: dict[str, list[float]] = {"sd_vae, choice": [], "sd_vae": [], "modules": []}
    for number in range(rounds):
        name = names[number % len(names)]
        post(url, "/sdapi/v1/options", {"forge_additional_modules": []})
        post(url, "/sdapi/v1/txt2img", PICTURE)
        for warmed in [*names, "None", *names, "Automatic"]:  # a new engine reads each file once
            post(url, "/sdapi/v1/options", {"sd_vae": warmed})
        post(url, "/sdapi/v1/txt2img", PICTURE)
        choice = post(url, "/sdapi/v1/options", {"sd_vae": name})
        found["sd_vae, choice"].append(choice)
        found["sd_vae"].append(choice + post(url, "/sdapi/v1/txt2img", PICTURE))
        post(url, "/sdapi/v1/options", {"sd_vae": "Automatic"})
        choice = post(url, "/sdapi/v1/options", {"forge_additional_modules": [name]})
        found["modules"].append(choice + post(url, "/sdapi/v1/txt2img", PICTURE))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="of a Forge started with --api")
    parser.add_argument("vae", nargs=2, help="name as in its list of VAEs")
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    found = measure(given.url, given.vae, given.rounds)
    medians = {way: 1000 * statistics.median(seconds) for way, seconds in found.items()}
    for way, seconds in found.items():
        print(f"{way:>15}: median {medians[way]:7.0f} ms   ({', '.join(f'{1000 * s:.0f}' for s in seconds)})")
    print(f"modules take {medians['modules'] - medians['sd_vae']:.0f} ms longer than sd_vae from choice to picture")


if __name__ == "__main__":
    main()
