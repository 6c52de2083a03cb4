"""Train the demo VAEs in sd_vae_kit/standalone/demo: small networks in Stable Diffusion 1's latent space.

TAESD (madebyollin/taesd, MIT) is the teacher: its encoder turns photographs into latents.  The decoders learn to turn
those latents back into the photographs, the encoder learns to produce them.  Given the teacher, the parts do not need
each other, so each is a job of its own:

    python -m tools.train_demo --part encoder --minutes 30 --pictures DIR
    python -m tools.train_demo --part decoder --minutes 60 --pictures DIR
    python -m tools.train_demo --part decoder --look vivid --minutes 15 --pictures DIR
    python -m tools.train_demo --part tiny --minutes 35 --pictures DIR
    python -m tools.train_demo --export sd_vae_kit/standalone/demo
    python -m tools.train_demo --evaluate sd_vae_kit/standalone/demo --pictures DIR

`--weights` (or VAE_KIT_TEST_WEIGHTS) is the folder with taesd_encoder.safetensors and taesd_decoder.safetensors.
`--pictures` are folders searched for pictures; those of the installed scikit-image and scikit-learn are added
(`.venv/bin/python -m pip install -r requirements-train.lock` installs both).
sd_vae_kit/standalone/demo/README.md says which were used.  The pictures named in `HELD_OUT` are never trained on.

The schedule follows the clock, not the step count, so that a job ends when it was asked to; a second run draws from the
same pictures in the same order, but changes the size of the crops at other steps.  `--resume` goes on from the last
checkpoint.  On few, busy cores two jobs with `--threads 1` get further than one job with two threads, which wait for
each other.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.core.networks.taesd import tiny_decoder, tiny_encoder

FAMILY = FORMATS["sd1"]
# 64 channels: two per group, so that the last norm can carry brightness.  Both looks have the same shape, as all VAEs
# of a family do, so that one can take the other's place in a live model.
NET = NetConfig(ch=64, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
KL = KlConfig(encoder=NET, decoder=NET)
TINY_WIDTH = 32  # a quarter of the published width's arithmetic: made for previews during sampling
LOG_VARIANCE = -16.0  # what the encoder should claim: a standard deviation of 3e-4, next to nothing

HELD_OUT = ("Autumn", "LadyBird", "ColorfulCups", "Path", "YellowFlower")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
SHORT_SIDES = (192, 256, 384, 512, 768)  # every picture is seen at these sizes, for texture of every scale
LUMA = torch.tensor([0.299, 0.587, 0.114])

LEARNING_RATES = {"encoder": 2e-3, "decoder": 2e-3, "tiny": 1e-3}  # without norms, half
FINE_TUNING_RATE = 5e-4
EMA_DECAY = 0.999
SAVE_SECONDS = 150.0


@dataclass(frozen=True)
class Stage:
    """What a batch looks like up to some share of the training time.

    Attributes:
        until: Share of the time at which the next stage begins.
        crop: Side of the square crops in pixels.
        batch: Crops per step.
    """

    until: float
    crop: int
    batch: int


# Small crops give many quick steps; large ones at the end give GroupNorm the statistics of a whole picture.
STAGES = (Stage(0.35, 64, 6), Stage(0.75, 96, 3), Stage(0.92, 160, 1), Stage(math.inf, 224, 1))
FINE_TUNING_FROM = 0.5  # a job that starts from a trained network skips the small crops


# -- pictures ----------------------------------------------------------------------------------------------------------


def packaged_folders() -> list[Path]:
    """The picture folders of scikit-image and scikit-learn, as far as these are installed."""
    folders = []
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folders.append(Path(spec.origin).parent / folder)
    return folders


def find_pictures(folders: list[Path]) -> dict[str, Path]:
    """Picture files below the folders by name, without thumbnails and without other sizes of the same picture."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.stem != "screenshot":
                found.setdefault(picture_name(path), path)
    return found


def picture_name(path: Path) -> str:
    """KDE packages Autumn as Autumn/contents/images/2560x1600.jpg, others LadyBird.jpg or Elephants_3840x2160.jpg."""
    return path.parts[-4] if "contents" in path.parts else re.sub(r"_\d+x\d+$", "", path.stem)


def load_pixels(path: Path, short_side: int) -> Tensor:
    """uint8 (3, H, W), shrunk so that the shorter side has `short_side` pixels; smaller pictures stay as they are."""
    with Image.open(path) as picture:
        picture.draft("RGB", (2 * short_side, 2 * short_side))  # JPEG can be decoded at a fraction of its size
        rgb = picture.convert("RGB")
    ratio = short_side / min(rgb.size)
    if ratio < 1:
        rgb = rgb.resize((round(rgb.width * ratio), round(rgb.height * ratio)), Image.Resampling.LANCZOS)
    return torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(rgb.height, rgb.width, 3).permute(2, 0, 1)


def build_pyramids(folders: list[Path], cache: Path) -> list[list[Tensor]]:
    """Every training picture at `SHORT_SIDES`, uint8 (3, H, W) each; kept in `cache`, for decoding takes a while."""
    if cache.exists():
        pyramids: list[list[Tensor]] = torch.load(cache, weights_only=True)
        return pyramids
    pyramids = []
    for name, path in tqdm(find_pictures(folders).items(), desc="pictures"):
        if name in HELD_OUT:
            continue
        largest = load_pixels(path, SHORT_SIDES[-1])
        short, long = sorted(largest.shape[1:])
        if short >= 256 and long <= 4 * short:  # not icons, not strips of animation
            pyramids.append([shrink(largest, side / short) for side in SHORT_SIDES if side <= short])
    torch.save(pyramids, cache)
    return pyramids


def shrink(pixels: Tensor, ratio: float) -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, ratio * H, ratio * W)."""
    if ratio == 1:
        return pixels.clone()
    small = F.interpolate(pixels[None].float(), scale_factor=ratio, mode="bicubic", antialias=True)[0]
    return small.round().clamp(0, 255).to(torch.uint8)


def picture_weights(pyramids: list[list[Tensor]]) -> Tensor:
    """(N,): how often to draw each picture; flat artwork less often, judged by the difference of neighbours."""
    middles = [levels[min(2, len(levels) - 1)].float() for levels in pyramids]
    detail = torch.stack([(middle[:, :, 1:] - middle[:, :, :-1]).abs().mean() for middle in middles])
    return 0.25 + (detail / detail.median()).clamp(max=1)


def draw_crops(pyramids: list[list[Tensor]], weights: Tensor, stage: Stage, generator: torch.Generator) -> Tensor:
    """(batch, 3, crop, crop) in [0, 1]: random picture, size, place, mirroring and colours."""

    def integer(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    crops = []
    for index in torch.multinomial(weights, stage.batch, replacement=True, generator=generator).tolist():
        levels = [level for level in pyramids[index] if min(level.shape[1:]) >= stage.crop]
        pixels = levels[integer(len(levels))]
        top, left = (integer(size - stage.crop + 1) for size in pixels.shape[1:])
        crop = pixels[:, top : top + stage.crop, left : left + stage.crop].float() / 255
        crops.append(crop.flip(-1) if integer(2) else crop)
    return jitter_colours(torch.stack(crops), generator)


def jitter_colours(rgb: Tensor, generator: torch.Generator) -> Tensor:
    """Other saturation, gamma, brightness and hues for half of the crops: a few dozen photographs have too few."""
    B = rgb.shape[0]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    luma = (rgb * LUMA.view(3, 1, 1)).sum(1, keepdim=True)
    out = luma + (rgb - luma) * uniform(0.4, 1.6, B, 1, 1, 1)
    out = out.clamp(0, 1) ** uniform(0.7, 1.45, B, 1, 1, 1) * uniform(0.75, 1.15, B, 3, 1, 1)
    if torch.rand((), generator=generator) < 0.3:
        out = out[:, torch.randperm(3, generator=generator)]
    keep = torch.rand((B, 1, 1, 1), generator=generator) < 0.5
    return torch.where(keep, rgb, out.clamp(0, 1))


# -- looks -------------------------------------------------------------------------------------------------------------


def vivid_matrix() -> Tensor:
    """(3, 3) on RGB: saturation 1.55 about the luma and a warm white balance."""
    saturation = 1.55 * torch.eye(3) + (1 - 1.55) * LUMA.expand(3, 3)
    return torch.diag(torch.tensor([1.06, 1.0, 0.9])) @ saturation


def apply_look(rgb: Tensor, look: str) -> Tensor:
    """What a decoder of this look should give for the picture `rgb`, (B, 3, H, W) in [0, 1]."""
    if look == "natural":
        return rgb
    vivid = torch.einsum("oc,bchw->bohw", vivid_matrix(), rgb).clamp(0, 1)
    return vivid + 0.8 * vivid * (1 - vivid) * (2 * vivid - 1)  # an S-curve: slope 1.4 in the middle, 0.2 at the ends


@torch.no_grad()
def tint_decoder(vae: AutoencoderKL) -> None:
    """Fold the linear part of the vivid look into the last convolution, whose output is an image in [-1, 1]."""
    conv, matrix = vae.decoder.conv_out, vivid_matrix()
    conv.weight.copy_(torch.einsum("oc,cihw->oihw", matrix, conv.weight))
    assert conv.bias is not None
    conv.bias.copy_(matrix @ conv.bias + matrix.sum(1) - 1)  # rgb = (image + 1) / 2, hence M image + (M - 1) 1


# -- networks ----------------------------------------------------------------------------------------------------------


def build_part(part: str) -> nn.Module:
    """The network of one job, freshly initialised."""
    if part == "encoder":
        return new_encoder()
    return new_decoder() if part == "decoder" else tiny_decoder(FAMILY.z_channels, TINY_WIDTH)


@torch.no_grad()
def new_encoder() -> AutoencoderKL:
    """`quant_conv` starts at the scale of z, so that the layers before it see unit variance."""
    vae = AutoencoderKL(KlConfig(encoder=NET, decoder=None))
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias
    assert bias is not None
    nn.init.orthogonal_(weight)
    weight[: FAMILY.z_channels] /= FAMILY.scale_factor
    weight[FAMILY.z_channels :] *= 0.1
    bias.zero_()
    bias[FAMILY.z_channels :] = LOG_VARIANCE
    return vae


@torch.no_grad()
def new_decoder() -> AutoencoderKL:
    """`post_quant_conv` starts by undoing the scale of z, likewise."""
    vae = AutoencoderKL(KlConfig(encoder=None, decoder=NET))
    nn.init.orthogonal_(vae.post_quant_conv.weight)
    vae.post_quant_conv.weight *= FAMILY.scale_factor
    return vae


def load_teacher(weights: Path, half: str) -> nn.Module:
    """TAESD's "encoder" or "decoder" in float32."""
    model = tiny_encoder(4, 64) if half == "encoder" else tiny_decoder(4, 64)
    model.load_state_dict(load_floats(weights / f"taesd_{half}.safetensors"))
    return model.requires_grad_(False).eval()


def load_floats(path: Path) -> dict[str, Tensor]:
    return {key: value.float() for key, value in load_file(path).items()}


# -- losses ------------------------------------------------------------------------------------------------------------


def latent_loss(moments: Tensor, latent: Tensor) -> Tensor:
    """Distance of the mean to the teacher's latent, in the sampler's units, and of the log-variance to its constant."""
    mean, log_variance = moments.chunk(2, dim=1)
    error = FAMILY.to_latent(mean) - latent
    return error.abs().mean() + 2 * error.square().mean() + 1e-3 * (log_variance - LOG_VARIANCE).square().mean()


def picture_loss(rgb: Tensor, target: Tensor) -> Tensor:
    """L1, squares (they are what PSNR counts), L1 of neighbours' differences (edges) and of 8x8 means (colour)."""
    error = rgb - target
    edges = (error[:, :, 1:] - error[:, :, :-1]).abs().mean() + (error[..., 1:] - error[..., :-1]).abs().mean()
    return error.abs().mean() + 4 * error.square().mean() + 0.25 * edges + F.avg_pool2d(error, 8).abs().mean()


def batch_loss(model: nn.Module, teacher: nn.Module, rgb: Tensor, look: str) -> Tensor:
    """The loss of one batch (B, 3, crop, crop) in [0, 1]; networks in bfloat16, everything after them in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            latent = teacher(rgb).float()
        if not isinstance(model, AutoencoderKL):
            return picture_loss(model(latent).float(), rgb)
        if model.config.encoder is not None:
            return latent_loss(model.encode(2 * rgb - 1).float(), latent)
        image = model.decode(FAMILY.to_z(latent)).float()
    return picture_loss((image + 1) / 2, apply_look(rgb, look))


# -- training ----------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One network in training.

    Attributes:
        model: The network; `ema` is the moving average of its weights, which is what gets exported.
        optimizer: Holds the moments of the gradients.
        peak_rate: Highest learning rate of the schedule.
        seconds, steps: How long it has trained, over all its runs.
    """

    model: nn.Module
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    peak_rate: float
    seconds: float = 0.0
    steps: int = 0

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "seconds": self.seconds,
            "steps": self.steps,
        }
        unfinished = path.with_suffix(".part")
        torch.save(state, unfinished)
        unfinished.replace(path)

    def restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema, self.seconds, self.steps = state["ema"], state["seconds"], state["steps"]

    def step(self, loss: Tensor, share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(share, self.peak_rate)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        decay = min(EMA_DECAY, (1 + self.steps) / (10 + self.steps))  # a young average forgets its start
        for key, value in self.model.state_dict().items():
            self.ema[key].lerp_(value, 1 - decay)


def learning_rate(share: float, peak: float) -> float:
    """Warm-up over the first 1 % of the time, then a cosine down to 1 % of the peak."""
    return peak * min(1.0, 0.05 + share / 0.01) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


def new_job(part: str, look: str, work: Path) -> Job:
    """A vivid decoder starts from the natural one, so that minutes are enough."""
    model, peak_rate = build_part(part), LEARNING_RATES[part]
    if look == "vivid":
        assert isinstance(model, AutoencoderKL)
        model.load_state_dict(torch.load(work / "decoder-natural.pt", weights_only=True)["ema"])
        tint_decoder(model)
        peak_rate = FINE_TUNING_RATE
    ema = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    return Job(model, ema, optimizer, peak_rate)


def train(options: argparse.Namespace) -> None:
    """Run one job to the end of its time, with a checkpoint every `SAVE_SECONDS` and at the end."""
    path: Path = options.work / f"{options.part}-{options.look}.pt"
    torch.manual_seed(options.seed)
    job = new_job(options.part, options.look, options.work)
    if options.resume and path.exists():
        job.restore(path)
    teacher, limit = load_teacher(options.weights, "encoder"), 60.0 * options.minutes
    batches = crop_batches(job, options, limit)
    start, saved = time.monotonic() - job.seconds, job.seconds
    with tqdm(total=limit, initial=job.seconds, desc=path.stem, mininterval=20, unit="s") as bar:
        while job.seconds < limit:
            loss = batch_loss(job.model, teacher, next(batches), options.look)
            job.step(loss, job.seconds / limit)
            elapsed = time.monotonic() - start
            bar.set_postfix(steps=job.steps, loss=f"{loss.item():.4f}", refresh=False)
            bar.update(elapsed - job.seconds)
            job.seconds = elapsed
            if job.seconds - saved > SAVE_SECONDS:
                job.save(path)
                saved = job.seconds
    job.save(path)


def crop_batches(job: Job, options: argparse.Namespace, limit: float) -> Iterator[Tensor]:
    """Batches of the stage that the job's clock says."""
    pyramids = build_pyramids(options.pictures + packaged_folders(), options.work / "pictures.pt")
    weights = picture_weights(pyramids)
    generator = torch.Generator().manual_seed(options.seed + job.steps)
    while True:
        share = job.seconds / limit
        if options.look == "vivid":
            share = FINE_TUNING_FROM + (1 - FINE_TUNING_FROM) * share
        yield draw_crops(pyramids, weights, next(stage for stage in STAGES if share < stage.until), generator)


# -- results -----------------------------------------------------------------------------------------------------------


def export(work: Path, folder: Path) -> None:
    """Write the averaged weights of every job in `work` as fp16 files; both looks share the one encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = {path.stem: torch.load(path, weights_only=True) for path in sorted(work.glob("*-*.pt"))}
    for look in ("natural", "vivid"):
        if {"encoder-natural", f"decoder-{look}"} <= jobs.keys():
            state = jobs["encoder-natural"]["ema"] | jobs[f"decoder-{look}"]["ema"]
            save_demo(state, folder / f"demo_{look}.safetensors", f"VAE Kit demo VAE, {look}")
    if "tiny-natural" in jobs:
        save_demo(jobs["tiny-natural"]["ema"], folder / "demo_tiny_decoder.safetensors", "VAE Kit demo tiny decoder")
    for name, job in jobs.items():
        print(f"{name}: {job['steps']} steps, {job['seconds'] / 60:.1f} minutes")


def save_demo(state: dict[str, Tensor], path: Path, title: str) -> None:
    metadata = {
        "format": "pt",
        "family": FAMILY.name,
        "scale_factor": str(FAMILY.scale_factor),
        "shift_factor": str(FAMILY.shift_factor),
        "title": title,
        "author": "VAE Kit, tools/train_demo.py",
        "licence": "MIT",
    }
    save_file({key: value.half().contiguous() for key, value in state.items()}, path, metadata)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def held_out_pictures(folders: list[Path], size: int) -> dict[str, Tensor]:
    """The centre square of each held-out picture, (1, 3, size, size) in [0, 1]."""
    found = find_pictures(folders)
    pictures = {}
    for name in HELD_OUT:
        if name in found:
            pixels = load_pixels(found[name], size)
            top, left = ((side - size) // 2 for side in pixels.shape[1:])
            pictures[name] = pixels[None, :, top : top + size, left : left + size].float() / 255
    return pictures


def psnr(rgb: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; `rgb` is clamped."""
    return -10 * math.log10((rgb.clamp(0, 1) - target).square().mean().item())


@torch.no_grad()
def evaluate(options: argparse.Namespace) -> None:
    """Print the PSNR of every demo VAE on every held-out picture, against the picture in the VAE's own look."""
    pictures = held_out_pictures(options.pictures, options.size)
    encoder, decoder = (load_teacher(options.weights, half) for half in ("encoder", "decoder"))
    latents = {name: encoder(rgb) for name, rgb in pictures.items()}
    rows = {"TAESD, round trip": {name: psnr(decoder(latents[name]), rgb) for name, rgb in pictures.items()}}
    for path in sorted(options.evaluate.glob("*.safetensors")):
        rows |= measure_tiny(path, pictures, latents) if "tiny" in path.stem else measure_kl(path, pictures, latents)
    print(f"{'dB':38}" + "".join(f"{name:>14}" for name in pictures) + f"{'mean':>8}")
    for label, row in rows.items():
        print(f"{label:38}" + "".join(f"{v:14.2f}" for v in row.values()) + f"{sum(row.values()) / len(row):8.2f}")


Table = dict[str, dict[str, float]]


def measure_kl(path: Path, pictures: dict[str, Tensor], latents: dict[str, Tensor]) -> Table:
    """Encode and decode, and decode alone from the teacher's latents."""
    vae = AutoencoderKL(KL)
    vae.load_state_dict(load_floats(path))
    vae.eval()
    look = "vivid" if "vivid" in path.stem else "natural"
    rows: Table = {f"{path.stem}, round trip": {}, f"{path.stem}, decode only": {}}
    for name, rgb in pictures.items():
        target, mean = apply_look(rgb, look), vae.encode(2 * rgb - 1).chunk(2, dim=1)[0]
        for row, z in zip(rows.values(), (mean, FAMILY.to_z(latents[name])), strict=True):
            row[name] = psnr((vae.decode(z) + 1) / 2, target)
    return rows


def measure_tiny(path: Path, pictures: dict[str, Tensor], latents: dict[str, Tensor]) -> Table:
    model = tiny_decoder(FAMILY.z_channels, TINY_WIDTH)
    model.load_state_dict(load_floats(path))
    return {f"{path.stem}, decode only": {name: psnr(model(latents[name]), rgb) for name, rgb in pictures.items()}}


# -- command line ------------------------------------------------------------------------------------------------------


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--part", choices=("encoder", "decoder", "tiny"), help="train this network")
    add("--look", choices=("natural", "vivid"), default="natural", help="of the decoder's pictures")
    add("--minutes", type=float, default=30.0, help="length of the job, resumed time included")
    add("--resume", action="store_true", help="go on from the job's checkpoint")
    add("--export", type=Path, metavar="DIR", help="write the trained networks to DIR as fp16 files")
    add("--evaluate", type=Path, metavar="DIR", help="print the PSNR table of the VAEs in DIR")
    add("--size", type=int, default=256, help="side of the held-out pictures in the table, in pixels")
    add("--pictures", type=Path, nargs="+", default=[], metavar="DIR", help="folders searched for pictures")
    add("--weights", type=Path, default=os.environ.get("VAE_KIT_TEST_WEIGHTS"), metavar="DIR", help="folder of TAESD")
    add(
        "--work",
        type=Path,
        default=Path("data/train_demo"),
        metavar="DIR",
        help="for checkpoints and the picture cache",
    )
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    if not (options.part or options.export or options.evaluate):
        parser.error("nothing to do; give --part, --export or --evaluate")
    if (options.part or options.evaluate) and options.weights is None:
        parser.error(
            "the teacher is missing; give --weights DIR with taesd_encoder.safetensors and taesd_decoder.safetensors"
        )
    if options.look == "vivid" and options.part not in (None, "decoder"):
        parser.error("only the decoder has a look; leave out --look vivid")
    options.weights = None if options.weights is None else Path(options.weights)
    return options


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part:
        train(options)
    if options.export:
        export(options.work, options.export)
    if options.evaluate:
        evaluate(options)


if __name__ == "__main__":
    main()
