"""Every sentence that the program can show to somebody, read from its sources.

    python -m tools.message_list [FOLDER]           one line for each: file, then the text
    python -m tools.message_list --json [FOLDER]    the same as JSON, as tests/data keeps an older state of it

A message is a string in the code that reads like words: raised, notified, refused, written beside a control or
printed.  What is filled in when it is shown stands as {}; strings that are added up in one expression are one message.
Docstrings are no messages, and neither are the texts of tests and tools.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("sd_vae_kit", "scripts", "launch.py", "install.py", "preload.py")
FILLED_IN = "{}"
PLACE = re.compile(r"%[sdr]|\{\w*\}")  # in texts that logging or str.format fill in
FEWEST_WORDS, FEWEST_TOKENS = 2, 3  # a token is a word or something filled in
WORD = re.compile(r"[A-Za-z]{2,}|\b[aAI]\b")
NO_SENTENCE = re.compile(r"</?[a-z]+[ >]|[{;]$|^import |\\|\(\?|=>|var\(--|^[\w.*{}-]+$")


@dataclass(frozen=True, order=True)
class Message:
    """One sentence.

    Attributes:
        text: As it is shown, with {} for each thing filled in.
        file: Where it is written, relative to the repository.
    """

    text: str
    file: str


def messages(root: Path) -> list[Message]:
    """The messages of a checkout, sorted, each text once per file."""
    found = {
        Message(text, path.relative_to(root).as_posix())
        for path in sources(root)
        for text in templates(ast.parse(path.read_text("utf-8")))
    }
    return sorted(found)


def sources(root: Path) -> Iterator[Path]:
    for name in SOURCES:
        path = root / name
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def templates(tree: ast.AST) -> Iterator[str]:
    """The texts of one file that read like a message."""
    inner = docstrings(tree)
    for node in ast.walk(tree):  # the outermost expression comes first
        if id(node) in inner:
            continue
        text = template(node)
        if text is not None:
            inner.update(id(part) for part in ast.walk(node))
            text = " ".join(text.split())
            if reads_like_words(text):
                yield text


def reads_like_words(text: str) -> bool:
    enough = len(WORD.findall(text)) >= FEWEST_WORDS and len(text.split()) >= FEWEST_TOKENS
    return enough and not NO_SENTENCE.search(text)


def docstrings(tree: ast.AST) -> set[int]:
    """The nodes of strings that stand alone, which nobody is shown."""
    alone = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return {id(value) for value in alone if isinstance(value, ast.Constant)}


def template(node: ast.AST) -> str | None:
    """The text of a string, an f-string or several added up, with {} for what is filled in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return PLACE.sub(FILLED_IN, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or FILLED_IN for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = template(node.left), template(node.right)
        if sides != (None, None):
            return "".join(FILLED_IN if side is None else side for side in sides)
    return None


def segments(text: str) -> list[str]:
    """The words of a message between the things filled in: what can be looked for in another state of the code."""
    parts = (part.strip(" \"'.,:;()[]<>=*-") for part in text.split(FILLED_IN))
    return [part for part in parts if len(WORD.findall(part)) > 1]


def gone(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """Messages of `before` with words that `after` does not have any more, in their order.

    Words are looked for between the things filled in: a sentence that is put together from parts is still the same.
    """
    everything = "\n".join(after)
    return [text for text in before if not all(segment in everything for segment in segments(text))]


def main(arguments: list[str]) -> None:
    as_json = "--json" in arguments
    folders = [word for word in arguments if word != "--json"]
    found = messages(Path(folders[0]) if folders else ROOT)
    if as_json:
        print(json.dumps({m.file: [n.text for n in found if n.file == m.file] for m in found}, indent=1))
    else:
        print("\n".join(f"{message.file}\t{message.text}" for message in found))


if __name__ == "__main__":
    main(sys.argv[1:])
