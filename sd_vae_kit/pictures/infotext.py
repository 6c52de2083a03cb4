"""The "parameters" text that A1111-style programs keep in a picture: prompt, negative prompt, one line of fields.

    a photograph of a cup
    Negative prompt: blurry
    Steps: 20, Sampler: Euler, Seed: 1, Size: 512x512, VAE hash: 735e4c3a44, VAE: "odd, name.safetensors"

Written and read by the rules of A1111 1.10 (modules/infotext_utils.py, processing.py:create_infotext), so that texts
pass between this program and the hosts in both directions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

NEGATIVE = "Negative prompt:"
# With fewer on the last line, A1111 takes that line for the prompt's; so a prompt "note: a, b" stays a prompt.
FEWEST_FIELDS = 3

KEY = re.compile(r"\w[\w \-/]*[\w\-/]")
# One part up to a comma: key, then a quoted value that ends at the comma, or a bare value.  Linear in the text's
# length, because texts come from foreign files.
PART = re.compile(r'([^:,]*):\s*("(?:\\.|[^\\"])*"(?=\s*(?:,|\Z))|[^,]*)(?:\s*,|\Z)|[^,]*(?:,|\Z)')


@dataclass(frozen=True)
class Infotext:
    """A text taken apart.

    Attributes:
        prompt, negative_prompt: Lines without spaces at their ends; empty if there is none.
        fields: Values by key, in the text's order, all as strings ("Seed" -> "1", "Size" -> "512x512").
    """

    prompt: str = ""
    negative_prompt: str = ""
    fields: dict[str, str] = field(default_factory=dict)


def build(prompt: str, negative_prompt: str, fields: Mapping[str, str | int | float]) -> str:
    """The text for a picture file; `parse` gives the parts back.

    Hosts recognise the line of fields from three fields on.  A prompt with a line that starts with "Negative prompt:"
    cannot be told from two prompts; that is the format's own limit.

    Raises:
        ValueError: A key that would not be read back: one character, or other than letters, digits, space, "-", "/".
    """
    lines = [prompt]
    if negative_prompt:
        lines.append(f"{NEGATIVE} {negative_prompt}")
    lines.append(", ".join(f"{_checked(key)}: {_quoted(str(value))}" for key, value in fields.items()))
    return "\n".join(lines).strip()


def parse(text: str) -> Infotext:
    """Take a text apart; garbage becomes the prompt, nothing raises."""
    *lines, last = text.strip().split("\n")
    fields = parse_fields(last)
    if len(fields) < FEWEST_FIELDS:
        lines.append(last)
        fields = {}
    lines = [line.strip() for line in lines]
    start = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = [line.removeprefix(NEGATIVE).strip() for line in lines[start:]]
    return Infotext("\n".join(lines[:start]).strip(), "\n".join(negative).strip(), fields)


def parse_fields(line: str) -> dict[str, str]:
    """Fields of one line: "Steps: 20, Seed: 1" -> {"Steps": "20", "Seed": "1"}; other parts are skipped."""
    fields = {}
    for match in PART.finditer(line):
        # words before the key, as in "(masterpiece) Steps: 20", are not part of it
        head = re.split(r"[^\w \-/]", match[1] or "")[-1].strip()
        key = KEY.fullmatch(head)
        if key:
            fields[key[0]] = _unquoted(match[2].strip())
    return fields


def _checked(key: str) -> str:
    if not KEY.fullmatch(key):
        raise ValueError(f"infotext key {key!r}: two or more letters, digits, spaces, '-' or '/' are needed")
    return key


def _quoted(value: str) -> str:
    """JSON where the bare value would end early or be changed; A1111 quotes for comma, colon and line break only."""
    is_plain = value and value == value.strip() and value.isprintable() and not re.search(r'[,:\n]|^"', value)
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
