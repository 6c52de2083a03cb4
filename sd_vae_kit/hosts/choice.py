"""Which VAE is chosen in a web UI, by the running pass, the user's rules and the names that users type."""

from __future__ import annotations

from dataclasses import dataclass

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.base import HostBase
from sd_vae_kit.hosts.messages import HostMessages
from sd_vae_kit.hosts.models import ModelView
from sd_vae_kit.hosts.parts import LoadedModels
from sd_vae_kit.settings.sections import AUTOMATIC, NONE
from sd_vae_kit.vaes.choice import Decision, resolve
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.rules import RulesFile, Run


@dataclass
class PassChoice:
    """What the running pass of a job asks for; `HostJobs` writes it, deciders read it.

    Attributes:
        vae: The job's own choice, None if it has none.
        run: The pass.
    """

    vae: str | None = None
    run: Run = "picture"


class RuleDecider:
    """Chooses by the rules that all web UIs share.

    Args:
        base: What the host's parts share.
        loaded: The models.
        rules: The user's rules; None where the web UI looks after the choice.
        chosen: What the running pass asks for.
    """

    def __init__(self, base: HostBase, loaded: LoadedModels, rules: RulesFile | None, chosen: PassChoice) -> None:
        self._base = base
        self._loaded = loaded
        self._rules = rules
        self._chosen = chosen

    def decide(self, checkpoint_file: str) -> Decision:
        view = ModelView(self._base, self._loaded, lambda: None, checkpoint_file)
        rules = self._rules.rules if self._rules else ()
        return resolve(view, self._base.library, self._chosen.vae, rules, self._chosen.run)


class VaeNames:
    """Names of VAEs as users see and type them.

    Args:
        library: The files.
    """

    def __init__(self, library: Library) -> None:
        self._library = library

    def choices(self) -> list[str]:
        """Names for a dropdown of VAEs."""
        return [AUTOMATIC, NONE, *(entry.name for entry in self._library.entries)]

    def full_name(self, typed: str) -> str:
        """The library's name for what somebody typed, "Automatic" or "None".

        Raises:
            VaeNotFoundError: No such VAE, or several.
        """
        for special in (AUTOMATIC, NONE):
            if typed.strip().lower() == special.lower():
                return special
        return self._library.get(typed.strip()).name


def vae_on_card(wanted: object, library: Library, messages: HostMessages) -> str | None:
    """The VAE named on a checkpoint's card, if there is such a file; cards are often written elsewhere."""
    if not isinstance(wanted, str) or not wanted or wanted == AUTOMATIC:
        return None
    if wanted == NONE:
        return NONE
    try:
        return library.get(wanted).name
    except VaeKitError as error:
        messages.notify_once(f"A checkpoint's card asks for {wanted}: {error}", "warning")
        return None
