"""HTML of the stand-alone pages from plain data; every text that is shown goes through `escape`."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

from sd_vae_kit.standalone.job import Snapshot
from sd_vae_kit.standalone.pages.backend_protocol import TopBar, VaeFacts, VaeRow
from sd_vae_kit.ui.markup import marked, status_lines
from sd_vae_kit.web.message import Message


def active_line(bar: TopBar) -> str:
    """Which VAE is live and why."""
    digits = f'<code title="VAE hash: first ten digits of its sha256">{escape(bar.active_hash)}</code>'
    return (
        f'<div class="vk-active">Active VAE: <b>{escape(bar.active)}</b>'
        f"{digits if bar.active_hash else ''} <span>{marked(bar.reason)}</span></div>"
    )


def live_view(snapshot: Snapshot) -> str:
    """The picture so far and a bar with how far it is."""
    picture = '<div class="vk-preview vk-empty"></div>'
    if snapshot.preview:
        data = base64.b64encode(snapshot.preview).decode("ascii")
        picture = f'<div class="vk-preview"><img alt="preview" src="data:image/jpeg;base64,{data}"></div>'
    share = 100 * snapshot.step / max(1, snapshot.steps)
    phase = escape(snapshot.phase or "starting")
    steps = f", {snapshot.step} of {snapshot.steps}" if snapshot.step else ""
    bar = (
        f'<div class="vk-progress" role="progressbar" aria-valuenow="{share:.0f}">'
        f'<div class="vk-done" style="width: {share:.1f}%"></div><span>{phase}{steps}</span></div>'
    )
    return f'<div class="vk-live vk-shown">{picture}{bar}</div>'


def outcome_line(snapshot: Snapshot) -> str:
    """One line under the gallery: how the job went."""
    level = {"failed": "error", "interrupted": "warning"}.get(snapshot.state, "info")
    return status_lines([Message(snapshot.message, level)]) if snapshot.message else ""


def facts_table(facts: VaeFacts) -> str:
    """Name and value in two columns, warnings and the reason of a broken file above."""
    notes = [Message(facts.problem, "error")] if facts.problem else []
    notes += [Message(text, "warning") for text in facts.warnings]
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.rows)
    return f'{status_lines(notes)}<table class="vk-facts"><tbody>{rows}</tbody></table>'


def files_table(rows: Iterable[VaeRow]) -> str:
    """All files, the active one marked, broken ones with their reason."""
    body = "".join(_file_row(row) for row in rows)
    if not body:
        return '<p class="vk-hint">No VAE files were found. Put some into models/VAE and press refresh.</p>'
    heads = "".join(f"<th>{name}</th>" for name in ("Name", "Family", "Kind", "Size", ""))
    table = f'<table class="vk-files"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="vk-scroll">{table}</div>'


def _file_row(row: VaeRow) -> str:
    note = escape(row.problem) or ("active" if row.active else "")
    kind = "vk-broken" if row.problem else "vk-is-active" if row.active else ""
    cells = "".join(f"<td>{escape(text)}</td>" for text in (row.name, row.family, row.kind, row.size))
    return f'<tr class="{kind}">{cells}<td>{note}</td></tr>'
