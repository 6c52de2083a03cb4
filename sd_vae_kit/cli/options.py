"""What can be typed.  Options that belong to features to come are not registered, or refused by name: never ignored."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from sd_vae_kit.version import __version__

PROGRAM = "python -m sd_vae_kit"
DTYPES = ("auto", "fp16", "bf16", "fp32")

DESCRIPTION = """\
VAE Kit: everything between pixels and latents.  Without a command the app starts."""

EPILOG = f"""\
`{PROGRAM} COMMAND --help` explains a command.  Exit codes: 0 done, 2 a mistake in
what was asked (one line on stderr says which), 130 stopped with Ctrl-C."""


class UsageError(Exception):
    """What was typed is not understood; the message is one line."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` shows what there is")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the namespace has `command` and `json` and the command's own names."""
    parser = Parser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"VAE Kit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for add in (
        _add_inspect,
        _add_encode,
        _add_decode,
        _add_convert,
        _add_compare,
        _add_download,
        _add_plan,
        _add_forget,
    ):
        add(commands.add_parser)
    return parser


AddParser = Callable[..., argparse.ArgumentParser]


def _add_inspect(add: AddParser) -> None:
    parser = add("inspect", help="say what a file is: layout, family, size, hashes", allow_abbrev=False)
    parser.add_argument("vae", metavar="FILE", help="a VAE or a checkpoint with one inside, by path or library name")
    _add_common(parser)


def _add_encode(add: AddParser) -> None:
    parser = add("encode", help="picture -> latent", allow_abbrev=False)
    parser.add_argument("image", metavar="IMAGE", help="PNG, JPEG, WebP, TIFF, ...")
    _add_output(parser, "LATENT.safetensors")
    _add_run(parser)
    parser.add_argument("--sample", action="store_true", help="draw from the posterior instead of taking its mean")
    parser.add_argument("--seed", type=_seed, metavar="N", help="for --sample: the same number, the same latent")
    _add_common(parser)


def _add_decode(add: AddParser) -> None:
    parser = add("decode", help="latent -> picture", allow_abbrev=False)
    parser.add_argument("latent", metavar="LATENT.safetensors", help="as encode writes it")
    _add_output(parser, "IMAGE")
    _add_run(parser)
    _add_common(parser)


def _add_convert(add: AddParser) -> None:
    parser = add("convert", help="the same VAE in another layout or precision", allow_abbrev=False)
    parser.add_argument("vae", metavar="IN", help="a VAE or a checkpoint with one inside")
    parser.add_argument("output", metavar="OUT", help="a .safetensors file; not IN itself")
    parser.add_argument("--layout", choices=("ldm", "diffusers"), help="names of the tensors; default: as in IN")
    parser.add_argument("--dtype", choices=DTYPES[1:], help="default: as in IN")
    parser.add_argument(
        "--fp16-safe", action="store_true",
        help="write fp16 weights that no program overflows with: powers of two folded in, proven on photographs",
    )  # fmt: skip
    _add_common(parser)


def _add_forget(add: AddParser) -> None:
    parser = add("forget", help="forget what VAEs needed to stay finite in half precision", allow_abbrev=False)
    _add_common(parser)


def _add_compare(add: AddParser) -> None:
    parser = add(
        "compare", help="one picture through several VAEs, side by side with the differences", allow_abbrev=False
    )
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--vae", action="append", required=True, metavar="FILE", help="by path or name; once per VAE")
    _add_output(parser, "SHEET.png")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    _add_tiling(parser)
    _add_precision(parser)
    _add_common(parser)


def _add_download(add: AddParser) -> None:
    parser = add("download", help="fetch a known VAE, verified, or list what is known", allow_abbrev=False)
    parser.add_argument("name", nargs="?", metavar="NAME", help="name, file name, alias or hash in the catalogue")
    parser.add_argument("--list", action="store_true", help="show the catalogue instead")
    parser.add_argument("--family", metavar="F", help="for --list: only sd1, sdxl, sd3, flux, flux2 or sana")
    parser.add_argument("--dir", metavar="DIR", help="where the file goes; default: models/VAE in the app's folder")
    parser.add_argument("--accept", action="store_true", help="agree to what is said about unverified or unclear files")
    parser.add_argument("--data-dir", metavar="DIR", help="the app's folder, with settings, models/VAE and catalogue")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vae", required=True, metavar="FILE", help="by path or library name")
    parser.add_argument("--family", metavar="F", help="latent space where the file does not tell: sd1, sdxl, sd3, flux")
    _add_tiling(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: fp32 on a CPU, the file's own on a GPU")
    _add_precision(parser)


def _add_plan(add: AddParser) -> None:
    parser = add("plan", help="how much memory a picture takes and how it would be run", allow_abbrev=False)
    parser.add_argument("--height", type=int, required=True, metavar="H", help="pixels")
    parser.add_argument("--width", type=int, required=True, metavar="W", help="pixels")
    parser.add_argument("--vae", required=True, metavar="FILE", help="by path or library name")
    _add_tiling(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: fp32 on a CPU, the file's own on a GPU")
    _add_common(parser)


def _add_tiling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tiling",
        choices=("auto", "off", "exact"),
        default="auto",
        help="auto works in bands where a picture does not fit into memory whole, exact always, off never; "
        "the result is the same",
    )
    parser.add_argument(
        "--memory-mb", type=float, metavar="N", help="MiB that activations may take; default: what is free"
    )


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "never"),
        default="auto",
        help="where half precision overflows: auto computes only what overflowed again, shifted or in fp32, fp32 "
        "computes everything in fp32 from the start, never looks at nothing, and the result may be black",
    )
    parser.add_argument(
        "--prefer-bf16",
        action="store_true",
        help="with --precision auto: run the whole encode or decode in bf16 instead, which is less exact",
    )


def _add_output(parser: argparse.ArgumentParser, metavar: str) -> None:
    parser.add_argument("-o", "--output", required=True, metavar=metavar)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vae-dir", action="append", default=[], metavar="DIR", help="look for names here too, before models/VAE"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="the app's folder, with models/VAE and the cache of hashes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2^63 - 1")
    return value
