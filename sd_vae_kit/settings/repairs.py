"""Which of a web UI's faults are repaired: one switch each, shown on the host's settings page."""

from __future__ import annotations

from dataclasses import dataclass

from sd_vae_kit.settings.spec import Spec, setting, specs_of


def _switch(label: str, sentence: str) -> bool:
    return setting(True, Spec(label, sentence, "checkbox"))


@dataclass(frozen=True)
class Repairs:
    """Faults of the web UI that are repaired without changing its files; each works as before when switched off."""

    loading: bool = _switch(
        "Load VAEs safely and fast",
        "Reads every layout, checks a VAE completely before the running model is touched, swaps weights in place; "
        "one that cannot be used changes nothing. Off: the web UI's own way, where a failed load spoils pictures.",
    )
    hashes: bool = _switch(
        "Write the right VAE hash",
        "The VAE hash in a picture's parameters is that of the file it was made with, not of one used earlier.",
    )
    names: bool = _switch(
        "Tell VAE files of the same name apart",
        "Files in subfolders are listed with their folder, so that two files of one name can both be chosen.",
    )
    exact_stem: bool = _switch(
        "Automatic takes only a VAE of exactly the checkpoint's name",
        "Off: any VAE whose name begins like the checkpoint's, so that model1.5 takes model1.5.2.vae.pt.",
    )
    taesd: bool = _switch(
        "Use installed TAESD files, checked and of the right family",
        "Where one is missing the VAE itself is used and a line says so. Off: the web UI's own way, which downloads "
        "unverified files in the middle of a job and fails without a network.",
    )
    previews: bool = _switch(
        "Make live previews beside the sampling",
        "From a copy of the latent, one at a time, within a time limit; no failure of a preview stops a job. "
        "Off: the web UI's own way.",
    )
    override_leak: bool = _switch(
        "Undo a request's override_settings completely",
        "An option that was never saved is put back after the request, too, instead of staying changed for everybody.",
    )
    nan_check: bool = _switch(
        "Look at every value for NaN",
        "The web UI's own check looks at one value of a latent or picture; a picture with NaN elsewhere comes out "
        "black or torn without a word.",
    )
    sticky_fp32: bool = _switch(
        "Undo the switch to 32 bits after a black picture",
        "The web UI turns the VAE into 32-bit floats for good, and every later one, until it is started again; with "
        "this it goes back when the picture is done.",
    )


REPAIR_SPECS = specs_of(Repairs, "repairs", "vae_kit_repair_")  # in the order shown
