"""Jobs of a web UI: what one chooses for itself holds while it runs, pass by pass, and ends with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.choice import PassChoice
from sd_vae_kit.hosts.messages import HostMessages
from sd_vae_kit.hosts.parts import VaeSwitch
from sd_vae_kit.hosts.run_settings import RunSettings
from sd_vae_kit.settings.sections import AUTOMATIC
from sd_vae_kit.vaes.rules import Rule, RulesFile, Run


class HostJobs:
    """The choice of the running job.

    Args:
        chosen: Where the choice is written.
        rules: The user's rules; None where the web UI looks after the choice.
        switch: Makes a choice live.
        run_settings: Where the job's tiling is written.
        messages: Hear of a VAE that cannot be given back.
        engine_may_change: The web UI may exchange the model between two passes, so that a choice is made live anew.
    """

    def __init__(
        self,
        chosen: PassChoice,
        rules: RulesFile | None,
        switch: VaeSwitch,
        run_settings: RunSettings,
        messages: HostMessages,
        engine_may_change: bool = False,
    ) -> None:
        self._chosen = chosen
        self._rules = rules
        self._switch = switch
        self._run_settings = run_settings
        self._messages = messages
        self._engine_may_change = engine_may_change
        self._rules_in_force: tuple[Rule, ...] = ()

    @property
    def vae(self) -> str | None:
        """The running job's own choice, None if it has none."""
        return self._chosen.vae

    def use(self, name: str | None) -> None:
        """Make the job's choice live; None or "Automatic" is the global setting's.

        Raises:
            VaeKitError: It cannot be used; the VAE and the choice are what they were.
        """
        before, self._chosen.vae = self._chosen.vae, None if name in (None, "", AUTOMATIC) else name
        if before == self._chosen.vae:
            if self._engine_may_change and before is not None:
                self._switch.apply()
            return
        try:
            self._switch.apply()
        except BaseException:
            self._chosen.vae = before
            raise

    def begin_pass(self, name: str | None, run: Run) -> None:
        """Make the VAE live that the job has chosen for a pass, or the user's rules for a pass of that kind.

        Raises:
            VaeKitError: As `use`.
        """
        rules = self._rules.rules if self._rules else ()
        vae, passed, before = self._chosen.vae, self._chosen.run, self._rules_in_force
        self._chosen.run = run
        self.use(name)
        if vae == self._chosen.vae and (passed != run or rules != before):
            self._switch.apply()
        self._rules_in_force = rules

    @contextmanager
    def job(self) -> Iterator[None]:
        """Run one job: what it chose for itself ends with it; a job inside a job gives back the outer's choice."""
        outer = self._chosen.vae
        try:
            with self._run_settings.kept():
                yield
        finally:
            self._go_back_to(outer)

    def end(self) -> None:
        """Forget a choice that a job left behind."""
        self._run_settings.end_job()
        self._go_back_to(None)

    def _go_back_to(self, name: str | None) -> None:
        try:
            self.begin_pass(name, "picture")
        except VaeKitError as error:
            self._chosen.vae = name
            self._messages.notify(str(error), "error")
