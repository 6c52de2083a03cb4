"""Sentences for users that know which of their parts are language and which are names and numbers.

A page shows the two apart, so that a translation replaces the words and never touches a file's name or a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True)
class Piece:
    """A run of words that can be translated, with the spaces and commas around it, or a name or number that cannot."""

    text: str
    is_words: bool = True


class Sentence(str):
    """A text that remembers its pieces: console, infotext and HTTP API take the text, pages take the pieces.

    Formatting or adding it to another text gives a plain `str`; `Sentence.of` and `Sentence.joined` keep the pieces.

    Attributes:
        pieces: In order; together they are the text.  Words of a nested sentence stay pieces of their own.

    Examples:
        >>> said = Sentence.of("{} has {} latent channels.", "a.pt", 16)
        >>> said, [piece.text for piece in said.pieces if piece.is_words]
        ('a.pt has 16 latent channels.', [' has ', ' latent channels.'])
    """

    __slots__ = ("pieces",)
    pieces: tuple[Piece, ...]

    def __new__(cls, pieces: Iterable[Piece] = ()) -> Sentence:
        kept = tuple(piece for piece in pieces if piece.text)
        made = super().__new__(cls, "".join(piece.text for piece in kept))
        made.pieces = kept
        return made

    def __getnewargs__(self) -> tuple[tuple[Piece, ...]]:  # type: ignore[override]  # str's own would lose the pieces
        return (self.pieces,)

    @classmethod
    def of(cls, template: str, *values: object) -> Sentence:
        """The template's text is words; each `{}` is a name or number, or a sentence that brings its own pieces."""
        texts = template.split("{}")
        if len(texts) != len(values) + 1:
            raise TypeError(f"{template!r} needs {len(texts) - 1} values, not {len(values)}")
        return cls(_alternating(texts, values))

    @classmethod
    def joined(cls, separator: str, parts: Iterable[object]) -> Sentence:
        """Names, numbers or sentences with words between them, such as " or "."""
        listed = list(parts)
        return cls.of(separator.join(["{}"] * len(listed)), *listed)


NOTHING = Sentence()


def pieces_of(text: str) -> tuple[Piece, ...]:
    """The pieces of a sentence; a plain text is words as a whole."""
    return text.pieces if isinstance(text, Sentence) else (Piece(text),)


def _alternating(texts: Sequence[str], values: Sequence[object]) -> Iterator[Piece]:
    for text, value in zip_longest(texts, values, fillvalue=""):
        yield Piece(str(text))
        yield from value.pieces if isinstance(value, Sentence) else (Piece(str(value), is_words=False),)
