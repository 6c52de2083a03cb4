"""What a translation has to know of a sentence."""

from sd_vae_kit.wording import pieces_of


def words_of(text):
    """The runs of words that a page gives a web UI to translate; a comma needs no translation."""
    found = {piece.text.strip() for piece in pieces_of(text) if piece.is_words}
    return {words for words in found if any(map(str.isalpha, words))}
