"""The stand-alone app: options, a host, the pages, a browser."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sd_vae_kit.errors import OptionError, VaeKitError

if TYPE_CHECKING:
    import gradio as gr

    from sd_vae_kit.standalone.backend import StandaloneBackend
    from sd_vae_kit.standalone.folders import Folders

USER_ERROR = 2
DEFAULT_PORT = 7860

# Before gradio is imported: it must not call home, and must not be sent through a proxy to reach its own server.
OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
# In the page's head, before gradio looks for the same parameter.
FORCE_THEME = """<script>(() => {{
    const url = new URL(location.href);
    if (url.searchParams.get("__theme") === "{theme}") return;
    url.searchParams.set("__theme", "{theme}");
    history.replaceState(null, "", url);
}})();</script>"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app until it is stopped; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        with suppress(KeyboardInterrupt):  # the way to stop it
            run(options)
    except VaeKitError as error:
        sys.stderr.write(f"VAE Kit: {error}\n")
        return USER_ERROR
    return 0


def run(options: argparse.Namespace) -> None:
    """Start everything, open the browser, wait for Ctrl+C."""
    prepare_environment()
    if options.port:
        refuse_taken_port(address_of(options), options.port)
    folders = folders_of(options)
    folders.make()
    with temporary_folder() as temporary:
        os.environ["GRADIO_TEMP_DIR"] = str(temporary / "gradio")
        from sd_vae_kit.standalone.backend import build_backend

        backend = build_backend(folders, temporary / "gradio" / "shown", options.vae_path)
        page, looks = build_page(backend, options.theme)
        serve(backend, page, looks, options)


def prepare_environment() -> None:
    """Keep every library off the network."""
    os.environ.update(OFFLINE)
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name, ""), "127.0.0.1,localhost")))


def address_of(options: argparse.Namespace) -> str:
    return "0.0.0.0" if options.listen else "127.0.0.1"


def refuse_taken_port(address: str, port: int) -> None:
    """Raise `OptionError` if `port` is taken: at once, not after everything has been loaded."""
    with socket.socket() as probe:
        if os.name != "nt":  # where it would allow a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except (OSError, OverflowError) as error:
            raise OptionError(f"Port {port} cannot be used ({error}); choose another --port.") from error


def folders_of(options: argparse.Namespace) -> Folders:
    """Folders from the command line; the data folder is the user's own by default."""
    import platformdirs

    from sd_vae_kit.standalone.folders import Folders

    data = options.data_dir or Path(platformdirs.user_data_dir("vae-kit", appauthor=False))
    return Folders(data.expanduser().absolute(), tuple(options.vae_dir), tuple(options.ckpt_dir))


def build_page(backend: StandaloneBackend, theme: str) -> tuple[gr.Blocks, dict[str, object]]:
    """The page and what `launch` needs to make it look as designed."""
    from sd_vae_kit.standalone.pages import page
    from sd_vae_kit.ui import catalogue_tab, gradio_compat

    folder = Path(page.__file__).parent
    css, script = ((folder / name).read_text("utf-8") for name in ("app.css", "app.js"))
    css += catalogue_tab.style()
    head = f"<script>{script}</script>" + ("" if theme == "system" else FORCE_THEME.format(theme=theme))
    return page.build_page(backend, css, head, backend.catalogue), gradio_compat.launch_options(css, head)


def serve(backend: StandaloneBackend, page: gr.Blocks, looks: dict[str, object], options: argparse.Namespace) -> None:
    """Answer requests for pages and for the HTTP API until the process is stopped.

    Raises:
        OptionError: The port is taken.
    """
    from sd_vae_kit.web.api import make_router

    page.queue()
    try:
        server, url, _ = page.launch(
            server_name=address_of(options),
            server_port=options.port,
            inbrowser=not options.no_browser,
            prevent_thread_lock=True,
            **looks,  # type: ignore[arg-type]
        )
    except OSError as error:
        port = f"Port {options.port}" if options.port else f"Every port from {DEFAULT_PORT} on"
        raise OptionError(f"{port} is taken by another program; choose another --port.") from error
    server.include_router(make_router(backend.api))
    sys.stdout.write(f"VAE Kit is at {url} (Ctrl+C stops it)\n")
    sys.stdout.flush()
    page.block_thread()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A private folder for what the page shows, removed at the end, also when the process is asked to stop."""
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    path = Path(tempfile.mkdtemp(prefix="vae-kit-"))
    try:
        yield path
    finally:
        with suppress(OSError):
            shutil.rmtree(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sd_vae_kit", description="VAE Kit, stand-alone.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--port", type=int, help=f"port of the page; by default the first free one from {DEFAULT_PORT} on")
    add("--listen", action="store_true", help="let other computers of the network in, not only this one")
    add("--data-dir", type=Path, metavar="DIR", help="settings, caches, models/VAE and pictures")
    add("--vae-dir", type=Path, metavar="DIR", action="append", default=[], help="another folder of VAEs; repeatable")
    add("--vae-path", type=Path, metavar="FILE", help="use this VAE whatever the page says")
    add(
        "--ckpt-dir",
        type=Path,
        metavar="DIR",
        action="append",
        default=[],
        help="another folder in which NAME.vae.* files beside checkpoints are listed; repeatable",
    )
    add("--no-browser", action="store_true", help="do not open the browser")
    add("--theme", choices=("system", "light", "dark"), default="system", help="default: as the system is set")
    return parser


__all__ = ["main"]
