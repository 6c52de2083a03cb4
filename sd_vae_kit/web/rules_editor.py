"""The user's rules, for pages: shown, checked, saved, explained, and begun from the cards of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from sd_vae_kit.errors import OptionError
from sd_vae_kit.vaes import rules
from sd_vae_kit.vaes.rules import RUNS, RulesFile
from sd_vae_kit.web.catalogue_host import CatalogueHost, refuse_if_forbidden
from sd_vae_kit.web.catalogue_protocol import RuleLine
from sd_vae_kit.web.message import Message
from sd_vae_kit.wording import Sentence


class RulesEditor:
    """Implements `RulesBackend`.

    Args:
        host: Its loaded checkpoint is what rules are explained for; it applies rules that have changed.
        rules_file: The file.
    """

    def __init__(self, host: CatalogueHost, rules_file: RulesFile) -> None:
        self._host = host
        self._rules = rules_file

    def text(self) -> str:
        return self._rules.text

    def save(self, text: str) -> Message:
        refuse_if_forbidden(self._host)
        count = len(self._rules.save(text))
        self._host.apply_rules()
        return Message(
            Sentence.of("{} rule saved to {}." if count == 1 else "{} rules saved to {}.", count, self._rules.path.name)
        )

    def import_cards(self, text: str) -> tuple[str, Message]:
        before = rules.parse(text)
        folders = (folder for folder in self._host.card_folders if folder.is_dir())
        cards = [rule for folder in folders for rule in rules.rules_from_cards(folder)]
        after = rules.merged(before, cards)
        added = len(after) - len(before)
        found = Sentence.of("{} rule from" if added == 1 else "{} rules from", added)
        read = Sentence.of("{} card; Save keeps them." if len(cards) == 1 else "{} cards; Save keeps them.", len(cards))
        return rules.dump(after), Message(Sentence.of("{} {}", found, read))

    def passes(self) -> Sequence[str]:
        return RUNS

    def explain(self, text: str, run: str) -> list[RuleLine]:
        checkpoint = self._host.checkpoint
        if checkpoint is None:
            raise OptionError("No checkpoint is loaded, so there is nothing to explain.")
        wanted = next((known for known in RUNS if known == run), RUNS[0])
        return [
            RuleLine(line.number, line.rule.conditions, line.rule.vae, line.decides, line.why)
            for line in rules.explain(rules.parse(text), checkpoint, wanted)
        ]
