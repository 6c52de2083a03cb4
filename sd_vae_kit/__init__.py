"""VAE Kit: everything between pixels and latents for Stable Diffusion web UIs.

For scripts: `load_vae`, `inspect`, the classes `Vae`, `Inspection` and `RunReport`, the module `errors`;
docs/python-api.md shows them in use.  They are imported when they are first asked for: `import sd_vae_kit` alone
imports no torch.
"""

from typing import TYPE_CHECKING

from sd_vae_kit import errors
from sd_vae_kit.version import __version__

if TYPE_CHECKING:
    from sd_vae_kit.public import Inspection, RunReport, Vae, inspect, load_vae

__all__ = ["Inspection", "RunReport", "Vae", "__version__", "errors", "inspect", "load_vae"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sd_vae_kit import public

    return getattr(public, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
