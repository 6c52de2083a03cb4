"""Which VAE is active, and why: the order of rules, each with the sentence the user sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sd_vae_kit.errors import VaeNotFoundError
from sd_vae_kit.settings.sections import AUTOMATIC, NONE
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.host_protocol import Checkpoint, Host
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.rules import FILE_NAME, Rule, Run, first_match
from sd_vae_kit.wording import Sentence

FILE_CHOSEN = {"setting": "{} was chosen in the SD VAE dropdown.", "job": "{} was chosen for this job."}
OWN_CHOSEN = {
    "setting": Sentence.of("The checkpoint's own VAE: None was chosen in the SD VAE dropdown."),
    "job": Sentence.of("The checkpoint's own VAE: None was chosen for this job."),
}


@dataclass(frozen=True)
class Decision:
    """The outcome of the rules.

    Attributes:
        entry: The library's file, None for the checkpoint's own VAE.
        rule: Short name of what applied: "command line", "job", "setting", "rule", "card", "beside", "own".
        reason: One sentence for the user.
    """

    entry: Entry | None
    rule: str
    reason: Sentence

    @property
    def name(self) -> str:
        """Name shown and written into infotext: the file's, or "None" for the checkpoint's own."""
        return self.entry.name if self.entry else NONE


def resolve(
    host: Host,
    library: Library,
    job_vae: str | None = None,
    rules: Sequence[Rule] = (),
    run: Run = "picture",
) -> Decision:
    """Run through the rules; the first that applies decides.

    Command line, the job's own choice, the dropdown when it names something, the checkpoint's card, a file beside the
    checkpoint, the checkpoint's own.  With `overrides_per_model` off, card and neighbour come before the dropdown.

    Args:
        host: Its settings, command line and loaded checkpoint are read.
        library: Where names are looked up.
        job_vae: The job's choice: a name, "None", or None / "Automatic" for no choice.
        rules: The user's, in order (vae_rules.json).
        run: Which pass of a job the VAE is for.

    Raises:
        VaeNotFoundError: The rule that applies names a file that is not there.
    """
    chosen = host.settings.vae.sd_vae
    dropdown = _named(library, chosen, "setting")
    per_checkpoint = (lambda c, lib: _from_rules(c, lib, rules, run), _from_card, _from_neighbour)
    own_rules = [lambda rule=rule: rule(host.checkpoint, library) for rule in per_checkpoint]
    ordered: list[Callable[[], Decision | None]] = [
        lambda: _from_command_line(host, library),
        _named(library, job_vae or AUTOMATIC, "job"),
        *([dropdown, *own_rules] if host.settings.vae.overrides_per_model else [*own_rules, dropdown]),
    ]
    for rule in ordered:
        decision = rule()
        if decision is not None:
            return decision
    return Decision(None, "own", Sentence.of("Automatic: no rule names a VAE, so the checkpoint's own is used."))


def _named(library: Library, name: str, rule: Literal["setting", "job"]) -> Callable[[], Decision | None]:
    def apply() -> Decision | None:
        if name == AUTOMATIC:
            return None
        if name == NONE:
            return Decision(None, rule, OWN_CHOSEN[rule])
        entry = library.get(name)
        return Decision(entry, rule, Sentence.of(FILE_CHOSEN[rule], entry.name))

    return apply


def _from_command_line(host: Host, library: Library) -> Decision | None:
    if host.forced_vae is None:
        return None
    try:
        entry = library.entry_at(host.forced_vae)
    except VaeNotFoundError as error:
        raise VaeNotFoundError(f"--vae-path names {host.forced_vae}, which is not there; correct the path.") from error
    reason = Sentence.of("{} was given with --vae-path, which beats every other choice.", entry.name)
    return Decision(entry, "command line", reason)


def _from_rules(checkpoint: Checkpoint | None, library: Library, rules: Sequence[Rule], run: Run) -> Decision | None:
    """The first rule that matches; one that says "Automatic" ends the rules without an answer."""
    if checkpoint is None or not (hit := first_match(rules, checkpoint, run)):
        return None
    number, rule = hit
    if rule.vae == AUTOMATIC:
        return None
    if rule.vae == NONE:
        reason = Sentence.of("The checkpoint's own VAE: rule {} asks for it {}.", number, f"({rule.conditions})")
        return Decision(None, "rule", reason)
    try:
        entry = library.get(rule.vae)
    except VaeNotFoundError as error:
        raise VaeNotFoundError(f"Rule {number} of {FILE_NAME} ({rule.conditions}): {error}") from error
    reason = Sentence.of("{} follows from rule {}.", entry.name, f"{number} ({rule.conditions})")
    return Decision(entry, "rule", reason)


def _from_card(checkpoint: Checkpoint | None, library: Library) -> Decision | None:
    wanted = checkpoint.preferred_vae if checkpoint else None
    if checkpoint is None or not wanted or wanted == AUTOMATIC:
        return None
    if wanted == NONE:
        reason = Sentence.of("The card of {} asks for the checkpoint's own VAE.", checkpoint.name)
        return Decision(None, "card", reason)
    entry = library.get(wanted)
    reason = Sentence.of("{} is the preferred VAE on the card of {}.", entry.name, checkpoint.name)
    return Decision(entry, "card", reason)


def _from_neighbour(checkpoint: Checkpoint | None, library: Library) -> Decision | None:
    """A VAE whose stem equals the checkpoint's, with or without `.vae`; beside the checkpoint before the VAE folders.

    Equal, not a prefix: with A1111's prefix rule "model1.5" takes "model1.5.2.vae.pt" (its issue 6567).
    """
    if checkpoint is None or checkpoint.path is None:
        return None
    stem = checkpoint.path.stem
    same = [e for e in library.entries if e.path != checkpoint.path and e.path.stem.removesuffix(".vae") == stem]
    if not same:
        return None
    folder = checkpoint.path.parent
    entry = min(same, key=lambda e: (e.path.parent != folder, e.name))
    words = "Automatic: {} has the same name as the checkpoint {}."
    if entry.path.parent == folder:
        words = "Automatic: {} lies beside the checkpoint {}."
    reason = Sentence.of(words, entry.name, checkpoint.name)
    return Decision(entry, "beside", reason)
