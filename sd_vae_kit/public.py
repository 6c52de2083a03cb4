"""The names that scripts import from `sd_vae_kit`; importing this module imports torch."""

from sd_vae_kit.core.run.report import RunReport
from sd_vae_kit.core.vae import Vae
from sd_vae_kit.vaes.inspection import Inspection, inspect
from sd_vae_kit.vaes.loading import load_vae

__all__ = ["Inspection", "RunReport", "Vae", "inspect", "load_vae"]
