"""HTML of the catalogue's part of the VAE tab from plain data; every text that is shown goes through `escape`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sd_vae_kit.ui.markup import marked, status_lines
from sd_vae_kit.vaes.gallery_row import GalleryRow
from sd_vae_kit.web.catalogue_protocol import InstallView, RuleLine
from sd_vae_kit.web.message import Message
from sd_vae_kit.wording import Sentence

HEADS = ("Name", "Family", "Size", "Hash", "Precision", "Origin", "Used by", "What it is good for")
RULE_HEADS = ("", "If", "VAE", "Why or why not")
BADGES = {"installed": "installed", "can be installed": "can be installed", "only recognised": ""}


def error_line(error: Exception) -> str:
    """What went wrong, as a line of the page."""
    return status_lines([Message(str(error), "error")])


def catalogue_table(rows: Sequence[GalleryRow]) -> str:
    """All rows, the live file marked, broken ones with their reason."""
    if not rows:
        return '<p class="vk-hint">Nothing fits; take words out of the search or choose "all".</p>'
    return _table("vk-known", "vk-tall", HEADS, [_table_row(row) for row in rows])


def _table(kind: str, box: str, heads: Sequence[str], rows: Sequence[str]) -> str:
    titles = "".join(f"<th>{head}</th>" for head in heads)
    table = f'<table class="vk-files {kind}"><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="vk-scroll {box}">{table}</div>'


def _table_row(row: GalleryRow) -> str:
    kind = "vk-broken" if row.problem else "vk-is-active" if row.is_active else ""
    state = BADGES[row.group]
    badge = f' <span class="vk-badge vk-{row.group.split()[0]}">{state}</span>' if state else ""
    cells = (
        row.family,
        size_text(row.size),
        row.digits,
        row.precision,
        row.origin,
        Sentence.joined(", ", row.used_by),
        row.problem or row.note,
    )
    texts = "".join(f"<td>{marked(text)}</td>" for text in cells)
    return f'<tr class="{kind}"><td>{escape(row.name)}{badge}</td>{texts}</tr>'


def size_text(size: int | None) -> str:
    """334641190 -> "334.6 MB"."""
    if size is None:
        return ""
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} KB"


def about(row: GalleryRow | None) -> str:
    """What is said about the selected VAE before it is installed."""
    if row is None:
        return '<p class="vk-hint">Choose a VAE to install, verify or find it.</p>'
    notes = [Message(row.problem, "error")] if row.problem else []
    notes += [Message(text, "warning") for text in row.cautions if row.can_install]
    facts = (
        ("Family", row.family),
        ("Known by", row.known_by),
        ("Size", size_text(row.size) or "not known"),
        ("VAE hash", row.digits or "not known"),
        ("Precision", row.precision),
        ("Origin", row.origin),
        ("Licence", row.licence),
        ("Used by", Sentence.joined(", ", row.used_by)),
        ("Good for", row.note),
    )
    lines = "".join(f"<tr><th>{name}</th><td>{marked(value)}</td></tr>" for name, value in facts if value)
    return f'{status_lines(notes)}<table class="vk-facts"><tbody>{lines}</tbody></table>'


def progress(state: InstallView) -> str:
    """A bar for what runs, one line for each download."""
    if not state.lines:
        return ""
    bar = ""
    if state.is_running:
        percent = round(100 * (state.fraction or 0.0))
        bar = (
            f'<div class="vk-progress"><div class="vk-done" style="width:{percent}%"></div>'
            f"<span>{percent} %</span></div>"
        )
    return bar + status_lines(state.lines)


def rules_table(lines: Sequence[RuleLine]) -> str:
    """Rules in order, the one that decides marked."""
    if not lines:
        return status_lines([Message("There are no rules; the card and files beside the checkpoint decide.")])
    return _table("vk-rules", "vk-shown", RULE_HEADS, [_rule_row(line) for line in lines])


def _rule_row(line: RuleLine) -> str:
    cells = (str(line.number), line.conditions, line.vae, line.why)
    texts = "".join(f"<td>{marked(text)}</td>" for text in cells)
    return f'<tr class="{"vk-is-active" if line.decides else ""}">{texts}</tr>'
