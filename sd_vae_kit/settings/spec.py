"""What is known about one setting, as data: how it is called, shown, limited, saved and read back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple, TypeVar

from sd_vae_kit.errors import SettingError

Value = bool | int | float | str
Control = Literal["checkbox", "slider", "number", "choice", "text", "vae"]


class Choice(NamedTuple):
    """One value that a setting can have.

    Attributes:
        identifier: What is saved, sent and compared; it never changes.
        label: What users see; it may be reworded and translated.
    """

    identifier: str
    label: str


@dataclass(frozen=True)
class Spec:
    """What is known about one setting.

    Attributes:
        label: Short name shown beside the control.
        help: One sentence: what it does and when to change it.
        control: How it is shown; "vae" is a dropdown over the library's names, Automatic and None.
        choices: Allowed values of a "choice".
        formerly: Texts that stood for a choice in settings files, pictures and requests of earlier versions, and its
            identifier.  An entry is never removed.
        minimum, maximum, step: Limits of a number, inclusive.
        unit: Unit of a number, such as "px".
        infotext: Key written into a picture's parameters when the value matters for the picture.
        key: Name in hosts' option files and in the settings file; default `vae_kit_<section>_<field>`.
        section, name, default: Filled in from the dataclass.
    """

    label: str
    help: str
    control: Control
    choices: tuple[Choice, ...] = ()
    formerly: Mapping[str, str] = field(default_factory=dict)
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    unit: str = ""
    infotext: str = ""
    key: str = ""
    section: str = ""
    name: str = ""
    default: Value = ""

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Allowed values of a "choice", as they are saved."""
        return tuple(choice.identifier for choice in self.choices)

    @property
    def labelled_choices(self) -> list[tuple[str, str]]:
        """(label, identifier) of each choice, as gradio's radios and dropdowns take them."""
        return [(choice.label, choice.identifier) for choice in self.choices]

    def label_of(self, identifier: object) -> str:
        """What users see for a value that was checked."""
        return next((label for known, label in self.choices if known == identifier), str(identifier))

    def check(self, value: object) -> Value:
        """The value in this setting's own type; of a choice the identifier.

        A choice may come as its identifier, as its label, or as a text that stood for it in an earlier version.

        Raises:
            SettingError: Wrong type, outside the limits or not among the choices.
        """
        if self.control == "checkbox":
            return self._checked_bool(value)
        if isinstance(self.default, int | float):
            return self._checked_number(value)
        if not isinstance(value, str):
            raise SettingError(f'"{self.label}" needs text, not {value!r}.')
        return self._identifier(value) if self.choices else value

    def check_text(self, value: object) -> Value:
        """As `check`, but a number may come as text, as infotexts and the X/Y/Z plot have it.

        Raises:
            SettingError: It does not fit.
        """
        if isinstance(self.default, int) and isinstance(value, str):
            with contextlib.suppress(ValueError):  # `check` says what is wrong
                value = float(value)
        return self.check(value)

    def _identifier(self, value: str) -> str:
        if value in self.identifiers:
            return value
        by_label = {choice.label: choice.identifier for choice in self.choices}
        by_identifier = {identifier: identifier for identifier in self.identifiers}
        for known in (self.formerly, by_label, by_identifier):  # what is saved wins over what is shown now
            folded = {text.casefold(): identifier for text, identifier in known.items()}
            if value.casefold() in folded:
                return folded[value.casefold()]
        raise SettingError(f'"{self.label}" cannot be {value!r}; choose one of {", ".join(self.identifiers)}.')

    def _checked_bool(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise SettingError(f'"{self.label}" is on or off, not {value!r}.')
        return value

    def _checked_number(self, value: object) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise SettingError(f'"{self.label}" needs a number, not {value!r}.')
        low, high = self.minimum, self.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            raise SettingError(f'"{self.label}" is {value:g}; it must lie between {low:g} and {high:g}.')
        if isinstance(self.default, int):
            if value != int(value):
                raise SettingError(f'"{self.label}" needs a whole number, not {value:g}.')
            return int(value)
        return float(value)


T = TypeVar("T")


def setting(default: T, spec: Spec) -> T:
    """A dataclass field with its `Spec` attached."""
    return field(default=default, metadata={"spec": spec})


def specs_of(group: type, section: str, prefix: str) -> tuple[Spec, ...]:
    """The specs of a dataclass made with `setting`, complete, in the order of its fields.

    Args:
        group: The dataclass.
        section: Its name.
        prefix: What a key begins with where the spec names none; the field's name follows.
    """
    found: list[Spec] = []
    for item in fields(group):
        spec: Spec = item.metadata["spec"]
        default: Value = item.default  # type: ignore[assignment]  # `setting` gives every field one
        key = spec.key or prefix + item.name
        found.append(dataclasses.replace(spec, key=key, section=section, name=item.name, default=default))
    return tuple(found)
